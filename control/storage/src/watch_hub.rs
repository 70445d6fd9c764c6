//! Where state is read and watched: the published view, and events without gap or double from any revision in the
//! store's window.

mod feed;
mod watcher;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use coracle_api::{Expired, WatchItem, WatchStream};
use coracle_member::{
    leadership::Leadership,
    watch::{PageBounds, QUEUE_EVENTS_MAX},
};
use coracle_objects::{Event, EventKind, ResourceName, Revision, SEALED_RESOURCES, View};
use coracle_proto::metrics::Counter;
use coracle_store::Store;
use parking_lot::Mutex;
use tokio::sync::broadcast;

pub use self::feed::{EntryEvents, Feed, Lagged};
use self::{feed::Recent, watcher::Watcher};
use crate::{
    encryption::{Published, SecretBox, clear_event, clear_view},
    health::SharedCheckpoints,
};

/// Publishes what the store holds.
pub struct WatchHub {
    store: Arc<Mutex<Store>>,
    secrets: Arc<SecretBox>,
    published: ArcSwap<Published>,
    /// Events are held by the store's window alone, so that a reader which stands still keeps none in memory.
    resources: Mutex<BTreeMap<ResourceName, broadcast::Sender<Weak<Event>>>>,
    feed: Mutex<Recent>,
    checkpoints: SharedCheckpoints,
    /// Watches that ended because their reader was too slow, or the whole state was replaced.
    overflowed: Counter,
    clock: AtomicU64,
    /// A [`Leadership`].
    leadership: AtomicU8,
}

impl WatchHub {
    /// Opens what is sealed with these keys.
    pub(crate) fn new(store: Arc<Mutex<Store>>, secrets: Arc<SecretBox>) -> Self {
        let sealed = Arc::new(store.lock().view().clone());
        let clear = Arc::new(clear_view(&secrets, &sealed, None));
        let published = ArcSwap::from_pointee(Published { sealed, clear });
        Self {
            store,
            secrets,
            published,
            resources: Mutex::default(),
            feed: Mutex::default(),
            checkpoints: SharedCheckpoints::default(),
            overflowed: Counter::default(),
            clock: AtomicU64::new(0),
            leadership: AtomicU8::new(Leadership::Led as u8),
        }
    }

    /// Called by who follows raft's status. A hub of its own is led.
    pub(crate) fn set_leadership(&self, leadership: Leadership) {
        self.leadership.store(leadership as u8, Ordering::Release);
    }

    /// Whether a leader is heard.
    pub(crate) fn leadership(&self) -> Leadership {
        Leadership::from_code(self.leadership.load(Ordering::Acquire))
    }

    /// The state in clear.
    pub(crate) fn view(&self) -> Arc<View> {
        self.published.load().clear.clone()
    }

    /// One resource as it was at a revision: the present state, with the events of the store's window undone since. None
    /// where the window does not reach back so far, or this member has not come so far.
    pub(crate) fn view_at(&self, resource: &ResourceName, revision: Revision) -> Option<View> {
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
    pub(crate) fn checkpoints(&self) -> &SharedCheckpoints {
        &self.checkpoints
    }

    /// See [`Store::clock`].
    pub fn clock(&self) -> u64 {
        self.clock.load(Ordering::Acquire)
    }

    /// Called by the machine, with the store locked.
    pub(crate) fn set_clock(&self, clock: u64) {
        self.clock.store(clock, Ordering::Release);
    }

    /// Called by the machine, with the store locked.
    pub(crate) fn publish(&self, sealed: Arc<View>, events: &[Arc<Event>]) {
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
        self.feed.lock().publish(events);
    }

    /// Another state takes the place of this one, without the events between them: all watches end. Called by the
    /// machine, with the store locked.
    pub(crate) fn replace(&self, sealed: Arc<View>) {
        let clear = Arc::new(clear_view(&self.secrets, &sealed, None));
        self.published.store(Arc::new(Published { sealed, clear }));
        self.resources.lock().clear();
        *self.feed.lock() = Recent::default();
    }

    /// Opens with new keys what could not be opened before. Whoever has seen it sealed reads again: all watches end.
    pub(crate) fn reopen(&self) {
        // Nothing is published while the store is locked.
        let _store = self.store.lock();
        let published = self.published();
        let mut objects = SEALED_RESOURCES.iter().flat_map(|resource| published.clear.list(resource, None));
        if objects.any(|object| object.sealed().is_some() && self.secrets.open(object).is_ok()) {
            self.replace(published.sealed.clone());
        }
    }

    /// The state now, and everything that happens after it.
    pub fn follow(&self) -> (Arc<View>, Feed) {
        // Nothing is published while the store is locked.
        let _store = self.store.lock();
        let feed = self.feed.lock().follow();
        (self.view(), feed)
    }

    /// Lets go of what followers have had their time for. Called by the machine at times.
    pub(crate) fn forget_followed(&self) {
        self.feed.lock().forget_old();
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
    pub(crate) fn watch(
        self: &Arc<Self>,
        resource: &ResourceName,
        after: Revision,
    ) -> Result<WatchStream, Expired> {
        let watcher = Watcher::new(self.clone(), resource.clone(), after)?;
        Ok(Box::pin(futures::stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.next().await? {
                WatchItem::Overflow => {
                    watcher.count_overflow();
                    Some((WatchItem::Overflow, None))
                }
                item => Some((item, Some(watcher))),
            }
        })))
    }

    fn subscribe(&self, resource: &ResourceName, after: Revision) -> Result<Page, Expired> {
        let bounds = PageBounds::default();
        let store = self.store.lock();
        let found = store
            .first_events_since(resource.as_str(), after, bounds.events_max)
            .map_err(|expired| Expired { oldest: expired.oldest })?;
        let (clear, seen) = (self.view(), store.revision());
        let receiver = self
            .resources
            .lock()
            .entry(resource.clone())
            .or_insert_with(|| broadcast::Sender::new(QUEUE_EVENTS_MAX))
            .subscribe();
        // Entries are applied meanwhile: opening a page of Secrets takes its time.
        drop(store);
        let (fits, more) = bounds.cut(&found);
        let opened = found.iter().take(fits).map(|event| clear_event(&self.secrets, event, &clear));
        let backlog = opened.collect();
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

#[cfg(test)]
mod tests;
