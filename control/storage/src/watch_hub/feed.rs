//! The events of all resources, entry by entry, for those inside this process that follow the whole state.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use coracle_objects::Event;
use futures::FutureExt;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::unconstrained,
};

/// Entries, and bytes of their objects, about, that a follower may be behind before it must look at the whole view again.
const ENTRIES_MAX: usize = 1024;
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// All events of one entry.
pub type EntryEvents = Arc<[Arc<Event>]>;

/// The last entries. They are kept here alone, so that a follower which stands still keeps none in memory.
pub struct Recent {
    entries: VecDeque<EntryEvents>,
    bytes: usize,
    /// How many of them were there when it was last looked for old ones.
    seen: usize,
    sender: broadcast::Sender<Weak<[Arc<Event>]>>,
}

/// What happens after the view that was handed out with it.
pub struct Feed {
    receiver: broadcast::Receiver<Weak<[Arc<Event>]>>,
    /// Once something was missed, all that follows is of no use.
    lagged: bool,
}

/// The reader was too slow: it must begin anew with [`super::WatchHub::follow`].
#[derive(Debug)]
pub struct Lagged;

impl Default for Recent {
    fn default() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, seen: 0, sender: broadcast::Sender::new(ENTRIES_MAX) }
    }
}

impl Recent {
    pub fn publish(&mut self, events: EntryEvents) {
        self.bytes += bytes(&events);
        self.entries.push_back(events.clone());
        // The newest stays, however large.
        while self.entries.len() > 1 && (self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX) {
            self.drop_oldest();
        }
        // Without a follower there is nobody to miss it.
        let _ = self.sender.send(Arc::downgrade(&events));
    }

    /// Lets go of what was there at the last call already: a follower has had its time.
    pub fn forget_old(&mut self) {
        while self.seen > 0 {
            self.drop_oldest();
        }
        self.entries.shrink_to(ENTRIES_MAX / 8);
        self.seen = self.entries.len();
    }

    fn drop_oldest(&mut self) {
        let oldest = self.entries.pop_front();
        self.bytes -= oldest.as_ref().map_or(0, bytes);
        self.seen = self.seen.saturating_sub(1);
    }

    pub fn follow(&self) -> Feed {
        Feed { receiver: self.sender.subscribe(), lagged: false }
    }
}

fn bytes(events: &EntryEvents) -> usize {
    let previous = |event: &Event| event.previous.as_ref().map_or(0, |previous| previous.json.len());
    events.iter().map(|event| event.object.json.len() + previous(event)).sum()
}

impl Feed {
    /// The events of the next entry that changed something. After an error there is nothing more.
    pub async fn next(&mut self) -> Result<EntryEvents, Lagged> {
        if self.lagged {
            return Err(Lagged);
        }
        let events = match self.receiver.recv().await {
            Ok(events) => events.upgrade(),
            // Closed where the whole state was replaced: the hub itself lives as long as its readers' tasks.
            Err(RecvError::Lagged(_) | RecvError::Closed) => None,
        };
        self.lagged = events.is_none();
        events.ok_or(Lagged)
    }

    /// What has happened already, without waiting.
    pub fn ready(&mut self) -> Result<Option<EntryEvents>, Lagged> {
        unconstrained(self.next()).now_or_never().transpose()
    }
}
