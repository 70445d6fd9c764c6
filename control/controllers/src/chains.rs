//! Which work follows from nothing but itself.
//!
//! A controller's write wakes tasks, whose writes wake others, and the first one again. Such chains are short where they
//! lead somewhere: then a node, a user or the time has to do something. One that goes on for ever writes the same objects
//! again and again. So the links of a chain are counted: each write of an object that controllers have written a short
//! while ago is one more. Whatever comes from outside, and whatever is made or deleted, begins a new chain.

use std::collections::{BTreeMap, BTreeSet};

use coracle_objects::{Event, EventKind, ObjectKey, Transaction, Write};
use jiff::{SignedDuration, Timestamp};

use crate::{backoff::created, draft::later, task::Task};

/// How long it is remembered that an object was written.
const WRITTEN_WITHIN_MS: i64 = 60_000;
/// So many objects are remembered as just written, the oldest forgotten first.
const WRITTEN_MAX: usize = 100_000;

/// See the module. Bounded by the objects that there are.
#[derive(Debug, Default)]
pub struct Chains {
    /// How far on in a chain the next run of a task is.
    woken: BTreeMap<Task, u32>,
    written: BTreeMap<ObjectKey, Written>,
    until: BTreeSet<(Timestamp, ObjectKey)>,
}

/// The last write of an object.
#[derive(Clone, Copy, Debug)]
struct Written {
    /// How far on it was.
    links: u32,
    /// Whether its event is still to come.
    awaited: bool,
    /// Until when it counts as a short while ago.
    until: Timestamp,
}

impl Chains {
    pub fn len(&self) -> usize {
        self.woken.len() + self.written.len()
    }

    /// How far on a change is: as far as our write, where it is that.
    pub fn link(&mut self, event: &Event) -> u32 {
        let key = &event.object.key;
        match self.written.get_mut(key) {
            Some(written) if written.awaited && event.kind == EventKind::Modified => {
                written.awaited = false;
                written.links
            }
            _ => {
                self.forget(key);
                0
            }
        }
    }

    /// Notes that a task is to run. Of several that wake it the one least far on counts.
    pub fn wake(&mut self, task: &Task, links: u32) {
        let known = self.woken.entry(task.clone()).or_insert(links);
        *known = links.min(*known);
    }

    /// How far on a run of the task is that begins now.
    pub fn begin(&mut self, task: &Task) -> u32 {
        self.woken.remove(task).unwrap_or(0)
    }

    /// Notes what a run writes that is so far on; answers how far on that is.
    pub fn write(&mut self, transaction: &Transaction, links: u32, now: Timestamp) -> u32 {
        let made: BTreeSet<&ObjectKey> = created(transaction).collect();
        let until = later(now, SignedDuration::from_millis(WRITTEN_WITHIN_MS));
        let mut most = links;
        for write in &transaction.writes {
            let Write::Put { key, .. } = write else { continue };
            if made.contains(key) {
                continue;
            }
            let again = u32::from(self.forget(key));
            let links = links.saturating_add(again);
            self.written.insert(key.clone(), Written { links, awaited: true, until });
            self.until.insert((until, key.clone()));
            most = most.max(links);
        }
        most
    }

    /// Notes that a transaction was not carried out: no event of it comes.
    pub fn refused(&mut self, transaction: &Transaction) {
        for write in &transaction.writes {
            self.forget(write.key());
        }
    }

    /// Forgets what is long past.
    pub fn expire(&mut self, now: Timestamp) {
        while let Some((_, key)) =
            self.until.first().filter(|(until, _)| *until <= now || self.written.len() > WRITTEN_MAX).cloned()
        {
            self.forget(&key);
        }
    }

    /// Answers whether the object was written a short while ago.
    fn forget(&mut self, key: &ObjectKey) -> bool {
        let Some(written) = self.written.remove(key) else { return false };
        self.until.remove(&(written.until, key.clone()))
    }
}
