//! EndpointSlices, and Endpoints for older clients: which pods answer for a service.

mod endpoints;
mod ports;
mod slices;

use std::sync::Arc;

use coracle_objects::{Event, Object, ObjectKey, ObjectName};
use jiff::SignedDuration;

use crate::{
    controller::{Controller, states, states_of_labels},
    draft::{Unreadable, later},
    index::Index,
    model::{Models, Pod},
    planner::Planner,
    queue::Queue,
    selectors::{Selectors, may_match},
    state::State,
    task::Task,
};

/// See the module.
pub struct EndpointSlices;

pub const NAME: &str = "endpointslice-controller";
const SERVICES: &str = "services";

/// Endpoints of large services are written the less often the larger they are: at most once in this time for each
/// endpoint. A service with a thousand pods that come up one by one would fill the log otherwise.
const WRITE_PERIOD_US_PER_ENDPOINT: i64 = 250;

/// A pod that answers, or may come to answer, for a service.
pub struct Backend<'a> {
    pub pod: &'a Pod,
    /// Takes new connections.
    pub ready: bool,
    /// Would answer, even if it is about to end.
    pub serving: bool,
    pub terminating: bool,
}

/// By what services select pods.
#[derive(Debug, Default)]
pub struct ServiceSelectors(Selectors);

impl Index for ServiceSelectors {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(found) = models.service(object) {
            self.0.insert(&object.key.name, &found.selector);
        }
    }

    fn remove(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(found) = models.service(object) {
            self.0.remove(&object.key.name, &found.selector);
        }
    }
}

impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cares_for(&self) -> Option<&'static str> {
        Some(SERVICES)
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let name = &event.object.key.name;
        let on = |service: &ObjectName| Task::on(NAME, SERVICES, service);
        match event.object.key.resource.as_str() {
            SERVICES | "endpoints" => tasks.insert(on(name)),
            "endpointslices.discovery.k8s.io" => {
                let service = |object: &Object| {
                    let service = object.meta.labels.get("kubernetes.io/service-name")?;
                    Some(on(&ObjectName::new(&name.namespace, service)))
                };
                tasks.extend(states(event).filter_map(service));
            }
            "pods" => {
                for object in states_of_labels(event) {
                    let labels = &object.meta.labels;
                    let matches = |service: &&ObjectName| {
                        let service = state.models.services.get(service);
                        service.is_some_and(|service| may_match(&service.selector, labels))
                    };
                    let matching =
                        state.service_selectors.0.candidates(&name.namespace, labels).filter(matches);
                    tasks.extend(matching.map(on));
                }
            }
            _ => {}
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, &subject.name)
    }
}

fn plan(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let state = planner.state;
    let Some(service) = state.models.services.get(name) else {
        planner.memory.endpoints_written.remove(name);
        endpoints::remove_leftover(planner, name);
        return Ok(());
    };
    if service.object.meta.deletion_timestamp.is_some() || !state.takes_objects(&name.namespace) {
        return Ok(());
    }
    let pods = state.select_pods(&name.namespace, &service.selector);
    let backends: Vec<Backend<'_>> = pods
        .into_iter()
        .filter(|pod| !pod.terminal() && !pod.ips.is_empty())
        .map(|pod| Backend {
            pod,
            ready: service.publish_not_ready || (pod.ready && !pod.deleting()),
            serving: service.publish_not_ready || pod.ready,
            terminating: pod.deleting(),
        })
        .collect();
    let period = SignedDuration::from_micros(WRITE_PERIOD_US_PER_ENDPOINT * backends.len() as i64);
    let written = planner.memory.endpoints_written.get(name).copied();
    if let Some(due) = written.map(|moment| later(moment, period)).filter(|due| *due > planner.now) {
        planner.postpone(due);
        return Ok(());
    }
    let before = planner.plan.transactions.len();
    slices::plan(planner, service, &backends)?;
    endpoints::plan(planner, service, &backends)?;
    if planner.plan.transactions.len() > before {
        planner.memory.endpoints_written.insert(name.clone(), planner.now);
    }
    Ok(())
}
