//! One watch of a resource: [`coracle_member::watch`] says what is given and where it goes on; here are the window, the
//! channel and the clock.

use std::sync::{Arc, Weak};

use coracle_api::{Expired, WatchItem};
use coracle_member::watch::{Next, PROGRESS_PERIOD, Tick, Watch};
use coracle_objects::{Event, ResourceName, Revision};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::{Page, WatchHub};

pub struct Watcher {
    hub: Arc<WatchHub>,
    resource: ResourceName,
    watch: Watch,
    receiver: broadcast::Receiver<Weak<Event>>,
    ticks: Interval,
}

impl Watcher {
    /// A watch of what happens after a revision.
    pub fn new(hub: Arc<WatchHub>, resource: ResourceName, after: Revision) -> Result<Self, Expired> {
        let Page { backlog, more, receiver, seen } = hub.subscribe(&resource, after)?;
        let mut watch = Watch::new(after);
        watch.page(backlog, more, seen);
        Ok(Self { hub, resource, watch, receiver, ticks: ticks() })
    }

    /// Its reader was too slow.
    pub fn count_overflow(&self) {
        self.hub.overflowed.add(1);
    }

    /// None where this member has been without a leader for so long that the watch has to go on elsewhere.
    pub async fn next(&mut self) -> Option<WatchItem> {
        loop {
            match self.watch.next_item() {
                Next::Event(event) => return Some(WatchItem::Event(event)),
                Next::Progress(revision) => return Some(WatchItem::Progress(revision)),
                Next::Page { after } => {
                    let Ok(page) = self.hub.subscribe(&self.resource, after) else {
                        return Some(WatchItem::Overflow);
                    };
                    self.receiver = page.receiver;
                    self.watch.page(page.backlog, page.more, page.seen);
                    continue;
                }
                Next::Wait => {}
            }
            let received = tokio::select! {
                biased;
                received = self.receiver.recv() => received,
                _ = self.ticks.tick() => match self.tick() {
                    Tick::Nothing => continue,
                    Tick::Progress(revision) => return Some(WatchItem::Progress(revision)),
                    Tick::End => return None,
                },
            };
            match received.map(|event| event.upgrade()) {
                Ok(Some(event)) => return Some(WatchItem::Event(self.watch.received(event))),
                Err(RecvError::Closed) => return Some(WatchItem::Overflow),
                // Gone from the window, or opened for whoever was quick enough: the window tells.
                Ok(None) | Err(RecvError::Lagged(_)) => self.watch.missed(),
            }
        }
    }

    fn tick(&mut self) -> Tick {
        // The view is published before its events are sent, both under the store's lock: with the lock held, what is in
        // the channel is all there is up to this revision. A closed one is not of this state.
        let (revision, complete) = {
            let store = self.hub.store.lock();
            (store.revision(), self.receiver.is_empty() && !self.receiver.is_closed())
        };
        self.watch.tick(self.hub.leadership(), revision, complete)
    }
}

fn ticks() -> Interval {
    let mut ticks = interval_at(Instant::now() + PROGRESS_PERIOD, PROGRESS_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
