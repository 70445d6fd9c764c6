//! Finds the control node that takes the link. Several are asked at a time, so that one that has fallen silent without
//! closing anything (its process is frozen, its cable pulled) holds up nobody.

use coracle_core::race::Race;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

pub use coracle_core::race::Candidates;

/// Why a control node did not take the link.
#[derive(Debug)]
pub enum Refused {
    /// Another leads, by its address; empty where none is known.
    Redirect(String),
    Failed(String),
}

/// Asks until one takes the link: its address and what it gave. None where no control node is known at all.
///
/// Of one address there is one try at a time. `ask` must end by itself; what loses the race is dropped.
pub async fn race<T, F>(candidates: Candidates, ask: impl Fn(String) -> F) -> Option<(String, T)>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Refused>> + Send + 'static,
{
    let begun = Instant::now();
    let mut race = Race::begin(candidates, begun.elapsed())?;
    let mut answers = JoinSet::new();
    loop {
        tokio::select! {
            Some(answer) = answers.join_next() => {
                let (address, answer): (String, Result<T, Refused>) =
                    answer.expect("no try is cancelled while the race lasts, and none panics");
                let leader = match answer {
                    Ok(opened) => return Some((address, opened)),
                    Err(Refused::Redirect(leader)) if leader.is_empty() => {
                        tracing::debug!(address, "the cluster has no leader at present");
                        None
                    }
                    Err(Refused::Redirect(leader)) => Some(leader),
                    Err(Refused::Failed(reason)) => {
                        tracing::warn!(address, reason, "no link to this control node");
                        None
                    }
                };
                race.refused(&address, leader, begun.elapsed());
            }
            () = sleep_until(begun + race.next_at()) => {
                if let Some(address) = race.ask(begun.elapsed(), rand::random_range(0.0..1.0)) {
                    let trying = ask(address.clone());
                    answers.spawn(async move { (address, trying.await) });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc, time::Duration};

    use coracle_core::race::RETRY_MAX;
    use parking_lot::Mutex;

    use super::*;

    fn among(known: &[&str], lost: &str) -> Candidates {
        let known = known.iter().map(ToString::to_string).collect();
        Candidates { known, leader: None, lost: Some(lost.to_owned()) }
    }

    /// What an address does when it is asked.
    #[derive(Clone, Copy)]
    enum Control {
        Silent,
        Takes,
        Redirects(&'static str),
        Fails,
    }

    /// Races among control nodes that behave as `behaves` says of an address and the time since the beginning. Who won,
    /// when, and who was asked.
    async fn run(
        candidates: Candidates,
        behaves: impl Fn(&str, Duration) -> Control + Send + Sync + 'static,
    ) -> (String, Duration, Vec<String>) {
        let (begun, asked) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
        let behaves = Arc::new(behaves);
        let log = asked.clone();
        let won = race(candidates, move |address| {
            log.lock().push(address.clone());
            let behaves = behaves.clone();
            async move {
                match behaves(&address, begun.elapsed()) {
                    Control::Silent => tokio::time::timeout(Duration::from_secs(5), pending::<()>())
                        .await
                        .map_err(|_| Refused::Failed("no answer in time".to_owned())),
                    Control::Takes => Ok(()),
                    Control::Redirects(leader) => Err(Refused::Redirect(leader.to_owned())),
                    Control::Fails => Err(Refused::Failed("closed".to_owned())),
                }
            }
        });
        let (address, ()) = won.await.unwrap();
        let asked = asked.lock().clone();
        (address, begun.elapsed(), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_fell_silent_is_asked_last() {
        let (won, after, asked) = run(among(&["a", "b", "c"], "a"), |address, _| match address {
            "c" => Control::Takes,
            "b" => Control::Redirects("c"),
            _ => Control::Silent,
        })
        .await;
        assert_eq!((won.as_str(), asked), ("c", vec!["b".to_owned(), "c".to_owned()]));
        assert!(after < Duration::from_millis(50), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silent_ones_hold_up_nobody() {
        // The followers still take the one that is frozen for the leader, for a second.
        let (won, after, asked) =
            run(among(&["frozen", "gone", "b", "c"], "frozen"), |address, at| match address {
                "b" | "c" if at < Duration::from_secs(1) => Control::Redirects("frozen"),
                "b" => Control::Redirects("c"),
                "c" => Control::Takes,
                _ => Control::Silent,
            })
            .await;
        assert_eq!(won, "c");
        assert!(after < Duration::from_millis(2_500), "{after:?}: {asked:?}");
        assert_eq!(asked.iter().filter(|address| *address == "frozen").count(), 1, "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_control_node_is_asked_until_it_answers() {
        let (_, after, asked) = run(among(&["a"], "a"), |_, at| match at.as_secs() {
            0..15 => Control::Silent,
            _ => Control::Takes,
        })
        .await;
        assert!(after < Duration::from_secs(22), "{after:?}");
        assert!(asked.len() <= 6, "{asked:?}");
        let (_, after, asked) = run(among(&["a"], "a"), |_, at| match at.as_secs() {
            0..60 => Control::Fails,
            _ => Control::Takes,
        })
        .await;
        assert!(
            after < Duration::from_secs(60) + RETRY_MAX && asked.len() < 70,
            "{after:?}, {}",
            asked.len()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn control_nodes_that_send_each_to_the_other_are_not_asked_all_the_time() {
        let (_, _, asked) = run(among(&["a", "b"], "a"), |address, at| match (address, at.as_secs()) {
            (_, 60..) => Control::Takes,
            ("a", _) => Control::Redirects("b"),
            _ => Control::Redirects("a"),
        })
        .await;
        assert!(asked.len() < 400, "{}", asked.len());
    }

    #[tokio::test]
    async fn nobody_to_ask() {
        assert!(race(Candidates::default(), |_| async { Ok::<(), _>(()) }).await.is_none());
    }
}
