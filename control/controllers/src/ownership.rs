//! Who owns whom, by uid, as references mean it. Kept with each change, so that nobody who asks looks through the
//! references of an object: where many own many, that would be done once for each pair of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Object, ObjectKey};

use crate::{
    deletion::{FOREGROUND, ORPHAN},
    garbage_collector::in_reach,
    index::Index,
    model::Models,
};

/// What an object that is being deleted waits for. Nothing where it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// For its dependents to be gone.
    pub foreground: bool,
    /// For its dependents to be freed of it.
    pub orphan: bool,
}

impl Wait {
    pub fn of(object: &Object) -> Self {
        if object.meta.deletion_timestamp.is_none() {
            return Self::default();
        }
        let has = |finalizer: &str| object.meta.finalizers.iter().any(|name| name == finalizer);
        Self { foreground: has(FOREGROUND), orphan: has(ORPHAN) }
    }

    /// For dependents, one way or the other.
    pub fn for_dependents(self) -> bool {
        self.foreground || self.orphan
    }

    /// For those dependents that block it: freeing them comes first.
    pub fn for_blockers(self) -> bool {
        self.foreground && !self.orphan
    }
}

/// An object that exists.
#[derive(Debug)]
pub struct Known {
    pub key: ObjectKey,
    pub wait: Wait,
}

/// The objects of one namespace that name an object as their owner.
#[derive(Debug, Default)]
pub struct Dependents {
    pub all: BTreeSet<ObjectKey>,
    /// Those that are not being deleted.
    pub staying: BTreeSet<ObjectKey>,
    /// Those that block their owner, and do not wait for any that block them.
    pub blocking: BTreeSet<ObjectKey>,
    /// Those that block their owner, and wait themselves for such as block them.
    pub blocking_in_turn: BTreeSet<ObjectKey>,
}

/// See the module. Bounded by the references that there are.
#[derive(Debug, Default)]
pub struct Ownership {
    /// Who exists.
    uids: BTreeMap<String, Known>,
    /// By the uid that is named as the owner's, and the namespace of those that name it.
    dependents: BTreeMap<(String, Arc<str>), Dependents>,
}

impl Ownership {
    /// The object of this uid, if it exists.
    pub fn by_uid(&self, uid: &str) -> Option<&Known> {
        self.uids.get(uid)
    }

    /// The object that a reference of `dependent` names by this uid, if it exists and can own it.
    pub fn owner(&self, uid: &str, dependent: &ObjectKey) -> Option<&Known> {
        self.by_uid(uid).filter(|known| in_reach(&known.key, dependent))
    }

    /// What names as an owner an object that does not exist.
    pub fn ownerless(&self) -> impl Iterator<Item = &ObjectKey> {
        let absent = self.dependents.iter().filter(|((uid, _), _)| !self.uids.contains_key(uid));
        absent.flat_map(|(_, dependents)| &dependents.staying)
    }

    /// What names this object as an owner and can: what is in its namespace, or in any where it has none.
    pub fn dependents<'a>(&'a self, owner: &Object) -> impl Iterator<Item = &'a Dependents> + use<'a> {
        let (uid, namespace) = (owner.meta.uid.clone(), owner.key.name.namespace.clone());
        let anywhere = namespace.is_empty();
        self.dependents
            .range((uid.clone(), namespace.clone())..)
            .take_while(move |((named, of), _)| *named == uid && (anywhere || *of == namespace))
            .map(|(_, dependents)| dependents)
    }
}

impl Index for Ownership {
    fn insert(&mut self, object: &Arc<Object>, _: &Models) {
        let (key, wait) = (&object.key, Wait::of(object));
        self.uids.insert(object.meta.uid.clone(), Known { key: key.clone(), wait });
        for owner in &object.meta.owner_references {
            let at = (owner.uid.clone(), key.name.namespace.clone());
            let dependents = self.dependents.entry(at).or_default();
            dependents.all.insert(key.clone());
            if object.meta.deletion_timestamp.is_none() {
                dependents.staying.insert(key.clone());
            }
            if owner.block_owner_deletion == Some(true) {
                let blocking = if wait.for_blockers() {
                    &mut dependents.blocking_in_turn
                } else {
                    &mut dependents.blocking
                };
                blocking.insert(key.clone());
            }
        }
    }

    fn remove(&mut self, object: &Arc<Object>, _: &Models) {
        let key = &object.key;
        if self.uids.get(&object.meta.uid).is_some_and(|known| known.key == *key) {
            self.uids.remove(&object.meta.uid);
        }
        for owner in &object.meta.owner_references {
            let at = (owner.uid.clone(), key.name.namespace.clone());
            let Some(dependents) = self.dependents.get_mut(&at) else { continue };
            let Dependents { all, staying, blocking, blocking_in_turn } = dependents;
            for keys in [&mut *all, staying, blocking, blocking_in_turn] {
                keys.remove(key);
            }
            if all.is_empty() {
                self.dependents.remove(&at);
            }
        }
    }
}
