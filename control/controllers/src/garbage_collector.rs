//! The garbage collector: an object goes when all its owners are gone, and owners wait for dependents where asked to.
//!
//! Owners are found by uid, as references mean them. The three ways of deleting an owner:
//! background (it goes at once, dependents follow), foreground (the finalizer `foregroundDeletion` keeps it until the
//! dependents that block it are gone) and orphan (the finalizer `orphan` keeps it until dependents are freed of it).

use std::sync::Arc;

use coracle_objects::{Expect, Object, ObjectKey, OwnerReference, Precondition};

use crate::{
    deletion::{self, FOREGROUND, ORPHAN, Propagation},
    dirty::Task,
    draft,
    planner::Planner,
};

/// The most dependents that one plan frees of an owner. The next comes when these are observed.
const ORPHANINGS_MAX: usize = 500;

pub fn plan(planner: &mut Planner<'_>, key: &ObjectKey) {
    let Some(object) = planner.state.get(key).cloned() else { return };
    if object.meta.deletion_timestamp.is_some() {
        if has_finalizer(&object, ORPHAN) {
            orphan_dependents(planner, &object);
            return;
        }
        if has_finalizer(&object, FOREGROUND) {
            await_dependents(planner, &object);
            return;
        }
    }
    judge(planner, &object);
}

/// Takes the owner out of its dependents' references; once it is in none, takes the finalizer off it.
fn orphan_dependents(planner: &mut Planner<'_>, owner: &Arc<Object>) {
    let state = planner.state;
    let dependents: Vec<&Arc<Object>> = state
        .dependents(&owner.meta.uid)
        .filter(|key| in_reach(&owner.key, key))
        .filter_map(|key| state.get(key))
        .take(ORPHANINGS_MAX)
        .collect();
    if dependents.is_empty() {
        planner.propose(deletion::finalize(owner, ORPHAN));
        return;
    }
    for dependent in dependents {
        let mut left = dependent.meta.owner_references.clone();
        left.retain(|reference| reference.uid != owner.meta.uid);
        rewrite_owners(planner, dependent, &left);
    }
}

/// Has the dependents deleted; once none that blocks the owner is left, takes the finalizer off it.
fn await_dependents(planner: &mut Planner<'_>, owner: &Arc<Object>) {
    let state = planner.state;
    let dependents: Vec<&ObjectKey> =
        state.dependents(&owner.meta.uid).filter(|key| in_reach(&owner.key, key)).collect();
    let blocks = |key: &&&ObjectKey| {
        state.get(key).is_some_and(|dependent| {
            let references = &dependent.meta.owner_references;
            references.iter().any(|own| own.uid == owner.meta.uid && own.block_owner_deletion == Some(true))
        })
    };
    if dependents.iter().filter(blocks).count() == 0 {
        planner.propose(deletion::finalize(owner, FOREGROUND));
        return;
    }
    for dependent in dependents {
        planner.mark(Task::Collect(dependent.clone()));
    }
}

/// How it stands with one of an object's owners.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It exists and stays.
    Solid,
    /// It does not exist.
    Absent,
    /// It is being deleted and waits for its dependents.
    Waiting,
}

/// Deletes an object whose owners are all gone or going; where some stay, takes the others out of its references.
fn judge(planner: &mut Planner<'_>, object: &Arc<Object>) {
    let references = &object.meta.owner_references;
    if references.is_empty() || object.meta.deletion_timestamp.is_some() {
        return;
    }
    let standings: Vec<Standing> =
        references.iter().map(|reference| standing(planner, object, reference)).collect();
    if standings.iter().all(|standing| *standing == Standing::Solid) {
        return;
    }
    if standings.contains(&Standing::Solid) {
        let solid = references.iter().zip(&standings).filter(|(_, standing)| **standing == Standing::Solid);
        let left: Vec<OwnerReference> = solid.map(|(reference, _)| reference.clone()).collect();
        rewrite_owners(planner, object, &left);
        return;
    }
    let waited_for = standings.contains(&Standing::Waiting);
    let has_dependents = planner.state.dependents(&object.meta.uid).next().is_some();
    let propagation =
        if waited_for && has_dependents { Propagation::Foreground } else { Propagation::Background };
    if let Some(transaction) = deletion::delete(object, propagation, planner.now) {
        planner.propose(transaction);
    }
}

fn standing(planner: &Planner<'_>, object: &Object, reference: &OwnerReference) -> Standing {
    let Some(owner) = planner.state.by_uid(&reference.uid) else { return Standing::Absent };
    if !in_reach(owner, &object.key) {
        return Standing::Absent;
    }
    match planner.state.get(owner) {
        Some(owner) if owner.meta.deletion_timestamp.is_some() && has_finalizer(owner, FOREGROUND) => {
            Standing::Waiting
        }
        Some(_) => Standing::Solid,
        None => Standing::Absent,
    }
}

/// Whether references work between these: an owner in a namespace owns only what is in the same one.
pub fn in_reach(owner: &ObjectKey, dependent: &ObjectKey) -> bool {
    owner.name.namespace.is_empty() || owner.name.namespace == dependent.name.namespace
}

fn has_finalizer(object: &Object, finalizer: &str) -> bool {
    object.meta.finalizers.iter().any(|name| name == finalizer)
}

fn rewrite_owners(planner: &mut Planner<'_>, object: &Object, owners: &[OwnerReference]) {
    let mut value = draft::of(object);
    draft::set_owners(&mut value, owners);
    let mut transaction = draft::put(object, &value);
    // Those that stay must still be there: a reference to what is gone would be judged anew at once.
    for owner in owners {
        if let Some(key) = planner.state.by_uid(&owner.uid) {
            let expect = Expect::Uid(owner.uid.clone());
            transaction.preconditions.push(Precondition { key: key.clone(), expect });
        }
    }
    planner.propose(transaction);
}
