//! What controllers read of each kind: narrow structs, parsed once an event, that skip all else.

use core::net::SocketAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    panic,
    sync::Arc,
};

use coracle_objects::{LabelSelector, Object, ObjectError, ObjectKey, ObjectName, kinds::endpoint_faults};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    draft::later,
    ingress::{GATEWAY_ANNOTATION, gateway as gateway_address},
    names,
};

/// The annotation with a rollout's number.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The annotation with the replicas that the deployment wanted when it last scaled the set.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The annotation with the most pods that the deployment then allowed: replicas and surge.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// What was read of each object, once an event, for all who ask. Bounded by what is in the store.
#[derive(Debug, Default)]
pub struct Models {
    pub pods: BTreeMap<ObjectName, Pod>,
    pub replica_sets: BTreeMap<ObjectName, ReplicaSet>,
    /// Those that select pods.
    pub services: BTreeMap<ObjectName, Service>,
    /// The selectors of deployments.
    pub deployments: BTreeMap<ObjectName, LabelSelector>,
    pub nodes: BTreeMap<String, Node>,
    /// Objects that are there and cannot be read, and why. They count as existing.
    pub unreadable: BTreeMap<ObjectKey, String>,
}

impl Models {
    pub fn insert(&mut self, object: &Arc<Object>) {
        let name = &object.key.name;
        match object.key.resource.as_str() {
            "pods" => {
                let pod = self.read(object, Pod::of).unwrap_or_else(|| Pod::unreadable(object));
                self.pods.insert(name.clone(), pod);
            }
            "replicasets.apps" => {
                if let Some(set) = self.read(object, ReplicaSet::of) {
                    self.replica_sets.insert(name.clone(), set);
                }
            }
            "services" => {
                if let Some(Some(service)) = self.read(object, Service::of) {
                    self.services.insert(name.clone(), service);
                }
            }
            "deployments.apps" => {
                let value: Value = object.parse().unwrap_or_default();
                let selector = LabelSelector::from_json(value.pointer("/spec/selector"));
                self.deployments.insert(name.clone(), selector.unwrap_or_else(|_| LabelSelector::nothing()));
            }
            "nodes" => {
                if let Some(node) = self.read(object, |object| Node::of(object)) {
                    self.nodes.insert(name.name.to_string(), node);
                }
            }
            _ => {}
        }
    }

    pub fn remove(&mut self, object: &Object) {
        let name = &object.key.name;
        self.unreadable.remove(&object.key);
        match object.key.resource.as_str() {
            "pods" => drop(self.pods.remove(name)),
            "replicasets.apps" => drop(self.replica_sets.remove(name)),
            "services" => drop(self.services.remove(name)),
            "deployments.apps" => drop(self.deployments.remove(name)),
            "nodes" => drop(self.nodes.remove(&*name.name)),
            _ => {}
        }
    }

    /// What was read of this object, where it is a pod.
    pub fn pod(&self, object: &Object) -> Option<&Pod> {
        self.pods.get(&object.key.name).filter(|_| object.key.resource.as_str() == "pods")
    }

    /// The same of a replica set.
    pub fn replica_set(&self, object: &Object) -> Option<&ReplicaSet> {
        self.replica_sets.get(&object.key.name).filter(|_| object.key.resource.as_str() == "replicasets.apps")
    }

    /// The same of a service that selects pods.
    pub fn service(&self, object: &Object) -> Option<&Service> {
        self.services.get(&object.key.name).filter(|_| object.key.resource.as_str() == "services")
    }

    /// The same of a deployment: its selector.
    pub fn deployment(&self, object: &Object) -> Option<&LabelSelector> {
        self.deployments.get(&object.key.name).filter(|_| object.key.resource.as_str() == "deployments.apps")
    }

    /// The same of a node.
    pub fn node(&self, object: &Object) -> Option<&Node> {
        self.nodes.get(object.name()).filter(|_| object.key.resource.as_str() == "nodes")
    }

    /// Reads an object; notes where it cannot be, by an error or a fault of ours.
    fn read<T>(
        &mut self,
        object: &Arc<Object>,
        parse: fn(&Arc<Object>) -> Result<T, ObjectError>,
    ) -> Option<T> {
        let reason = match panic::catch_unwind(|| parse(object)) {
            Ok(Ok(read)) => return Some(read),
            Ok(Err(error)) => {
                std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
            }
            Err(_) => "reading it panics".to_owned(),
        };
        self.unreadable.insert(object.key.clone(), reason);
        None
    }
}

/// The entries of one namespace, in order.
pub fn in_namespace<'a, T>(
    all: &'a BTreeMap<ObjectName, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'a ObjectName, &'a T)> + use<'a, T> {
    let namespace: Arc<str> = namespace.into();
    let start = ObjectName { namespace: namespace.clone(), name: "".into() };
    all.range(start..).take_while(move |(name, _)| name.namespace == namespace)
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    pub object: Arc<Object>,
    /// Empty while unassigned.
    pub node: String,
    pub phase: String,
    pub ready: bool,
    /// Since when it is ready, or not.
    pub ready_since: Option<Timestamp>,
    pub created: Option<Timestamp>,
    /// Whether the control plane evicts it: the condition DisruptionTarget.
    pub disrupted: bool,
    /// Of the container that was restarted most.
    pub restarts: i64,
    /// The annotation `controller.kubernetes.io/pod-deletion-cost`.
    pub deletion_cost: i64,
    pub ips: Vec<String>,
    pub hostname: String,
    pub subdomain: String,
    pub ports: Vec<NamedPort>,
    pub tolerations: Vec<Toleration>,
}

/// A container's port that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    pub name: String,
    pub protocol: String,
    pub port: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
    pub toleration_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
    pub time_added: Option<Timestamp>,
}

impl Pod {
    pub fn of(object: &Arc<Object>) -> Result<Self, ObjectError> {
        Ok(Self::of_wire(object, object.parse()?))
    }

    /// A pod that cannot be read: it is there, on its node where that can be told, and counts to its owner's replicas.
    pub fn unreadable(object: &Arc<Object>) -> Self {
        let value: Value = object.parse().unwrap_or_default();
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or("").to_owned();
        let (mut spec, mut status) = (PodSpecWire::default(), PodStatusWire::default());
        (spec.node_name, status.phase) = (text("/spec/nodeName"), text("/status/phase"));
        Self::of_wire(object, PodWire { metadata: MetaWire::default(), spec, status })
    }

    fn of_wire(object: &Arc<Object>, wire: PodWire) -> Self {
        let (spec, status) = (wire.spec, wire.status);
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let disrupted = status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True");
        let mut ips: Vec<String> = status.ips.into_iter().map(|entry| entry.ip).collect();
        if ips.is_empty() && !status.ip.is_empty() {
            ips.push(status.ip);
        }
        // What is no address is nobody's: an endpoint that is none would be refused at each later edit.
        ips.retain(|ip| endpoint_faults(ip).is_empty());
        let containers = spec.init_containers.iter().chain(&spec.containers);
        let ports = containers.flat_map(|container| &container.ports).filter(|port| !port.name.is_empty());
        let cost = wire.metadata.annotations.get("controller.kubernetes.io/pod-deletion-cost");
        Self {
            object: object.clone(),
            node: spec.node_name,
            phase: status.phase,
            ready: ready.is_some_and(|condition| condition.status == "True"),
            ready_since: ready.and_then(|condition| condition.last_transition_time),
            created: created(object),
            disrupted,
            restarts: status.container_statuses.iter().map(|status| status.restart_count).max().unwrap_or(0),
            deletion_cost: cost.and_then(|text| text.parse().ok()).unwrap_or(0),
            ips,
            hostname: spec.hostname,
            subdomain: spec.subdomain,
            ports: ports.map(PortWire::named).collect(),
            tolerations: spec.tolerations,
        }
    }

    pub fn is_terminal_phase(phase: &str) -> bool {
        matches!(phase, "Succeeded" | "Failed")
    }

    /// Whether it ended by itself.
    pub fn terminal(&self) -> bool {
        Self::is_terminal_phase(&self.phase)
    }

    pub fn deleting(&self) -> bool {
        self.object.meta.deletion_timestamp.is_some()
    }

    /// Whether it counts to its owner's replicas.
    pub fn active(&self) -> bool {
        !self.terminal() && !self.deleting()
    }

    /// From when on it counts as available: ready for `min_ready_s` seconds. None while not ready.
    pub fn available_at(&self, min_ready_s: i64) -> Option<Timestamp> {
        if !self.ready {
            return None;
        }
        let since = self.ready_since.unwrap_or(Timestamp::MIN);
        Some(if min_ready_s == 0 {
            Timestamp::MIN
        } else {
            later(since, SignedDuration::from_secs(min_ready_s))
        })
    }

    pub fn available(&self, min_ready_s: i64, now: Timestamp) -> bool {
        self.available_at(min_ready_s).is_some_and(|moment| moment <= now)
    }
}

/// When the object was created.
pub fn created(object: &Object) -> Option<Timestamp> {
    object.meta.creation_timestamp.as_deref()?.parse().ok()
}

/// A replica set.
#[derive(Clone, Debug)]
pub struct ReplicaSet {
    pub object: Arc<Object>,
    pub replicas: i64,
    pub min_ready_s: i64,
    pub selector: LabelSelector,
    pub template_labels: BTreeMap<String, String>,
    /// See [`names::template_hash`].
    pub template_hash: u64,
    pub annotations: BTreeMap<String, String>,
    pub status: ReplicaSetStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    pub replicas: i64,
    pub ready_replicas: i64,
    pub available_replicas: i64,
    pub observed_generation: i64,
    pub conditions: Vec<Value>,
}

impl ReplicaSet {
    pub fn of(object: &Arc<Object>) -> Result<Self, ObjectError> {
        // By way of the whole document, so that its draft can be edited wherever the set is known.
        let value: Value = object.parse()?;
        let wire: ReplicaSetWire = serde_json::from_value(value).map_err(ObjectError::Json)?;
        let labels = wire.spec.template.pointer("/metadata/labels").cloned().unwrap_or_default();
        Ok(Self {
            object: object.clone(),
            replicas: wire.spec.replicas.unwrap_or(1),
            min_ready_s: wire.spec.min_ready_seconds,
            selector: LabelSelector::from_json(wire.spec.selector.as_ref())
                .unwrap_or_else(|_| LabelSelector::nothing()),
            template_labels: serde_json::from_value(labels).unwrap_or_default(),
            template_hash: names::template_hash(&wire.spec.template),
            annotations: wire.metadata.annotations,
            status: wire.status,
        })
    }

    pub fn deleting(&self) -> bool {
        self.object.meta.deletion_timestamp.is_some()
    }

    /// The rollout's number; 0 where there is none.
    pub fn revision(&self) -> i64 {
        self.number(REVISION).unwrap_or(0)
    }

    /// An annotation that is a number.
    pub fn number(&self, annotation: &str) -> Option<i64> {
        self.annotations.get(annotation)?.parse().ok()
    }
}

/// A service that selects pods.
#[derive(Clone, Debug)]
pub struct Service {
    pub object: Arc<Object>,
    pub selector: LabelSelector,
    pub ports: Vec<ServicePort>,
    pub publish_not_ready: bool,
    pub headless: bool,
    /// `IPv4`, `IPv6`; at least one.
    pub families: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: String,
    pub protocol: String,
    pub port: i64,
    /// A number, or the name of a container's port.
    pub target_port: Value,
    pub app_protocol: Option<String>,
}

impl Service {
    /// None where the endpoints are not for us to find: no selector, or an external name.
    pub fn of(object: &Arc<Object>) -> Result<Option<Self>, ObjectError> {
        let wire: ServiceWire = object.parse()?;
        let spec = wire.spec;
        let selector = LabelSelector::from_map(spec.selector.as_ref());
        if selector.nothing || spec.type_ == "ExternalName" {
            return Ok(None);
        }
        // Each family once: the slices of a family that came twice would be made and deleted in turn.
        let families: BTreeSet<String> = if spec.ip_families.is_empty() {
            BTreeSet::from(["IPv4".to_owned()])
        } else {
            spec.ip_families.into_iter().collect()
        };
        Ok(Some(Self {
            object: object.clone(),
            selector,
            ports: spec.ports,
            publish_not_ready: spec.publish_not_ready_addresses,
            headless: spec.cluster_ip == "None",
            families,
        }))
    }
}

/// What the conditions and taints of a node say.
#[derive(Clone, Debug)]
pub struct Node {
    /// The status of the condition Ready: `True`, `False`, `Unknown`, or empty where there is none.
    pub ready: String,
    pub has_disk_pressure: bool,
    pub taints: Vec<Taint>,
    /// Where its gateway listens, if it has one.
    pub gateway: Option<SocketAddr>,
}

impl Node {
    pub fn is_ready(&self) -> bool {
        self.ready == "True"
    }

    pub fn of(object: &Object) -> Result<Self, ObjectError> {
        let wire: NodeWire = object.parse()?;
        let conditions = wire.status.conditions;
        let has_disk_pressure = conditions
            .iter()
            .any(|condition| condition.type_ == "DiskPressure" && condition.status == "True");
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
        let addresses: Vec<String> = wire.status.addresses.into_iter().map(|one| one.address).collect();
        let gateway = wire.metadata.annotations.get(GATEWAY_ANNOTATION);
        Ok(Self {
            ready: ready.map(|condition| condition.status).unwrap_or_default(),
            has_disk_pressure,
            taints: wire.spec.taints,
            gateway: gateway.and_then(|annotation| gateway_address(annotation, &addresses)),
        })
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodWire {
    metadata: MetaWire,
    spec: PodSpecWire,
    status: PodStatusWire,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MetaWire {
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpecWire {
    node_name: String,
    hostname: String,
    subdomain: String,
    containers: Vec<ContainerWire>,
    init_containers: Vec<ContainerWire>,
    tolerations: Vec<Toleration>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ContainerWire {
    ports: Vec<PortWire>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PortWire {
    name: String,
    protocol: String,
    container_port: i64,
}

impl PortWire {
    fn named(&self) -> NamedPort {
        let protocol = if self.protocol.is_empty() { "TCP" } else { &self.protocol };
        NamedPort { name: self.name.clone(), protocol: protocol.to_owned(), port: self.container_port }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodStatusWire {
    phase: String,
    conditions: Vec<ConditionWire>,
    container_statuses: Vec<ContainerStatusWire>,
    #[serde(rename = "podIP")]
    ip: String,
    #[serde(rename = "podIPs")]
    ips: Vec<IpWire>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct IpWire {
    ip: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatusWire {
    restart_count: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConditionWire {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    last_transition_time: Option<Timestamp>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ReplicaSetWire {
    metadata: MetaWire,
    spec: ReplicaSetSpecWire,
    status: ReplicaSetStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ReplicaSetSpecWire {
    replicas: Option<i64>,
    min_ready_seconds: i64,
    selector: Option<Value>,
    template: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ServiceWire {
    spec: ServiceSpecWire,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpecWire {
    #[serde(rename = "type")]
    type_: String,
    selector: Option<Value>,
    ports: Vec<ServicePort>,
    publish_not_ready_addresses: bool,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    ip_families: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeWire {
    metadata: NodeMetaWire,
    spec: NodeSpecWire,
    status: NodeStatusWire,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeSpecWire {
    taints: Vec<Taint>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatusWire {
    conditions: Vec<ConditionWire>,
    addresses: Vec<NodeAddressWire>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeAddressWire {
    address: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeMetaWire {
    annotations: BTreeMap<String, String>,
}

/// Whether an object is of the types that controllers read of its kind. One that is not counts as nothing to them.
pub fn reads(object: &Arc<Object>) -> bool {
    match object.key.resource.as_str() {
        "pods" => Pod::of(object).is_ok(),
        "replicasets.apps" => ReplicaSet::of(object).is_ok(),
        "services" => Service::of(object).is_ok(),
        "nodes" => Node::of(object).is_ok(),
        _ => true,
    }
}
