//! Finds the control node that takes the link. Several are asked at a time, so that one that has fallen silent without
//! closing anything (its process is frozen, its cable pulled) holds up nobody.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// How long a control node is waited for before the next is asked beside it.
const STAGGER: Duration = Duration::from_millis(250);
/// The wait between two rounds through all control nodes: the first, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Redirects that are followed in one round.
const REDIRECTS_MAX: u32 = 4;

/// Why a control node did not take the link.
#[derive(Debug)]
pub enum Refused {
    /// Another leads, by its address; empty where none is known.
    Redirect(String),
    Failed(String),
}

/// Whom to ask, and in which order.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// `host:port` of the control nodes.
    pub known: Vec<String>,
    /// Who leads, as far as another control node told.
    pub leader: Option<String>,
    /// Whose link was lost. It is asked last: most probably it is the one that is not there.
    pub lost: Option<String>,
}

impl Candidates {
    fn round(&self) -> VecDeque<String> {
        let last = self.known.iter().filter(|address| Some(*address) == self.lost.as_ref());
        let others = self.known.iter().filter(|address| Some(*address) != self.lost.as_ref());
        let mut seen = BTreeSet::new();
        let all = self.leader.iter().chain(others).chain(last);
        all.filter(|address| seen.insert(address.as_str())).cloned().collect()
    }
}

/// Asks until one takes the link: its address and what it gave. None where no control node is known at all.
///
/// Of one address there is one try at a time. `ask` must end by itself; what loses the race is dropped.
pub async fn race<T, F>(mut candidates: Candidates, ask: impl Fn(String) -> F) -> Option<(String, T)>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Refused>> + Send + 'static,
{
    let mut round = candidates.round();
    if round.is_empty() {
        return None;
    }
    candidates.leader = None;
    let mut asked = BTreeSet::new();
    let mut answers = JoinSet::new();
    let (mut wait, mut redirects) = (RETRY_MIN, 0);
    let mut next_at = Instant::now();
    loop {
        tokio::select! {
            Some(answer) = answers.join_next() => {
                let (address, answer): (String, Result<T, Refused>) =
                    answer.expect("no try is cancelled while the race lasts, and none panics");
                asked.remove(&address);
                match answer {
                    Ok(opened) => return Some((address, opened)),
                    Err(Refused::Redirect(leader)) if leader.is_empty() => {
                        tracing::debug!(address, "the cluster has no leader at present");
                    }
                    Err(Refused::Redirect(leader)) => {
                        if redirects < REDIRECTS_MAX {
                            redirects += 1;
                            round.retain(|other| *other != leader);
                            round.push_front(leader);
                        }
                    }
                    Err(Refused::Failed(reason)) => {
                        tracing::warn!(address, reason, "no link to this control node");
                    }
                }
                if !round.is_empty() {
                    next_at = Instant::now();
                }
            }
            () = sleep_until(next_at) => match round.pop_front() {
                Some(address) => {
                    if asked.insert(address.clone()) {
                        let trying = ask(address.clone());
                        answers.spawn(async move { (address, trying.await) });
                        next_at = Instant::now() + STAGGER;
                    }
                }
                None => {
                    next_at = Instant::now() + wait.mul_f64(rand::random_range(0.5..1.0));
                    wait = (wait * 2).min(RETRY_MAX);
                    (round, redirects) = (candidates.round(), 0);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc};

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
