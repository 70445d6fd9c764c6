//! One watch of a resource: what was missed, what happens, and how far it has seen.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use coracle_api::{Expired, WatchItem};
use coracle_objects::{Event, ResourceName, Revision};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::{Leadership, Page, WatchHub};

/// How often a quiet watch says how far it has seen.
pub const PROGRESS_PERIOD: Duration = Duration::from_secs(2);

pub struct Watcher {
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
    /// A watch of what happens after a revision; `page` is what the window has of it.
    pub fn new(hub: Arc<WatchHub>, resource: ResourceName, after: Revision, page: Page) -> Self {
        let Page { backlog, more, receiver, seen } = page;
        let (last, seen) = ((after, 0), Some(seen));
        Self { hub, resource, backlog, more, receiver, last, seen, announced: after, ticks: ticks() }
    }

    /// Its reader was too slow.
    pub fn count_overflow(&self) {
        self.hub.overflowed.add(1);
    }

    /// None where this member has been without a leader for so long that the watch has to go on elsewhere.
    pub async fn next(&mut self) -> Option<WatchItem> {
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

fn ticks() -> Interval {
    let mut ticks = interval_at(Instant::now() + PROGRESS_PERIOD, PROGRESS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
