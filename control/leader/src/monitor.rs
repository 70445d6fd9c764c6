//! What is written of nodes that are heard of, and of those that are not. Only changes are.

use std::{collections::BTreeMap, time::Duration};

use coracle_objects::{Object, Revision, Transaction, View};
use jiff::Timestamp;

use crate::{
    hearing::Hearing,
    node_object::{self, Pressures, Readiness, ready_status},
    silence::Verdict,
};

/// The service account in whose name is written whether nodes are heard of. Source: kube-controller-manager.
pub const ACCOUNT: &str = "node-controller";

/// Nodes that are told in one transaction to be down.
pub const TOGETHER_MAX: usize = 32;

/// What a node's object and its node said when both agreed: nothing is to be done until one of them changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Agreed {
    revision: Revision,
    alive: bool,
    pressures: Option<Pressures>,
}

/// Remembers which nodes are as their objects say.
#[derive(Debug, Default)]
pub struct Monitor {
    agreed: BTreeMap<String, Agreed>,
}

/// What one look at all nodes has come to.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Of nodes that are not heard of. To be written together: see [`together`].
    pub downs: Vec<Transaction>,
    /// Of all others.
    pub writes: Vec<Transaction>,
    /// When the next verdict falls if nothing is heard until then.
    pub next: Option<Duration>,
    pub turned: Vec<Turned>,
}

/// A node's readiness changes, once it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turned {
    pub node: String,
    pub ready: bool,
}

impl Monitor {
    /// Looks at all nodes. `now` on the clock of the hearing, `date` on the wall's.
    pub fn judge(
        &mut self,
        view: &View,
        hearing: &Hearing,
        linked: impl Fn(&str) -> bool,
        now: Duration,
        date: Timestamp,
    ) -> Judgement {
        self.agreed.retain(|node, _| view.get(&node_object::key(node)).is_some());
        let verdicts = hearing.verdicts(now);
        let mut judgement = Judgement { next: verdicts.next, ..Judgement::default() };
        for node in view.list("nodes", None) {
            let alive = match verdicts.of(node.name()) {
                Verdict::Alive => true,
                Verdict::Down => false,
                Verdict::Undecided => continue,
            };
            let pressures = hearing.nodes.get(node.name()).and_then(|heard| heard.pressures);
            if alive && pressures.is_none() && !linked(node.name()) {
                // A new leader has not heard of the node yet: its state stays as it is for the grace period.
                continue;
            }
            let Some(write) = self.change(node, alive, pressures, date) else { continue };
            if !alive || ready_status(node) != "True" {
                judgement.turned.push(Turned { node: node.name().to_owned(), ready: alive });
            }
            if alive { &mut judgement.writes } else { &mut judgement.downs }.push(write);
        }
        judgement
    }

    fn change(
        &mut self,
        node: &Object,
        alive: bool,
        pressures: Option<Pressures>,
        date: Timestamp,
    ) -> Option<Transaction> {
        let present = Agreed { revision: node.revision, alive, pressures };
        if self.agreed.get(node.name()) == Some(&present) {
            return None;
        }
        let transaction = match alive {
            true => node_object::transition(node, Readiness::Ready, pressures, date),
            false => node_object::transition(node, Readiness::Unknown, None, date),
        };
        if transaction.is_none() {
            self.agreed.insert(node.name().to_owned(), present);
        }
        transaction
    }
}

/// Tells that nodes are down, of as many as possible at once: who sees only the first of them takes it for the only one.
/// Where one of them has changed meanwhile, each is to be told by itself.
pub fn together(downs: &[Transaction]) -> impl Iterator<Item = (Transaction, &[Transaction])> {
    downs.chunks(TOGETHER_MAX).map(|some| {
        let mut one = Transaction::default();
        for transaction in some.iter().cloned() {
            one.preconditions.extend(transaction.preconditions);
            one.writes.extend(transaction.writes);
        }
        (one, some)
    })
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Write, draft::encode};
    use serde_json::json;

    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn date() -> Timestamp {
        Timestamp::from_second(1_000_000).unwrap()
    }

    fn write(view: &mut View, write: &Write) {
        let Write::Put { key, draft } = write else { panic!("a put") };
        let revision = view.revision + 1;
        let object = Object::from_draft(key.clone(), draft, revision).unwrap();
        view.revision = revision;
        view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object.into());
    }

    fn view(nodes: &[&str]) -> View {
        let mut view = View::default();
        for node in nodes {
            let draft = encode(&json!({ "metadata": { "name": node }, "status": {} }));
            self::write(&mut view, &Write::Put { key: node_object::key(node), draft });
        }
        view
    }

    #[test]
    fn only_changes_are_written_and_told() {
        let (mut view, mut monitor) = (view(&["a", "b"]), Monitor::default());
        let mut hearing = Hearing::begin(&view, NOW);
        let at = |seconds: u64| NOW + Duration::from_secs(seconds);
        let first = monitor.judge(&view, &hearing, |_| false, NOW, date());
        assert!(first.writes.is_empty() && first.downs.is_empty(), "nothing is known of them yet");
        hearing.hear("a", Some(Pressures::default()), NOW);
        let second = monitor.judge(&view, &hearing, |_| false, NOW, date());
        assert_eq!(second.turned, [Turned { node: "a".to_owned(), ready: true }]);
        second.writes.iter().for_each(|one| self::write(&mut view, &one.writes[0]));
        assert!(monitor.judge(&view, &hearing, |_| false, NOW, date()).writes.is_empty());
        hearing.hear("a", None, at(5));
        let late = monitor.judge(&view, &hearing, |_| false, at(6), date());
        assert_eq!((late.downs.len(), late.writes.len()), (1, 0));
        assert_eq!(late.turned, [Turned { node: "b".to_owned(), ready: false }]);
    }

    #[test]
    fn many_that_are_down_are_told_of_at_once() {
        let names: Vec<String> = (0..TOGETHER_MAX + 1).map(|number| format!("n{number:02}")).collect();
        let view = view(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let hearing = Hearing::begin(&view, Duration::ZERO);
        let judged = Monitor::default().judge(&view, &hearing, |_| false, NOW, date());
        let sizes: Vec<usize> = together(&judged.downs).map(|(one, _)| one.writes.len()).collect();
        assert_eq!(sizes, [TOGETHER_MAX, 1]);
    }
}
