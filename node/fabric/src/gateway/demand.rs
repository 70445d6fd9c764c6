//! What is asked of functions at this node's gateway: requests by revision, and who waits until one of its instances is ready.
//!
//! What was under way is summed up in request-milliseconds, so that the sums of all gateways, however often each is asked, are
//! what an autoscaler divides by time.

use super::function_meter::{FunctionMeter, FunctionMeters};
use crate::names::{Name, Names};
use crate::tables::{Service, Tables};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Revisions of which one report tells, those with the most requests.
const REPORTED_MAX: usize = 4_096;

/// See the module. Bounded by the revisions that routes name; one of which nothing is asked any more is forgotten with the
/// next report.
#[derive(Default)]
pub(crate) struct Demand {
    revisions: Mutex<HashMap<Name, Arc<Revision>>>,
    /// Those for which somebody waits and nobody did, until it is told of them. Bounded by the revisions.
    wanted: Mutex<BTreeSet<(Arc<str>, Arc<str>)>>,
    more_wanted: Notify,
    pub(crate) meters: FunctionMeters,
}

/// What is asked of one revision.
pub(crate) struct Revision {
    name: Name,
    meter: Option<Arc<FunctionMeter>>,
    load: Mutex<Load>,
    /// Its endpoints have changed.
    changed: Notify,
}

struct Load {
    under_way: u32,
    waiting: u32,
    /// Since the last report, until `summed_until`.
    sum: Duration,
    arrived: u64,
    summed_until: Instant,
}

/// What was asked of a revision since the last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub namespace: Arc<str>,
    pub revision: Arc<str>,
    /// The time that requests were under way, of all of them together.
    pub under_way: Duration,
    /// Requests that came.
    pub arrived: u64,
    /// Requests that wait for an instance now.
    pub waiting: u32,
}

/// A request that is under way, until it is dropped.
pub(crate) struct UnderWay(Arc<Revision>);

/// A request that waits for an instance, until it is dropped.
pub(crate) struct Waiting<'a>(&'a Revision);

impl Load {
    /// Sums up what has been under way until now.
    fn sum_up(&mut self, now: Instant) {
        self.sum += now.saturating_duration_since(self.summed_until) * self.under_way;
        self.summed_until = now;
    }
}

impl Demand {
    /// A request for a revision has come.
    pub(crate) fn begin(&self, service: &Service) -> UnderWay {
        let now = Instant::now();
        let mut revisions = self.revisions.lock();
        let names = (&*service.namespace, service.entry.name.as_str());
        let revision = match revisions.get(&names as &dyn Names) {
            Some(known) => known.clone(),
            None => {
                let load =
                    Load { under_way: 0, waiting: 0, sum: Duration::ZERO, arrived: 0, summed_until: now };
                let name = Name::new(names.0, names.1);
                let meter = self.meters.of(&name);
                let made = Arc::new(Revision { name, meter, load: Mutex::new(load), changed: Notify::new() });
                revisions.insert(made.name.clone(), made.clone());
                made
            }
        };
        // A report that forgets what nobody asks for sees that somebody does.
        let mut load = revision.load.lock();
        load.sum_up(now);
        load.under_way += 1;
        load.arrived += 1;
        drop(load);
        UnderWay(revision)
    }

    /// A request that is under way begins to wait for an instance.
    pub(crate) fn wait<'a>(&self, request: &'a UnderWay) -> Waiting<'a> {
        let mut load = request.0.load.lock();
        load.waiting += 1;
        if load.waiting == 1 {
            let Name { namespace, name } = &request.0.name;
            self.wanted.lock().insert((namespace.clone(), name.clone()));
            self.more_wanted.notify_one();
        }
        drop(load);
        Waiting(&request.0)
    }

    /// These services have changed, or are gone.
    pub(crate) fn changed(&self, services: &[Name], tables: &Tables) {
        let is_there = |name: &&Name| tables.service(&name.namespace, &name.name).is_some();
        services.iter().filter(|name| !is_there(name)).for_each(|name| self.meters.forget(name));
        let revisions = self.revisions.lock();
        if revisions.is_empty() {
            return;
        }
        for revision in services.iter().filter_map(|name| revisions.get(name)) {
            revision.changed.notify_waiters();
        }
    }

    /// The revisions for an instance of which somebody waits for whom nobody did, once there are some.
    pub(crate) async fn wanted(&self) -> Vec<Name> {
        loop {
            let wanted = std::mem::take(&mut *self.wanted.lock());
            if !wanted.is_empty() {
                return wanted.into_iter().map(|(namespace, name)| Name { namespace, name }).collect();
            }
            self.more_wanted.notified().await;
        }
    }

    /// What was asked for since the last time.
    pub(crate) fn take(&self) -> Vec<Asked> {
        let now = Instant::now();
        let mut told = Vec::new();
        self.revisions.lock().retain(|name, revision| {
            let mut load = revision.load.lock();
            load.sum_up(now);
            let (under_way, arrived) = (std::mem::take(&mut load.sum), std::mem::take(&mut load.arrived));
            let is_idle = arrived == 0 && under_way.is_zero();
            if !is_idle || load.waiting > 0 {
                let (namespace, revision) = (name.namespace.clone(), name.name.clone());
                told.push(Asked { namespace, revision, under_way, arrived, waiting: load.waiting });
            }
            !is_idle || load.under_way > 0
        });
        if told.len() > REPORTED_MAX {
            told.select_nth_unstable_by(REPORTED_MAX, |one, other| other.under_way.cmp(&one.under_way));
            told.truncate(REPORTED_MAX);
        }
        told
    }
}

impl UnderWay {
    /// Where it is counted.
    pub(super) fn meter(&self) -> Option<&Arc<FunctionMeter>> {
        self.0.meter.as_ref()
    }
}

impl Waiting<'_> {
    /// Is ready when the endpoints change after this call.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.0.changed.notified()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut load = self.0.load.lock();
        load.sum_up(Instant::now());
        load.under_way -= 1;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.load.lock().waiting -= 1;
    }
}
