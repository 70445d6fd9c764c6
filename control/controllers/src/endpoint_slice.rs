//! EndpointSlices, and Endpoints for older clients: which pods answer for a service.

mod endpoints;
mod ports;
mod slices;

use coracle_objects::ObjectName;
use jiff::SignedDuration;

use crate::{
    draft::{Unreadable, later},
    model::Pod,
    planner::Planner,
};

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

pub fn plan(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let state = planner.state;
    let Some(service) = state.services.get(name) else {
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
