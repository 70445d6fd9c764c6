//! Builds the network's tables beside the node's loop: what the cluster has of services, slices and pods delays no pod.
//!
//! One thread builds what has changed alone. What changes meanwhile waits as the newest of each object. Namespaces take turns:
//! each has a short one, and rests for longer the more its own cost, so that what one changes all the time delays no other.
//! What is the cluster's own comes first.

use std::{
    collections::{BTreeMap, BTreeSet},
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
use parking_lot::{Condvar, Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::watch;

use super::objects::NetworkObjects;
use crate::decode::Key;

/// Changes within this time go to the fabric together.
const SETTLES: Duration = Duration::from_millis(10);
/// A turn ends with what is under way then. One object, or one service, may take longer.
const TURN: Duration = Duration::from_millis(20);
/// The longest rest of a namespace after its turn. It is twice as long as the turn was, for each namespace that rests.
const REST_MAX: Duration = Duration::from_secs(5);
/// The same of what is the cluster's own, which counts for itself alone.
const CLUSTERS_REST_MAX: Duration = Duration::from_millis(100);
/// How long a pod's start waits for what other namespaces have, when all of it is new.
const OTHERS_MAX: Duration = Duration::from_secs(5);
/// Of what a log says of a change, in characters.
const TOLD_CHARS_MAX: usize = 256;

/// The namespace of what is in none.
const CLUSTER: &str = "";

/// The loop's end. Dropping it ends the thread.
pub(super) struct Builder {
    shared: Arc<Shared>,
    /// Changes with each turn.
    turns: watch::Receiver<()>,
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
    /// By the namespace.
    waiting: BTreeMap<String, Waiting>,
    /// Of each namespace the number of the oldest change that is not in the fabric's tables.
    unfinished: BTreeMap<String, u64>,
    /// Of the last change.
    number: u64,
    /// Of the last change that pods rely on; the same of what is the cluster's own.
    relied_on: u64,
    clusters_relied_on: u64,
    /// They are not to settle.
    urgent: bool,
    closed: bool,
}

/// What waits for turns of its namespace: the newest of each object, in the order in which they changed first.
#[derive(Default)]
struct Waiting {
    order: BTreeMap<u64, Key>,
    /// With its place in the order; `None` where it is gone. No more than there are objects.
    objects: BTreeMap<Key, (u64, Option<Value>)>,
}

impl Waiting {
    fn insert(&mut self, number: u64, key: Key, object: Option<Value>) {
        if let Some((_, newest)) = self.objects.get_mut(&key) {
            *newest = object;
        } else {
            self.order.insert(number, key.clone());
            self.objects.insert(key, (number, object));
        }
    }

    fn pop(&mut self) -> Option<(u64, Key, Option<Value>)> {
        let (number, key) = self.order.pop_first()?;
        let (_, object) = self.objects.remove(&key)?;
        Some((number, key, object))
    }

    /// The number of the first of these changes.
    fn since(&self) -> Option<u64> {
        self.order.first_key_value().map(|(number, _)| *number)
    }
}

impl Changes {
    /// Whether pods rely on something of this namespace that is not in the tables.
    fn is_relied_on(&self, namespace: &str) -> bool {
        let last = if namespace == CLUSTER { self.clusters_relied_on } else { self.relied_on };
        self.is_unfinished(namespace, last)
    }

    /// Takes the next that waits of a namespace.
    fn pop(&mut self, namespace: &str) -> Option<(u64, Key, Option<Value>)> {
        let waiting = self.waiting.get_mut(namespace)?;
        let next = waiting.pop();
        if waiting.order.is_empty() {
            self.waiting.remove(namespace);
        }
        next
    }

    /// Whether a change of this namespace up to that number is not in the tables.
    fn is_unfinished(&self, namespace: &str, last: u64) -> bool {
        self.unfinished.get(namespace).is_some_and(|oldest| *oldest <= last)
    }
}

impl Builder {
    /// Starts the thread, which gives what changes to `update`.
    pub(super) fn start(update: impl FnMut(Vec<NetworkChange>) + Send + 'static) -> io::Result<Self> {
        Self::with(NetworkObjects::take_in, TURN, update)
    }

    /// The same where the thread takes each object in by `take_in`, in turns of this length.
    fn with(
        take_in: TakeIn,
        turn: Duration,
        update: impl FnMut(Vec<NetworkChange>) + Send + 'static,
    ) -> io::Result<Self> {
        let (shared, own) = (Arc::<Shared>::default(), watch::Sender::new(()));
        let turns = own.subscribe();
        let objects = NetworkObjects::default();
        let (of_thread, rests) = (shared.clone(), BTreeMap::new());
        let worker = Worker { shared: of_thread, objects, rests, take_in, turn, turns: own, update };
        thread::Builder::new().name("network".to_owned()).spawn(move || worker.run())?;
        Ok(Self { shared, turns })
    }

    /// An object is so now, or is gone.
    pub(super) fn change(&self, key: Key, object: Option<Value>) {
        let mut changes = self.shared.changes.lock();
        changes.number += 1;
        let (namespace, number) = (key.1.clone(), changes.number);
        changes.unfinished.entry(namespace.clone()).or_insert(number);
        changes.waiting.entry(namespace).or_default().insert(number, key, object);
        self.shared.changed.notify_one();
    }

    /// Pods rely on all that changed until now.
    pub(super) fn hurry(&self) {
        self.hurry_by(|changes| changes.relied_on = changes.number);
    }

    /// Pods rely on what is the cluster's own and changed until now.
    pub(super) fn hurry_clusters(&self) {
        self.hurry_by(|_| {});
    }

    fn hurry_by(&self, rely: impl FnOnce(&mut Changes)) {
        let mut changes = self.shared.changes.lock();
        changes.clusters_relied_on = changes.number;
        rely(&mut changes);
        changes.urgent = true;
        self.shared.changed.notify_one();
    }

    /// Returns when all that pods of a namespace rely on by the time of the call is in the fabric's tables: what is theirs,
    /// the cluster's own, and what other namespaces have, for which nobody waits longer than [`OTHERS_MAX`].
    pub(super) fn told(&self, namespace: &str) -> impl Future<Output = ()> + Send + use<> {
        let (shared, namespace) = (self.shared.clone(), namespace.to_owned());
        let (clusters, all) = {
            let changes = shared.changes.lock();
            (changes.clusters_relied_on, changes.relied_on)
        };
        let (mut turns, mut others) = (self.turns.clone(), self.turns.clone());
        async move {
            let is_own = |_: &()| {
                let changes = shared.changes.lock();
                !changes.is_unfinished(CLUSTER, clusters) && !changes.is_unfinished(&namespace, all)
            };
            let is_all = |_: &()| shared.changes.lock().unfinished.values().all(|oldest| *oldest > all);
            // A thread that is gone tells nobody anything any more.
            let _ = turns.wait_for(is_own).await;
            let _ = tokio::time::timeout(OTHERS_MAX, others.wait_for(is_all)).await;
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

/// The thread.
struct Worker<U> {
    shared: Arc<Shared>,
    objects: NetworkObjects,
    /// Until when namespaces rest.
    rests: BTreeMap<String, Instant>,
    take_in: TakeIn,
    turn: Duration,
    turns: watch::Sender<()>,
    update: U,
}

impl<U: FnMut(Vec<NetworkChange>)> Worker<U> {
    fn run(mut self) {
        while let Some(due) = self.due() {
            for namespace in due {
                self.take_turn(namespace);
                if self.is_clusters_turn() {
                    self.take_turn(CLUSTER.to_owned());
                }
            }
        }
    }

    /// What is the cluster's own comes between the turns of others.
    fn is_clusters_turn(&self) -> bool {
        let changes = self.shared.changes.lock();
        let rests = self.rests.get(CLUSTER).is_some_and(|until| *until > Instant::now());
        changes.waiting.contains_key(CLUSTER) && (!rests || changes.is_relied_on(CLUSTER))
    }

    fn take_turn(&mut self, namespace: String) {
        let begun = Instant::now();
        let changes = self.take_waiting(&namespace, begun);
        self.tell(&namespace, changes);
        self.rest(namespace, begun.elapsed());
    }

    /// Waits until turns are due, and says whose. None when the node stops.
    fn due(&mut self) -> Option<Vec<String>> {
        let shared = self.shared.clone();
        let mut changes = shared.changes.lock();
        let mut has_waited = false;
        while !changes.closed {
            self.rests.retain(|_, until| *until > Instant::now());
            let (due, first) = self.wanted(&changes);
            if due.is_empty() {
                match first {
                    Some(first) => drop(shared.changed.wait_until(&mut changes, first)),
                    None => shared.changed.wait(&mut changes),
                }
                has_waited = true;
            } else if std::mem::take(&mut has_waited) && !changes.urgent {
                self.settle(&mut changes);
            } else {
                changes.urgent = false;
                return Some(due);
            }
        }
        None
    }

    /// Whose turn is due, and when the next of the others' is.
    fn wanted(&self, changes: &Changes) -> (Vec<String>, Option<Instant>) {
        let touched = self.objects.touched().map(ToString::to_string);
        let wanted: BTreeSet<String> = changes.waiting.keys().cloned().chain(touched).collect();
        let rests = |of: &String| self.rests.get(of).filter(|_| !changes.is_relied_on(of));
        let first = wanted.iter().filter_map(rests).min().copied();
        let mut due: Vec<String> = wanted.into_iter().filter(|of| rests(of).is_none()).collect();
        due.sort_by_key(|of| (of != CLUSTER, !changes.is_relied_on(of)));
        (due, first)
    }

    /// Lets more come that goes to the fabric together.
    fn settle(&self, changes: &mut MutexGuard<'_, Changes>) {
        let settled = Instant::now() + SETTLES;
        while !changes.urgent && !changes.closed {
            if self.shared.changed.wait_until(changes, settled).timed_out() {
                return;
            }
        }
    }

    /// Takes in what waits of a namespace, for as long as a turn is, and answers what the fabric is to be told.
    fn take_waiting(&mut self, namespace: &str, begun: Instant) -> Vec<NetworkChange> {
        let shared = self.shared.clone();
        let pop = || shared.changes.lock().pop(namespace);
        while let Some((number, key, object)) = pop() {
            self.objects.changed_by(number);
            self.take_in(&key, object.as_ref());
            if begun.elapsed() >= self.turn {
                break;
            }
        }
        self.shared.objects.store(self.objects.held(), Ordering::Relaxed);
        let changes = self.objects.take_changes(namespace, || begun.elapsed() >= self.turn);
        if namespace == CLUSTER {
            self.note_touched();
        }
        changes
    }

    /// Claims are the cluster's own, and are of services of any namespace.
    fn note_touched(&self) {
        let mut later = self.shared.changes.lock();
        for namespace in self.objects.touched() {
            if let Some(since) = self.objects.touched_since(namespace) {
                let oldest = later.unfinished.entry(namespace.to_string()).or_insert(since);
                *oldest = since.min(*oldest);
            }
        }
    }

    fn take_in(&mut self, key: &Key, object: Option<&Value>) {
        // One that the node fails on costs no other.
        let taken = catch_unwind(AssertUnwindSafe(|| (self.take_in)(&mut self.objects, key, object)));
        if taken.is_err() {
            let (resource, namespace, name) = key;
            tracing::error!(
                resource,
                namespace,
                name,
                "internal error of the node: it is left out of the network"
            );
        }
    }

    /// Tells the fabric, and then who waits for what the namespace had to say.
    fn tell(&mut self, namespace: &str, changes: Vec<NetworkChange>) {
        if !changes.is_empty() {
            tell(changes, &mut self.update);
        }
        let touched = self.objects.touched_since(namespace);
        let mut later = self.shared.changes.lock();
        let waiting = later.waiting.get(namespace).and_then(Waiting::since);
        match [touched, waiting].into_iter().flatten().min() {
            Some(oldest) => drop(later.unfinished.insert(namespace.to_owned(), oldest)),
            None => drop(later.unfinished.remove(namespace)),
        }
        drop(later);
        self.turns.send_replace(());
    }

    /// What is written as fast as it can be read has half a processor at most.
    fn rest(&mut self, namespace: String, cost: Duration) {
        let resting = u32::try_from(self.rests.len() + 1).unwrap_or(u32::MAX);
        let rest = if namespace == CLUSTER {
            cost.saturating_mul(2).min(CLUSTERS_REST_MAX)
        } else {
            cost.saturating_mul(2).saturating_mul(resting).min(REST_MAX)
        };
        self.rests.insert(namespace, Instant::now() + rest);
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

    /// Longer than a turn takes on a machine that does much else.
    const LONG: Duration = Duration::from_secs(60);

    fn service_of_one_port() -> Option<Value> {
        Some(json!({ "spec": { "ports": [{ "port": 80 }] } }))
    }

    fn names_of(changes: Vec<NetworkChange>) -> Vec<String> {
        changes.into_iter().map(|change| service_of(change).0).collect()
    }

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
        let builder = Builder::with(NetworkObjects::take_in, LONG, move |changes| {
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
        let first = builder.told("d");
        assert_eq!(states.recv().unwrap(), [("web".to_owned(), Some(1))]);
        // That build does not end: neither is anybody held up, nor is there another.
        for ports in (1..=100).rev() {
            builder.change(key("web"), service(ports + 1));
        }
        builder.change(key("gone"), service(1));
        builder.change(key("gone"), None);
        builder.change(key("new"), service(3));
        builder.hurry();
        let mut second = Box::pin(builder.told("d"));
        assert!(waits(&mut second).await && states.try_recv().is_err());
        go.send(()).unwrap();
        first.await;
        assert_eq!(states.recv().unwrap(), [("web".to_owned(), Some(2)), ("new".to_owned(), Some(3))]);
        assert!(waits(&mut second).await);
        go.send(()).unwrap();
        second.await;
        assert_eq!(builder.held(), 2);
        // Nothing changed: nothing is built.
        builder.change(key("new"), service(3));
        builder.hurry();
        builder.told("d").await;
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
        let builder = Builder::with(fails_on_one, LONG, update).unwrap();
        let change = |name: &str, is_there: bool| {
            let key = ("services".to_owned(), "d".to_owned(), name.to_owned());
            builder.change(key, is_there.then(|| json!({ "spec": { "ports": [{ "port": 80 }] } })));
        };
        // The bad one is between others.
        for name in ["a", "bad", "c"] {
            change(name, true);
        }
        builder.hurry();
        builder.told("d").await;
        assert_eq!(states.try_iter().last().unwrap(), ["a", "c"]);
        ["odd", "d"].into_iter().for_each(|name| change(name, true));
        builder.hurry();
        builder.told("d").await;
        assert_eq!(states.try_iter().last().unwrap(), ["a", "c", "d"], "what came with it comes in");
        ["odd", "d"].into_iter().for_each(|name| change(name, false));
        for name in ["bad", "e"] {
            change(name, true);
        }
        builder.hurry();
        builder.told("d").await;
        assert_eq!(states.try_iter().last().unwrap(), ["a", "c", "e"]);
        assert_eq!(builder.held(), 3);
    }

    #[tokio::test]
    async fn who_has_much_to_build_rests_while_others_have_their_turns() {
        let (seen, states) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let builder = Builder::with(NetworkObjects::take_in, Duration::from_millis(1), move |changes| {
            let names = names_of(changes);
            if names.contains(&"large".to_owned()) {
                let _ = wait.recv();
            }
            let _ = seen.send(names);
        })
        .unwrap();
        let change = |namespace: &str, name: &str, object| {
            builder.change(("services".to_owned(), namespace.to_owned(), name.to_owned()), object);
        };
        change("hog", "large", service_of_one_port());
        thread::sleep(Duration::from_millis(700));
        go.send(()).unwrap();
        assert_eq!(states.recv().unwrap(), ["large"]);
        // It took long: it rests for twice as long.
        change("hog", "large", None);
        change("other", "small", service_of_one_port());
        assert_eq!(states.recv().unwrap(), ["small"]);
        let rested = Instant::now();
        // That pods rely on what is the cluster's own gives nobody else a turn.
        builder.hurry_clusters();
        thread::sleep(Duration::from_millis(700));
        assert!(states.try_recv().is_err());
        go.send(()).unwrap();
        assert_eq!(states.recv().unwrap(), ["large"]);
        assert!(rested.elapsed() > Duration::from_millis(900));
        change("hog", "large", service_of_one_port());
        thread::sleep(Duration::from_millis(700));
        go.send(()).unwrap();
        assert_eq!(states.recv().unwrap(), ["large"]);
        // What pods rely on rests for nobody.
        let asked = Instant::now();
        change("hog", "large", None);
        builder.hurry();
        go.send(()).unwrap();
        builder.told("hog").await;
        assert_eq!(states.try_recv().unwrap(), ["large"]);
        assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
    }

    #[tokio::test]
    async fn turns_are_short_and_pods_wait_for_their_own_namespace_and_the_clusters() {
        let (seen, states) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let one_at_a_time = Duration::ZERO;
        let builder = Builder::with(NetworkObjects::take_in, one_at_a_time, move |changes| {
            let _ = wait.recv();
            let _ = seen.send(names_of(changes));
        })
        .unwrap();
        let service = |namespace: &str, name: &str| {
            let key = ("services".to_owned(), namespace.to_owned(), name.to_owned());
            builder.change(key, service_of_one_port());
        };
        ["1", "2", "3"].into_iter().for_each(|name| service("a", name));
        service("b", "of b");
        builder.hurry();
        let (mut a, b) = (Box::pin(builder.told("a")), Box::pin(builder.told("b")));
        let mut cluster = Box::pin(builder.told("none"));
        assert!(waits(&mut cluster).await, "all is new: nobody starts before it is there");
        let mut order = vec![];
        for turn in 1..=4 {
            assert!(waits(&mut a).await);
            while builder.held() < turn {
                thread::yield_now();
            }
            assert_eq!(builder.held(), turn, "one object a turn");
            go.send(()).unwrap();
            order.extend(states.recv().unwrap());
        }
        for mut told in [a, b, cluster] {
            told.as_mut().await;
        }
        // Later nobody waits for what others have.
        service("a", "4");
        assert!(!waits(&mut Box::pin(builder.told("none"))).await);
        go.send(()).unwrap();
        // The first two may have begun before there was anything of b.
        let of_b = order.iter().position(|name| *name == "of b");
        assert!(of_b.is_some_and(|at| at <= 2), "{order:?}");
        order.retain(|name| *name != "of b");
        assert_eq!(order, ["1", "2", "3"]);
    }
}
