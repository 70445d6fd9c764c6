//! Deleting, as the API server does it: at once, or first marked while finalizers or a grace period hold.

use coracle_objects::{Object, Transaction, fields, is_cluster_info, is_kept_namespace};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    draft::{self, Unreadable, later, timestamp},
    model::Pod,
};

/// The finalizer that keeps an owner until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that keeps an owner until its dependents are freed of it.
pub const ORPHAN: &str = "orphan";

/// How long a pod may take to end, in seconds, where it does not say.
const GRACE_S_DEFAULT: i64 = 30;

/// What becomes of the dependents of an object that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
}

/// The transaction that deletes the object as it is known here. None where that has begun already, or never may.
pub fn delete(
    object: &Object,
    propagation: Propagation,
    now: Timestamp,
) -> Result<Option<Transaction>, Unreadable> {
    let kept = is_kept_namespace(&object.key) || is_cluster_info(&object.key);
    if kept || object.meta.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let mut finalizers = object.meta.finalizers.clone();
    if propagation == Propagation::Foreground && !finalizers.iter().any(|name| name == FOREGROUND) {
        finalizers.push(FOREGROUND.to_owned());
    }
    let grace_s = grace_seconds(object);
    if finalizers.is_empty() && grace_s == 0 && object.key.resource.as_str() != "namespaces" {
        return Ok(Some(Transaction::delete(object.key.clone(), object.revision)));
    }
    let mut value = draft::of(object)?;
    mark(&mut value, grace_s, now);
    if !finalizers.is_empty() {
        draft::set_meta(&mut value, "finalizers", finalizers);
    }
    if object.key.resource.as_str() == "namespaces" {
        draft::child(&mut value, "status").insert("phase".to_owned(), "Terminating".into());
    }
    Ok(Some(draft::put(object, &value)))
}

/// Marks a draft as being deleted.
pub fn mark(value: &mut Value, grace_s: i64, now: Timestamp) {
    let end = later(now, SignedDuration::from_secs(grace_s));
    draft::set_meta(value, "deletionTimestamp", timestamp(end));
    draft::set_meta(value, "deletionGracePeriodSeconds", grace_s);
    if value["metadata"]["generation"].as_i64().is_some_and(|generation| generation > 0) {
        draft::next_generation(value);
    }
}

/// The transaction that takes a finalizer off an object that is being deleted, and removes the object where nothing
/// else holds it.
pub fn finalize(object: &Object, finalizer: &str) -> Result<Transaction, Unreadable> {
    let left: Vec<&String> = object.meta.finalizers.iter().filter(|name| *name != finalizer).collect();
    let is_free = left.is_empty() && object.meta.deletion_grace_period_seconds.unwrap_or(0) == 0;
    let delete = || Transaction::delete(object.key.clone(), object.revision);
    if is_free && object.key.resource.as_str() != "namespaces" {
        return Ok(delete());
    }
    let mut value = draft::of(object)?;
    // A namespace has finalizers of its own, which hold it as long as there is anything in it.
    if is_free && fields::list(&value, "/spec/finalizers").is_empty() {
        return Ok(delete());
    }
    if left.is_empty() {
        draft::child(&mut value, "metadata").shift_remove("finalizers");
    } else {
        draft::set_meta(&mut value, "finalizers", json!(left));
    }
    Ok(draft::put(object, &value))
}

/// Only a pod that runs somewhere is given time, in seconds.
pub fn grace_seconds(object: &Object) -> i64 {
    if object.key.resource.as_str() != "pods" {
        return 0;
    }
    match object.parse::<PodWire>() {
        Ok(pod) if !pod.spec.node_name.is_empty() && !Pod::is_terminal_phase(&pod.status.phase) => {
            pod.spec.termination_grace_period_seconds.unwrap_or(GRACE_S_DEFAULT).max(0)
        }
        _ => 0,
    }
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct PodWire {
    spec: PodSpecWire,
    status: PodStatusWire,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpecWire {
    node_name: String,
    termination_grace_period_seconds: Option<i64>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct PodStatusWire {
    phase: String,
}
