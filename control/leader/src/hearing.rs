//! What was heard of all nodes, and since when this control node could hear. In memory only.

use std::{collections::BTreeMap, time::Duration};

use coracle_objects::View;

use crate::node_object::Pressures;

/// Nodes bear a control node that is away for less: their links hold, or they come back to them at once.
pub const AWAY_MIN: Duration = Duration::from_millis(1_500);

/// What was heard of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hearing {
    /// When this control node began to lead, or went on after it had been away.
    pub since: Duration,
    pub nodes: BTreeMap<String, Heard>,
}

/// When a node was last heard of, and what it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub at: Duration,
    /// `None` before its first heartbeat to this member.
    pub pressures: Option<Pressures>,
    /// When its link broke, if it has not linked anew since.
    pub lost: Option<Duration>,
}

impl Heard {
    fn now(now: Duration) -> Self {
        Self { at: now, pressures: None, lost: None }
    }
}

impl Hearing {
    /// Of a new leader. Every node that exists has a full grace period to report to it.
    pub fn begin(view: &View, now: Duration) -> Self {
        let heard = Heard::now(now);
        let nodes = view.list("nodes", None).map(|node| (node.name().to_owned(), heard)).collect();
        Self { since: now, nodes }
    }

    /// A node says something, with a heartbeat how it fares. True where that is another than before.
    pub fn hear(&mut self, node: &str, pressures: Option<Pressures>, now: Duration) -> bool {
        let known = self.nodes.entry(node.to_owned()).or_insert_with(|| Heard::now(now));
        (known.at, known.lost) = (now, None);
        let news = pressures.is_some() && known.pressures != pressures;
        if news {
            known.pressures = pressures;
        }
        news
    }

    /// The link of a node broke.
    pub fn lose(&mut self, node: &str, now: Duration) {
        if let Some(heard) = self.nodes.get_mut(node) {
            heard.lost = Some(now);
        }
    }

    /// This control node did not run for `gap`: no silence of a node counts that fell into it. After a long one nodes
    /// have the time to come back that they have after a new leader took over: they have given their links up.
    pub fn away(&mut self, gap: Duration, now: Duration) {
        for heard in self.nodes.values_mut() {
            heard.at = (heard.at + gap).min(now);
            heard.lost = heard.lost.map(|lost| (lost + gap).min(now));
        }
        if gap >= AWAY_MIN {
            self.since = now;
        }
    }

    /// Forgets all nodes but these.
    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.nodes.retain(|node, _| stays(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_absence_of_ours_is_no_silence_of_nodes() {
        let mut hearing = Hearing::begin(&View::default(), at(1_000));
        hearing.hear("n1", None, at(61_000));
        let lost = at(61_000) + AWAY_MIN / 2;
        hearing.lose("n1", lost);
        hearing.away(AWAY_MIN / 4, lost);
        assert_eq!((hearing.since, hearing.nodes["n1"].at), (at(1_000), at(61_000) + AWAY_MIN / 4));
        assert_eq!(hearing.nodes["n1"].lost, Some(lost), "never later than now");
        let now = lost + at(15_000);
        hearing.away(at(15_000), now);
        assert_eq!(hearing.since, now);
        assert_eq!(hearing.nodes["n1"].at, at(76_000) + AWAY_MIN / 4);
    }

    #[test]
    fn only_what_a_node_says_anew_is_news() {
        let mut hearing = Hearing::default();
        assert!(!hearing.hear("n1", None, at(1)));
        assert!(hearing.hear("n1", Some(Pressures::default()), at(2)));
        assert!(!hearing.hear("n1", Some(Pressures::default()), at(3)));
        hearing.lose("n1", at(4));
        assert_eq!(hearing.nodes["n1"].lost, Some(at(4)));
        assert!(hearing.hear("n1", Some(Pressures { disk: true, ..Pressures::default() }), at(5)));
        assert_eq!(hearing.nodes["n1"].lost, None);
        hearing.retain(|_| false);
        assert!(hearing.nodes.is_empty());
    }
}
