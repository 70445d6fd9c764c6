//! How many nodes are given up, and how soon: the brake on evictions.
//!
//! A node that is not heard of may be dead, or it is the control plane that does not hear. Nodes that fall silent
//! together speak for the second, and moving all pods is then the worst that can be done. So, as upstream has it: one
//! node at a time, then at a rate; none in a zone of which most nodes are not ready; none where no node of the cluster
//! is. And none until nodes had time to come back after what was no fault of theirs: a new leader, a control plane
//! that did not run, the end of a disruption.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::zones::{Count, Zone, Zones};
use crate::draft::later;

/// How long nodes are given to come back. The server's monitor counts the silence of nodes by the same.
const GRACE_MS: i64 = 6_000;
/// A plan that comes so much later than it was asked for: the control plane did not run meanwhile.
const LATE_MS: i64 = 3_000;
/// Between two nodes of one zone that are given up. Upstream's `--node-eviction-rate` of 0.1 a second.
const PERIOD_MS: i64 = 10_000;
/// The same in a zone that is disrupted and large; in one that is not large, none is.
/// Upstream's `--secondary-node-eviction-rate` of 0.01 a second and `--large-cluster-size-threshold`.
const DISRUPTED_PERIOD_MS: i64 = 100_000;
const LARGE_ZONE_NODES: usize = 50;

/// Whether a node's pods may be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Now,
    /// Not before this moment.
    At(Timestamp),
    /// Not until more nodes are ready.
    Held,
}

/// A disruption that begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// No node of the cluster is ready any more.
    AllDown,
    /// Most nodes of this zone are not ready any more.
    Disrupted(Zone, Count),
    /// Again nodes are ready: those that are not have time to come back.
    Over,
}

/// What is remembered of the brake. All of it can be lost: a new leader gives all nodes time anyway.
#[derive(Debug, Default)]
pub struct Brake {
    /// Since when nodes that are down have time to come back. None before the first plan.
    began: Option<Timestamp>,
    all_down: bool,
    /// Some node was ready once: those of a new cluster are on their way.
    was_up: bool,
    /// Zones with a node that is down. A zone that was whole begins anew, with a node that may be given up at once.
    zones: BTreeMap<Zone, ZoneBrake>,
    /// Nodes whose pods may go. Bounded by the nodes.
    given_up: BTreeSet<String>,
    /// Of which counts all this speaks.
    seen: Option<u64>,
}

#[derive(Debug, Default)]
struct ZoneBrake {
    disrupted: bool,
    given_up_at: Option<Timestamp>,
}

impl Brake {
    /// A plan begins at `now`. `due` is when it was asked for.
    pub fn begin(&mut self, due: Option<Timestamp>, now: Timestamp) {
        let late = due.is_some_and(|due| later(due, SignedDuration::from_millis(LATE_MS)) < now);
        if self.began.is_none() || late {
            self.began = Some(now);
        }
    }

    /// What was counted is counted anew: another object counts from now on.
    pub fn resync(&mut self) {
        self.seen = None;
    }

    /// Until when nothing is done to the pods of a node that is down since `down_since`, where that is not over. One that
    /// went down later is no concern of it: it was there.
    pub fn grace(&self, down_since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let began = self.began.filter(|began| down_since <= *began)?;
        Some(later(began, SignedDuration::from_millis(GRACE_MS))).filter(|end| *end > now)
    }

    pub fn all_down(&self) -> bool {
        self.all_down
    }

    /// Takes note of which nodes are ready; answers what that begins and ends.
    pub fn look(&mut self, zones: &Zones, now: Timestamp) -> Vec<Turn> {
        if self.seen == Some(zones.changes()) {
            return Vec::new();
        }
        self.seen = Some(zones.changes());
        let mut turns = Vec::new();
        let mut known = std::mem::take(&mut self.zones);
        for (zone, count) in zones.counts().filter(|(_, count)| count.unready() > 0) {
            let mut brake = known.remove(zone).unwrap_or_default();
            match (brake.disrupted, count.partly_disrupted()) {
                (false, true) => turns.push(Turn::Disrupted(zone.clone(), count)),
                (true, false) => turns.push(Turn::Over),
                _ => {}
            }
            brake.disrupted = count.partly_disrupted();
            self.zones.insert(zone.clone(), brake);
        }
        if known.values().any(|brake| brake.disrupted) {
            turns.push(Turn::Over);
        }
        match (self.all_down, zones.all_down()) {
            (false, true) => {
                self.given_up.clear();
                turns.extend(self.was_up.then_some(Turn::AllDown));
            }
            (true, false) => turns.push(Turn::Over),
            _ => {}
        }
        self.all_down = zones.all_down();
        self.was_up |= zones.any_ready();
        if turns.contains(&Turn::Over) {
            self.began = Some(now);
        }
        turns
    }

    /// Whether the pods of this node, which is down, may be evicted. Where they may, it is given up with this.
    pub fn release(&mut self, node: &str, down_since: Timestamp, zones: &Zones, now: Timestamp) -> Verdict {
        if self.all_down {
            return Verdict::Held;
        }
        if let Some(end) = self.grace(down_since, now) {
            return Verdict::At(end);
        }
        if self.given_up.contains(node) {
            return Verdict::Now;
        }
        let Some(zone) = zones.zone_of(node) else { return Verdict::Now };
        let count = zones.count(zone);
        let period_ms = match count.partly_disrupted() {
            false => PERIOD_MS,
            true if count.nodes > LARGE_ZONE_NODES => DISRUPTED_PERIOD_MS,
            true => return Verdict::Held,
        };
        let brake = self.zones.entry(zone.clone()).or_default();
        let next = brake.given_up_at.map(|at| later(at, SignedDuration::from_millis(period_ms)));
        match next.filter(|next| *next > now) {
            Some(next) => Verdict::At(next),
            None => {
                brake.given_up_at = Some(now);
                self.given_up.insert(node.to_owned());
                Verdict::Now
            }
        }
    }

    /// The node is ready, or its object is gone.
    pub fn forget(&mut self, node: &str) {
        self.given_up.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::ObjectKey;
    use serde_json::json;

    use super::*;

    const START: i64 = 1_000_000;
    const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
    const NOBODY: [usize; 0] = [];

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(START * 1_000 + ms).unwrap()
    }

    /// A brake that is long past its first plan, over nodes `n0..` of one zone.
    struct Bench {
        brake: Brake,
        zones: Zones,
    }

    impl Bench {
        fn new(nodes: usize) -> Self {
            let mut bench = Self { brake: Brake::default(), zones: Zones::default() };
            for number in 0..nodes {
                bench.set(&format!("n{number}"), "", true);
            }
            bench.brake.begin(None, at(-GRACE_MS));
            bench.look(0);
            bench
        }

        fn set(&mut self, name: &str, zone: &str, ready: bool) {
            let key = ObjectKey::new("nodes", "", name);
            let draft = json!({"metadata": {"name": name, "labels": {ZONE_LABEL: zone}}}).to_string();
            self.zones.put(&coracle_objects::Object::from_draft(key, draft.as_bytes(), 1).unwrap(), ready);
        }

        fn down(&mut self, count: usize) {
            (0..count).for_each(|number| self.set(&format!("n{number}"), "", false));
        }

        fn look(&mut self, ms: i64) -> Vec<Turn> {
            self.brake.look(&self.zones, at(ms))
        }

        /// Of a node that went down at the beginning.
        fn release(&mut self, node: &str, ms: i64) -> Verdict {
            self.brake.release(node, at(0), &self.zones, at(ms))
        }

        /// Which of the nodes `n0..` are given up at this moment.
        fn given_up(&mut self, nodes: usize, ms: i64) -> Vec<usize> {
            (0..nodes).filter(|number| self.release(&format!("n{number}"), ms) == Verdict::Now).collect()
        }
    }

    #[test]
    fn one_node_at_once_and_then_at_a_rate() {
        let mut bench = Bench::new(10);
        bench.down(3);
        bench.look(0);
        assert_eq!(bench.given_up(3, 0), [0]);
        assert_eq!(bench.given_up(3, 9_999), [0]);
        assert_eq!(bench.given_up(3, 10_000), [0, 1]);
        assert_eq!(bench.given_up(3, 20_000), [0, 1, 2]);
    }

    #[test]
    fn a_zone_that_was_whole_begins_anew() {
        let mut bench = Bench::new(3);
        bench.down(1);
        bench.look(0);
        assert_eq!(bench.given_up(1, 0), [0]);
        bench.set("n0", "", true);
        bench.brake.forget("n0");
        bench.look(2_000);
        bench.set("n1", "", false);
        bench.look(3_000);
        assert_eq!(bench.release("n1", 3_000), Verdict::Now);
    }

    #[test]
    fn most_nodes_of_a_zone_are_not_given_up() {
        let mut bench = Bench::new(9);
        bench.down(5);
        let count = Count { nodes: 9, ready: 4 };
        assert_eq!(bench.look(0), [Turn::Disrupted("".into(), count)]);
        assert_eq!(bench.given_up(5, 600_000), NOBODY);
        bench.set("n4", "", true);
        assert_eq!(bench.look(600_000), [Turn::Over]);
        assert_eq!(bench.given_up(4, 605_999), NOBODY, "they have time to come back too");
        assert_eq!(bench.given_up(4, 606_000), [0]);
    }

    #[test]
    fn two_of_three_are_not_yet_a_disruption() {
        let mut bench = Bench::new(3);
        bench.down(2);
        assert_eq!(bench.look(0), []);
        assert_eq!(bench.given_up(2, 0), [0]);
    }

    #[test]
    fn a_large_zone_in_disruption_goes_slowly() {
        let mut bench = Bench::new(60);
        bench.down(40);
        bench.look(0);
        assert_eq!(bench.given_up(40, 0), [0]);
        assert_eq!(bench.given_up(40, 99_999), [0]);
        assert_eq!(bench.given_up(40, 100_000), [0, 1]);
    }

    #[test]
    fn a_zone_that_is_lost_beside_another_goes_at_the_usual_rate() {
        let mut bench = Bench::new(4);
        bench.set("far", "b", true);
        bench.down(4);
        assert_eq!(bench.look(0), []);
        assert_eq!(bench.given_up(4, 0), [0]);
        assert_eq!(bench.given_up(4, 10_000), [0, 1]);
    }

    #[test]
    fn none_is_given_up_where_none_is_ready() {
        let mut bench = Bench::new(4);
        bench.down(4);
        assert_eq!(bench.look(0), [Turn::AllDown]);
        assert_eq!(bench.look(0), []);
        assert_eq!(bench.given_up(4, 600_000), NOBODY);
        bench.set("n3", "", true);
        bench.set("n2", "", true);
        assert_eq!(bench.look(600_000), [Turn::Over]);
        assert_eq!(bench.given_up(2, 605_999), NOBODY);
        assert_eq!(bench.given_up(2, 606_000), [0]);
    }

    #[test]
    fn nodes_that_never_were_ready_are_no_disruption() {
        let mut bench = Bench { brake: Brake::default(), zones: Zones::default() };
        bench.down(2);
        assert_eq!(bench.look(0), []);
        assert_eq!(bench.given_up(2, 600_000), NOBODY, "but none is given up either");
        bench.set("n0", "", true);
        assert_eq!(bench.look(600_000), [Turn::Over]);
        bench.set("n0", "", false);
        assert_eq!(bench.look(700_000), [Turn::AllDown]);
    }

    #[test]
    fn who_did_not_run_gives_nodes_time() {
        let mut bench = Bench::new(3);
        bench.down(1);
        bench.look(0);
        bench.brake.begin(Some(at(500)), at(600));
        assert_eq!(bench.brake.grace(at(0), at(600)), None, "it is hardly late");
        bench.brake.begin(Some(at(500)), at(15_000));
        assert_eq!(bench.release("n0", 15_000), Verdict::At(at(21_000)));
        let later = bench.brake.release("n0", at(15_001), &bench.zones, at(15_500));
        assert_eq!(later, Verdict::Now, "one that was there after it and died is dead");
    }
}
