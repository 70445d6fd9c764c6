//! Answers that still hold.

use super::Family;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Answers kept at once, of all pods together.
const ANSWERS_MAX: usize = 8192;

/// The longest that an answer is kept, and the longest that one is kept that there is no such name.
const LIFETIME_MAX: Duration = Duration::from_secs(300);
const NOTHING_LIFETIME_MAX: Duration = Duration::from_secs(30);

/// What name servers have said.
#[derive(Default)]
pub(super) struct Cache {
    answers: Mutex<HashMap<(String, Family), Answer>>,
}

struct Answer {
    /// None where the name has none.
    addresses: Option<Vec<IpAddr>>,
    until: Instant,
}

impl Cache {
    /// What holds of a name now; the inner option is none where there is no such name.
    pub(super) fn get(&self, name: &str, family: Family) -> Option<Option<Vec<IpAddr>>> {
        let answers = self.answers.lock();
        let answer = answers.get(&(name.to_owned(), family))?;
        (answer.until > Instant::now()).then(|| answer.addresses.clone())
    }

    pub(super) fn put(&self, name: &str, family: Family, addresses: Option<Vec<IpAddr>>, lifetime: Duration) {
        let longest = if addresses.is_some() { LIFETIME_MAX } else { NOTHING_LIFETIME_MAX };
        let until = Instant::now() + lifetime.min(longest);
        let mut answers = self.answers.lock();
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, answer| answer.until > Instant::now());
        }
        if answers.len() >= ANSWERS_MAX {
            // Who asks for many names pays with a lookup for each; so does, now and then, somebody else.
            answers.clear();
        }
        answers.insert((name.to_owned(), family), Answer { addresses, until });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_hold_as_long_as_they_say_and_are_bounded() {
        let cache = Cache::default();
        let found = Some(vec![IpAddr::from([198, 51, 100, 1])]);
        cache.put("a.example", Family::V4, found.clone(), Duration::from_secs(20));
        cache.put("b.example", Family::V4, None, Duration::from_secs(3600));
        tokio::time::advance(Duration::from_secs(19)).await;
        assert_eq!(cache.get("a.example", Family::V4), Some(found));
        assert_eq!(cache.get("a.example", Family::V6), None);
        assert_eq!(cache.get("b.example", Family::V4), Some(None));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(cache.get("a.example", Family::V4), None);
        assert_eq!(cache.get("b.example", Family::V4), None);
        for number in 0..ANSWERS_MAX * 2 {
            cache.put(&number.to_string(), Family::V4, None, LIFETIME_MAX);
        }
        assert!(cache.answers.lock().len() <= ANSWERS_MAX);
        // What holds no more makes room first.
        let cache = Cache::default();
        cache.put("kept.example", Family::V4, None, LIFETIME_MAX);
        for number in 1..ANSWERS_MAX {
            cache.put(&number.to_string(), Family::V4, None, Duration::from_secs(1));
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        cache.put("next.example", Family::V4, None, LIFETIME_MAX);
        assert_eq!(cache.get("kept.example", Family::V4), Some(None));
        assert_eq!(cache.answers.lock().len(), 2);
    }
}
