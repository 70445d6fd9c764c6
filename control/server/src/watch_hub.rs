//! Where state is read and watched: the published view, and events without gap or double from any revision in the
//! store's window.

mod everything;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::health::SharedCheckpoints;
use arc_swap::ArcSwap;
use coracle_api::{Expired, WatchItem, WatchStream};
use coracle_objects::{Event, EventKind, ResourceName, Revision, SEALED_RESOURCES, View};
use coracle_raft::metrics::Counter;
use coracle_store::Store;
use parking_lot::Mutex;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use self::everything::Recent;
use crate::encryption::{Published, SecretBox, clear_event, clear_view};

pub use self::everything::{EntryEvents, Everything, Lagged};

/// Events that a watcher of one resource may be behind before it reads again from the store's window.
const RESOURCE_EVENTS_MAX: usize = 4096;

/// Events that a watcher takes out of the store's window at a time, as the store is locked meanwhile, and their bytes,
/// about, as a reader that stands still keeps them in memory.
const PAGE_EVENTS_MAX: usize = 4096;
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How often a quiet watch says how far it has seen.
const PROGRESS_PERIOD: Duration = Duration::from_secs(2);

/// How much what a member shows can be worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Leadership {
    /// A leader is heard.
    Led,
    /// None is heard for a moment, as in an election: watches go on, but do not say how far they are.
    Sought,
    /// None has been heard for long: watches end.
    Lost,
}

/// Publishes what the store holds.
pub struct WatchHub {
    store: Arc<Mutex<Store>>,
    secrets: Arc<SecretBox>,
    published: ArcSwap<Published>,
    /// Events are held by the store's window alone, so that a reader which stands still keeps none in memory.
    resources: Mutex<BTreeMap<ResourceName, broadcast::Sender<Weak<Event>>>>,
    everything: Mutex<Recent>,
    checkpoints: SharedCheckpoints,
    /// Watches that ended because their reader was too slow, or the whole state was replaced.
    overflowed: Counter,
    clock: AtomicU64,
    /// A [`Leadership`].
    leadership: AtomicU8,
}

impl WatchHub {
    /// Opens what is sealed with these keys.
    pub fn new(store: Arc<Mutex<Store>>, secrets: Arc<SecretBox>) -> Self {
        let sealed = Arc::new(store.lock().view().clone());
        let clear = Arc::new(clear_view(&secrets, &sealed, None));
        let published = ArcSwap::from_pointee(Published { sealed, clear });
        Self {
            store,
            secrets,
            published,
            resources: Mutex::default(),
            everything: Mutex::default(),
            checkpoints: SharedCheckpoints::default(),
            overflowed: Counter::default(),
            clock: AtomicU64::new(0),
            leadership: AtomicU8::new(Leadership::Led as u8),
        }
    }

    /// Called by who follows raft's status. A hub of its own is led.
    pub fn set_leadership(&self, leadership: Leadership) {
        self.leadership.store(leadership as u8, Ordering::Release);
    }

    pub fn is_in(&self, leadership: Leadership) -> bool {
        self.leadership.load(Ordering::Acquire) == leadership as u8
    }

    /// The state in clear.
    pub fn view(&self) -> Arc<View> {
        self.published.load().clear.clone()
    }

    /// One resource as it was at a revision: the present state, with the events of the store's window undone since. None
    /// where the window does not reach back so far, or this member has not come so far.
    pub fn view_at(&self, resource: &ResourceName, revision: Revision) -> Option<View> {
        let (events, view) = {
            // Nothing is published while the store is locked.
            let store = self.store.lock();
            if revision > store.revision() {
                return None;
            }
            (store.events_since(resource.as_str(), revision).ok()?, self.view())
        };
        let mut table = view.tables.get(resource).cloned().unwrap_or_default();
        for event in events.iter().rev() {
            let event = clear_event(&self.secrets, event, &view);
            let name = &event.object.key.name;
            match &event.previous {
                Some(previous) => drop(table.insert(name.clone(), previous.clone())),
                None if event.kind == EventKind::Added => drop(table.remove(name)),
                None => return None,
            }
        }
        Some(View { revision, tables: [(resource.clone(), table)].into_iter().collect() })
    }

    /// The state as it is stored, and in clear.
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// The state's hash as of some entries, for members to compare.
    pub fn checkpoints(&self) -> &SharedCheckpoints {
        &self.checkpoints
    }

    /// See [`Store::clock`].
    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::Acquire)
    }

    /// Called by the machine, with the store locked.
    pub fn set_clock(&self, clock: u64) {
        self.clock.store(clock, Ordering::Release);
    }

    /// Called by the machine, with the store locked.
    pub fn publish(&self, sealed: Arc<View>, events: &[Arc<Event>]) {
        let clear = Arc::new(clear_view(&self.secrets, &sealed, Some(&self.published.load())));
        self.published.store(Arc::new(Published { sealed, clear: clear.clone() }));
        if events.is_empty() {
            return;
        }
        let events: EntryEvents =
            events.iter().map(|event| clear_event(&self.secrets, event, &clear)).collect();
        let resources = self.resources.lock();
        for event in events.iter() {
            if let Some(sender) = resources.get(&event.object.key.resource) {
                // Without a watcher there is nobody to miss it.
                let _ = sender.send(Arc::downgrade(event));
            }
        }
        drop(resources);
        self.everything.lock().publish(events);
    }

    /// Another state takes the place of this one, without the events between them: all watches end. Called by the
    /// machine, with the store locked.
    pub fn replace(&self, sealed: Arc<View>) {
        let clear = Arc::new(clear_view(&self.secrets, &sealed, None));
        self.published.store(Arc::new(Published { sealed, clear }));
        self.resources.lock().clear();
        *self.everything.lock() = Recent::default();
    }

    /// Opens with new keys what could not be opened before. Whoever has seen it sealed reads again: all watches end.
    pub fn reopen(&self) {
        // Nothing is published while the store is locked.
        let _store = self.store.lock();
        let published = self.published();
        let mut objects = SEALED_RESOURCES.iter().flat_map(|resource| published.clear.list(resource, None));
        if objects.any(|object| object.sealed().is_some() && self.secrets.open(object).is_ok()) {
            self.replace(published.sealed.clone());
        }
    }

    /// The state now, and everything that happens after it.
    pub fn everything(&self) -> (Arc<View>, Everything) {
        // Nothing is published while the store is locked.
        let _store = self.store.lock();
        let everything = self.everything.lock().follow();
        (self.view(), everything)
    }

    /// Members compare it.
    pub fn state_hash(&self) -> [u8; 32] {
        self.store.lock().state_hash()
    }

    /// The resources that are watched, and by how many.
    pub fn watchers(&self) -> Vec<(ResourceName, usize)> {
        let resources = self.resources.lock();
        let watched = resources.iter().map(|(name, sender)| (name.clone(), sender.receiver_count()));
        watched.filter(|(_, watchers)| *watchers > 0).collect()
    }

    /// How many watches have ended with 410.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.get()
    }

    /// See [`Store::window`].
    pub fn window(&self) -> Vec<(ResourceName, usize, Revision)> {
        self.store.lock().window()
    }

    /// The events of one resource after a revision.
    pub fn watch(self: &Arc<Self>, resource: &ResourceName, after: Revision) -> Result<WatchStream, Expired> {
        let Page { backlog, more, receiver, seen } = self.subscribe(resource, after)?;
        let watcher = Watcher {
            hub: self.clone(),
            resource: resource.clone(),
            backlog,
            more,
            receiver,
            last: (after, 0),
            seen: Some(seen),
            announced: after,
            ticks: ticks(),
        };
        Ok(Box::pin(futures::stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.next().await? {
                WatchItem::Overflow => {
                    watcher.hub.overflowed.add(1);
                    Some((WatchItem::Overflow, None))
                }
                item => Some((item, Some(watcher))),
            }
        })))
    }

    fn subscribe(&self, resource: &ResourceName, after: Revision) -> Result<Page, Expired> {
        let store = self.store.lock();
        let backlog = store
            .first_events_since(resource.as_str(), after, PAGE_EVENTS_MAX)
            .map_err(|expired| Expired { oldest: expired.oldest })?;
        let (clear, seen) = (self.view(), store.revision());
        let receiver = self
            .resources
            .lock()
            .entry(resource.clone())
            .or_insert_with(|| broadcast::Sender::new(RESOURCE_EVENTS_MAX))
            .subscribe();
        // Entries are applied meanwhile: opening a page of Secrets takes its time.
        drop(store);
        let fits = whole_revisions(&backlog, PAGE_BYTES_MAX);
        let more = backlog.len() >= PAGE_EVENTS_MAX || fits < backlog.len();
        let backlog =
            backlog.iter().take(fits).map(|event| clear_event(&self.secrets, event, &clear)).collect();
        Ok(Page { backlog, more, receiver, seen })
    }
}

/// Whole revisions out of the store's window.
struct Page {
    backlog: VecDeque<Arc<Event>>,
    /// There may be more in the window: the receiver does not follow the backlog.
    more: bool,
    /// What follows the window as it is.
    receiver: broadcast::Receiver<Weak<Event>>,
    /// The revision up to which the window reaches.
    seen: Revision,
}

struct Watcher {
    hub: Arc<WatchHub>,
    resource: ResourceName,
    backlog: VecDeque<Arc<Event>>,
    /// Behind the backlog there may be more in the store's window.
    more: bool,
    receiver: broadcast::Receiver<Weak<Event>>,
    /// The revision of the last event given, and how many events of that revision were given.
    last: (Revision, usize),
    /// When the backlog is used up, everything up to here has been given.
    seen: Option<Revision>,
    /// The last progress that was told.
    announced: Revision,
    ticks: Interval,
}

impl Watcher {
    /// None where this member has been without a leader for so long that the watch has to go on elsewhere.
    async fn next(&mut self) -> Option<WatchItem> {
        loop {
            if let Some(event) = self.backlog.pop_front() {
                return Some(self.give(event));
            }
            if self.more {
                if self.resume().is_err() {
                    return Some(WatchItem::Overflow);
                }
                continue;
            }
            if let Some(seen) = self.seen.take() {
                self.announced = seen.max(self.announced);
                return Some(WatchItem::Progress(self.announced));
            }
            let received = tokio::select! {
                biased;
                received = self.receiver.recv() => received,
                _ = self.ticks.tick() => {
                    if self.hub.is_in(Leadership::Lost) {
                        return None;
                    }
                    if self.hub.is_in(Leadership::Sought) {
                        continue;
                    }
                    // The view is published before its events are sent, both under the store's lock: with the lock
                    // held, what is in the channel is all there is up to this revision. A closed one is not of this state.
                    let (revision, complete) = {
                        let store = self.hub.store.lock();
                        (store.revision(), self.receiver.is_empty() && !self.receiver.is_closed())
                    };
                    if complete && revision > self.announced {
                        self.announced = revision;
                        return Some(WatchItem::Progress(revision));
                    }
                    continue;
                }
            };
            match received.map(|event| event.upgrade()) {
                Ok(Some(event)) => return Some(self.give(event)),
                Err(RecvError::Closed) => return Some(WatchItem::Overflow),
                // Gone from the window, or opened for whoever was quick enough: the window tells.
                Ok(None) | Err(RecvError::Lagged(_)) => {
                    if self.resume().is_err() {
                        return Some(WatchItem::Overflow);
                    }
                }
            }
        }
    }

    fn give(&mut self, event: Arc<Event>) -> WatchItem {
        let revision = event.object.revision;
        self.last = if self.last.0 == revision { (revision, self.last.1 + 1) } else { (revision, 1) };
        WatchItem::Event(event)
    }

    /// Goes on from the store's window behind the last event that was given, which may be in the middle of a
    /// transaction.
    fn resume(&mut self) -> Result<(), Expired> {
        // A page ends with a whole revision, and so does what progress was told of.
        let whole = self.more || self.announced >= self.last.0;
        let (revision, given) = if whole { (self.announced.max(self.last.0), 0) } else { self.last };
        let after = if given > 0 { revision - 1 } else { revision };
        let Page { mut backlog, more, receiver, seen } = self.hub.subscribe(&self.resource, after)?;
        backlog.drain(..given.min(backlog.len()));
        self.backlog = backlog;
        self.more = more;
        self.receiver = receiver;
        self.seen = Some(seen);
        Ok(())
    }
}

/// How many of these events are about so many bytes, without an end in the middle of a revision. At least one revision.
fn whole_revisions(events: &[Arc<Event>], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let mut last = None;
    for (count, event) in events.iter().enumerate() {
        if bytes > bytes_max && last != Some(event.object.revision) {
            return count;
        }
        bytes += event.object.json.len();
        last = Some(event.object.revision);
    }
    events.len()
}

fn ticks() -> Interval {
    let mut ticks = interval_at(Instant::now() + PROGRESS_PERIOD, PROGRESS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests {
    use coracle_objects::{ObjectKey, Transaction, Write};
    use coracle_raft::{Frozen, StateMachine};
    use coracle_store::{Command, Request, RequestId, StoreConfig};
    use futures::{FutureExt, StreamExt};
    use tokio::sync::watch;

    use super::*;
    use crate::machine::Machine;

    struct Bench {
        machine: Machine,
        hub: Arc<WatchHub>,
        sequence: u64,
    }

    impl Bench {
        fn new() -> Self {
            let (machine, hub) = Machine::new(Arc::new(watch::Sender::new(None)), Arc::default());
            Self { machine, hub, sequence: 0 }
        }

        /// One transaction that writes the named config maps.
        fn put(&mut self, names: &[&str]) {
            self.put_large(names, 0);
        }

        fn put_large(&mut self, names: &[&str], bytes: usize) {
            self.sequence += 1;
            let padding = "x".repeat(bytes);
            let writes = names.iter().map(|name| Write::Put {
                key: ObjectKey::new("configmaps", "default", name),
                draft: format!(
                    r#"{{"metadata":{{"name":"{name}"}},"n":{},"padding":"{padding}"}}"#,
                    self.sequence
                )
                .into(),
            });
            let writes = writes.collect();
            self.apply(writes);
        }

        fn remove(&mut self, name: &str) {
            self.sequence += 1;
            self.apply(vec![Write::Delete { key: ObjectKey::new("configmaps", "default", name) }]);
        }

        fn apply(&mut self, writes: Vec<Write>) {
            let transaction = Transaction { preconditions: vec![], writes };
            let request = Request { id: RequestId { client: 1, sequence: self.sequence }, transaction };
            self.machine.apply(self.sequence, 1, &Command { proposer: 1, requests: vec![request] }.encode());
        }

        fn watch(&self, after: Revision) -> WatchStream {
            self.hub.watch(&"configmaps".into(), after).unwrap()
        }
    }

    fn revision(item: Option<WatchItem>) -> (char, Revision) {
        match item.unwrap() {
            WatchItem::Event(event) => ('e', event.object.revision),
            WatchItem::Progress(revision) => ('p', revision),
            WatchItem::Overflow => ('o', 0),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_has_the_backlog_then_what_follows() {
        let mut bench = Bench::new();
        for _ in 0..3 {
            bench.put(&["a"]);
        }
        let mut watch = bench.watch(1);
        bench.put(&["a"]);
        let mut items = vec![];
        for _ in 0..4 {
            items.push(revision(watch.next().await));
        }
        assert_eq!(items, [('e', 2), ('e', 3), ('p', 3), ('e', 4)]);
        assert!(watch.next().now_or_never().is_none());
        assert_eq!(revision(watch.next().await), ('p', 4), "after the period");
    }

    #[test]
    fn a_past_state_is_the_same_as_it_was_then() {
        let mut bench = Bench::new();
        let maps = ResourceName::from("configmaps");
        let mut then = vec![bench.hub.view()];
        for names in [&["a", "b"][..], &["a"], &["c"], &["b", "c"], &["d"]] {
            bench.put(names);
            then.push(bench.hub.view());
        }
        bench.remove("a");
        bench.put(&["a"]);
        let objects = |view: &View| {
            let objects = view.list("configmaps", None);
            objects
                .map(|object| (object.key.clone(), object.revision, object.json.clone()))
                .collect::<Vec<_>>()
        };
        for view in &then {
            let rebuilt = bench.hub.view_at(&maps, view.revision).unwrap();
            assert_eq!((rebuilt.revision, objects(&rebuilt)), (view.revision, objects(view)));
        }
        assert!(bench.hub.view_at(&maps, 8).is_none(), "not reached yet");
        let mut state = Vec::new();
        bench.machine.freeze().write_to(&mut state).unwrap();
        bench.machine.restore(9, &mut &state[..]).unwrap();
        assert!(bench.hub.view_at(&maps, 6).is_none(), "forgotten");
        assert!(bench.hub.view_at(&maps, 7).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_a_leader_says_nothing_and_ends() {
        let mut bench = Bench::new();
        let mut watch = bench.watch(0);
        assert_eq!(revision(watch.next().await), ('p', 0));
        bench.hub.set_leadership(Leadership::Sought);
        bench.put(&["a"]);
        assert_eq!(revision(watch.next().await), ('e', 1), "what was committed before is given");
        let quiet = tokio::time::timeout(PROGRESS_PERIOD * 10, watch.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        bench.hub.set_leadership(Leadership::Led);
        assert_eq!(revision(watch.next().await), ('p', 1));
        bench.hub.set_leadership(Leadership::Lost);
        let begun = Instant::now();
        assert!(watch.next().await.is_none());
        assert!(begun.elapsed() <= PROGRESS_PERIOD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_watch_goes_on_from_the_window_in_the_middle_of_a_transaction() {
        let mut bench = Bench::new();
        let mut watch = bench.watch(0);
        assert_eq!(revision(watch.next().await), ('p', 0));
        bench.put(&["a", "b", "c"]);
        assert_eq!(revision(watch.next().await), ('e', 1));
        for _ in 0..RESOURCE_EVENTS_MAX {
            bench.put(&["a"]);
        }
        let mut seen = vec![];
        for _ in 0..RESOURCE_EVENTS_MAX + 2 {
            seen.push(revision(watch.next().await).1);
        }
        assert_eq!(seen[..3], [1, 1, 2]);
        assert_eq!(*seen.last().unwrap(), RESOURCE_EVENTS_MAX as u64 + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_backlog_comes_in_pages() {
        let mut bench = Bench::new();
        for _ in 0..PAGE_EVENTS_MAX + 10 {
            bench.put(&["a", "b"]);
        }
        let mut watch = bench.watch(1);
        bench.put(&["a"]);
        let (mut seen, end) = (vec![], PAGE_EVENTS_MAX as u64 + 11);
        loop {
            match revision(watch.next().await) {
                ('p', revision) => break assert_eq!(revision, end),
                (_, revision) => seen.push(revision),
            }
        }
        let pairs = (2..end).flat_map(|revision| [revision, revision]);
        assert_eq!(seen, pairs.chain([end]).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_keeps_nothing_in_memory() {
        const BYTES: usize = 1 << 20;
        let mut bench = Bench::new();
        let (mut stalled, mut quick) = (bench.watch(0), bench.watch(0));
        assert_eq!(revision(stalled.next().await), ('p', 0));
        assert_eq!(revision(quick.next().await), ('p', 0));
        bench.put_large(&["a"], BYTES);
        let first = match quick.next().await {
            Some(WatchItem::Event(event)) => Arc::downgrade(&event),
            _ => panic!("an event"),
        };
        let window = StoreConfig::default().watch_bytes_max;
        for _ in 0..window / BYTES + 1 {
            bench.put_large(&["a"], BYTES);
        }
        assert!(first.upgrade().is_none(), "a watch holds an event that the window has lost");
        assert_eq!(revision(stalled.next().await), ('o', 0));

        let mut late = bench.watch(bench.sequence - 20);
        let mut seen = vec![];
        for _ in 0..20 {
            seen.push(revision(late.next().await).1);
        }
        assert_eq!(seen, (bench.sequence - 19..=bench.sequence).collect::<Vec<_>>(), "in pages of few bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn watches_end_when_the_whole_state_is_replaced() {
        let mut bench = Bench::new();
        bench.put(&["a"]);
        let mut ahead = Bench::new();
        for _ in 0..3 {
            ahead.put(&["b"]);
        }
        let mut watch = bench.watch(1);
        assert_eq!(revision(watch.next().await), ('p', 1));
        let (_, mut everything) = bench.hub.everything();

        let mut state = Vec::new();
        ahead.machine.freeze().write_to(&mut state).unwrap();
        bench.machine.restore(3, &mut &state[..]).unwrap();
        assert_eq!(revision(watch.next().await), ('o', 0));
        assert!(watch.next().await.is_none());
        assert!(everything.ready().is_err() && everything.next().await.is_err());
        assert_eq!(bench.hub.view().revision, 3);
        assert!(bench.hub.watch(&"configmaps".into(), 2).is_err());
        assert_eq!(bench.hub.state_hash(), ahead.hub.state_hash());

        // And it goes on from there.
        let mut watch = bench.watch(3);
        let (_, mut everything) = bench.hub.everything();
        bench.sequence = ahead.sequence;
        bench.put(&["c"]);
        assert_eq!(revision(watch.next().await), ('p', 3));
        assert_eq!(revision(watch.next().await), ('e', 4));
        assert_eq!(everything.next().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_follower_that_stands_still_keeps_no_more_than_the_bound() {
        let mut bench = Bench::new();
        let (_, mut quick) = bench.hub.everything();
        for rounds in [6, 20] {
            let (_, mut still) = bench.hub.everything();
            for _ in 0..rounds {
                bench.put_large(&["a", "b"], 1024 * 1024);
                assert_eq!(quick.next().await.unwrap().len(), 2);
            }
            assert_eq!(still.ready().is_ok(), rounds == 6);
            bench.put(&["a"]);
            quick.next().await.unwrap();
            assert_eq!(still.next().await.is_ok(), rounds == 6, "it has missed something for good");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_falls_out_of_the_window_overflows() {
        let mut bench = Bench::new();
        let mut watch = bench.watch(0);
        let bytes = coracle_store::StoreConfig::default().watch_bytes_max / RESOURCE_EVENTS_MAX;
        for _ in 0..=RESOURCE_EVENTS_MAX {
            bench.put_large(&["a"], bytes);
        }
        assert_eq!(revision(watch.next().await), ('p', 0));
        assert_eq!(revision(watch.next().await), ('o', 0));
        assert!(watch.next().await.is_none());
        assert_eq!(bench.hub.overflowed(), 1);
        assert!(bench.hub.watch(&"configmaps".into(), 0).is_err());
    }
}
