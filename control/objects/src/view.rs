//! An immutable snapshot of all objects at one revision. Cloning is O(1); readers take no lock.

use std::{ops::Bound, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use crate::{
    name::{ObjectKey, ObjectName, ResourceName, Revision},
    object::Object,
};

/// All objects of one resource, ordered by namespace and name.
pub type Table = OrdMap<ObjectName, Arc<Object>>;

/// All objects at one revision.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub revision: Revision,
    pub tables: OrdMap<ResourceName, Table>,
}

impl View {
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.tables.get(&key.resource)?.get(&key.name)
    }

    /// The objects of a resource (`deployments.apps`), in order: of one namespace, or of all where it is `None`.
    pub fn list<'a>(
        &'a self,
        resource: &str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let start = namespace.map_or(Bound::Unbounded, |ns| Bound::Included(ObjectName::new(ns, "")));
        self.tables
            .get(resource)
            .into_iter()
            .flat_map(move |table| table.range((start.clone(), Bound::Unbounded)))
            .map(|(_, object)| object)
            .take_while(move |object| namespace.is_none_or(|ns| object.namespace() == ns))
    }

    pub fn count(&self, resource: &str) -> usize {
        self.tables.get(resource).map_or(0, |table| table.len())
    }

    /// What became of the objects of a resource since an earlier view, an event for each that is another. What both have
    /// in common costs little.
    pub fn events_since(&self, earlier: &View, resource: &str) -> Vec<Event> {
        let (none, table) = (Table::default(), |view: &View| view.tables.get(resource).cloned());
        let (before, now) = (table(earlier).unwrap_or_else(|| none.clone()), table(self).unwrap_or(none));
        let event = |item| match item {
            DiffItem::Add(_, object) => {
                Event { kind: EventKind::Added, object: Arc::clone(object), previous: None }
            }
            DiffItem::Update { old: (_, previous), new: (_, object) } => Event {
                kind: EventKind::Modified,
                object: Arc::clone(object),
                previous: Some(Arc::clone(previous)),
            },
            DiffItem::Remove(_, previous) => Event {
                kind: EventKind::Deleted,
                object: Arc::new(previous.at_revision(self.revision)),
                previous: Some(Arc::clone(previous)),
            },
        };
        before.diff(&now).map(event).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

/// One change of one object. All events of one transaction share its revision and follow each other.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    /// After the change; for `Deleted` its last state, with the revision of the deletion.
    pub object: Arc<Object>,
    /// Before the change: lets a watch with a selector tell an object that stops matching.
    pub previous: Option<Arc<Object>>,
}
