//! Which tasks an event gives rise to.

use coracle_objects::{Event, EventKind, Object, ObjectKey, ObjectName};

use crate::{
    deletion::{FOREGROUND, ORPHAN},
    draft::namespace_key,
    garbage_collector::in_reach,
    pod_gc::ENDED_PODS_MAX,
    queue::Queue,
    service_account,
    state::{State, in_namespace},
};

/// One controller's work on one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// A namespace's birth gifts: service account and certificate.
    ServiceAccount(String),
    /// A namespace that is being deleted.
    Namespace(String),
    Node(String),
    /// A pod that nobody else will remove.
    StrayPod(ObjectName),
    /// Too many pods that ended.
    EndedPods,
    Deployment(ObjectName),
    ReplicaSet(ObjectName),
    Service(ObjectName),
    Ingress(ObjectName),
    /// An object that owns or is owned.
    Collect(ObjectKey),
    /// An object that cannot be read.
    Report(ObjectKey),
}

impl Task {
    /// How many controllers there are.
    pub const CONTROLLERS: usize = 11;

    /// Whose work it is, below [`Self::CONTROLLERS`].
    pub fn controller(&self) -> usize {
        match self {
            Task::ServiceAccount(_) => 0,
            Task::Namespace(_) => 1,
            Task::Node(_) => 2,
            Task::StrayPod(_) => 3,
            Task::EndedPods => 4,
            Task::Deployment(_) => 5,
            Task::ReplicaSet(_) => 6,
            Task::Service(_) => 7,
            Task::Collect(_) => 8,
            Task::Report(_) => 9,
            Task::Ingress(_) => 10,
        }
    }

    /// The object that the task is about; none where it is about many.
    pub fn subject(&self) -> Option<ObjectKey> {
        let named =
            |resource: &str, name: &ObjectName| ObjectKey { resource: resource.into(), name: name.clone() };
        match self {
            Task::ServiceAccount(name) | Task::Namespace(name) => Some(namespace_key(name)),
            Task::Node(name) => Some(ObjectKey::new("nodes", "", name)),
            Task::StrayPod(name) => Some(named("pods", name)),
            Task::EndedPods => None,
            Task::Deployment(name) => Some(named("deployments.apps", name)),
            Task::ReplicaSet(name) => Some(named("replicasets.apps", name)),
            Task::Service(name) => Some(named("services", name)),
            Task::Ingress(name) => Some(named("ingresses.networking.k8s.io", name)),
            Task::Collect(key) | Task::Report(key) => Some(key.clone()),
        }
    }

    /// The task that brings an object to what its own spec says, where there is one.
    pub fn of_owner(key: &ObjectKey) -> Option<Self> {
        match key.resource.as_str() {
            "deployments.apps" => Some(Task::Deployment(key.name.clone())),
            "replicasets.apps" => Some(Task::ReplicaSet(key.name.clone())),
            "services" => Some(Task::Service(key.name.clone())),
            _ => None,
        }
    }
}

/// Marks what `event` concerns. Called after the state has taken it.
pub fn mark(state: &State, event: &Event, dirty: &mut Queue) {
    let object = &event.object;
    let name = &object.key.name;
    match object.key.resource.as_str() {
        "pods" => mark_pod(state, event, dirty),
        "replicasets.apps" => mark_replica_set(state, event, dirty),
        "deployments.apps" => {
            dirty.insert(Task::Deployment(name.clone()));
        }
        "ingresses.networking.k8s.io" => {
            dirty.insert(Task::Ingress(name.clone()));
        }
        "services" | "endpoints" => {
            dirty.insert(Task::Service(name.clone()));
        }
        "endpointslices.discovery.k8s.io" => {
            for object in states(event) {
                if let Some(service) = object.meta.labels.get("kubernetes.io/service-name") {
                    dirty.insert(Task::Service(ObjectName::new(&name.namespace, service)));
                }
            }
        }
        "nodes" => {
            dirty.insert(Task::Node(name.name.to_string()));
            if event.kind == EventKind::Deleted {
                let pods = state.pods_on(&name.name);
                dirty.extend(pods.map(|pod| Task::StrayPod(pod.object.key.name.clone())));
            }
        }
        "namespaces" => {
            dirty.insert(Task::ServiceAccount(name.name.to_string()));
            dirty.insert(Task::Namespace(name.name.to_string()));
        }
        "serviceaccounts" | "configmaps" if service_account::is_gift(&name.name) => {
            dirty.insert(Task::ServiceAccount(name.namespace.to_string()));
        }
        _ => {}
    }
    if event.kind == EventKind::Deleted && !name.namespace.is_empty() {
        let namespace = state.get(&namespace_key(&name.namespace));
        if namespace.is_some_and(|namespace| namespace.meta.deletion_timestamp.is_some()) {
            dirty.insert(Task::Namespace(name.namespace.to_string()));
        }
    }
    if state.unreadable.contains_key(&object.key) {
        dirty.insert(Task::Report(object.key.clone()));
    }
    mark_ownership(state, event, dirty);
}

/// Marks an object of a snapshot as if it had just been added.
pub fn mark_known(state: &State, object: &std::sync::Arc<Object>, dirty: &mut Queue) {
    mark(state, &Event { kind: EventKind::Added, object: object.clone(), previous: None }, dirty);
}

fn mark_pod(state: &State, event: &Event, dirty: &mut Queue) {
    let name = &event.object.key.name;
    for object in states(event) {
        match object.controller() {
            Some(owner) if owner.kind == "ReplicaSet" => {
                let set = ObjectName::new(&name.namespace, &owner.name);
                // A rollout that recreates waits for the end of old pods, which no status tells of.
                if event.kind == EventKind::Deleted {
                    mark_deployment_of(state, &set, dirty);
                }
                dirty.insert(Task::ReplicaSet(set));
            }
            Some(_) => {}
            None => {
                let sets = in_namespace(&state.replica_sets, &name.namespace);
                let matching = sets.filter(|(_, set)| set.selector.matches(&object.meta.labels));
                dirty.extend(matching.map(|(set, _)| Task::ReplicaSet(set.clone())));
            }
        }
    }
    for (service, known) in in_namespace(&state.services, &name.namespace) {
        if states(event).any(|object| known.selector.matches(&object.meta.labels)) {
            dirty.insert(Task::Service(service.clone()));
        }
    }
    let Some(pod) = state.pods.get(name) else { return };
    if pod.node.is_empty() {
        if pod.deleting() {
            dirty.insert(Task::StrayPod(name.clone()));
        }
    } else if state.get(&ObjectKey::new("nodes", "", &pod.node)).is_none() {
        dirty.insert(Task::StrayPod(name.clone()));
    } else if state.troubled_nodes.contains(&pod.node) {
        dirty.insert(Task::Node(pod.node.clone()));
    }
    if state.ended_pods.len() > ENDED_PODS_MAX {
        dirty.insert(Task::EndedPods);
    }
}

fn mark_replica_set(state: &State, event: &Event, dirty: &mut Queue) {
    let name = &event.object.key.name;
    dirty.insert(Task::ReplicaSet(name.clone()));
    for object in states(event) {
        match object.controller() {
            Some(owner) if owner.kind == "Deployment" => {
                dirty.insert(Task::Deployment(ObjectName::new(&name.namespace, &owner.name)));
            }
            Some(_) => {}
            None => {
                let deployments = in_namespace(&state.deployments, &name.namespace);
                let matching = deployments.filter(|(_, selector)| selector.matches(&object.meta.labels));
                dirty.extend(matching.map(|(deployment, _)| Task::Deployment(deployment.clone())));
            }
        }
    }
}

fn mark_deployment_of(state: &State, set: &ObjectName, dirty: &mut Queue) {
    let Some(set) = state.replica_sets.get(set) else { return };
    if let Some(owner) = set.object.controller().filter(|owner| owner.kind == "Deployment") {
        dirty.insert(Task::Deployment(ObjectName::new(set.object.namespace(), &owner.name)));
    }
}

/// The garbage collector looks at objects whose owners are not all well, and at owners whose deletion waits.
fn mark_ownership(state: &State, event: &Event, dirty: &mut Queue) {
    let object = &event.object;
    if event.kind == EventKind::Deleted {
        dirty.extend(state.dependents(object).cloned().map(Task::Collect));
    } else {
        let waits = waits_for_dependents(object);
        let unwell = object.meta.owner_references.iter().any(|owner| match state.by_uid(&owner.uid) {
            None => true,
            Some(key) if !in_reach(key, &object.key) => true,
            Some(key) => state.get(key).is_some_and(|owner| waits_for_dependents(owner)),
        });
        if waits || unwell {
            dirty.insert(Task::Collect(object.key.clone()));
        }
    }
    for owner in states(event).flat_map(|object| &object.meta.owner_references) {
        let Some(key) = state.by_uid(&owner.uid) else { continue };
        if state.get(key).is_some_and(|owner| waits_for_dependents(owner)) {
            dirty.insert(Task::Collect(key.clone()));
        }
    }
}

/// Whether the object is being deleted and one of the collector's finalizers holds it.
pub fn waits_for_dependents(object: &Object) -> bool {
    object.meta.deletion_timestamp.is_some()
        && object.meta.finalizers.iter().any(|name| name == FOREGROUND || name == ORPHAN)
}

/// The object after the change and, where known, before it.
fn states(event: &Event) -> impl Iterator<Item = &Object> {
    std::iter::once(&*event.object).chain(event.previous.as_deref())
}
