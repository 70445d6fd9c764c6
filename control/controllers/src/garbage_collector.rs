//! The garbage collector: an object goes when all its owners are gone, and owners wait for dependents where asked to.
//!
//! Owners are found by uid, as references mean them. The three ways of deleting an owner:
//! background (it goes at once, dependents follow), foreground (the finalizer `foregroundDeletion` keeps it until the
//! dependents that block it are gone) and orphan (the finalizer `orphan` keeps it until dependents are freed of it).
//!
//! Owners may own each other, and objects themselves. An owner that waits for nothing but such as wait for it, directly or
//! round about, would wait for ever: it goes first, and the circle with it.

use std::{collections::BTreeSet, sync::Arc};

use coracle_objects::{Expect, Object, ObjectKey, OwnerReference, Precondition, claims};

use crate::{
    deletion::{self, FOREGROUND, ORPHAN, Propagation},
    dirty::Task,
    draft::{self, Unreadable},
    planner::Planner,
    state::State,
};

/// The most dependents that one plan frees of an owner. The next comes when these are observed.
const ORPHANINGS_MAX: usize = 500;
/// The most dependents that one plan has judged anew. The next comes when these are observed.
const DEPENDENTS_MAX: usize = 1_000;
/// The most owners that are looked at to find a circle. More than that are taken for one: all that follows from a wrong
/// guess is that an owner goes before its dependents.
const CIRCLE_MAX: usize = 10_000;

pub fn plan(planner: &mut Planner<'_>, key: &ObjectKey) -> Result<(), Unreadable> {
    let Some(object) = planner.state.get(key).cloned() else { return Ok(()) };
    if object.meta.deletion_timestamp.is_some() {
        if has_finalizer(&object, ORPHAN) {
            return orphan_dependents(planner, &object);
        }
        if has_finalizer(&object, FOREGROUND) {
            return await_dependents(planner, &object);
        }
    }
    // What a service has is not given up, whoever is said to own it.
    if claims::holder(&object, |key| planner.state.get(key).cloned()).is_some() {
        return Ok(());
    }
    judge(planner, &object)
}

/// Takes the owner out of its dependents' references; once it is in none, takes the finalizer off it.
fn orphan_dependents(planner: &mut Planner<'_>, owner: &Arc<Object>) -> Result<(), Unreadable> {
    let state = planner.state;
    let dependents: Vec<&Arc<Object>> =
        state.dependents(owner).filter_map(|key| state.get(key)).take(ORPHANINGS_MAX).collect();
    if dependents.is_empty() {
        planner.propose(deletion::finalize(owner, ORPHAN)?);
        return Ok(());
    }
    for dependent in dependents {
        let mut left = dependent.meta.owner_references.clone();
        left.retain(|reference| reference.uid != owner.meta.uid);
        rewrite_owners(planner, dependent, &left)?;
    }
    Ok(())
}

/// Has the dependents deleted; once none that blocks the owner is left, takes the finalizer off it.
fn await_dependents(planner: &mut Planner<'_>, owner: &Arc<Object>) -> Result<(), Unreadable> {
    let state = planner.state;
    let blocked = blockers(state, owner).any(|dependent| dependent.key != owner.key);
    if !blocked || waits_in_a_circle(state, owner) {
        planner.propose(deletion::finalize(owner, FOREGROUND)?);
        return Ok(());
    }
    // Those that are being deleted already are on their way.
    let staying = |key: &&ObjectKey| {
        state.get(key).is_some_and(|dependent| dependent.meta.deletion_timestamp.is_none())
    };
    for dependent in state.dependents(owner).filter(staying).take(DEPENDENTS_MAX) {
        planner.mark(Task::Collect(dependent.clone()));
    }
    Ok(())
}

/// The dependents that an owner waits for.
fn blockers<'a>(state: &'a State, owner: &'a Object) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
    state.dependents(owner).filter_map(|key| state.get(key)).filter(|dependent| {
        let references = &dependent.meta.owner_references;
        references.iter().any(|own| own.uid == owner.meta.uid && own.block_owner_deletion == Some(true))
    })
}

/// Whether all that an owner waits for, and all that these wait for, waits as it does: then none of them ever goes. What
/// does not wait for dependents goes by itself, so that there is something to wait for.
fn waits_in_a_circle(state: &State, owner: &Arc<Object>) -> bool {
    let mut seen: BTreeSet<&ObjectKey> = BTreeSet::from([&owner.key]);
    let mut open = vec![owner];
    while let Some(waiting) = open.pop() {
        for dependent in blockers(state, waiting) {
            if !waits_for_blockers(dependent) {
                return false;
            }
            if seen.insert(&dependent.key) {
                open.push(dependent);
            }
        }
        // The end of a chain goes now.
        if blockers(state, waiting).all(|dependent| dependent.key == waiting.key) && waiting.key != owner.key
        {
            return false;
        }
        if seen.len() > CIRCLE_MAX {
            return true;
        }
    }
    true
}

fn waits_for_blockers(object: &Object) -> bool {
    object.meta.deletion_timestamp.is_some()
        && has_finalizer(object, FOREGROUND)
        && !has_finalizer(object, ORPHAN)
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
fn judge(planner: &mut Planner<'_>, object: &Arc<Object>) -> Result<(), Unreadable> {
    let references = &object.meta.owner_references;
    if references.is_empty() || object.meta.deletion_timestamp.is_some() {
        return Ok(());
    }
    let standings: Vec<Standing> =
        references.iter().map(|reference| standing(planner, object, reference)).collect();
    if standings.iter().all(|standing| *standing == Standing::Solid) {
        return Ok(());
    }
    if standings.contains(&Standing::Solid) {
        let solid = references.iter().zip(&standings).filter(|(_, standing)| **standing == Standing::Solid);
        let left: Vec<OwnerReference> = solid.map(|(reference, _)| reference.clone()).collect();
        return rewrite_owners(planner, object, &left);
    }
    let waited_for = standings.contains(&Standing::Waiting);
    let has_dependents = planner.state.dependents(object).next().is_some();
    let propagation =
        if waited_for && has_dependents { Propagation::Foreground } else { Propagation::Background };
    if let Some(transaction) = deletion::delete(object, propagation, planner.now)? {
        planner.propose(transaction);
    }
    Ok(())
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

fn rewrite_owners(
    planner: &mut Planner<'_>,
    object: &Object,
    owners: &[OwnerReference],
) -> Result<(), Unreadable> {
    let mut value = draft::of(object)?;
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
    Ok(())
}
