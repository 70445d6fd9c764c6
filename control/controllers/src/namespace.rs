//! Namespaces that are being deleted: first everything in them goes, then they.

use coracle_objects::{Event, EventKind, Object, ObjectKey};
use serde_json::{Value, json};

use crate::{
    controller::Controller,
    deletion::{self, Propagation},
    draft::{self, Unreadable, namespace_key, timestamp},
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};

/// See the module.
pub struct Namespaces;

const NAME: &str = "namespace-controller";

/// The finalizer in `spec.finalizers` that is ours to remove.
const FINALIZER: &str = "kubernetes";
/// The most deletions of one plan. The next comes when these are observed.
const DELETIONS_MAX: usize = 1_000;

impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let key = &event.object.key;
        if key.resource.as_str() == "namespaces" {
            tasks.insert(Task::new(NAME, key.clone()));
        }
        if event.kind == EventKind::Deleted && !key.name.namespace.is_empty() {
            let own = namespace_key(&key.name.namespace);
            if state.get(&own).is_some_and(|namespace| namespace.meta.deletion_timestamp.is_some()) {
                tasks.insert(Task::new(NAME, own));
            }
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, &subject.name.name)
    }
}

fn plan(planner: &mut Planner<'_>, name: &str) -> Result<(), Unreadable> {
    let state = planner.state;
    let Some(namespace) = state.get(&namespace_key(name)) else { return Ok(()) };
    if namespace.meta.deletion_timestamp.is_none() {
        return Ok(());
    }
    let mut left = Vec::new();
    let mut deletions = 0;
    for resource in state.view.tables.keys() {
        let contents: Vec<_> = state.view.list(resource.as_str(), Some(name)).collect();
        if contents.is_empty() {
            continue;
        }
        for object in &contents {
            if deletions < DELETIONS_MAX && object.meta.deletion_timestamp.is_none() {
                delete(planner, object);
                deletions += 1;
            }
        }
        left.push((resource.to_string(), contents));
    }
    let before = draft::of(namespace)?;
    let mut value = before.clone();
    if left.is_empty() {
        finalize(planner, namespace, value);
        return Ok(());
    }
    // Only what does not go by itself is worth telling.
    if deletions > 0 {
        return Ok(());
    }
    set_conditions(&mut value, &left, &timestamp(planner.now));
    if value != before {
        planner.propose(draft::put(namespace, &value));
    }
    Ok(())
}

/// Deletes an object as a client would; one that cannot be read at once, for its namespace is to end.
fn delete(planner: &mut Planner<'_>, object: &Object) {
    match deletion::delete(&planner.state.view, object, Some(Propagation::Background), planner.now) {
        Ok(Some(transaction)) => {
            planner.propose(transaction);
        }
        Ok(None) => {}
        Err(_) => {
            planner.propose(deletion::remove(&planner.state.view, object));
        }
    }
}

/// Takes our finalizer off; removes the namespace where no other is left.
fn finalize(planner: &mut Planner<'_>, namespace: &Object, mut value: Value) {
    let finalizers = value["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
    let others: Vec<Value> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    let is_ours_on = others.len() < finalizers.len();
    draft::child(&mut value, "spec").insert("finalizers".to_owned(), others.into());
    if is_ours_on || deletion::is_complete("namespaces", &value) {
        planner.propose(deletion::write(&planner.state.view, namespace, &value));
    }
}

/// Upstream's five conditions. The first three are about faults of discovery and deletion, which cannot be here.
fn set_conditions(value: &mut Value, left: &[(String, Vec<&std::sync::Arc<Object>>)], now: &str) {
    let remaining: Vec<String> = left
        .iter()
        .map(|(resource, objects)| format!("{} has {} resource instances", dotted(resource), objects.len()))
        .collect();
    let mut holders: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for finalizer in left.iter().flat_map(|(_, objects)| objects).flat_map(|object| &object.meta.finalizers) {
        *holders.entry(finalizer).or_default() += 1;
    }
    let holding: Vec<String> = holders
        .iter()
        .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
        .collect();
    let mut set = |type_: &str, status: &str, reason: &str, message: String| {
        let condition = json!({
            "type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
        });
        draft::set_condition(value, condition);
    };
    let resources = "All resources successfully discovered".to_owned();
    set("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered", resources);
    let groups = "All legacy kube types successfully parsed".to_owned();
    set("NamespaceDeletionGroupVersionParsingFailure", "False", "ParsedGroupVersions", groups);
    let deleted = "All content successfully deleted, may be waiting on finalization".to_owned();
    set("NamespaceDeletionContentFailure", "False", "ContentDeleted", deleted);
    let message = format!("Some resources are remaining: {}", remaining.join(", "));
    set("NamespaceContentRemaining", "True", "SomeResourcesRemain", message);
    if holding.is_empty() {
        let removed = "All content-preserving finalizers finished".to_owned();
        set("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers", removed);
    } else {
        let message =
            format!("Some content in the namespace has finalizers remaining: {}", holding.join(", "));
        set("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", message);
    }
}

/// Upstream writes resources with a dot even in the core group: `pods.`
fn dotted(resource: &str) -> String {
    if resource.contains('.') { resource.to_owned() } else { format!("{resource}.") }
}
