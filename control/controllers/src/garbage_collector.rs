//! The garbage collector: an object goes when all its owners are gone, and owners wait for dependents where asked to.
//!
//! Owners are found by uid, as references mean them. The three ways of deleting an owner:
//! background (it goes at once, dependents follow), foreground (the finalizer `foregroundDeletion` keeps it until the
//! dependents that block it are gone) and orphan (the finalizer `orphan` keeps it until dependents are freed of it).
//!
//! An owner of a kind that is not served (declared by a definition that is not there yet, or of a version of long ago)
//! cannot be shown to be gone: what it owns is kept. One in another namespace is none; its dependent goes, and an event says
//! why.
//!
//! Owners may own each other, and objects themselves. An owner that waits for nothing but such as wait for it, directly or
//! round about, would wait for ever: it goes first, and the circle with it.

pub mod circles;

use std::sync::Arc;

use coracle_objects::{
    Event, EventKind, Expect, Object, ObjectKey, OwnerReference, Precondition, claims, kinds::DEFINITIONS,
};

use crate::{
    controller::{Controller, states},
    deletion::{self, FOREGROUND, ORPHAN, Propagation},
    draft::{self, Unreadable},
    event_record::EventRecord,
    ownership::Wait,
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};
use circles::Fate;

/// See the module.
pub struct GarbageCollector;

const NAME: &str = "garbage-collector-controller";

/// The most dependents that one plan frees of an owner. The next comes when these are observed.
const ORPHANINGS_MAX: usize = 500;
/// The most dependents that one plan has judged anew. The next comes when these are observed.
const DEPENDENTS_MAX: usize = 1_000;

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Objects whose owners are not all well, and owners whose deletion waits.
    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let object = &event.object;
        let on = |key: &ObjectKey| Task::new(NAME, key.clone());
        if object.key.resource.as_str() == DEFINITIONS && state.serves_more {
            tasks.extend(state.ownership.ownerless().map(on));
        }
        if event.kind == EventKind::Deleted {
            tasks.extend(state.dependents(object).map(on));
        } else {
            let unwell = object.meta.owner_references.iter().any(|reference| {
                let owner = state.ownership.owner(&reference.uid, &object.key);
                owner.is_none_or(|owner| owner.wait.for_dependents())
            });
            if unwell || Wait::of(object).for_dependents() {
                tasks.insert(on(&object.key));
            }
        }
        if !concerns_owners(event) {
            return;
        }
        for reference in states(event).flat_map(|object| &object.meta.owner_references) {
            let owner = state.ownership.by_uid(&reference.uid);
            tasks.extend(owner.filter(|owner| owner.wait.for_dependents()).map(|owner| on(&owner.key)));
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, subject)
    }
}

/// Whether a change is one to those who wait for the object to go, or to be freed of them.
fn concerns_owners(event: &Event) -> bool {
    let now = &event.object;
    let Some(before) = event.previous.as_ref().filter(|_| event.kind == EventKind::Modified) else {
        return true;
    };
    before.meta.deletion_timestamp.is_some() != now.meta.deletion_timestamp.is_some()
        || Wait::of(before) != Wait::of(now)
        || before.meta.owner_references != now.meta.owner_references
}

fn plan(planner: &mut Planner<'_>, key: &ObjectKey) -> Result<(), Unreadable> {
    let Some(object) = planner.state.get(key).cloned() else { return Ok(()) };
    match Wait::of(&object) {
        Wait { orphan: true, .. } => return orphan_dependents(planner, &object),
        Wait { foreground: true, .. } => return await_dependents(planner, &object),
        Wait { .. } => {}
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
        planner.propose(deletion::finalize(&planner.state.view, owner, ORPHAN)?);
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
    match planner.circles.fate(state, owner) {
        Some(Fate::Goes) => {
            planner.propose(deletion::finalize(&planner.state.view, owner, FOREGROUND)?);
            return Ok(());
        }
        Some(Fate::Waits) => {}
        None => planner.mark(Task::new(NAME, owner.key.clone())),
    }
    // Those that are being deleted already are on their way.
    let staying = state.ownership.dependents(owner).flat_map(|all| &all.staying);
    for dependent in staying.take(DEPENDENTS_MAX) {
        planner.mark(Task::new(NAME, dependent.clone()));
    }
    Ok(())
}

/// How it stands with one of an object's owners.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It exists and stays.
    Solid,
    /// It does not exist.
    Absent,
    /// Whether it exists cannot be told.
    Unknown,
    /// It is being deleted and waits for its dependents.
    Waiting,
}

/// Deletes an object whose owners are all gone or going; where some stay, takes the others out of its references. Where it
/// cannot be told of one, nothing is done.
fn judge(planner: &mut Planner<'_>, object: &Arc<Object>) -> Result<(), Unreadable> {
    let references = &object.meta.owner_references;
    if references.is_empty() || object.meta.deletion_timestamp.is_some() {
        return Ok(());
    }
    let standings: Vec<Standing> =
        references.iter().map(|reference| standing(planner, object, reference)).collect();
    let stays = standings.iter().all(|standing| *standing == Standing::Solid);
    for reference in references.iter().filter(|_| !stays) {
        tell_of_reach(planner, object, reference);
    }
    if stays || standings.contains(&Standing::Unknown) {
        return Ok(());
    }
    if standings.contains(&Standing::Solid) {
        let solid = references.iter().zip(&standings).filter(|(_, standing)| **standing == Standing::Solid);
        let left: Vec<OwnerReference> = solid.map(|(reference, _)| reference.clone()).collect();
        return rewrite_owners(planner, object, &left);
    }
    let waited_for = standings.contains(&Standing::Waiting);
    let has_dependents = planner.state.dependents(object).next().is_some();
    let propagation = (waited_for && has_dependents).then_some(Propagation::Foreground);
    if let Some(transaction) = deletion::delete(&planner.state.view, object, propagation, planner.now)? {
        planner.propose(transaction);
    }
    Ok(())
}

fn standing(planner: &Planner<'_>, object: &Object, reference: &OwnerReference) -> Standing {
    let state = planner.state;
    match state.ownership.owner(&reference.uid, &object.key) {
        Some(owner) if owner.wait.foreground => Standing::Waiting,
        Some(_) => Standing::Solid,
        None if is_out_of_reach(planner, object, reference) && object.key.name.namespace.is_empty() => {
            Standing::Unknown
        }
        None if !state.names.serves(&reference.api_version, &reference.kind) => Standing::Unknown,
        None => Standing::Absent,
    }
}

/// Whether the owner exists, in a namespace from which it owns nothing of the object's.
fn is_out_of_reach(planner: &Planner<'_>, object: &Object, reference: &OwnerReference) -> bool {
    planner.state.by_uid(&reference.uid).is_some_and(|owner| !in_reach(owner, &object.key))
}

/// Tells of an owner that is in another namespace, as Kubernetes does.
fn tell_of_reach(planner: &mut Planner<'_>, object: &Object, reference: &OwnerReference) {
    if !is_out_of_reach(planner, object, reference) {
        return;
    }
    let OwnerReference { api_version, kind, name, uid, .. } = reference;
    let namespace = &object.key.name.namespace;
    let message = format!(
        "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace \
         {namespace:?}"
    );
    planner.record(EventRecord::warning(object, NAME, "OwnerRefInvalidNamespace", message));
}

/// Whether references work between these: an owner in a namespace owns only what is in the same one.
pub fn in_reach(owner: &ObjectKey, dependent: &ObjectKey) -> bool {
    owner.name.namespace.is_empty() || owner.name.namespace == dependent.name.namespace
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
