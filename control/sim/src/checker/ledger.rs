//! What the members say while a run goes on: leaders, votes, committed entries, and what each entry did.

use std::collections::BTreeMap;

use bytes::Bytes;
use coracle_objects::{Event, EventKind, Revision};
use coracle_proto::raft as wire;
use coracle_raft::core::Apply;
use coracle_store::Batch;

use super::keys::{KeyId, Keys};
use crate::world::{Broken, Step};

#[derive(Debug, Default)]
pub struct Ledger {
    leaders: BTreeMap<u64, u64>,
    /// (term, voter) -> candidate.
    votes: BTreeMap<(u64, u64), u64>,
    /// By index, from 1 on.
    entries: Vec<Entry>,
    /// By revision, from 1 on.
    groups: Vec<Group>,
    /// For each resource the revisions with events of it.
    by_resource: [Vec<Revision>; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    term: u64,
    data: u64,
    hash: [u8; 32],
    revision: Revision,
}

/// All changes of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub revision: Revision,
    pub changes: Vec<Change>,
}

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub kind: EventKind,
    pub key: KeyId,
    /// For a deletion what was there last.
    pub draft: Bytes,
}

impl Change {
    /// The change that an event tells of.
    pub fn of(event: &Event, keys: &Keys) -> Step<Change> {
        let key = &event.object.key;
        let id = keys.id(key).ok_or_else(|| Broken::new(format!("an event of {key}, which nobody wrote")))?;
        Ok(Change { kind: event.kind, key: id, draft: event.object.draft() })
    }
}

impl Ledger {
    pub fn entries(&self) -> u64 {
        self.entries.len() as u64
    }

    /// All revisions in order.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The changes of a resource by the first revision after this one that has any.
    pub fn next(&self, resource: usize, after: Revision, keys: &Keys) -> Option<Group> {
        let revisions = &self.by_resource[resource];
        let revision = *revisions.get(revisions.partition_point(|revision| *revision <= after))?;
        let group = &self.groups[revision as usize - 1];
        let changes = group.changes.iter().filter(|change| keys.resource_of(change.key) == resource);
        Some(Group { revision, changes: changes.cloned().collect() })
    }

    pub fn leads(&mut self, term: u64, member: u64) -> Step {
        match self.leaders.insert(term, member) {
            Some(other) if other != member => {
                Err(Broken::new(format!("m{other} and m{member} both lead term {term}")))
            }
            _ => Ok(()),
        }
    }

    /// A candidate votes for itself, and each voter for one candidate a term.
    pub fn sent(&mut self, message: &wire::Message) -> Step {
        let candidate = if message.msg_type == wire::MessageType::MsgRequestVote as i32 {
            message.from
        } else if message.msg_type == wire::MessageType::MsgRequestVoteResponse as i32 && !message.reject {
            message.to
        } else {
            return Ok(());
        };
        match self.votes.insert((message.term, message.from), candidate) {
            Some(other) if other != candidate => Err(Broken::new(format!(
                "m{} votes for m{other} and for m{candidate} in term {}",
                message.from, message.term
            ))),
            _ => Ok(()),
        }
    }

    /// A member has applied an entry.
    pub fn applied(
        &mut self,
        member: u64,
        item: &Apply,
        data: u64,
        batch: &Batch,
        hash: [u8; 32],
        keys: &Keys,
    ) -> Step {
        let entry = Entry { term: item.term, data, hash, revision: batch.revision };
        let mut groups: Vec<Group> = Vec::new();
        for event in &batch.events {
            let (revision, change) = (event.object.revision, Change::of(event, keys)?);
            match groups.last_mut() {
                Some(group) if group.revision == revision => group.changes.push(change),
                _ => groups.push(Group { revision, changes: vec![change] }),
            }
        }
        let at = item.index as usize;
        if at == self.entries.len() + 1 {
            return self.first(member, item.index, entry, groups);
        }
        let Some(known) = self.entries.get(at - 1) else {
            return Err(Broken::new(format!("m{member} applies entry {at} before anybody could know it")));
        };
        if (known.term, known.data) != (entry.term, entry.data) {
            return Err(Broken::new(format!(
                "committed entry {at} has changed: m{member} applies one of term {}, it was of term {}",
                entry.term, known.term
            )));
        }
        let before = if at == 1 { 0 } else { self.entries[at - 2].revision };
        let was = &self.groups[before as usize..known.revision as usize];
        if *known != entry || was != groups {
            return Err(Broken::new(format!(
                "entry {at} did something else at m{member} (revision {}) than elsewhere (revision {})",
                entry.revision, known.revision
            )));
        }
        Ok(())
    }

    fn first(&mut self, member: u64, index: u64, entry: Entry, groups: Vec<Group>) -> Step {
        let skipped = |revision: Revision| {
            Broken::new(format!("entry {index} at m{member}: revision {revision} does not follow the last"))
        };
        for group in groups {
            if group.revision != self.groups.len() as u64 + 1 {
                return Err(skipped(group.revision));
            }
            for (resource, revisions) in self.by_resource.iter_mut().enumerate() {
                if group.changes.iter().any(|change| change.key % 2 == resource) {
                    revisions.push(group.revision);
                }
            }
            self.groups.push(group);
        }
        if entry.revision != self.groups.len() as u64 {
            return Err(skipped(entry.revision));
        }
        self.entries.push(entry);
        Ok(())
    }

    /// A member has taken the state as of an entry from a snapshot.
    pub fn restored(&self, member: u64, index: u64, hash: [u8; 32]) -> Step {
        match self.hash_at(index) {
            Some(known) if known != hash => Err(Broken::new(format!(
                "m{member} takes another state over as of entry {index} than there was"
            ))),
            None if index > 0 => Err(Broken::new(format!(
                "m{member} takes the state of entry {index} over, which nobody applied"
            ))),
            _ => Ok(()),
        }
    }

    /// The state hash right after an entry.
    pub fn hash_at(&self, index: u64) -> Option<[u8; 32]> {
        index.checked_sub(1).and_then(|at| self.entries.get(at as usize)).map(|entry| entry.hash)
    }
}
