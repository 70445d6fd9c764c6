//! The slices of a service: filled so that few of them change where few pods do.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use coracle_objects::{Expect, Object, ObjectKey, Transaction};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Backend, ports};
use crate::{
    draft::{self, Unreadable, timestamp},
    model::Service,
    names,
    planner::Planner,
};

const RESOURCE: &str = "endpointslices.discovery.k8s.io";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The most endpoints of one slice. Upstream's default.
const ENDPOINTS_MAX: usize = 100;

/// A slice in the store.
struct Known<'a> {
    object: &'a Object,
    wire: SliceWire,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SliceWire {
    address_type: String,
    endpoints: Option<Vec<Value>>,
    ports: Option<Vec<Value>>,
}

/// What one slice shall hold.
struct Wanted {
    ports: Vec<Value>,
    endpoints: Vec<Value>,
}

/// Creates, updates and deletes the slices of a service.
pub fn plan(
    planner: &mut Planner<'_>,
    service: &Service,
    backends: &[Backend<'_>],
) -> Result<(), Unreadable> {
    let state = planner.state;
    let name = service.object.name();
    let mut known: Vec<Known<'_>> = state
        .dependents(&service.object)
        .filter(|key| key.resource.as_str() == RESOURCE)
        .filter_map(|key| state.get(key))
        .filter(|object| object.meta.labels.get(SERVICE_NAME).is_some_and(|label| label == name))
        .filter(|object| object.meta.labels.get(MANAGED_BY).is_some_and(|label| label == MANAGER))
        .filter(|object| object.meta.deletion_timestamp.is_none())
        .filter_map(|object| Some(Known { object, wire: object.parse().ok()? }))
        .collect();
    // A family that is named twice is one: two plans of its slices would undo each other for ever.
    for family in service.families.iter().collect::<BTreeSet<_>>() {
        let (of_family, others) = known.into_iter().partition(|slice| slice.wire.address_type == *family);
        known = others;
        plan_family(planner, service, backends, family, of_family)?;
    }
    for slice in known {
        planner.propose(Transaction::delete(slice.object.key.clone(), slice.object.revision));
    }
    Ok(())
}

fn plan_family(
    planner: &mut Planner<'_>,
    service: &Service,
    backends: &[Backend<'_>],
    family: &str,
    known: Vec<Known<'_>>,
) -> Result<(), Unreadable> {
    let mut groups = groups(planner, service, backends, family);
    let mut spare: Vec<Known<'_>> = Vec::new();
    let mut kept: Vec<(Known<'_>, Wanted)> = Vec::new();
    for slice in known {
        let ports = slice.wire.ports.clone().unwrap_or_default();
        let Some(group) = groups.get_mut(&ports::json_of(&ports)) else {
            spare.push(slice);
            continue;
        };
        let own =
            slice.wire.endpoints.iter().flatten().filter_map(|endpoint| group.by_uid.remove(uid(endpoint)));
        let endpoints: Vec<Value> = own.collect();
        kept.push((slice, Wanted { ports, endpoints }));
    }
    for (_, wanted) in &mut kept {
        let Some(group) = groups.get_mut(&ports::json_of(&wanted.ports)) else { continue };
        while wanted.endpoints.len() < ENDPOINTS_MAX
            && let Some((_, endpoint)) = group.by_uid.pop_first()
        {
            wanted.endpoints.push(endpoint);
        }
    }
    let mut fresh: Vec<Wanted> = Vec::new();
    for group in groups.into_values() {
        let endpoints: Vec<Value> = group.by_uid.into_values().collect();
        for chunk in endpoints.chunks(ENDPOINTS_MAX) {
            fresh.push(Wanted { ports: group.ports.clone(), endpoints: chunk.to_vec() });
        }
    }
    // One slice stays even where there is no endpoint: it says that the service is known.
    let mut used = kept.iter().filter(|(_, wanted)| !wanted.endpoints.is_empty()).count() + fresh.len();
    for (slice, wanted) in kept {
        if wanted.endpoints.is_empty() && used > 0 {
            spare.push(slice);
        } else {
            used += usize::from(wanted.endpoints.is_empty());
            update(planner, service, &slice, wanted)?;
        }
    }
    if used == 0 {
        fresh.push(Wanted { ports: Vec::new(), endpoints: Vec::new() });
    }
    for wanted in fresh {
        match spare.pop() {
            Some(slice) => update(planner, service, &slice, wanted)?,
            None => create(planner, service, family, wanted),
        }
    }
    for slice in spare {
        planner.propose(Transaction::delete(slice.object.key.clone(), slice.object.revision));
    }
    Ok(())
}

/// The endpoints whose ports are the same.
struct Group {
    ports: Vec<Value>,
    by_uid: BTreeMap<String, Value>,
}

/// By the JSON of their ports.
fn groups(
    planner: &Planner<'_>,
    service: &Service,
    backends: &[Backend<'_>],
    family: &str,
) -> BTreeMap<String, Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    let mut resolver = ports::Resolver::new(service);
    for backend in backends {
        let of_family = |ip: &&String| match ip.parse() {
            Ok(IpAddr::V4(_)) => family == "IPv4",
            Ok(IpAddr::V6(_)) => family == "IPv6",
            Err(_) => false,
        };
        let Some(ip) = backend.pod.ips.iter().find(of_family) else { continue };
        let resolved = resolver.of(backend.pod);
        if !groups.contains_key(&resolved.key) {
            let group = Group { ports: resolved.ports.clone(), by_uid: BTreeMap::new() };
            groups.insert(resolved.key.clone(), group);
        }
        let Some(group) = groups.get_mut(&resolved.key) else { continue };
        group.by_uid.insert(backend.pod.object.meta.uid.clone(), endpoint(planner, service, backend, ip));
    }
    groups
}

fn endpoint(planner: &Planner<'_>, service: &Service, backend: &Backend<'_>, ip: &str) -> Value {
    let pod = backend.pod;
    let mut value = json!({
        "addresses": [ip],
        "conditions": {
            "ready": backend.ready, "serving": backend.serving, "terminating": backend.terminating,
        },
        "targetRef": {
            "kind": "Pod", "namespace": pod.object.namespace(), "name": pod.object.name(), "uid": pod.object.meta.uid,
        },
    });
    if !pod.hostname.is_empty() && pod.subdomain == service.object.name() {
        value["hostname"] = pod.hostname.as_str().into();
    }
    if !pod.node.is_empty() {
        value["nodeName"] = pod.node.as_str().into();
        let node = planner.state.get(&ObjectKey::new("nodes", "", &pod.node));
        if let Some(zone) = node.and_then(|node| node.meta.labels.get(ZONE)) {
            value["zone"] = zone.as_str().into();
        }
    }
    value
}

fn uid(endpoint: &Value) -> &str {
    endpoint.pointer("/targetRef/uid").and_then(Value::as_str).unwrap_or("")
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.object.meta.labels.clone();
    labels.insert(SERVICE_NAME.to_owned(), service.object.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.headless {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn update(
    planner: &mut Planner<'_>,
    service: &Service,
    slice: &Known<'_>,
    wanted: Wanted,
) -> Result<(), Unreadable> {
    let labels = labels(service);
    let same = slice.object.meta.labels == labels
        && slice.wire.endpoints.as_deref().unwrap_or_default() == wanted.endpoints
        && slice.wire.ports.as_deref().unwrap_or_default() == wanted.ports;
    if same {
        return Ok(());
    }
    let mut value = draft::of(slice.object)?;
    draft::set_meta(&mut value, "labels", json!(labels));
    draft::next_generation(&mut value);
    value["endpoints"] = wanted.endpoints.into();
    value["ports"] = wanted.ports.into();
    planner.propose(draft::put(slice.object, &value));
    Ok(())
}

fn create(planner: &mut Planner<'_>, service: &Service, family: &str, wanted: Wanted) {
    let uid = planner.new_uid();
    let prefix = format!("{}-", service.object.name());
    let name = names::generate(&prefix, &uid);
    let namespace = service.object.namespace();
    let value = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "generateName": prefix, "namespace": namespace, "uid": uid, "generation": 1,
            "creationTimestamp": timestamp(planner.now), "labels": labels(service),
            "ownerReferences": [draft::controlled_by(&service.object, "v1", "Service")],
        },
        "addressType": family, "endpoints": wanted.endpoints, "ports": wanted.ports,
    });
    let transaction = Transaction::create(ObjectKey::new(RESOURCE, namespace, &name), draft::bytes(&value))
        .expecting(service.object.key.clone(), Expect::Uid(service.object.meta.uid.clone()));
    planner.propose(transaction);
}
