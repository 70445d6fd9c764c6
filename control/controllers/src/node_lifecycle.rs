//! Nodes that fail: they are tainted, their pods lose readiness and are replaced elsewhere.
//!
//! Who finds out that a node fails is the leader of the control plane, which misses its heartbeats and sets the
//! condition Ready. Here is what follows. Cordoning (`spec.unschedulable`) is the user's and stays untouched.

pub mod brake;
mod tolerance;
pub mod zones;

use std::{collections::BTreeSet, sync::Arc};

use coracle_objects::{Event, Object, ObjectKey, Transaction};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use self::brake::{Turn, Verdict};
use crate::{
    controller::Controller,
    deletion::{self, Wish},
    draft::{self, Unreadable, later, timestamp},
    event_record::{EventRecord, EventType},
    index::Index,
    model::{Models, Node, Pod, Taint},
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};

/// See the module.
pub struct NodeLifecycle;

pub const NAME: &str = "node-lifecycle-controller";

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Keeps new pods away; of those that are there the node itself says which has to go.
const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
/// A user's word that the node is off: nothing runs on it any more.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// How long the pods of a node that went down are left alone where they do not say themselves. Upstream waits five
/// minutes, for containers are slow to start elsewhere.
const DOWN_TOLERATION_MS: i64 = 500;
/// How long after its deletion began a pod of an unreachable node is removed without its node's word.
const FORCED_REMOVAL_MS: i64 = 1_000;

const COMPONENT: &str = "node-controller";

/// Nodes that are not ready or have a NoExecute taint.
#[derive(Debug, Default)]
pub struct TroubledNodes(BTreeSet<String>);

impl Index for TroubledNodes {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        let is_troubled =
            |node: &Node| !node.is_ready() || node.taints.iter().any(|taint| taint.effect == "NoExecute");
        if models.node(object).is_some_and(is_troubled) {
            self.0.insert(object.name().to_owned());
        }
    }

    fn remove(&mut self, object: &Arc<Object>, _: &Models) {
        if object.key.resource.as_str() == "nodes" {
            self.0.remove(object.name());
        }
    }
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let key = &event.object.key;
        match key.resource.as_str() {
            "nodes" => tasks.insert(Task::new(NAME, key.clone())),
            "pods" => {
                let node = state.models.pods.get(&key.name).map(|pod| &pod.node);
                tasks.extend(node.filter(|node| state.troubled_nodes.0.contains(*node)).map(|node| on(node)));
            }
            _ => {}
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, &subject.name.name)
    }
}

fn on(node: &str) -> Task {
    Task::new(NAME, ObjectKey::new("nodes", "", node))
}

fn plan(planner: &mut Planner<'_>, name: &str) -> Result<(), Unreadable> {
    let state = planner.state;
    let key = coracle_objects::ObjectKey::new("nodes", "", name);
    let parsed = state.get(&key).and_then(|object| Some((object, Node::of(object).ok()?)));
    take_note(planner, parsed.as_ref().map(|(object, _)| *object));
    let Some((object, node)) = parsed else {
        planner.memory.node_down_since.remove(name);
        planner.memory.brake.forget(name);
        return Ok(());
    };
    let down_since = if node.ready == "True" {
        planner.memory.node_down_since.remove(name);
        planner.memory.brake.forget(name);
        None
    } else {
        Some(*planner.memory.node_down_since.entry(name.to_owned()).or_insert(planner.now))
    };
    let taints = wanted_taints(&node, planner.now);
    if taints != node.taints {
        write_taints(planner, object, &taints)?;
        if down_since.is_some() && !node.taints.iter().any(is_ours) {
            let message = format!("Node {name} status is now: NodeNotReady");
            planner.record(EventRecord::normal(object, COMPONENT, "NodeNotReady", message));
        }
    }
    if down_since.is_none() && !taints.iter().any(|taint| taint.effect == "NoExecute") {
        return Ok(());
    }
    let situation = Situation { name, unreachable: node.ready == "Unknown", down_since, taints: &taints };
    for pod in state.pods_on(name).filter(|pod| !pod.terminal()) {
        plan_pod(planner, pod, &situation)?;
    }
    Ok(())
}

/// Where a disruption begins or ends, all nodes in trouble are looked at again.
fn take_note(planner: &mut Planner<'_>, node: Option<&Arc<Object>>) {
    let turns = planner.memory.brake.look(&planner.state.zones, planner.now);
    if turns.is_empty() {
        return;
    }
    for name in &planner.state.troubled_nodes.0 {
        planner.mark(on(name));
    }
    let Some(node) = node else { return };
    for turn in turns {
        let message = match turn {
            Turn::AllDown => "No node of the cluster is ready: pods are left where they are".to_owned(),
            Turn::Disrupted(zone, count) => format!(
                "{} of {} nodes of zone {zone:?} are not ready: their pods are not evicted at the usual rate",
                count.unready(),
                count.nodes
            ),
            Turn::Over => continue,
        };
        let record = EventRecord::normal(node, COMPONENT, "EvictionsPaused", message);
        planner.record(EventRecord { type_: EventType::Warning, ..record });
    }
}

/// How it stands with a node whose pods are in question.
struct Situation<'a> {
    name: &'a str,
    /// Nothing is heard of the node: it will not confirm the end of pods.
    unreachable: bool,
    /// Since when the node is not ready, as far as is known here.
    down_since: Option<Timestamp>,
    taints: &'a [Taint],
}

/// The node's taints, with ours as its conditions ask for. Ours keep the time at which they were added.
fn wanted_taints(node: &Node, now: Timestamp) -> Vec<Taint> {
    let mut wanted: Vec<(&str, &str)> = match node.ready.as_str() {
        "True" => vec![],
        "Unknown" => vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
        _ => vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
    };
    if node.has_disk_pressure {
        wanted.push((DISK_PRESSURE, "NoSchedule"));
    }
    let stays = |taint: &&Taint| {
        !is_ours(taint) && taint.key != DISK_PRESSURE || wanted.iter().any(|(key, _)| *key == taint.key)
    };
    let mut taints: Vec<Taint> = node.taints.iter().filter(stays).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let (key, effect) = (key.to_owned(), effect.to_owned());
            taints.push(Taint { key, effect, value: String::new(), time_added: Some(now) });
        }
    }
    taints
}

/// Of its readiness.
fn is_ours(taint: &Taint) -> bool {
    taint.key == NOT_READY || taint.key == UNREACHABLE
}

fn write_taints(planner: &mut Planner<'_>, node: &Object, taints: &[Taint]) -> Result<(), Unreadable> {
    let mut value = draft::of(node)?;
    let spec = draft::child(&mut value, "spec");
    if taints.is_empty() {
        spec.remove("taints");
    } else {
        spec.insert("taints".to_owned(), taints.iter().map(taint_value).collect());
    }
    planner.propose(draft::put(node, &value));
    Ok(())
}

fn taint_value(taint: &Taint) -> Value {
    let mut value = json!({"key": taint.key, "effect": taint.effect});
    if !taint.value.is_empty() {
        value["value"] = taint.value.as_str().into();
    }
    if let Some(moment) = taint.time_added {
        value["timeAdded"] = timestamp(moment).into();
    }
    value
}

/// Removes, evicts, or takes the readiness of a pod; or waits for the moment of the next of these.
fn plan_pod(planner: &mut Planner<'_>, pod: &Pod, situation: &Situation<'_>) -> Result<(), Unreadable> {
    if pod.deleting() {
        if let Some(down_since) = situation.down_since.filter(|_| situation.unreachable) {
            plan_removal(planner, pod, down_since, situation.taints);
        }
        return Ok(());
    }
    let [own, users] = [true, false].map(|ours| {
        let taints = situation.taints.iter().filter(|taint| is_ours(taint) == ours);
        tolerance::tolerated_until(pod, taints, situation.down_since, planner.now)
    });
    if users.is_some_and(|moment| moment <= planner.now) {
        return evict(planner, pod, situation);
    }
    let own = own.and_then(|moment| braked(planner, situation, moment));
    if own.is_some_and(|moment| moment <= planner.now) {
        return evict(planner, pod, situation);
    }
    for moment in [own, users].into_iter().flatten() {
        planner.wake_at(moment);
    }
    let Some(down_since) = situation.down_since.filter(|_| pod.ready) else { return Ok(()) };
    if let Some(moment) = planner.memory.brake.grace(down_since, planner.now) {
        planner.wake_at(moment);
    } else if !planner.memory.brake.all_down() {
        let mut value = draft::of(&pod.object)?;
        take_readiness(&mut value, planner.now);
        planner.propose(draft::put(&pod.object, &value));
    }
    Ok(())
}

/// When a pod may be evicted whose tolerance for the state of its node ends at `moment`.
fn braked(planner: &mut Planner<'_>, situation: &Situation<'_>, moment: Timestamp) -> Option<Timestamp> {
    if moment > planner.now {
        return Some(moment);
    }
    let down_since = situation.down_since.unwrap_or(planner.now);
    match planner.memory.brake.release(situation.name, down_since, &planner.state.zones, planner.now) {
        Verdict::Now => Some(moment),
        Verdict::At(later) => Some(later),
        Verdict::Held => None,
    }
}

/// Marks the pod as being deleted. Its owner replaces it at once; its node, if it lives, ends it in its grace period.
fn evict(planner: &mut Planner<'_>, pod: &Pod, situation: &Situation<'_>) -> Result<(), Unreadable> {
    let object = &pod.object;
    let mut value = draft::of(object)?;
    draft::set_condition(
        &mut value,
        json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastProbeTime": null, "lastTransitionTime": timestamp(planner.now),
        }),
    );
    if situation.down_since.is_some() && pod.ready {
        take_readiness(&mut value, planner.now);
    }
    let gone_for_good = situation.unreachable && nobody_takes_its_name(object);
    let wish = Wish { grace_s: gone_for_good.then_some(0), ..Wish::default() };
    deletion::wish(object.key.resource.as_str(), &mut value, wish, planner.now);
    if planner.propose(draft::put(object, &value)) {
        let message = format!("Marking for deletion Pod {}", object.key.name);
        let record =
            EventRecord::normal(object, "taint-eviction-controller", "TaintManagerEviction", message);
        planner.record_done(EventRecord { type_: EventType::Normal, ..record });
    }
    Ok(())
}

/// Whether no other pod will ever have this one's name: it was made with `generateName`, as ReplicaSets do. What chose
/// the name itself (a StatefulSet, an operator, a user) may choose it again, for the same volume or the same place in a
/// quorum: two pods of such a name must never run at a time.
fn nobody_takes_its_name(pod: &Object) -> bool {
    let named = pod.parse::<Named>().unwrap_or_default();
    named.metadata.generate_name.is_some_and(|prefix| !prefix.is_empty())
}

#[derive(Default, Deserialize)]
struct Named {
    metadata: NamedMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedMeta {
    generate_name: Option<String>,
}

/// Removes a pod of an unreachable node for good, once its node had some time to come back and end it itself.
///
/// One whose name may be taken again stays until its node says that it ended it, its Node object is deleted, or somebody
/// says that the node is off: by the taint, or by deleting the pod with a grace period of 0.
fn plan_removal(planner: &mut Planner<'_>, pod: &Pod, down_since: Timestamp, taints: &[Taint]) {
    if !nobody_takes_its_name(&pod.object) && !taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
        return;
    }
    let object = &pod.object;
    let end: Option<Timestamp> = object.meta.deletion_timestamp.as_deref().and_then(|text| text.parse().ok());
    let grace = SignedDuration::from_secs(object.meta.deletion_grace_period_seconds.unwrap_or(0));
    let began = end.and_then(|end| end.checked_sub(grace).ok()).unwrap_or(down_since);
    let due = later(began.max(down_since), SignedDuration::from_millis(FORCED_REMOVAL_MS));
    if due > planner.now {
        planner.wake_at(due);
    } else if object.meta.finalizers.is_empty() {
        planner.propose(Transaction::delete(object.key.clone(), object.revision));
    }
}

/// So that services stop sending to it at once.
fn take_readiness(value: &mut Value, now: Timestamp) {
    let condition = json!({
        "type": "Ready", "status": "False", "reason": "NodeNotReady", "message": "Node is not ready",
        "lastProbeTime": null, "lastTransitionTime": timestamp(now),
    });
    draft::set_condition(value, condition);
}
