//! What the scheduler reads of pods and nodes: narrow structs that skip all else while parsing.

use std::collections::BTreeMap;

use coracle_objects::{Object, ObjectError};
use serde::Deserialize;

use crate::quota::{Amount, Resources};

/// The scheduler's name in `spec.schedulerName`. Pods that name another one are left to it.
const SCHEDULER_NAME: &str = "default-scheduler";

/// Everything about a pod that decides where it may and should run. Pods of one template have equal shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    pub requests: Resources,
    pub node_selector: BTreeMap<String, String>,
    pub required: Vec<Term>,
    /// Whether required node affinity was given at all: without any term it then matches nothing.
    pub has_required: bool,
    pub preferred: Vec<PreferredTerm>,
    pub tolerations: Vec<Toleration>,
    /// The uid of the owner that controls the pod: its pods are spread over nodes.
    pub owner: Option<String>,
}

/// A pod as the scheduler knows it.
#[derive(Clone, Debug)]
pub struct Pod {
    pub shape: Shape,
    /// Empty while not assigned.
    pub node: String,
    /// Whether it still holds its resources: neither Succeeded nor Failed.
    pub active: bool,
    /// Whether this scheduler has to place it: unassigned, not being deleted, no gates, meant for this scheduler.
    pub wants_placement: bool,
    pub priority: i32,
    /// Of the condition PodScheduled where that is False: its reason and message.
    pub unplaced: Option<(String, String)>,
}

/// A node as the scheduler knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub ready: bool,
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    pub allocatable: Resources,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
}

/// A `NodeSelectorTerm`: all of its requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Term {
    pub match_expressions: Vec<Requirement>,
    pub match_fields: Vec<Requirement>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default)]
pub struct PreferredTerm {
    pub weight: i32,
    pub preference: Term,
}

impl Pod {
    /// An error where the JSON has other types than a pod: the API server admits no such object.
    pub fn of(object: &Object) -> Result<Self, ObjectError> {
        let wire: PodWire = object.parse()?;
        let spec = wire.spec;
        let requests = requests(&spec);
        let node_affinity = spec.affinity.unwrap_or_default().node_affinity.unwrap_or_default();
        let required = node_affinity.required_during_scheduling_ignored_during_execution;
        let unplaced = wire
            .status
            .conditions
            .into_iter()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
            .map(|condition| (condition.reason, condition.message));
        let active = !matches!(wire.status.phase.as_str(), "Succeeded" | "Failed");
        let ours = spec.scheduler_name.is_empty() || spec.scheduler_name == SCHEDULER_NAME;
        let deleting = object.meta.deletion_timestamp.is_some();
        Ok(Self {
            wants_placement: spec.node_name.is_empty()
                && ours
                && active
                && !deleting
                && spec.scheduling_gates.is_empty(),
            node: spec.node_name,
            active,
            priority: spec.priority.unwrap_or(0),
            unplaced,
            shape: Shape {
                requests,
                node_selector: spec.node_selector,
                has_required: required.is_some(),
                required: required.unwrap_or_default().node_selector_terms,
                preferred: node_affinity.preferred_during_scheduling_ignored_during_execution,
                tolerations: spec.tolerations,
                owner: object.controller().map(|owner| owner.uid.clone()),
            },
        })
    }

    /// A pod that cannot be read: it is placed nowhere, and where it is it takes a place.
    pub fn unreadable(object: &Object) -> Self {
        let wire: BareWire = object.parse().unwrap_or_default();
        Self {
            shape: Shape { requests: Resources { pods: 1, ..Resources::default() }, ..Shape::default() },
            node: wire.spec.node_name,
            active: true,
            wants_placement: false,
            priority: 0,
            unplaced: None,
        }
    }
}

impl NodeFacts {
    /// An error where the JSON has other types than a node.
    pub fn of(object: &Object) -> Result<Self, ObjectError> {
        let wire: NodeWire = object.parse()?;
        let ready = wire
            .status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let amounts =
            if wire.status.allocatable.is_empty() { wire.status.capacity } else { wire.status.allocatable };
        let mut allocatable = Resources::of(&amounts);
        allocatable.pods = amounts.get("pods").map_or(0, |amount| amount.units());
        Ok(Self {
            uid: object.meta.uid.clone(),
            labels: object.meta.labels.clone(),
            ready: ready && object.meta.deletion_timestamp.is_none(),
            unschedulable: wire.spec.unschedulable,
            taints: wire.spec.taints,
            allocatable,
        })
    }
}

/// What the pod asks for, as the kubelet reckons it: init containers run one after another before the containers,
/// those with `restartPolicy: Always` stay beside everything that starts after them (KEP-753).
fn requests(spec: &PodSpecWire) -> Resources {
    let mut sidecars = Resources::default();
    let mut init_peak = Resources::default();
    for container in &spec.init_containers {
        let own = Resources::of(&container.resources.effective_requests());
        if container.restart_policy == "Always" {
            sidecars.add(&own);
            init_peak.raise_to(&sidecars);
        } else {
            let mut peak = sidecars.clone();
            peak.add(&own);
            init_peak.raise_to(&peak);
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        total.add(&Resources::of(&container.resources.effective_requests()));
    }
    total.raise_to(&init_peak);
    total.add(&Resources::of(&spec.overhead));
    total.pods = 1;
    total
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodWire {
    spec: PodSpecWire,
    status: PodStatusWire,
}

/// All that is looked at of a pod whose other fields cannot be read.
#[derive(Deserialize, Default)]
#[serde(default)]
struct BareWire {
    spec: BareSpecWire,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct BareSpecWire {
    node_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpecWire {
    node_name: String,
    node_selector: BTreeMap<String, String>,
    affinity: Option<AffinityWire>,
    tolerations: Vec<Toleration>,
    containers: Vec<ContainerWire>,
    init_containers: Vec<ContainerWire>,
    overhead: BTreeMap<String, Amount>,
    priority: Option<i32>,
    scheduler_name: String,
    scheduling_gates: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AffinityWire {
    node_affinity: Option<NodeAffinityWire>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeAffinityWire {
    required_during_scheduling_ignored_during_execution: Option<NodeSelectorWire>,
    preferred_during_scheduling_ignored_during_execution: Vec<PreferredTerm>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct NodeSelectorWire {
    node_selector_terms: Vec<Term>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ContainerWire {
    resources: ResourcesWire,
    restart_policy: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ResourcesWire {
    requests: BTreeMap<String, Amount>,
    limits: BTreeMap<String, Amount>,
}

impl ResourcesWire {
    /// A limit without a request is a request too (the API server's defaulting, repeated for pods made elsewhere).
    fn effective_requests(&self) -> BTreeMap<String, Amount> {
        let mut all = self.limits.clone();
        all.extend(self.requests.iter().map(|(name, amount)| (name.clone(), *amount)));
        all
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodStatusWire {
    phase: String,
    conditions: Vec<ConditionWire>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ConditionWire {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    reason: String,
    message: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeWire {
    spec: NodeSpecWire,
    status: NodeStatusWire,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeSpecWire {
    unschedulable: bool,
    taints: Vec<Taint>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatusWire {
    allocatable: BTreeMap<String, Amount>,
    capacity: BTreeMap<String, Amount>,
    conditions: Vec<ConditionWire>,
}

/// Whether an object is of the types that the scheduler reads of its kind. One that is not counts as
/// existing, and is reported.
pub fn reads(object: &Object) -> bool {
    match object.key.resource.as_str() {
        "pods" => Pod::of(object).is_ok(),
        "nodes" => NodeFacts::of(object).is_ok(),
        _ => true,
    }
}
