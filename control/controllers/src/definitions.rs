//! CustomResourceDefinitions: whether their names are theirs, that what they declare is served, and that their objects go
//! before they do.
//!
//! Source: apiextensions-apiserver's naming condition, establishing and finalizing controllers. What is served follows from
//! the definitions themselves (`coracle_objects::Catalog`); this tells their authors.

use coracle_objects::{
    Event, EventKind, Object, ObjectKey, by_resource,
    declared::has_its_names,
    fields,
    kinds::{CLEANUP, DEFINITIONS},
};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    deletion::{self, Propagation},
    draft::{self, Unreadable, timestamp},
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};

/// See the module.
pub struct Definitions;

const NAME: &str = "customresourcedefinition-controller";

/// The most deletions of one plan. The next comes when these are observed.
const DELETIONS_MAX: usize = 1_000;

impl Controller for Definitions {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let key = &event.object.key;
        if key.resource.as_str() == DEFINITIONS {
            // Names that one gives up another may have.
            let others = state.resettled.iter().map(|name| ObjectKey::new(DEFINITIONS, "", name));
            others.chain([key.clone()]).for_each(|key| tasks.insert(Task::new(NAME, key)));
        } else if event.kind == EventKind::Deleted {
            let own = ObjectKey::new(DEFINITIONS, "", key.resource.as_str());
            if state.get(&own).is_some_and(|definition| definition.meta.deletion_timestamp.is_some()) {
                tasks.insert(Task::new(NAME, own));
            }
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        let Some(definition) = planner.state.get(subject).cloned() else { return Ok(()) };
        if definition.meta.deletion_timestamp.is_some() {
            end(planner, &definition)
        } else {
            settle(planner, &definition)
        }
    }
}

/// Deletes what is of the definition's kind, as a client would, and the definition once there is nothing left.
fn end(planner: &mut Planner<'_>, definition: &Object) -> Result<(), Unreadable> {
    let state = planner.state;
    if by_resource(definition.name()).is_some() {
        // The objects of that resource are of a kind of ours, and none of them the definition's.
        planner.propose(deletion::finalize(&state.view, definition, CLEANUP)?);
        return Ok(());
    }
    let mut left = 0;
    let mut deletions = 0;
    for object in state.view.list(definition.name(), None) {
        left += 1;
        if deletions < DELETIONS_MAX && object.meta.deletion_timestamp.is_none() {
            deletions += 1;
            let planned = deletion::delete(&state.view, object, Some(Propagation::Background), planner.now);
            if let Some(transaction) = planned? {
                planner.propose(transaction);
            }
        }
    }
    if left == 0 {
        if definition.meta.finalizers.iter().any(|name| name == CLEANUP) {
            planner.propose(deletion::finalize(&state.view, definition, CLEANUP)?);
        }
        return Ok(());
    }
    let mut value = draft::of(definition)?;
    let before = value.clone();
    let message = "CustomResource deletion is in progress";
    set(&mut value, "Terminating", "True", "InstanceDeletionInProgress", message, planner);
    if value != before {
        planner.propose(draft::put(definition, &value));
    }
    Ok(())
}

/// Tells whether the names are the definition's own, and that it is served.
fn settle(planner: &mut Planner<'_>, definition: &Object) -> Result<(), Unreadable> {
    let mut value = draft::of(definition)?;
    let before = value.clone();
    let conflict = planner.state.names.conflict(definition.name()).map(str::to_owned);
    match conflict {
        None => {
            let names = value.pointer("/spec/names").cloned().unwrap_or_default();
            draft::child(&mut value, "status").insert("acceptedNames".to_owned(), names);
            set(&mut value, "NamesAccepted", "True", "NoConflicts", "no conflicts found", planner);
            let message = "the initial names have been accepted";
            set(&mut value, "Established", "True", "InitialNamesAccepted", message, planner);
        }
        Some(name) => {
            let message = format!("{name:?} is already in use");
            let reason = reason(&value, &name);
            set(&mut value, "NamesAccepted", "False", reason, &message, planner);
            // What is served goes on under the names that it has.
            if !has_its_names(&before) {
                let message = "not all names are accepted";
                set(&mut value, "Established", "False", "NotAccepted", message, planner);
            }
        }
    }
    if value != before {
        planner.propose(draft::put(definition, &value));
    }
    Ok(())
}

/// Which of the names it is.
fn reason(definition: &Value, name: &str) -> &'static str {
    let is = |field: &str| fields::text(definition, &format!("/spec/names/{field}")) == name;
    match () {
        () if is("plural") => "PluralConflict",
        () if is("singular") => "SingularConflict",
        () if is("kind") => "KindConflict",
        () if is("listKind") => "ListKindConflict",
        () => "ShortNamesConflict",
    }
}

fn set(value: &mut Value, type_: &str, status: &str, reason: &str, message: &str, planner: &Planner<'_>) {
    let condition = json!({
        "type": type_, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": timestamp(planner.now),
    });
    draft::set_condition(value, condition);
}
