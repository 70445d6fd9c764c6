//! Making pods of a template.

use bytes::Bytes;
use coracle_objects::{Object, ObjectKey, View, admission, by_resource};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::pod_key;
use crate::{
    draft::{self, Unreadable, timestamp},
    names,
};

/// A template made ready: pods of it differ in name and uid only, so all else is written to JSON once.
pub struct Mold {
    namespace: String,
    prefix: String,
    /// The members of `metadata` beside name and uid, with a leading comma.
    metadata: String,
    /// What follows `metadata`, with a leading comma.
    rest: String,
    /// Why the API would take none of its pods.
    fault: Option<String>,
}

impl Mold {
    /// The mold of a replica set's template.
    pub fn of(owner: &Object, view: &View, now: Timestamp) -> Result<Self, Unreadable> {
        let value = draft::of(owner)?;
        let template = &value["spec"]["template"];
        let prefix = format!("{}-", owner.name());
        let mut metadata = Map::new();
        metadata.insert("generateName".to_owned(), prefix.as_str().into());
        metadata.insert("namespace".to_owned(), owner.namespace().into());
        metadata.insert("creationTimestamp".to_owned(), timestamp(now).into());
        metadata.insert("generation".to_owned(), 1.into());
        for field in ["labels", "annotations", "finalizers"] {
            if let Some(given) = template["metadata"].get(field).filter(|given| !given.is_null()) {
                metadata.insert(field.to_owned(), given.clone());
            }
        }
        let owners = json!([draft::controlled_by(owner, "apps/v1", "ReplicaSet")]);
        metadata.insert("ownerReferences".to_owned(), owners);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"], "status": {},
        });
        let fault = complete(&mut pod, &names::generate(&prefix, ""));
        let fault = fault.or_else(|| {
            let found = admission::find_account(owner.namespace(), &pod, view);
            found.err().map(|refused| format!("pods \"{prefix}\" is forbidden: {refused}"))
        });
        Ok(Self {
            fault,
            namespace: owner.namespace().to_owned(),
            prefix,
            metadata: members(&pod["metadata"]),
            rest: format!(",\"spec\":{},\"status\":{}", pod["spec"], pod["status"]),
        })
    }

    /// Why the API would take none of its pods, where it is so.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// A pod of this uid: its key and its draft.
    pub fn cast(&self, uid: &str) -> (ObjectKey, Bytes) {
        let name = names::generate(&self.prefix, uid);
        let draft = format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":{},\"uid\":{}{}}}{}}}",
            Value::from(name.as_str()),
            Value::from(uid),
            self.metadata,
            self.rest,
        );
        (pod_key(&self.namespace, &name), draft.into())
    }
}

/// Fills in a pod's defaults, and answers why one of this name would be refused.
fn complete(pod: &mut Value, name: &str) -> Option<String> {
    let kind = by_resource("pods")?;
    kind.defaults(pod);
    draft::set_meta(pod, "name", name);
    let fault = admission::faults_of_new(kind, pod).into_iter().next();
    draft::child(pod, "metadata").remove("name");
    fault.map(|fault| format!("pods are refused: {fault}"))
}

/// The members of an object as JSON, each with a leading comma.
fn members(object: &Value) -> String {
    object
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!(",{}:{value}", Value::from(key.as_str())))
        .collect()
}

/// A pod of a replica set's template, with this uid, for whoever makes one beside the controller; or why there can be none.
pub fn pod_of_set(set: &Object, view: &View, now: Timestamp, uid: &str) -> Result<Value, String> {
    let mold = Mold::of(set, view, now).map_err(|unreadable| unreadable.reason)?;
    if let Some(fault) = mold.fault() {
        return Err(fault.to_owned());
    }
    let (_, draft) = mold.cast(uid);
    serde_json::from_slice(&draft).map_err(|error| error.to_string())
}
