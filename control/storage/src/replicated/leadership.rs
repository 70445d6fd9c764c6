//! Who leads, for those that wait for it.

use std::sync::Weak;

use coracle_member::{
    leadership::{Hearing, LEADERLESS_MAX, Leadership},
    retry::RETRY_PAUSE,
};
use coracle_raft::Leading;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::watch_hub::WatchHub;

/// Waits a moment, or less where leadership has moved meanwhile.
pub async fn wait_for_news(leading: &watch::Receiver<Leading>, seen: Leading, deadline: Instant) {
    let pause =
        if seen.leader.is_none() { deadline.saturating_duration_since(Instant::now()) } else { RETRY_PAUSE };
    let _ = timeout(pause, moved(leading.clone(), seen)).await;
}

/// Returns once there is another leader or term than was seen.
pub async fn moved(mut leading: watch::Receiver<Leading>, seen: Leading) {
    let news = leading.wait_for(|now| now.leader != seen.leader || now.term != seen.term).await.is_ok();
    if !news {
        // The member has stopped, and whoever waits is told so by what it waits for beside this.
        std::future::pending::<()>().await;
    }
}

/// Tells the hub whether a leader is heard, for as long as both live.
pub async fn follow_leadership(mut leading: watch::Receiver<Leading>, hub: Weak<WatchHub>) {
    let begun = Instant::now();
    let mut hearing = Hearing::new(LEADERLESS_MAX);
    let mut told = Leadership::Led;
    loop {
        let led = leading.borrow_and_update().led;
        hearing.hears(begun.elapsed(), led);
        let found = hearing.at(begun.elapsed());
        if found != told {
            let Some(hub) = hub.upgrade() else { return };
            hub.set_leadership(found);
            told = found;
            if found == Leadership::Lost {
                tracing::warn!("no leader is heard: watches end");
            }
        }
        let news = leading.wait_for(|now| now.led != led);
        let news = match hearing.lost_at().filter(|_| found == Leadership::Sought) {
            // Time is news too.
            Some(lost) => timeout_at(begun + lost, news).await.map_or(true, |news| news.is_ok()),
            None => news.await.is_ok(),
        };
        if !news {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hub_is_told_at_once_that_a_leader_is_sought_and_late_that_there_is_none() {
        let (_machine, hub) =
            crate::machine::Machine::new(Arc::new(watch::Sender::new(None)), Arc::default());
        let leads = |led| Leading { led, ..Leading::default() };
        let leading = watch::Sender::new(leads(true));
        tokio::spawn(follow_leadership(leading.subscribe(), Arc::downgrade(&hub)));
        let moment = Duration::from_millis(1);
        for (led, wait, expected) in [
            (true, moment, Leadership::Led),
            (false, moment, Leadership::Sought),
            (false, LEADERLESS_MAX / 2, Leadership::Sought),
            (true, moment, Leadership::Led),
            (false, LEADERLESS_MAX - moment, Leadership::Sought),
            (false, 2 * moment, Leadership::Lost),
            (true, moment, Leadership::Led),
        ] {
            leading.send_replace(leads(led));
            tokio::time::sleep(wait).await;
            assert_eq!(hub.leadership(), expected, "{led} for {wait:?}");
        }
    }
}
