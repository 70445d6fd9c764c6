//! The decision itself: groups of equal pods, a heap of feasible nodes for each.

use std::{
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
};

use coracle_objects::ObjectName;
use jiff::{SignedDuration, Timestamp};

use crate::{
    fault::{Cause, Fault, guarded},
    filter::{self, Diagnosis},
    model::Shape,
    nodes::{NodeIndex, Nodes},
    placement::{self, Decisions, Placement, Unplaced},
    queue::later,
    scheduler::{Assigned, Scheduler},
    score,
};

/// The most pods that one call decides about. The rest is for the next call, at once.
const DECISIONS_MAX: usize = 4_096;
/// How long a placement may stay unobserved before it is taken for lost. Its precondition makes a second one harmless.
const ASSUMED_S_MAX: i64 = 5;
/// Up to so many feasible nodes are always looked at (upstream's minFeasibleNodesToFind).
const SAMPLE_NODES_MIN: usize = 100;

/// A group is given up once so many nodes could not be judged: the fault is not one of theirs.
const UNJUDGED_NODES_MAX: usize = 3;

/// Pods of one priority and one shape, oldest first.
struct Group {
    shape: Arc<Shape>,
    members: Vec<ObjectName>,
}

/// A feasible node: score, tie break, node, and the node's version that the score is of. The greatest is best.
type Candidate = (u64, u64, NodeIndex, u64);

/// The nodes that could not be judged for a group, by faults of ours: what panicked.
#[derive(Default)]
struct Unjudged(Vec<String>);

impl Unjudged {
    fn too_many(&self) -> bool {
        self.0.len() >= UNJUDGED_NODES_MAX
    }
}

impl Scheduler {
    /// Decides about all pods that can be tried now. `now` must not go backwards.
    pub fn schedule(&mut self, now: Timestamp) -> Decisions {
        self.schedule_while(now, &mut || true)
    }

    /// As [`Self::schedule`], and looks at no further group of pods once `go_on` says no: the rest is for the next call, at
    /// once.
    pub fn schedule_while(&mut self, now: Timestamp, go_on: &mut dyn FnMut() -> bool) -> Decisions {
        self.now = Some(now);
        self.give_up_assumed(now);
        self.queue.wake(now);
        let mut decisions = Decisions::default();
        for (fault, panic) in std::mem::take(&mut self.untold).into_values() {
            decisions.faults.push(fault);
            decisions.panics.extend(panic);
        }
        let names = self.queue.take_ready(DECISIONS_MAX);
        let mut groups = self.grouped(names).into_iter();
        for group in groups.by_ref() {
            self.place_group(group, now, &mut decisions);
            if !go_on() {
                break;
            }
        }
        groups.flat_map(|group| group.members).for_each(|name| self.queue.give_back(name));
        decisions
    }

    fn give_up_assumed(&mut self, now: Timestamp) {
        while let Some((deadline, name)) = self.assumed.first().cloned()
            && deadline <= now
        {
            self.assumed.remove(&(deadline, name.clone()));
            if let Some(pending) = self.release(&name) {
                self.queue.restore(pending);
            }
        }
    }

    /// Groups keep the order of their first members.
    fn grouped(&self, names: Vec<ObjectName>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut by_shape: BTreeMap<(i32, u64), Vec<usize>> = BTreeMap::new();
        for name in names {
            let Some(pending) = self.queue.get(&name) else { continue };
            let alike = by_shape.entry((pending.priority, pending.shape_hash)).or_default();
            match alike.iter().find(|&&index| groups[index].shape == pending.shape) {
                Some(&index) => groups[index].members.push(name),
                None => {
                    alike.push(groups.len());
                    groups.push(Group { shape: pending.shape.clone(), members: vec![name] });
                }
            }
        }
        groups
    }

    fn place_group(&mut self, group: Group, now: Timestamp, decisions: &mut Decisions) {
        let seed = self.queue.get(&group.members[0]).map_or("", |pending| pending.object.meta.uid.as_str());
        let search = Search { shape: &group.shape, seed: score::tie_seed(seed) };
        let mut unjudged = Unjudged::default();
        let sample = sample_size(self.nodes.count()).max(group.members.len());
        let (mut candidates, examined) =
            search.candidates(&self.nodes, self.next_start, sample, &mut unjudged);
        self.next_start = (self.next_start + examined) % self.nodes.slots().max(1);
        let mut members = group.members.iter();
        while let Some(name) = members.next() {
            let best = search.best(&mut candidates, &self.nodes, &mut unjudged).or_else(|| {
                (candidates, _) = search.candidates(&self.nodes, 0, usize::MAX, &mut unjudged);
                search.best(&mut candidates, &self.nodes, &mut unjudged)
            });
            let Some(index) = best else {
                let rest = std::iter::once(name).chain(members);
                let message = match unjudged.0.last() {
                    Some(words) => Err(Cause::Panic(words.clone())),
                    None => guarded(|| Ok(self.diagnose(&group.shape))),
                };
                rest.for_each(|name| match &message {
                    Ok(message) => self.pass_over(name, message, now, decisions),
                    Err(cause) => self.leave(name, cause, now, decisions),
                });
                break;
            };
            self.place(name, index, now, decisions);
            candidates.extend(search.candidate(&self.nodes, index, &mut unjudged));
        }
        let first = &group.members[0];
        decisions.panics.extend(unjudged.0.into_iter().map(|words| format!("placing pod {first}: {words}")));
    }

    fn place(&mut self, name: &ObjectName, index: NodeIndex, now: Timestamp, decisions: &mut Decisions) {
        let Some(pending) = self.queue.get(name) else { return };
        let node = self.nodes.get(index);
        let node_uid = node.facts.as_ref().map_or("", |facts| facts.uid.as_str());
        let transaction = match guarded(|| placement::bind(&pending.object, &node.name, node_uid, now)) {
            Ok(transaction) => transaction,
            Err(cause) => {
                let panic = matches!(cause, Cause::Panic(_));
                decisions.panics.extend(panic.then(|| format!("binding pod {name}: {}", cause.words())));
                return self.leave(name, &cause, now, decisions);
            }
        };
        decisions.placements.push(Placement {
            pod: pending.object.key.clone(),
            uid: pending.object.meta.uid.clone(),
            node: node.name.to_string(),
            transaction,
        });
        let Some(pending) = self.queue.remove(name) else { return };
        let shape = pending.shape.clone();
        self.nodes.add_pod_at(index, &shape);
        let deadline = later(now, SignedDuration::from_secs(ASSUMED_S_MAX));
        self.assumed.insert((deadline, name.clone()));
        let assigned = Assigned { node: index, shape, assumed: Some((deadline, pending)) };
        self.assigned.insert(name.clone(), assigned);
    }

    fn pass_over(&mut self, name: &ObjectName, message: &str, now: Timestamp, decisions: &mut Decisions) {
        let news = self.queue.wait(name, now, message);
        let Some(pending) = self.queue.get(name).filter(|_| news) else { return };
        match guarded(|| placement::explain(&pending.object, message, now)) {
            Ok(transaction) => decisions.failures.push(Unplaced {
                pod: pending.object.key.clone(),
                uid: pending.object.meta.uid.clone(),
                message: message.to_owned(),
                transaction,
            }),
            Err(cause) => {
                let panic = matches!(cause, Cause::Panic(_));
                decisions.panics.extend(panic.then(|| format!("explaining pod {name}: {}", cause.words())));
                self.leave(name, &cause, now, decisions);
            }
        }
    }

    /// Lets a pod wait whose placement failed by a fault of ours or its own. Others go on.
    fn leave(&mut self, name: &ObjectName, cause: &Cause, now: Timestamp, decisions: &mut Decisions) {
        self.queue.fail(name, now);
        let Some(pending) = self.queue.get(name) else { return };
        decisions.faults.push(Fault::unplaced(&pending.object, cause));
    }

    fn diagnose(&self, shape: &Shape) -> String {
        let mut diagnosis = Diagnosis::default();
        for index in 0..self.nodes.slots() {
            let node = self.nodes.get(index);
            if node.facts.is_some() {
                diagnosis.note(filter::reasons(shape, node));
            }
        }
        diagnosis.message()
    }
}

/// The search for nodes for the pods of one shape.
struct Search<'a> {
    shape: &'a Shape,
    seed: u64,
}

impl Search<'_> {
    /// Up to `wanted` feasible nodes, searched for from `start` on, and how many slots were looked at.
    fn candidates(
        &self,
        nodes: &Nodes,
        start: NodeIndex,
        wanted: usize,
        unjudged: &mut Unjudged,
    ) -> (BinaryHeap<Candidate>, usize) {
        let slots = nodes.slots();
        let mut found = Vec::new();
        let mut examined = 0;
        while examined < slots && found.len() < wanted && !unjudged.too_many() {
            let index = (start + examined) % slots;
            examined += 1;
            let fits = self.judge(unjudged, || filter::fixed(self.shape, nodes.get(index)).ok().map(|_| ()));
            if fits.is_some() {
                found.extend(self.candidate(nodes, index, unjudged));
            }
        }
        (found.into(), examined)
    }

    /// The node as a candidate, where what the pod requests is left.
    fn candidate(&self, nodes: &Nodes, index: NodeIndex, unjudged: &mut Unjudged) -> Option<Candidate> {
        self.judge(unjudged, || {
            let node = nodes.get(index);
            let facts = node.facts.as_ref()?;
            if !filter::resources::fits(&self.shape.requests, &node.used, &facts.allocatable) {
                return None;
            }
            Some((score::score(self.shape, node), score::tie_break(self.seed, index), index, node.version))
        })
    }

    /// Takes the best candidate. One whose node changed since it was scored is scored again first.
    fn best(
        &self,
        candidates: &mut BinaryHeap<Candidate>,
        nodes: &Nodes,
        unjudged: &mut Unjudged,
    ) -> Option<NodeIndex> {
        while let Some((_, _, index, version)) = candidates.pop() {
            if nodes.get(index).version == version {
                return Some(index);
            }
            candidates.extend(self.candidate(nodes, index, unjudged));
        }
        None
    }

    /// A node that cannot be judged is none for these pods.
    fn judge<T>(&self, unjudged: &mut Unjudged, judgement: impl FnOnce() -> Option<T>) -> Option<T> {
        guarded(|| Ok(judgement())).unwrap_or_else(|cause| {
            unjudged.0.push(cause.words().to_owned());
            None
        })
    }
}

/// How many feasible nodes are enough for a good choice among `nodes` (upstream's percentageOfNodesToScore).
fn sample_size(nodes: usize) -> usize {
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(SAMPLE_NODES_MIN)
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Event, EventKind, Object, ObjectKey};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn samples_grow_slower_than_clusters() {
        assert_eq!(sample_size(3), 100);
        assert_eq!(sample_size(1_000), 420);
        assert_eq!(sample_size(5_000), 500);
        assert_eq!(sample_size(100_000), 5_000);
    }

    fn put(scheduler: &mut Scheduler, key: &ObjectKey, draft: Value) {
        let object = Object::from_draft(key.clone(), draft.to_string().as_bytes(), 1).unwrap();
        scheduler.observe(&Event { kind: EventKind::Added, object: object.into(), previous: None });
    }

    fn node(scheduler: &mut Scheduler, name: &str) {
        let status = json!({ "allocatable": { "cpu": "64", "memory": "64Gi", "pods": "500" },
                             "conditions": [{ "type": "Ready", "status": "True" }] });
        let draft = json!({ "metadata": { "name": name, "uid": name }, "status": status });
        put(scheduler, &ObjectKey::new("nodes", "", name), draft);
    }

    fn pod(scheduler: &mut Scheduler, name: &str, selector: Value) {
        let spec = json!({ "containers": [{ "name": "c" }], "nodeSelector": selector });
        let draft = json!({ "metadata": { "name": name, "uid": name }, "spec": spec, "status": {} });
        put(scheduler, &ObjectKey::new("pods", "default", name), draft);
    }

    fn placed(decisions: &Decisions) -> Vec<String> {
        decisions.placements.iter().map(|one| format!("{} {}", &*one.pod.name.name, one.node)).collect()
    }

    #[test]
    fn a_pod_whose_placing_panics_costs_only_itself() {
        let mut scheduler = Scheduler::new();
        (0..9).for_each(|index| node(&mut scheduler, &format!("n{index}")));
        pod(&mut scheduler, "before", json!({}));
        pod(&mut scheduler, "broken", json!({ "panics": "yes" }));
        pod(&mut scheduler, "after", json!({ "kubernetes.io/os": "none" }));
        let _fault = filter::fault::inject(|shape, _| shape.node_selector.contains_key("panics"));
        let mut now = Timestamp::UNIX_EPOCH;
        let decisions = scheduler.schedule(now);
        assert_eq!(placed(&decisions).len(), 1, "{decisions:?}");
        assert_eq!(decisions.failures.len(), 1, "what fits nowhere is told");
        assert_eq!(decisions.panics.len(), UNJUDGED_NODES_MAX, "not one for each node");
        assert!(decisions.panics[0].contains("default/broken"), "{:?}", decisions.panics);
        let [fault] = &decisions.faults[..] else { panic!("{decisions:?}") };
        assert_eq!((&*fault.regarding.name.name, fault.reason), ("broken", "FailedScheduling"));
        assert_eq!(scheduler.situation().in_trouble, 1);
        // It waits longer each time, and nothing that happens elsewhere shortens that.
        for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            node(&mut scheduler, &format!("another{wait}"));
            now += SignedDuration::from_millis(wait * 1_000 - 1);
            assert_eq!(scheduler.schedule(now).panics.len(), 0, "{wait} s");
            now += SignedDuration::from_millis(1);
            assert_eq!(scheduler.schedule(now).panics.len(), UNJUDGED_NODES_MAX, "{wait} s");
        }
    }

    #[test]
    fn a_node_that_cannot_be_judged_costs_only_itself() {
        let mut scheduler = Scheduler::new();
        ["good", "bad"].iter().for_each(|name| node(&mut scheduler, name));
        (0..4).for_each(|index| pod(&mut scheduler, &format!("p{index}"), json!({})));
        let _fault = filter::fault::inject(|_, node| &*node.name == "bad");
        let decisions = scheduler.schedule(Timestamp::UNIX_EPOCH);
        assert_eq!(placed(&decisions), ["p0 good", "p1 good", "p2 good", "p3 good"]);
        assert_eq!((decisions.panics.len(), decisions.faults.len()), (1, 0), "{:?}", decisions.panics);
    }

    #[test]
    fn groups_that_do_not_get_their_turn_come_next() {
        let mut scheduler = Scheduler::new();
        node(&mut scheduler, "n1");
        (0..3)
            .for_each(|index| pod(&mut scheduler, &format!("p{index}"), json!({ "of": format!("{index}") })));
        pod(&mut scheduler, "p3", json!({}));
        let now = Timestamp::UNIX_EPOCH;
        for left in (0..4).rev() {
            let decisions = scheduler.schedule_while(now, &mut || false);
            assert_eq!(decisions.failures.len() + decisions.placements.len(), 1);
            assert_eq!(scheduler.situation().waiting, left);
        }
    }
}
