//! The core kind Endpoints: what slices say, in the older form.

use std::collections::BTreeMap;

use coracle_objects::{Expect, ObjectKey, ObjectName, Transaction};
use serde_json::{Value, json};

use super::{Backend, ports};
use crate::{
    draft::{self, Unreadable, timestamp},
    model::Service,
    planner::Planner,
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// The most addresses of one object; the rest is left out. Upstream's.
const ADDRESSES_MAX: usize = 1_000;

#[derive(Default)]
struct Subset {
    ports: Vec<Value>,
    ready: Vec<Value>,
    not_ready: Vec<Value>,
}

/// Creates or updates the Endpoints of a service.
pub fn plan(
    planner: &mut Planner<'_>,
    service: &Service,
    backends: &[Backend<'_>],
) -> Result<(), Unreadable> {
    let counted: Vec<&Backend<'_>> =
        backends.iter().filter(|backend| service.publish_not_ready || !backend.terminating).collect();
    let over_capacity = counted.len() > ADDRESSES_MAX;
    let subsets = subsets(service, &counted[..counted.len().min(ADDRESSES_MAX)]);
    let mut labels = service.object.meta.labels.clone();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.headless {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let key = ObjectKey::new("endpoints", service.object.namespace(), service.object.name());
    let known = planner.state.get(&key).cloned();
    let mut value = match &known {
        Some(object) => draft::of(object)?,
        None => json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": service.object.name(), "namespace": service.object.namespace(), "uid": planner.new_uid(),
                "creationTimestamp": timestamp(planner.now),
            },
        }),
    };
    let before = value.clone();
    draft::set_meta(&mut value, "labels", json!(labels));
    if over_capacity {
        draft::annotate(&mut value, OVER_CAPACITY, "truncated");
    } else if let Some(annotations) =
        value.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    {
        annotations.shift_remove(OVER_CAPACITY);
    }
    if !subsets.is_empty() || before.get("subsets").is_some_and(|known| *known != json!([])) {
        value["subsets"] = subsets.into();
    }
    match known {
        Some(object) if value != before => {
            planner.propose(draft::put(&object, &value));
        }
        Some(_) => {}
        None => {
            let transaction = Transaction::create(key, draft::bytes(&value))
                .expecting(service.object.key.clone(), Expect::Uid(service.object.meta.uid.clone()));
            planner.propose(transaction);
        }
    }
    Ok(())
}

/// Deletes the Endpoints that we made for a service that is gone, or selects no more.
pub fn remove_leftover(planner: &mut Planner<'_>, name: &ObjectName) {
    let key = ObjectKey { resource: "endpoints".into(), name: name.clone() };
    let Some(object) = planner.state.get(&key) else { return };
    let service = ObjectKey { resource: "services".into(), name: name.clone() };
    if object.meta.labels.get(MANAGED_BY).is_none_or(|label| label != MANAGER)
        || planner.state.get(&service).is_some()
        || object.meta.deletion_timestamp.is_some()
    {
        return;
    }
    let transaction = Transaction::delete(key, object.revision).expecting(service, Expect::Absent);
    planner.propose(transaction);
}

fn subsets(service: &Service, backends: &[&Backend<'_>]) -> Vec<Value> {
    let mut by_ports: BTreeMap<String, Subset> = BTreeMap::new();
    let mut resolver = ports::Resolver::new(service);
    for backend in backends {
        let resolved = resolver.of(backend.pod);
        if !by_ports.contains_key(&resolved.key) {
            let subset = Subset { ports: without_empty_names(&resolved.ports), ..Subset::default() };
            by_ports.insert(resolved.key.clone(), subset);
        }
        let Some(subset) = by_ports.get_mut(&resolved.key) else { continue };
        let side = if backend.ready { &mut subset.ready } else { &mut subset.not_ready };
        side.extend(address(service, backend));
    }
    by_ports
        .into_values()
        .filter(|subset| !(subset.ready.is_empty() && subset.not_ready.is_empty()))
        .map(|subset| {
            let mut value = json!({});
            if !subset.ready.is_empty() {
                value["addresses"] = subset.ready.into();
            }
            if !subset.not_ready.is_empty() {
                value["notReadyAddresses"] = subset.not_ready.into();
            }
            if !subset.ports.is_empty() {
                value["ports"] = subset.ports.into();
            }
            value
        })
        .collect()
}

/// An unnamed port has no name here, where a slice has an empty one.
fn without_empty_names(ports: &[Value]) -> Vec<Value> {
    let mut ports = ports.to_vec();
    for port in ports.iter_mut().filter_map(Value::as_object_mut) {
        if port.get("name").is_some_and(|name| name == "") {
            port.shift_remove("name");
        }
    }
    ports
}

fn address(service: &Service, backend: &Backend<'_>) -> Option<Value> {
    let pod = backend.pod;
    let mut value = json!({
        "ip": pod.ips.first()?,
        "targetRef": {
            "kind": "Pod", "namespace": pod.object.namespace(), "name": pod.object.name(), "uid": pod.object.meta.uid,
        },
    });
    if !pod.node.is_empty() {
        value["nodeName"] = pod.node.as_str().into();
    }
    if !pod.hostname.is_empty() && pod.subdomain == service.object.name() {
        value["hostname"] = pod.hostname.as_str().into();
    }
    Some(value)
}
