//! The state machine: applies commands to the objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{
    Applied, Event, EventKind, Object, ObjectKey, Refusal, ResourceName, Revision, Transaction, View, Write,
};
use sha2::{Digest, Sha256};

use crate::{
    command::{Command, CorruptEntry, Outcome, RequestId, encode_agreed, level_of},
    dedup::{Dedup, Seen},
    level::{FIRST_LEVEL, Level, Levels},
    watch::{Expired, Window},
};

/// The levels that a store knows, and bounds of its own: what decides outcomes is in the levels.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    pub levels: Levels,
    /// Events kept a resource for watches that resume.
    pub watch_events_max: usize,
    /// Bytes that the events of all resources hold, about. The resource that holds most gives way.
    pub watch_bytes_max: usize,
    /// Revisions behind the newest event of a resource after which an event is dropped.
    pub watch_revisions_max: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            levels: Levels::default(),
            watch_events_max: 64 * 1024,
            watch_bytes_max: 128 * 1024 * 1024,
            watch_revisions_max: 200_000,
        }
    }
}

/// What one entry did.
#[derive(Clone, Debug)]
pub struct Batch {
    /// In the order of the command. A request whose sequence is so low that its outcome may be forgotten is left out:
    /// this entry did not apply it, and whether one before did is unknown.
    pub results: Vec<(RequestId, Outcome)>,
    /// In order; those of one transaction share its revision and follow each other.
    pub events: Vec<Arc<Event>>,
    /// The store's revision after the entry.
    pub revision: Revision,
}

/// All objects of the cluster and how they came to be.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) config: StoreConfig,
    pub(crate) view: View,
    pub(crate) dedup: Dedup,
    pub(crate) window: Window,
    /// The highest of all entries so far: it never falls, whoever leads.
    pub(crate) level: u8,
    /// Over every change and outcome since the beginning.
    pub(crate) hash: [u8; 32],
}

/// One object's change within a transaction that is not decided yet.
struct Staged<'a> {
    key: &'a ObjectKey,
    previous: Option<Arc<Object>>,
    next: Option<Arc<Object>>,
}

impl Store {
    pub fn new(config: StoreConfig) -> Self {
        let window = Window::new(config, 0);
        let (view, dedup) = (View::default(), Dedup::default());
        Self { config, view, dedup, window, level: FIRST_LEVEL, hash: [0; 32] }
    }

    /// Applies one raft entry, an encoded [`Command`]. On an error nothing was changed and the member must stop.
    pub fn apply(&mut self, entry: &[u8]) -> Result<Batch, CorruptEntry> {
        let levels = self.config.levels;
        let command = Command::decode(entry, levels)?;
        // From here on nothing asks what this build would do: another build decides the same of the same entry.
        let number = self.level.max(level_of(entry));
        let level =
            levels.get(number).ok_or(CorruptEntry::Level { found: number, newest: levels.newest() })?;
        self.level = number;
        let mut batch =
            Batch { results: Vec::with_capacity(command.requests.len()), events: vec![], revision: 0 };
        let mut hasher = Sha256::new_with_prefix(self.hash);
        for request in command.requests {
            let (outcome, is_new) = match self.dedup.look(request.id, level, levels) {
                Seen::New => (self.transact(request.transaction, level, &mut batch.events), true),
                Seen::Before(outcome) => (outcome, false),
                Seen::Forgotten => continue,
            };
            let agreed = encode_agreed(&outcome, number);
            if is_new {
                self.dedup.record(request.id, &agreed, level);
            }
            hasher.update(agreed);
            batch.results.push((request.id, outcome));
        }
        for event in &batch.events {
            hash_event(&mut hasher, event);
            self.window.push(event.clone());
        }
        self.hash = hasher.finalize().into();
        batch.revision = self.view.revision;
        Ok(batch)
    }

    /// Cloning it is O(1).
    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn revision(&self) -> Revision {
        self.view.revision
    }

    /// The highest sequence of a request so far. A new request, of whatever client, has one above it: see
    /// [`RequestId::sequence`].
    pub fn clock(&self) -> u64 {
        self.dedup.clock()
    }

    /// The highest level of all entries so far.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The levels that this store knows.
    pub fn levels(&self) -> Levels {
        self.config.levels
    }

    /// Equal on all members that have applied the same entries, whatever their builds.
    pub fn state_hash(&self) -> [u8; 32] {
        self.hash
    }

    /// The events of a resource after a revision, oldest first.
    pub fn events_since(&self, resource: &str, after: Revision) -> Result<Vec<Arc<Event>>, Expired> {
        self.window.since(resource, after, usize::MAX)
    }

    /// As [`Store::events_since`], but only the first `count_max`, and what shares its revision with the last of them.
    pub fn first_events_since(
        &self,
        resource: &str,
        after: Revision,
        count_max: usize,
    ) -> Result<Vec<Arc<Event>>, Expired> {
        self.window.since(resource, after, count_max)
    }

    /// Drops events up to a revision that watches could resume from, until they hold at most so many bytes.
    pub fn forget_events(&mut self, until: Revision, bytes_max: usize) {
        self.window.forget(until, bytes_max);
    }

    /// The window that watches resume from: for each resource that has changed, the number of its events and the
    /// oldest revision to resume from.
    pub fn window(&self) -> Vec<(ResourceName, usize, Revision)> {
        self.window.sizes()
    }

    /// Linear in the transaction, but for the logarithms of maps.
    fn transact(&mut self, transaction: Transaction, level: &Level, events: &mut Vec<Arc<Event>>) -> Outcome {
        transaction.check(&self.view)?;
        let revision = self.view.revision + 1;
        let absent = transaction.expected_absent();
        // Changes stay in the order in which their objects are first written: so their events go out.
        let mut staged: Vec<Staged<'_>> = Vec::with_capacity(transaction.writes.len());
        let mut places: BTreeMap<&ObjectKey, usize> = BTreeMap::new();
        let mut written = Vec::with_capacity(transaction.writes.len());
        for write in &transaction.writes {
            let at = *places.entry(write.key()).or_insert_with(|| {
                let previous = self.view.get(write.key()).cloned();
                staged.push(Staged { key: write.key(), next: previous.clone(), previous });
                staged.len() - 1
            });
            stage(write, level, &absent, &mut staged[at], revision)?;
            written.push(at);
        }
        let changed = staged.iter().any(|change| !same(&change.previous, &change.next));
        let after = if changed { revision } else { self.view.revision };
        let revision_of = |at: usize| staged[at].next.as_ref().map_or(after, |object| object.revision);
        let revisions = written.into_iter().map(revision_of).collect();
        for change in staged {
            self.commit(change, revision, events);
        }
        self.view.revision = after;
        Ok(Applied { revision: after, revisions })
    }

    fn commit(&mut self, change: Staged<'_>, revision: Revision, events: &mut Vec<Arc<Event>>) {
        if same(&change.previous, &change.next) {
            return;
        }
        let ObjectKey { resource, name } = change.key.clone();
        let table = self.view.tables.entry(resource.clone()).or_default();
        let (kind, object) = match (change.next, &change.previous) {
            (Some(next), previous) => {
                table.insert(name, next.clone());
                (if previous.is_some() { EventKind::Modified } else { EventKind::Added }, next)
            }
            (None, Some(previous)) => {
                table.remove(&name);
                (EventKind::Deleted, Arc::new(previous.at_revision(revision)))
            }
            (None, None) => return,
        };
        // A resource without objects has no table, whether it had some before or never: a restored state is equal.
        if table.is_empty() {
            self.view.tables.remove(&resource);
        }
        events.push(Arc::new(Event { kind, object, previous: change.previous }));
    }
}

fn stage(
    write: &Write,
    level: &Level,
    absent: &BTreeSet<&ObjectKey>,
    change: &mut Staged<'_>,
    revision: Revision,
) -> Result<(), Refusal> {
    match write {
        Write::Put { key, draft } => {
            let limit = level.object_bytes_max as u64;
            if draft.len() as u64 > limit {
                return Err(Refusal::TooLarge { key: key.clone(), size: draft.len() as u64, limit });
            }
            if change.next.as_ref().is_some_and(|object| object.has_draft(draft)) {
                return Ok(());
            }
            let object = Object::from_draft(key.clone(), draft, revision)
                .map_err(|error| Refusal::BadDraft { key: key.clone(), reason: error.to_string() })?;
            change.next = Some(Arc::new(object));
        }
        Write::Delete { key } => {
            if change.next.take().is_none() && !absent.contains(key) {
                return Err(Refusal::NotFound { key: key.clone() });
            }
        }
    }
    Ok(())
}

fn same(previous: &Option<Arc<Object>>, next: &Option<Arc<Object>>) -> bool {
    match (previous, next) {
        (None, None) => true,
        (Some(previous), Some(next)) => Arc::ptr_eq(previous, next),
        _ => false,
    }
}

/// The same at all levels so far.
fn hash_event(hasher: &mut Sha256, event: &Event) {
    let key = &event.object.key;
    hasher.update([event.kind as u8]);
    for part in [key.resource.as_str(), &key.name.namespace, &key.name.name] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.update(event.object.revision.to_le_bytes());
    hasher.update((event.object.json.len() as u64).to_le_bytes());
    hasher.update(&event.object.json);
}
