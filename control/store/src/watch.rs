//! The window of recent events, one queue a resource, out of which a watch is resumed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use coracle_objects::{Event, Object, ResourceName, Revision};
use thiserror::Error;

use crate::state::StoreConfig;

/// What an event and its object take beside the object's JSON, about, in bytes.
const EVENT_OVERHEAD_BYTES: usize = 512;

/// A watch was asked to resume from before the window. The client must list again (HTTP 410).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too old resource version: {after} (the oldest that can be resumed from is {oldest})")]
pub struct Expired {
    pub after: Revision,
    pub oldest: Revision,
}

#[derive(Clone, Debug, Default)]
struct Recent {
    events: VecDeque<Arc<Event>>,
    /// What the events hold.
    bytes: usize,
    /// The revision of the newest event that was dropped.
    dropped: Revision,
}

/// Not part of the replicated state: members may have windows of different length.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    config: StoreConfig,
    /// Before this revision nothing is known of any resource (a snapshot was restored).
    floor: Revision,
    recent: BTreeMap<ResourceName, Recent>,
    /// What the events of all resources hold.
    bytes: usize,
}

impl Window {
    pub(crate) fn new(config: StoreConfig, floor: Revision) -> Self {
        Self { config, floor, recent: BTreeMap::new(), bytes: 0 }
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        let newest = event.object.revision;
        let added = cost(&event);
        let recent = match self.recent.get_mut(&event.object.key.resource) {
            Some(recent) => recent,
            None => self.recent.entry(event.object.key.resource.clone()).or_default(),
        };
        recent.events.push_back(event);
        recent.bytes += added;
        self.bytes += added;
        while let Some(oldest) = recent.events.front() {
            let aged = oldest.object.revision.saturating_add(self.config.watch_revisions_max) < newest;
            if recent.events.len() <= self.config.watch_events_max && !aged {
                break;
            }
            self.bytes -= recent.drop_oldest();
        }
        // One that holds more than half is the largest without a look at the others.
        let budget = self.config.watch_bytes_max;
        while self.bytes > budget && recent.bytes > budget / 2 {
            self.bytes -= recent.drop_oldest();
        }
        while self.bytes > budget
            && let Some(largest) = self.recent.values_mut().max_by_key(|recent| recent.bytes)
        {
            self.bytes -= largest.drop_oldest();
        }
    }

    /// Drops events up to this revision until they hold at most so many bytes, those of the resource first that has most.
    pub(crate) fn forget(&mut self, until: Revision, bytes_max: usize) {
        let recent = self.recent.values_mut();
        let mut old: Vec<_> = recent.map(|recent| (recent.bytes_until(until), recent)).collect();
        let mut excess = old.iter().map(|(bytes, _)| bytes).sum::<usize>().saturating_sub(bytes_max);
        while excess > 0
            && let Some((bytes, largest)) = old.iter_mut().max_by_key(|(bytes, _)| *bytes)
        {
            let dropped = largest.drop_oldest();
            *bytes = bytes.saturating_sub(dropped);
            excess = excess.saturating_sub(dropped);
            self.bytes -= dropped;
        }
    }

    /// For each resource that has changed: how many events there are, and the oldest revision to resume from.
    pub(crate) fn sizes(&self) -> Vec<(ResourceName, usize, Revision)> {
        let sizes = self.recent.iter().map(|(resource, recent)| {
            (resource.clone(), recent.events.len(), recent.dropped.max(self.floor))
        });
        sizes.collect()
    }

    /// The first `count_max` events, and what shares its revision with the last of them.
    pub(crate) fn since(
        &self,
        resource: &str,
        after: Revision,
        count_max: usize,
    ) -> Result<Vec<Arc<Event>>, Expired> {
        let Some(recent) = self.recent.get(resource) else {
            return if after < self.floor { Err(Expired { after, oldest: self.floor }) } else { Ok(vec![]) };
        };
        let oldest = recent.dropped.max(self.floor);
        if after < oldest {
            return Err(Expired { after, oldest });
        }
        let start = recent.events.partition_point(|event| event.object.revision <= after);
        let end = match recent.events.get(start.saturating_add(count_max).saturating_sub(1)) {
            Some(last) if count_max > 0 => {
                recent.events.partition_point(|event| event.object.revision <= last.object.revision)
            }
            _ => recent.events.len(),
        };
        Ok(recent.events.range(start..end).cloned().collect())
    }
}

impl Recent {
    /// What the events up to a revision hold.
    fn bytes_until(&self, revision: Revision) -> usize {
        let old = self.events.iter().take_while(|event| event.object.revision <= revision);
        old.map(|event| cost(event)).sum()
    }

    /// The bytes that are not held any more.
    fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.events.pop_front() else { return 0 };
        self.dropped = oldest.object.revision;
        let bytes = cost(&oldest);
        self.bytes -= bytes;
        if self.events.capacity() > 4 * self.events.len().max(64) {
            self.events.shrink_to_fit();
        }
        bytes
    }
}

/// An object that two events share is counted with both: never less is counted than is held.
fn cost(event: &Event) -> usize {
    let bytes = |object: &Arc<Object>| object.json.len() + EVENT_OVERHEAD_BYTES;
    bytes(&event.object) + event.previous.as_ref().map_or(0, bytes)
}
