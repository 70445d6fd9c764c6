//! Answers that still hold.
//!
//! All pods use what one has asked for. It is kept on the account of who asked, and makes room for what that pod, or another
//! of its namespace that has none, asks for later: who asks for many names makes no other namespace ask again.

use super::Family;
use crate::spare::{self, Spare};
use coracle_wasi_host::refusals::What;
use coracle_wasi_host::shares::{Holder, Permit, Shares};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Answers kept at once, of all pods together.
const ANSWERS_MAX: usize = 8192;

/// The longest that an answer is kept, and the longest that one is kept that there is no such name.
const LIFETIME_MAX: Duration = Duration::from_secs(300);
const NOTHING_LIFETIME_MAX: Duration = Duration::from_secs(30);

/// Answers that hold no more are looked for at most so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What name servers have said.
pub(super) struct Cache {
    places: Arc<Shares>,
    state: Mutex<State>,
}

struct State {
    answers: HashMap<Key, Answer>,
    /// All of them, by when they came.
    spare: Spare<Key>,
    swept: Instant,
}

type Key = (Arc<str>, Family);

struct Answer {
    /// None where the name has none.
    addresses: Option<Vec<IpAddr>>,
    until: Instant,
    place: Permit,
    /// Its place among the spare ones.
    spare: u64,
}

impl Default for Cache {
    fn default() -> Self {
        let state = State { answers: HashMap::new(), spare: Spare::default(), swept: Instant::now() };
        Self { places: Shares::new(What::Remembered, ANSWERS_MAX), state: Mutex::new(state) }
    }
}

impl Cache {
    /// Answers that are remembered.
    pub(super) fn held(&self) -> usize {
        self.places.held()
    }

    /// What holds of a name now; the inner option is none where there is no such name.
    pub(super) fn get(&self, name: &str, family: Family) -> Option<Option<Vec<IpAddr>>> {
        let state = self.state.lock();
        let answer = state.answers.get(&(name.into(), family))?;
        (answer.until > Instant::now()).then(|| answer.addresses.clone())
    }

    /// Keeps what `holder` was told, where there is room on its account.
    pub(super) fn put(
        &self,
        holder: &Holder,
        name: &str,
        family: Family,
        addresses: Option<Vec<IpAddr>>,
        lifetime: Duration,
    ) {
        let longest = if addresses.is_some() { LIFETIME_MAX } else { NOTHING_LIFETIME_MAX };
        let until = Instant::now() + lifetime.min(longest);
        let key: Key = (name.into(), family);
        let mut state = self.state.lock();
        state.forget(&key);
        let Ok(place) =
            spare::place(&self.places, holder, &mut *state, State::forget_old, |state| state.give_up(holder))
        else {
            return;
        };
        let spare = state.spare.enter(holder, key.clone());
        state.answers.insert(key, Answer { addresses, until, place, spare });
    }
}

impl State {
    fn forget(&mut self, key: &Key) {
        if let Some(answer) = self.answers.remove(key) {
            self.spare.leave(answer.place.holder(), answer.spare);
        }
    }

    /// Drops what can be done without and was used longest ago. None where there is nothing of that.
    fn give_up(&mut self, holder: &Holder) -> Option<()> {
        let key = self.spare.first(holder)?;
        self.forget(&key);
        Some(())
    }

    /// Looks for what is over, unless it did a moment ago.
    fn forget_old(&mut self) {
        if self.swept.elapsed() < SWEEP_EVERY {
            return;
        }
        let Self { answers, spare, swept } = self;
        *swept = Instant::now();
        answers.retain(|_, answer| {
            let keep = answer.until > *swept;
            if !keep {
                spare.leave(answer.place.holder(), answer.spare);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(namespace: &str, pod: u8) -> Holder {
        Holder { namespace: namespace.into(), pod: Some([10, 128, 0, pod].into()) }
    }

    fn put(cache: &Cache, name: &str, addresses: Option<Vec<IpAddr>>, lifetime: Duration) {
        cache.put(&holder("asks", 1), name, Family::V4, addresses, lifetime);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_hold_as_long_as_they_say_and_are_bounded() {
        let cache = Cache::default();
        let found = Some(vec![IpAddr::from([198, 51, 100, 1])]);
        put(&cache, "a.example", found.clone(), Duration::from_secs(20));
        put(&cache, "b.example", None, Duration::from_secs(3600));
        tokio::time::advance(Duration::from_secs(19)).await;
        assert_eq!(cache.get("a.example", Family::V4), Some(found));
        assert_eq!(cache.get("a.example", Family::V6), None);
        assert_eq!(cache.get("b.example", Family::V4), Some(None));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(cache.get("a.example", Family::V4), None);
        assert_eq!(cache.get("b.example", Family::V4), None);
        for number in 0..ANSWERS_MAX * 2 {
            put(&cache, &number.to_string(), None, LIFETIME_MAX);
        }
        assert!(cache.state.lock().answers.len() <= ANSWERS_MAX);
        // What holds no more makes room first, where a pod has its share.
        let cache = Cache::default();
        put(&cache, "kept.example", None, LIFETIME_MAX);
        for number in 1..=ANSWERS_MAX / 3 {
            put(&cache, &number.to_string(), None, Duration::from_secs(1));
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        put(&cache, "next.example", None, LIFETIME_MAX);
        assert_eq!(cache.get("kept.example", Family::V4), Some(None));
        assert_eq!(cache.state.lock().answers.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_many_names_makes_no_other_namespace_ask_again() {
        let cache = Cache::default();
        let keep = |holder: &Holder, name: &str| cache.put(holder, name, Family::V4, None, LIFETIME_MAX);
        for name in ["db.example", "api.example"] {
            keep(&holder("modest", 1), name);
        }
        for (pod, number) in (2..6).flat_map(|pod| (0..ANSWERS_MAX).map(move |number| (pod, number))) {
            keep(&holder("greedy", pod), &format!("{pod}-{number}.example"));
        }
        for name in ["db.example", "api.example", &format!("5-{}.example", ANSWERS_MAX - 1)] {
            assert_eq!(cache.get(name, Family::V4), Some(None), "{name}");
        }
        assert_eq!(cache.get("2-0.example", Family::V4), None, "the oldest of one's own go first");
        // Who comes next finds room.
        keep(&holder("next", 1), "next.example");
        assert_eq!(cache.get("next.example", Family::V4), Some(None));
        assert!(cache.places.held() <= ANSWERS_MAX);
    }
}
