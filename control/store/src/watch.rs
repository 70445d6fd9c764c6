//! The window of recent events, one queue a resource, out of which a watch is resumed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use coracle_objects::{Event, ResourceName, Revision};
use thiserror::Error;

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
    /// The revision of the newest event that was dropped.
    dropped: Revision,
}

/// Not part of the replicated state: members may have windows of different length.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    events_max: usize,
    revisions_max: u64,
    /// Before this revision nothing is known of any resource (a snapshot was restored).
    floor: Revision,
    recent: BTreeMap<ResourceName, Recent>,
}

impl Window {
    pub(crate) fn new(events_max: usize, revisions_max: u64, floor: Revision) -> Self {
        Self { events_max, revisions_max, floor, recent: BTreeMap::new() }
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        let newest = event.object.revision;
        let recent = match self.recent.get_mut(&event.object.key.resource) {
            Some(recent) => recent,
            None => self.recent.entry(event.object.key.resource.clone()).or_default(),
        };
        recent.events.push_back(event);
        while let Some(oldest) = recent.events.front() {
            let aged = oldest.object.revision.saturating_add(self.revisions_max) < newest;
            if recent.events.len() <= self.events_max && !aged {
                break;
            }
            recent.dropped = oldest.object.revision;
            recent.events.pop_front();
        }
    }

    /// For each resource that has changed: how many events there are, and the oldest revision to resume from.
    pub(crate) fn sizes(&self) -> Vec<(ResourceName, usize, Revision)> {
        let sizes = self.recent.iter().map(|(resource, recent)| {
            (resource.clone(), recent.events.len(), recent.dropped.max(self.floor))
        });
        sizes.collect()
    }

    pub(crate) fn since(&self, resource: &str, after: Revision) -> Result<Vec<Arc<Event>>, Expired> {
        let Some(recent) = self.recent.get(resource) else {
            return if after < self.floor { Err(Expired { after, oldest: self.floor }) } else { Ok(vec![]) };
        };
        let oldest = recent.dropped.max(self.floor);
        if after < oldest {
            return Err(Expired { after, oldest });
        }
        let start = recent.events.partition_point(|event| event.object.revision <= after);
        Ok(recent.events.range(start..).cloned().collect())
    }
}
