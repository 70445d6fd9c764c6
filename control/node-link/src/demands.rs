//! What gateways say is asked of functions, until the controllers take it. In memory only.

use std::collections::BTreeMap;

use coracle_leader::FunctionDemand;
use coracle_objects::ObjectName;
use coracle_proto::node::FunctionDemand as Told;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Revisions of which one message of a node is heard.
const HEARD_MAX: usize = 4_096;
/// Revisions of which there may be more to take.
const KEPT_MAX: usize = 65_536;
/// The most request-milliseconds that one message tells of one revision: those of 16,384 requests in a minute.
const REQUEST_MILLISECONDS_MAX: u64 = 16_384 * 60_000;

/// See the module.
#[derive(Default)]
pub struct Demands {
    untaken: Mutex<BTreeMap<ObjectName, FunctionDemand>>,
    more: Notify,
}

impl Demands {
    /// A node says what was asked of functions at its gateway. What is beyond the bounds is not heard.
    pub(crate) fn hear(&self, told: &[Told]) {
        let mut untaken = self.untaken.lock();
        for one in told.iter().take(HEARD_MAX) {
            let name = ObjectName::new(&one.namespace, &one.revision);
            if untaken.len() >= KEPT_MAX && !untaken.contains_key(&name) {
                continue;
            }
            let demand = untaken.entry(name).or_default();
            demand.request_milliseconds += one.request_milliseconds.min(REQUEST_MILLISECONDS_MAX);
            demand.arrived = demand.arrived.saturating_add(one.arrived);
            demand.waiting = demand.waiting.saturating_add(one.waiting);
        }
        drop(untaken);
        self.more.notify_one();
    }

    /// What was said since the last time, once there is something.
    pub async fn next(&self) -> BTreeMap<ObjectName, FunctionDemand> {
        loop {
            let taken = std::mem::take(&mut *self.untaken.lock());
            if !taken.is_empty() {
                return taken;
            }
            self.more.notified().await;
        }
    }
}
