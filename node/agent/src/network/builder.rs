//! Builds the network's tables beside the node's loop: what the cluster has of services, slices and pods delays no pod.
//!
//! One build at a time, of what has changed alone. What changes meanwhile waits as the newest of each object, and is all in
//! the next build.

use std::{
    collections::BTreeMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use coracle_fabric::NetworkChange;
use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use tokio::sync::watch;

use super::objects::NetworkObjects;
use crate::decode::Key;

/// Changes within this time go to the fabric together.
const SETTLES: Duration = Duration::from_millis(10);

/// The longest pause between builds; it is as long as the last build.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Of what a log says of a change, in characters.
const TOLD_CHARS_MAX: usize = 256;

/// The loop's end. Dropping it ends the thread.
pub(super) struct Builder {
    shared: Arc<Shared>,
    /// The number of the last change that is in the fabric's tables.
    built: watch::Receiver<u64>,
}

#[derive(Default)]
struct Shared {
    changes: Mutex<Changes>,
    changed: Condvar,
    /// How many objects there are.
    objects: AtomicUsize,
}

#[derive(Default)]
struct Changes {
    /// The newest of each object, `None` where it is gone: no more than there are objects.
    waiting: BTreeMap<Key, Option<Value>>,
    /// Of the last change.
    number: u64,
    /// Of the last change that pods rely on.
    relied_on: u64,
    /// They are not to settle.
    urgent: bool,
    closed: bool,
}

impl Builder {
    /// Starts the thread, which gives what changes to `update`.
    pub(super) fn start(update: impl FnMut(Vec<NetworkChange>) + Send + 'static) -> io::Result<Self> {
        Self::with(NetworkObjects::take_in, update)
    }

    /// The same where the thread takes each object in by `take_in`.
    fn with(take_in: TakeIn, update: impl FnMut(Vec<NetworkChange>) + Send + 'static) -> io::Result<Self> {
        let (shared, own) = (Arc::<Shared>::default(), watch::Sender::new(0));
        let built = own.subscribe();
        let of_thread = shared.clone();
        thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || of_thread.run(take_in, update, &own))?;
        Ok(Self { shared, built })
    }

    /// An object is so now, or is gone.
    pub(super) fn change(&self, key: Key, object: Option<Value>) {
        let mut changes = self.shared.changes.lock();
        changes.number += 1;
        changes.waiting.insert(key, object);
        self.shared.changed.notify_one();
    }

    /// Pods rely on all that changed until now.
    pub(super) fn hurry(&self) {
        let mut changes = self.shared.changes.lock();
        changes.relied_on = changes.number;
        changes.urgent = true;
        self.shared.changed.notify_one();
    }

    /// Returns when all that pods rely on by the time of the call is in the fabric's tables.
    pub(super) fn told(&self) -> impl Future<Output = ()> + Send + use<> {
        let number = self.shared.changes.lock().relied_on;
        let mut built = self.built.clone();
        async move {
            // A thread that is gone tells nobody anything any more.
            let _ = built.wait_for(|built| *built >= number).await;
        }
    }

    pub(super) fn held(&self) -> usize {
        self.shared.objects.load(Ordering::Relaxed)
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        self.shared.changes.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// Takes in that an object is so now, or is gone.
type TakeIn = fn(&mut NetworkObjects, &Key, Option<&Value>);

impl Shared {
    fn run(&self, take_in: TakeIn, mut update: impl FnMut(Vec<NetworkChange>), built: &watch::Sender<u64>) {
        let mut objects = NetworkObjects::default();
        while let Some((waiting, number)) = self.take() {
            let begun = Instant::now();
            for (key, object) in waiting {
                // One that the node fails on costs no other.
                let taken = catch_unwind(AssertUnwindSafe(|| take_in(&mut objects, &key, object.as_ref())));
                if taken.is_err() {
                    let (resource, namespace, name) = &key;
                    tracing::error!(
                        resource,
                        namespace,
                        name,
                        "internal error of the node: it is left out of the network"
                    );
                }
            }
            self.objects.store(objects.held(), Ordering::Relaxed);
            let changes = objects.take_changes();
            if !changes.is_empty() {
                tell(changes, &mut update);
            }
            built.send_replace(number);
            // What is written as fast as it can be read has half a processor at most.
            thread::sleep(begun.elapsed().min(PAUSE_MAX));
        }
    }

    /// What changed, once it has settled, with the number of the last change. `None` when the node stops.
    fn take(&self) -> Option<(BTreeMap<Key, Option<Value>>, u64)> {
        let mut changes = self.changes.lock();
        while changes.waiting.is_empty() && !changes.closed {
            self.changed.wait(&mut changes);
        }
        let settled = Instant::now() + SETTLES;
        while !changes.urgent && !changes.closed {
            if self.changed.wait_until(&mut changes, settled).timed_out() {
                break;
            }
        }
        changes.urgent = false;
        let taken = (std::mem::take(&mut changes.waiting), changes.number);
        (!changes.closed).then_some(taken)
    }
}

/// Tells all at once; where that fails, one by one, so that what the fabric can make nothing of costs no other.
fn tell(changes: Vec<NetworkChange>, update: &mut impl FnMut(Vec<NetworkChange>)) {
    let mut told = |changes: Vec<NetworkChange>| catch_unwind(AssertUnwindSafe(|| update(changes))).is_ok();
    if told(changes.clone()) {
        return;
    }
    for change in changes {
        let what = format!("{change:?}");
        if !told(vec![change]) {
            let what: String = what.chars().take(TOLD_CHARS_MAX).collect();
            tracing::error!(what, "internal error of the node: a change of the network is left out");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, future::ready, sync::mpsc};

    use coracle_fabric::ServiceEntry;
    use serde_json::json;

    use super::*;

    async fn waits(told: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        tokio::select! {
            biased;
            () = told => false,
            () = ready(()) => true,
        }
    }

    fn service_of(change: NetworkChange) -> (String, Option<ServiceEntry>) {
        let NetworkChange::Service(name, now) = change else { panic!("a service, not {change:?}") };
        (name.name.to_string(), now)
    }

    /// A service's name, and how many ports it has now.
    fn ports_of(change: NetworkChange) -> (String, Option<usize>) {
        let (name, now) = service_of(change);
        (name, now.map(|service| service.ports.len()))
    }

    #[tokio::test]
    async fn what_changes_while_tables_are_built_waits_for_no_build_and_is_in_the_next_one() {
        let (seen, states) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let builder = Builder::start(move |changes| {
            let _ = seen.send(changes.into_iter().map(ports_of).collect::<Vec<_>>());
            let _ = wait.recv();
        })
        .unwrap();
        let key = |name: &str| ("services".to_owned(), "d".to_owned(), name.to_owned());
        let service = |ports: u16| {
            let ports: Vec<Value> = (1..=ports).map(|port| json!({ "port": port })).collect();
            Some(json!({ "spec": { "ports": ports } }))
        };
        builder.change(key("web"), service(1));
        builder.hurry();
        let first = builder.told();
        assert_eq!(states.recv().unwrap(), [("web".to_owned(), Some(1))]);
        // That build does not end: neither is anybody held up, nor is there another.
        for ports in (1..=100).rev() {
            builder.change(key("web"), service(ports + 1));
        }
        builder.change(key("gone"), service(1));
        builder.change(key("gone"), None);
        builder.change(key("new"), service(3));
        builder.hurry();
        let mut second = Box::pin(builder.told());
        assert!(waits(&mut second).await && states.try_recv().is_err());
        go.send(()).unwrap();
        first.await;
        assert_eq!(states.recv().unwrap(), [("new".to_owned(), Some(3)), ("web".to_owned(), Some(2))]);
        assert!(waits(&mut second).await);
        go.send(()).unwrap();
        second.await;
        assert_eq!(builder.held(), 2);
        // Nothing changed: nothing is built.
        builder.change(key("new"), service(3));
        builder.hurry();
        builder.told().await;
        assert!(states.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_the_node_fails_on_is_left_out_and_costs_nothing_else() {
        let (seen, states) = mpsc::channel();
        let mut there = BTreeSet::new();
        let update = move |changes: Vec<NetworkChange>| {
            let changes: Vec<_> = changes.into_iter().map(service_of).collect();
            let is_odd = |(name, now): &(String, Option<ServiceEntry>)| name == "odd" && now.is_some();
            assert!(!changes.iter().any(is_odd), "as where the fabric can make nothing of it");
            for (name, now) in changes {
                if now.is_some() {
                    there.insert(name)
                } else {
                    there.remove(&name)
                };
            }
            let _ = seen.send(there.iter().cloned().collect::<Vec<_>>());
        };
        let fails_on_one = |objects: &mut NetworkObjects, key: &Key, object: Option<&Value>| {
            assert_ne!(key.2, "bad", "as where an object is what nobody thought of");
            objects.take_in(key, object);
        };
        let builder = Builder::with(fails_on_one, update).unwrap();
        let change = |name: &str, is_there: bool| {
            let key = ("services".to_owned(), "d".to_owned(), name.to_owned());
            builder.change(key, is_there.then(|| json!({ "spec": { "ports": [{ "port": 80 }] } })));
        };
        // The bad one is between others.
        for name in ["a", "bad", "c"] {
            change(name, true);
        }
        builder.hurry();
        builder.told().await;
        assert_eq!(states.try_iter().last().unwrap(), ["a", "c"]);
        ["odd", "d"].into_iter().for_each(|name| change(name, true));
        builder.hurry();
        builder.told().await;
        assert_eq!(states.try_iter().last().unwrap(), ["a", "c", "d"], "what came with it comes in");
        ["odd", "d"].into_iter().for_each(|name| change(name, false));
        for name in ["bad", "e"] {
            change(name, true);
        }
        builder.hurry();
        builder.told().await;
        assert_eq!(states.try_iter().last().unwrap(), ["a", "c", "e"]);
        assert_eq!(builder.held(), 3);
    }
}
