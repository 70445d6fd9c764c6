//! From when on a node that is silent counts as down: a decision, without clocks or locks.

use std::{collections::BTreeMap, time::Duration};

use crate::hearing::{Heard, Hearing};

/// A node that was not heard of for so long is no longer Ready. Nodes send a heartbeat a second.
const NODE_MONITOR_GRACE: Duration = Duration::from_secs(4);

/// The same for a node whose link broke, which one that lives mends at once: its process has ended most probably.
const LOST_LINK_GRACE: Duration = Duration::from_millis(1_500);

/// Until nodes that live have found the leader after it changed, or after it was away itself: they notice its silence
/// within 1.75 s and then ask all control nodes. The silence of nobody counts before.
const COMING: Duration = Duration::from_secs(2);

/// Nodes that fall silent together do so within one heartbeat, and their links break at once where something between
/// them and us breaks. They are told of together, so that nobody takes the first for the only one.
const TOGETHER_SILENT: Duration = Duration::from_secs(1);
const TOGETHER_LOST: Duration = Duration::from_millis(250);

/// How it stands with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Alive,
    /// Its time is over; that of others is about to be.
    Undecided,
    Down,
}

/// The verdict on all nodes, and when the next falls if nothing is heard until then.
#[derive(Debug, Default)]
pub struct Verdicts {
    nodes: BTreeMap<String, Verdict>,
    pub next: Option<Duration>,
}

impl Verdicts {
    /// One that was never heard of since its object exists is down: nobody runs it.
    pub fn of(&self, node: &str) -> Verdict {
        self.nodes.get(node).copied().unwrap_or(Verdict::Down)
    }
}

impl Hearing {
    pub fn verdicts(&self, now: Duration) -> Verdicts {
        let ends: Vec<(&String, Duration, Duration)> =
            self.nodes.iter().map(|(node, heard)| (node, self.end(heard), together(heard))).collect();
        let next = ends.iter().map(|(_, end, _)| *end).filter(|end| *end > now).min();
        let verdict = |end: Duration, together: Duration| match next {
            _ if end > now => Verdict::Alive,
            Some(next) if next <= end + together => Verdict::Undecided,
            _ => Verdict::Down,
        };
        let nodes = ends.into_iter().map(|(node, end, together)| (node.clone(), verdict(end, together)));
        Verdicts { nodes: nodes.collect(), next }
    }

    /// When a node's time is over.
    fn end(&self, heard: &Heard) -> Duration {
        let could_come = self.since + COMING;
        let silent = heard.at.max(could_come) + NODE_MONITOR_GRACE;
        match heard.lost {
            // A link that broke before is one that we were not there to keep: its node is about to find us.
            Some(lost) if lost > could_come => silent.min(lost + LOST_LINK_GRACE),
            _ => silent,
        }
    }
}

fn together(heard: &Heard) -> Duration {
    if heard.lost.is_some() { TOGETHER_LOST } else { TOGETHER_SILENT }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// What was heard of `n0..`, each so many milliseconds after the beginning; links lost, likewise. The leader leads
    /// for an hour, if not said otherwise.
    struct Bench {
        begun: Duration,
        hearing: Hearing,
    }

    impl Bench {
        fn new(heard_ms: &[u64]) -> Self {
            let begun = HOUR;
            let mut bench = Self { begun, hearing: Hearing { since: begun - HOUR, nodes: BTreeMap::new() } };
            for (number, ms) in heard_ms.iter().enumerate() {
                let heard = Heard { at: bench.at(*ms), pressures: None, lost: None };
                bench.hearing.nodes.insert(format!("n{number}"), heard);
            }
            bench
        }

        fn at(&self, ms: u64) -> Duration {
            self.begun + Duration::from_millis(ms)
        }

        fn lose(&mut self, node: &str, ms: u64) {
            let lost = self.at(ms);
            self.hearing.nodes.get_mut(node).unwrap().lost = Some(lost);
        }

        /// A letter for each node: alive, undecided, down.
        fn verdicts(&self, ms: u64) -> String {
            let verdicts = self.hearing.verdicts(self.at(ms));
            let letter = |node: &String| match verdicts.of(node) {
                Verdict::Alive => 'a',
                Verdict::Undecided => 'u',
                Verdict::Down => 'd',
            };
            self.hearing.nodes.keys().map(letter).collect()
        }
    }

    #[test]
    fn a_node_is_down_after_four_seconds_or_soon_after_its_link_broke() {
        let mut bench = Bench::new(&[0, 3_500]);
        assert_eq!(bench.verdicts(3_999), "aa");
        assert_eq!(bench.verdicts(4_000), "da");
        bench.lose("n1", 3_600);
        assert_eq!(bench.verdicts(5_099), "da");
        assert_eq!(bench.verdicts(5_100), "dd");
        assert_eq!(bench.hearing.verdicts(bench.at(0)).of("stranger"), Verdict::Down);
    }

    #[test]
    fn nodes_that_fall_silent_together_are_told_of_together() {
        let bench = Bench::new(&[0, 300, 900, 3_900]);
        assert_eq!(bench.verdicts(3_999), "aaaa");
        assert_eq!(bench.verdicts(4_000), "uaaa");
        assert_eq!(bench.verdicts(4_899), "uuaa");
        assert_eq!(bench.verdicts(4_900), "ddda");
        assert_eq!(bench.hearing.verdicts(bench.at(4_100)).next, Some(bench.at(4_300)));
    }

    #[test]
    fn one_is_not_held_up_by_the_slow_end_of_others() {
        let bench = Bench::new(&[0, 900, 1_800, 2_700]);
        assert_eq!(bench.verdicts(4_000), "uaaa");
        assert_eq!(bench.verdicts(4_900), "duaa");
        assert_eq!(bench.verdicts(5_800), "ddua");
    }

    #[test]
    fn a_new_leader_counts_from_when_nodes_could_have_come() {
        let mut bench = Bench::new(&[0, 0, 5_000]);
        bench.hearing.since = bench.begun;
        // Its link broke while we were away, as far as we can tell.
        bench.lose("n1", 100);
        assert_eq!(bench.verdicts(5_999), "aaa");
        assert_eq!(bench.verdicts(6_000), "dda");
        bench.lose("n2", 5_100);
        assert_eq!(bench.verdicts(6_600), "ddd", "one that came and died is dead");
    }
}
