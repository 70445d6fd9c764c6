//! EndpointSlices of Endpoints that were written by hand: what answers for a service without a selector is asked of slices
//! alone.
//!
//! Source: Kubernetes' endpointslicemirroring-controller. Subsets of the same ports share slices; of a subset's addresses
//! the first [`ADDRESSES_MAX`] count.

use core::net::IpAddr;
use std::collections::{BTreeMap, btree_map::Entry};

use coracle_objects::{Event, Expect, Object, ObjectKey, ObjectName, Transaction, fields::list};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    controller::{Controller, states},
    draft::{self, Unreadable, timestamp},
    event_record::EventRecord,
    names,
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};

/// See the module.
pub struct EndpointSliceMirroring;

const NAME: &str = "endpointslicemirroring-controller";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const ENDPOINTS: &str = "endpoints";
const SERVICES: &str = "services";
const SLICES: &str = "endpointslices.discovery.k8s.io";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SKIPPED: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// Addresses of one subset that are mirrored, and endpoints of one slice. Upstream's.
const ADDRESSES_MAX: usize = 1_000;
/// Slices of one Endpoints: one for each family and list of ports, of which an event tells where there are more.
const SLICES_MAX: usize = 100;
/// Slices of one Endpoints that one plan looks at; the others come when these are gone.
const KNOWN_MAX: usize = 1_000;
/// Bytes of the labels that slices have from their Endpoints; beyond, they have their own alone.
const LABELS_BYTES_MAX: usize = 4 * 1024;

impl Controller for EndpointSliceMirroring {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mark(&self, _: &State, event: &Event, tasks: &mut Queue) {
        let name = &event.object.key.name;
        let on = |endpoints: &ObjectName| Task::on(NAME, ENDPOINTS, endpoints);
        match event.object.key.resource.as_str() {
            ENDPOINTS | SERVICES => tasks.insert(on(name)),
            SLICES => {
                let of = states(event).filter_map(mirrored_service);
                tasks.extend(of.map(|service| on(&ObjectName::new(&name.namespace, service))));
            }
            _ => {}
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, &subject.name)
    }
}

/// The service of a slice of ours.
fn mirrored_service(slice: &Object) -> Option<&str> {
    let labels = &slice.meta.labels;
    let ours = labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER);
    labels.get(SERVICE_NAME).filter(|_| ours).map(String::as_str)
}

fn plan(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let state = planner.state;
    // The slices of Endpoints that are gone go as all go whose owner is gone.
    let endpoints = state.get(&ObjectKey { resource: ENDPOINTS.into(), name: name.clone() });
    let Some(endpoints) = endpoints.filter(|_| state.takes_objects(&name.namespace)) else { return Ok(()) };
    let mut known: Vec<(&Object, Slice)> = state
        .dependents(endpoints)
        .filter_map(|key| state.get(key))
        .filter(|slice| mirrored_service(slice).is_some_and(|service| service == &*name.name))
        .filter(|slice| slice.meta.deletion_timestamp.is_none())
        .filter_map(|slice| Some((&**slice, slice.parse().ok()?)))
        .take(KNOWN_MAX)
        .collect();
    let value = draft::of(endpoints)?;
    if !is_mirrored(state, endpoints, &value) {
        remove(planner, known);
        return Ok(());
    }
    let labels = labels(endpoints);
    let (mut missing, are_all) = wanted(&value);
    if !are_all {
        let message = format!(
            "only {SLICES_MAX} lists of ports and families of addresses are mirrored to EndpointSlices"
        );
        planner.record(EventRecord::warning(endpoints, NAME, "TooManySlices", message));
    }
    known.retain(|(object, slice)| {
        let same = missing.iter().position(|wanted| wanted == slice).filter(|_| object.meta.labels == labels);
        same.map(|at| missing.swap_remove(at)).is_none()
    });
    for wanted in missing {
        let spare = known.iter().position(|(_, slice)| slice.address_type == wanted.address_type);
        match spare.map(|at| known.swap_remove(at)) {
            Some((slice, _)) => update(planner, slice, &labels, wanted)?,
            None => create(planner, endpoints, &labels, wanted),
        }
    }
    remove(planner, known);
    Ok(())
}

/// Whether slices are made of these Endpoints: by hand, that is, for a service that selects no pods.
fn is_mirrored(state: &State, endpoints: &Object, value: &Value) -> bool {
    let service = ObjectKey { resource: SERVICES.into(), name: endpoints.key.name.clone() };
    let selects_none = !state.models.services.contains_key(&endpoints.key.name);
    let elects =
        value.pointer("/metadata/annotations").is_some_and(|annotations| annotations.get(LEADER).is_some());
    endpoints.meta.deletion_timestamp.is_none()
        && endpoints.meta.labels.get(SKIPPED).is_none_or(|skipped| skipped != "true")
        && !elects
        && selects_none
        && state.get(&service).is_some_and(|service| service.meta.deletion_timestamp.is_none())
}

/// What a slice holds.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Slice {
    address_type: String,
    ports: Vec<Value>,
    endpoints: Vec<Value>,
}

/// The slices that there are to be, and whether these are all.
fn wanted(endpoints: &Value) -> (Vec<Slice>, bool) {
    let mut are_all = true;
    // By family and the JSON of their ports.
    let mut groups: BTreeMap<(&str, String), Slice> = BTreeMap::new();
    for subset in list(endpoints, "/subsets") {
        let ports: Vec<Value> = list(subset, "/ports").iter().map(port).collect();
        let key = Value::from(ports.clone()).to_string();
        let ready = list(subset, "/addresses").iter().map(|address| (address, true));
        let others = list(subset, "/notReadyAddresses").iter().map(|address| (address, false));
        for (address, ready) in ready.chain(others).take(ADDRESSES_MAX) {
            let Some((family, endpoint)) = endpoint(address, ready) else { continue };
            let room = groups.len() < SLICES_MAX;
            let group = match groups.entry((family, key.clone())) {
                Entry::Vacant(_) if !room => {
                    are_all = false;
                    continue;
                }
                entry => entry.or_insert_with(|| Slice {
                    address_type: family.to_owned(),
                    ports: ports.clone(),
                    endpoints: Vec::new(),
                }),
            };
            group.endpoints.push(endpoint);
        }
    }
    let whole = groups.into_values().flat_map(|Slice { address_type, ports, endpoints }| {
        let chunks: Vec<Vec<Value>> = endpoints.chunks(ADDRESSES_MAX).map(<[_]>::to_vec).collect();
        chunks.into_iter().map(move |endpoints| Slice {
            address_type: address_type.clone(),
            ports: ports.clone(),
            endpoints,
        })
    });
    (whole.collect(), are_all)
}

/// An unnamed port has an empty name in a slice.
fn port(port: &Value) -> Value {
    let mut port = port.clone();
    if let Some(fields) = port.as_object_mut() {
        fields.entry("name").or_insert_with(|| "".into());
    }
    port
}

/// An address in a slice's form, and of which family it is.
fn endpoint(address: &Value, ready: bool) -> Option<(&'static str, Value)> {
    let ip = address.get("ip")?.as_str()?;
    let family = match ip.parse().ok()? {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    let mut endpoint = json!({ "addresses": [ip], "conditions": { "ready": ready } });
    for field in ["hostname", "nodeName", "targetRef"] {
        if let Some(value) = address.get(field) {
            endpoint[field] = value.clone();
        }
    }
    Some((family, endpoint))
}

fn labels(endpoints: &Object) -> BTreeMap<String, String> {
    let mut labels = endpoints.meta.labels.clone();
    if labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > LABELS_BYTES_MAX {
        labels.clear();
    }
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn update(
    planner: &mut Planner<'_>,
    slice: &Object,
    labels: &BTreeMap<String, String>,
    wanted: Slice,
) -> Result<(), Unreadable> {
    let mut value = draft::of(slice)?;
    draft::set_meta(&mut value, "labels", json!(labels));
    draft::next_generation(&mut value);
    value["endpoints"] = wanted.endpoints.into();
    value["ports"] = wanted.ports.into();
    planner.propose(draft::put(slice, &value));
    Ok(())
}

fn create(planner: &mut Planner<'_>, endpoints: &Object, labels: &BTreeMap<String, String>, wanted: Slice) {
    let uid = planner.new_uid();
    let prefix = format!("{}-", endpoints.name());
    let (name, namespace) = (names::generate(&prefix, &uid), endpoints.namespace());
    let value = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "generateName": prefix, "namespace": namespace, "uid": uid, "generation": 1,
            "creationTimestamp": timestamp(planner.now), "labels": labels,
            "ownerReferences": [draft::controlled_by(endpoints, "v1", "Endpoints")],
        },
        "addressType": wanted.address_type, "endpoints": wanted.endpoints, "ports": wanted.ports,
    });
    let transaction = Transaction::create(ObjectKey::new(SLICES, namespace, &name), draft::bytes(&value))
        .expecting(endpoints.key.clone(), Expect::Uid(endpoints.meta.uid.clone()));
    planner.propose(transaction);
}

fn remove(planner: &mut Planner<'_>, slices: Vec<(&Object, Slice)>) {
    for (slice, _) in slices {
        planner.propose(Transaction::delete(slice.key.clone(), slice.revision));
    }
}
