//! How long somebody may be waited for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// The patience with somebody who is to deliver or to take bytes. Time counts only while it is they who are waited for.
pub(super) struct Pace {
    patience: Duration,
    /// What a byte makes good; none where any delivery makes good everything.
    bytes_per_second: Option<u32>,
    /// What was waited already and not made good.
    waited: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(super) fn new(patience: Duration, bytes_per_second: Option<u32>) -> Self {
        Self { patience, bytes_per_second, waited: Duration::ZERO, since: None, timer: None }
    }

    /// They are waited for. Ready when the patience is at its end.
    pub(super) fn poll_waiting(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            let end = now + self.patience.saturating_sub(self.waited);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(end),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(end))),
            }
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(context),
            None => Poll::Pending,
        }
    }

    /// So many bytes came on.
    pub(super) fn moved(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
        if self.waited.is_zero() {
            return;
        }
        self.waited = match self.bytes_per_second {
            None => Duration::ZERO,
            Some(rate) => {
                let good = Duration::from_secs_f64(bytes as f64 / f64::from(rate.max(1)));
                self.waited.saturating_sub(good)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Waits so long; true where the patience was at its end by then.
    async fn wait(pace: &mut Pace, seconds: u64) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        assert!(pace.poll_waiting(&mut context).is_pending());
        tokio::time::advance(Duration::from_secs(seconds)).await;
        pace.poll_waiting(&mut context).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_on_fast_enough_may_go_on_for_ever() {
        let mut pace = Pace::new(Duration::from_secs(30), Some(1024));
        for _ in 0..100 {
            assert!(!wait(&mut pace, 20).await);
            pace.moved(20 * 1024);
            // Time in which nobody waits for them is not theirs.
            tokio::time::advance(Duration::from_secs(100)).await;
            pace.moved(0);
        }
        assert!(wait(&mut pace, 30).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_not_enough() {
        let mut pace = Pace::new(Duration::from_secs(30), Some(1024));
        for _ in 0..2 {
            assert!(!wait(&mut pace, 10).await);
            pace.moved(1);
        }
        assert!(wait(&mut pace, 11).await);
        let mut pace = Pace::new(Duration::from_secs(30), None);
        for _ in 0..20 {
            assert!(!wait(&mut pace, 20).await);
            pace.moved(1);
        }
        assert!(wait(&mut pace, 30).await);
    }
}
