//! What a controller is, and which there are.

use coracle_objects::{Event, EventKind, Object, ObjectKey};

use crate::{
    definitions::Definitions, deployment::Deployments, draft::Unreadable, endpoint_slice::EndpointSlices,
    endpoint_slice_mirroring::EndpointSliceMirroring, function::Functions,
    garbage_collector::GarbageCollector, ingress::Ingresses, namespace::Namespaces,
    node_lifecycle::NodeLifecycle, planner::Planner, pod_gc::PodGc, queue::Queue, replica_set::ReplicaSets,
    report::Reports, service_account::ServiceAccounts, state::State,
};

/// Which of its tasks an event gives rise to, and what is to be done about each. What it keeps in between can be lost.
pub trait Controller: Sync {
    /// As Kubernetes' controller manager calls it, where it has one.
    fn name(&self) -> &'static str;

    /// The resource whose objects it brings to what their own specs say, where there is one.
    fn cares_for(&self) -> Option<&'static str> {
        None
    }

    /// Marks what an event concerns. The state has taken it already.
    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue);

    /// Plans what is to be done about the subject of a task.
    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable>;
}

/// All of them, in the order of their turns.
pub const ALL: [&dyn Controller; 13] = [
    &ServiceAccounts,
    &Namespaces,
    &Definitions,
    &NodeLifecycle,
    &PodGc,
    &Functions,
    &Deployments,
    &ReplicaSets,
    &EndpointSlices,
    &EndpointSliceMirroring,
    &GarbageCollector,
    &Reports,
    &Ingresses,
];

/// Marks what an event concerns, for all of them.
pub fn mark(state: &State, event: &Event, tasks: &mut Queue) {
    ALL.iter().for_each(|controller| controller.mark(state, event, tasks));
}

/// Marks an object of a snapshot as if it had just been added.
pub fn mark_known(state: &State, object: &std::sync::Arc<Object>, tasks: &mut Queue) {
    mark(state, &Event { kind: EventKind::Added, object: object.clone(), previous: None }, tasks);
}

/// The object after the change and, where known, before it.
pub fn states(event: &Event) -> impl Iterator<Item = &Object> {
    std::iter::once(&*event.object).chain(event.previous.as_deref())
}

/// As [`states`], without the one before where it has the same labels.
pub fn states_of_labels(event: &Event) -> impl Iterator<Item = &Object> {
    let before = event.previous.as_deref().filter(|before| before.meta.labels != event.object.meta.labels);
    std::iter::once(&*event.object).chain(before)
}
