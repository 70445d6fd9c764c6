//! What a node's link has not taken yet: names of objects, each once, however often it changes. The objects are those of
//! the moment at which it takes them, so that a link that stands still keeps nothing in memory that has been replaced.

use std::collections::BTreeMap;

use bytes::Bytes;
use coracle_objects::{Object, ObjectKey, Revision, View};
use coracle_proto::node::{ObjectEvent, object_event::Type};
use serde_json::json;

use crate::routes::{Change, PODS, room};

/// In the order in which they came.
#[derive(Debug, Default)]
pub struct Untaken {
    order: BTreeMap<u64, ObjectKey>,
    changes: BTreeMap<ObjectKey, (u64, Change)>,
    next: u64,
    /// Behind this place the node has all that it needed when its link began, and is told so; none once it was.
    synced: Option<u64>,
    /// The cluster's authorities are others.
    trust: bool,
}

/// What a link takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    Object(ObjectEvent),
    /// The node has all that it needs, as of the revision.
    Synced(Revision),
    /// The cluster's authorities are others.
    Trust,
}

impl Untaken {
    /// Of a link that begins: all that its node needs.
    pub fn first(needed: Vec<(ObjectKey, Change)>) -> Self {
        let mut untaken = Self::default();
        for (key, change) in needed {
            untaken.mark(key, change);
        }
        untaken.synced = Some(untaken.next);
        untaken
    }

    /// An object has changed. It keeps its place, unless it has to come behind others.
    pub fn mark(&mut self, key: ObjectKey, change: Change) {
        if let Some((place, known)) = self.changes.get_mut(&key) {
            let first = self.synced.is_some_and(|synced| *place < synced);
            // What is among the first stays there, or the node would take it for gone.
            if change != Change::PutBehind || first {
                *known = change;
                return;
            }
            self.order.remove(place);
        }
        self.order.insert(self.next, key.clone());
        self.changes.insert(key, (self.next, change));
        self.next += 1;
    }

    pub fn mark_trust(&mut self) {
        self.trust = true;
    }

    /// The next, as of this view.
    pub fn take(&mut self, view: &View) -> Option<Taken> {
        loop {
            let first = self.order.first_key_value().map(|(place, _)| *place);
            if let Some(synced) = self.synced
                && first.is_none_or(|place| place >= synced)
            {
                self.synced = None;
                return Some(Taken::Synced(view.revision));
            }
            if self.synced.is_none() && std::mem::take(&mut self.trust) {
                return Some(Taken::Trust);
            }
            let (_, key) = self.order.pop_first()?;
            let message = match self.changes.remove(&key)?.1 {
                Change::Put | Change::PutBehind => open(view, &key).map(put),
                Change::Withheld => open(view, &key).map(withheld),
                Change::Deleted(revision) => Some(message(Type::Delete, &key, revision)),
            };
            // What is gone since is told of when that is heard.
            if let Some(message) = message {
                return Some(Taken::Object(message));
            }
        }
    }
}

/// To a node, what this member cannot open is not there.
fn open<'a>(view: &'a View, key: &ObjectKey) -> Option<&'a Object> {
    view.get(key).map(AsRef::as_ref).filter(|object: &&Object| object.sealed().is_none())
}

fn put(object: &Object) -> ObjectEvent {
    let object_json = object.json.clone();
    ObjectEvent { object_json, ..message(Type::Put, &object.key, object.revision) }
}

fn withheld(object: &Object) -> ObjectEvent {
    let reason = room::reason(object);
    // Of a pod the node has to know which it is, and when it is deleted.
    let outline_json = if object.key.resource.as_str() == PODS { outline(object) } else { Bytes::new() };
    ObjectEvent { outline_json, reason, ..message(Type::Withheld, &object.key, object.revision) }
}

/// A pod without what is withheld.
fn outline(pod: &Object) -> Bytes {
    let meta = &pod.meta;
    let metadata = json!({
        "name": pod.name(),
        "namespace": pod.namespace(),
        "uid": meta.uid,
        "resourceVersion": pod.revision.to_string(),
        "deletionTimestamp": meta.deletion_timestamp,
        "deletionGracePeriodSeconds": meta.deletion_grace_period_seconds,
    });
    json!({ "metadata": metadata }).to_string().into()
}

/// Without what is said of it.
fn message(type_: Type, key: &ObjectKey, revision: Revision) -> ObjectEvent {
    ObjectEvent {
        r#type: type_.into(),
        resource: key.resource.to_string(),
        namespace: key.name.namespace.to_string(),
        name: key.name.name.to_string(),
        revision,
        ..ObjectEvent::default()
    }
}
