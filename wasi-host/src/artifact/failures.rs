//! What cannot be made, remembered: restarts of a pod do not have the same bytes compiled again and again.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::PrepareError;

/// Failures that are remembered; the one that was asked for longest ago goes first.
const FAILURES_MAX: usize = 4096;

/// Until what may pass is tried again: at first, and at most. It doubles each time.
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// Failures by the digest of the bytes.
#[derive(Default)]
pub(super) struct Failures {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    failures: HashMap<String, Failure>,
    /// Counts up with each use: the smallest goes first.
    uses: u64,
}

struct Failure {
    error: PrepareError,
    /// When it may be tried again, and how long the wait before was; `None` where it fails always.
    retry: Option<(Instant, Duration)>,
    used: u64,
}

impl Failures {
    /// How many are remembered.
    pub(super) fn held(&self) -> usize {
        self.known.lock().failures.len()
    }

    /// Fails where these bytes need not be tried now, as they failed before.
    pub(super) fn check(&self, digest: &str) -> Result<(), PrepareError> {
        self.recall(digest).map_or(Ok(()), Err)
    }

    fn recall(&self, digest: &str) -> Option<PrepareError> {
        let mut known = self.known.lock();
        known.uses += 1;
        let uses = known.uses;
        let failure = known.failures.get_mut(digest)?;
        failure.used = uses;
        match failure.retry {
            Some((at, _)) if at <= Instant::now() => None,
            _ => Some(failure.error.clone()),
        }
    }

    pub(super) fn remember(&self, digest: &str, error: &PrepareError) {
        let mut known = self.known.lock();
        known.uses += 1;
        let used = known.uses;
        let before = known.failures.get(digest).and_then(|failure| failure.retry);
        let wait = before.map_or(RETRY_FIRST, |(_, wait)| (wait * 2).min(RETRY_MAX));
        let retry = error.may_pass().then(|| (Instant::now() + wait, wait));
        let failure = Failure { error: error.clone(), retry, used };
        known.failures.insert(digest.to_owned(), failure);
        if known.failures.len() > FAILURES_MAX {
            let oldest = known.failures.iter().min_by_key(|(_, failure)| failure.used);
            if let Some(oldest) = oldest.map(|(digest, _)| digest.clone()) {
                known.failures.remove(&oldest);
            }
        }
    }

    /// They were made after all.
    pub(super) fn forget(&self, digest: &str) {
        self.known.lock().failures.remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given_up() -> PrepareError {
        PrepareError::GivenUp { message: "too much memory".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_ever_later_and_what_may_not_never() {
        let failures = Failures::default();
        assert!(failures.recall("a").is_none());
        failures.remember("a", &PrepareError::Compile { message: "invalid".to_owned() });
        tokio::time::advance(RETRY_MAX * 24).await;
        assert!(failures.recall("a").is_some());
        let mut wait = RETRY_FIRST;
        for _ in 0..10 {
            failures.remember("b", &given_up());
            tokio::time::advance(wait - Duration::from_millis(1)).await;
            assert!(failures.recall("b").is_some(), "{wait:?}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(failures.recall("b").is_none(), "{wait:?}");
            wait = (wait * 2).min(RETRY_MAX);
        }
        failures.forget("b");
        failures.remember("b", &given_up());
        tokio::time::advance(RETRY_FIRST).await;
        assert!(failures.recall("b").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded_and_those_asked_for_stay() {
        let failures = Failures::default();
        failures.remember("kept", &given_up());
        for at in 0..2 * FAILURES_MAX {
            failures.remember(&at.to_string(), &given_up());
            assert!(failures.recall("kept").is_some());
        }
        assert_eq!(failures.known.lock().failures.len(), FAILURES_MAX);
    }
}
