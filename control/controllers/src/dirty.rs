//! Which tasks an event gives rise to.

use std::collections::BTreeSet;

use coracle_objects::{Event, EventKind, Object, ObjectKey, ObjectName};

use crate::{
    draft::namespace_key, ingress::claims_of, model::Node, ownership::Wait, pod_gc::ENDED_PODS_MAX,
    queue::Queue, selectors::may_match, service_account, state::State,
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

    /// The namespace whose work it is; empty where it is that of no one namespace.
    pub fn namespace(&self) -> &str {
        match self {
            Task::ServiceAccount(name) | Task::Namespace(name) => name,
            Task::Node(_) | Task::EndedPods => "",
            Task::StrayPod(name)
            | Task::Deployment(name)
            | Task::ReplicaSet(name)
            | Task::Service(name)
            | Task::Ingress(name) => &name.namespace,
            Task::Collect(key) | Task::Report(key) => &key.name.namespace,
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
            mark_hosts(state, event, dirty);
        }
        // Few, and hardly ever changed.
        "ingressclasses.networking.k8s.io" => mark_ingresses(state, dirty),
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
            let gateway = |node: &Object| Node::of(node).ok().and_then(|node| node.gateway);
            let before = event.previous.as_ref().and_then(|before| gateway(before));
            let now = if event.kind == EventKind::Deleted { None } else { gateway(object) };
            if before != now || (event.kind == EventKind::Deleted && gateway(object).is_some()) {
                mark_ingresses(state, dirty);
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
                let labels = &object.meta.labels;
                let matches = |set: &&ObjectName| {
                    state.replica_sets.get(set).is_some_and(|set| may_match(&set.selector, labels))
                };
                let matching = state.set_selectors.candidates(&name.namespace, labels).filter(matches);
                dirty.extend(matching.cloned().map(Task::ReplicaSet));
            }
        }
    }
    for object in states_of_labels(event) {
        let labels = &object.meta.labels;
        let matches = |service: &&ObjectName| {
            state.services.get(service).is_some_and(|service| may_match(&service.selector, labels))
        };
        let matching = state.service_selectors.candidates(&name.namespace, labels).filter(matches);
        dirty.extend(matching.cloned().map(Task::Service));
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

fn mark_ingresses(state: &State, dirty: &mut Queue) {
    let all = state.view.list("ingresses.networking.k8s.io", None);
    dirty.extend(all.map(|ingress| Task::Ingress(ingress.key.name.clone())));
}

/// Marks the Ingresses of other namespaces to which the hosts that one asks for anew, or no more, make a difference.
fn mark_hosts(state: &State, event: &Event, dirty: &mut Queue) {
    let claims = |ingress| claims_of(ingress).into_iter().collect::<BTreeSet<_>>();
    let now = claims(&event.object);
    let changed: Vec<_> = match (&event.previous, event.kind) {
        (Some(before), EventKind::Modified) => now.symmetric_difference(&claims(before)).cloned().collect(),
        _ => now.into_iter().collect(),
    };
    let concerned = state.hosts.concerned(&event.object.key.name, &changed);
    dirty.extend(concerned.cloned().map(Task::Ingress));
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
                let labels = &object.meta.labels;
                let matches = |deployment: &&ObjectName| {
                    state.deployments.get(deployment).is_some_and(|selector| may_match(selector, labels))
                };
                let matching = state.deployment_selectors.candidates(&name.namespace, labels).filter(matches);
                dirty.extend(matching.cloned().map(Task::Deployment));
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
        let unwell = object.meta.owner_references.iter().any(|reference| {
            let owner = state.ownership.owner(&reference.uid, &object.key);
            owner.is_none_or(|owner| owner.wait.for_dependents())
        });
        if unwell || Wait::of(object).for_dependents() {
            dirty.insert(Task::Collect(object.key.clone()));
        }
    }
    if !concerns_owners(event) {
        return;
    }
    for reference in states(event).flat_map(|object| &object.meta.owner_references) {
        let owner = state.ownership.by_uid(&reference.uid);
        if let Some(owner) = owner.filter(|owner| owner.wait.for_dependents()) {
            dirty.insert(Task::Collect(owner.key.clone()));
        }
    }
}

/// Whether a change is one to those who wait for the object to go, or to be freed of them.
fn concerns_owners(event: &Event) -> bool {
    let now = &event.object;
    let Some(before) = event.previous.as_ref().filter(|_| event.kind == EventKind::Modified) else {
        return true;
    };
    before.meta.deletion_timestamp.is_some() != now.meta.deletion_timestamp.is_some()
        || Wait::of(before) != Wait::of(now)
        || before.meta.owner_references != now.meta.owner_references
}

/// The object after the change and, where known, before it.
fn states(event: &Event) -> impl Iterator<Item = &Object> {
    std::iter::once(&*event.object).chain(event.previous.as_deref())
}

/// As [`states`], without the one before where it has the same labels.
fn states_of_labels(event: &Event) -> impl Iterator<Item = &Object> {
    let before = event.previous.as_deref().filter(|before| before.meta.labels != event.object.meta.labels);
    std::iter::once(&*event.object).chain(before)
}
