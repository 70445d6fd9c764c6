//! Everybody who reads stored objects, asked whether they can: what the API admits, every reader reads.

use std::{net::IpAddr, sync::Arc};

use coracle_core::{
    Pod as NodePod,
    sources::{KeyedData, Service as NodeService},
};
use coracle_leader::references;
use coracle_objects::{Kind, Object, View, fields, kinds};
use k8s_openapi::api::{
    apps::v1 as apps, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    networking::v1 as networking,
};
use serde_json::{Value, json};

use super::door::{Answer, Ask, Door};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

/// On slices that a controller keeps.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Who cannot read this object, and why.
pub fn complaints(object: &Arc<Object>) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut hear = |reader: &str, found: Result<(), String>| {
        if let Err(reason) = found {
            complaints.push(format!("{reader} cannot read {}: {reason}", object.key));
        }
    };
    let as_bool = |reads: bool| if reads { Ok(()) } else { Err("its model is None".to_owned()) };
    hear("a typed client", typed(object));
    hear("the controllers", as_bool(coracle_controllers::reads(object)));
    hear("the scheduler", as_bool(coracle_scheduler::reads(object)));
    let json = &object.json;
    let node = match object.key.resource.as_str() {
        "pods" => NodePod::parse(json).map(|_| ()),
        "configmaps" => KeyedData::from_config_map(json, 1).map(|_| ()),
        "secrets" => KeyedData::from_secret(json, 1).map(|_| ()),
        "services" => NodeService::parse(json).map(|_| ()),
        _ => Ok(()),
    };
    hear("a node", node.map_err(|error| words(&error)));
    hear("a node's network", network(object));
    if object.key.resource.as_str() == "pods" {
        hear("a node's link", as_bool(references::of_pod(object).readable));
    }
    complaints
}

/// What a node's network is made of, no part of which it passes over (`coracle_agent::network` does what it cannot read).
fn network(object: &Object) -> Result<(), String> {
    let value: Value = object.parse().map_err(|error| words(&error))?;
    let read = |what: &str, fine: bool| if fine { Ok(()) } else { Err(format!("{what} is none")) };
    let is_port = |port: &Value| port.as_u64().is_some_and(|port| (1..=65535).contains(&port));
    match object.key.resource.as_str() {
        "endpointslices.discovery.k8s.io" if value["addressType"] != "FQDN" => {
            for endpoint in fields::list(&value, "/endpoints") {
                for address in fields::list(endpoint, "/addresses") {
                    let text = address.as_str().unwrap_or("");
                    read(&format!("the address {text:?}"), text.parse::<IpAddr>().is_ok())?;
                }
            }
            Ok(())
        }
        "ipaddresses.networking.k8s.io" => {
            read("its address", object.name().parse::<IpAddr>().is_ok())?;
            read("its owner", !fields::text(&value, "/spec/parentRef/name").is_empty())
        }
        "portallocations.coracle.dev" => {
            read("its port", object.name().parse::<u16>().is_ok_and(|port| port != 0))?;
            read("its owner", fields::text(&value, "/spec/service").contains('/'))
        }
        "ingresses.networking.k8s.io" => {
            let rules = fields::list(&value, "/spec/rules").iter();
            let paths = rules.flat_map(|rule| fields::list(rule, "/http/paths"));
            let backends = paths.map(|path| &path["backend"]).chain(value["spec"].get("defaultBackend"));
            for service in backends.filter_map(|backend| backend.get("service")) {
                let port = &service["port"];
                let named = !fields::text(port, "/name").is_empty();
                read("a backend's port", named || is_port(&port["number"]))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn words(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", words(source)),
        None => error.to_string(),
    }
}

/// The object as the client library of the other half of the world reads it.
fn typed(object: &Object) -> Result<(), String> {
    macro_rules! parse {
        ($type:ty) => {
            object.parse::<$type>().map(|_| ()).map_err(|error| words(&error))
        };
    }
    match object.key.resource.as_str() {
        "pods" => parse!(core::Pod),
        "services" => parse!(core::Service),
        "configmaps" => parse!(core::ConfigMap),
        "secrets" => parse!(core::Secret),
        "serviceaccounts" => parse!(core::ServiceAccount),
        "endpoints" => parse!(core::Endpoints),
        "events" => parse!(core::Event),
        "nodes" => parse!(core::Node),
        "namespaces" => parse!(core::Namespace),
        "deployments.apps" => parse!(apps::Deployment),
        "replicasets.apps" => parse!(apps::ReplicaSet),
        "leases.coordination.k8s.io" => parse!(coordination::Lease),
        "endpointslices.discovery.k8s.io" => parse!(discovery::EndpointSlice),
        "ingresses.networking.k8s.io" => parse!(networking::Ingress),
        "ingressclasses.networking.k8s.io" => parse!(networking::IngressClass),
        "ipaddresses.networking.k8s.io" => parse!(networking::IPAddress),
        _ => parse!(Value),
    }
}

/// Reads everything through the API: lists in each form, and each object as something that is to be patched.
pub fn through_the_api(door: &Door, view: &View) -> Result<(), String> {
    for kind in kinds() {
        let table = view.count(kind.storage_resource().as_str());
        if table == 0 {
            continue;
        }
        let path = list_path(kind);
        for accept in ["application/json", TABLE, METADATA] {
            let answer = door.get(&path, accept);
            served(&answer, &format!("GET {path} as {accept}"))?;
            if serde_json::from_slice::<Value>(&answer.body).is_err() {
                return Err(format!("GET {path} as {accept}: the answer is no JSON that can be read"));
            }
        }
    }
    Ok(())
}

/// Asks for a small change of an object, which may be refused for what is wrong with it, but not for a fault of the
/// server; and where a controller made the object, not at all.
pub fn patches(door: &Door, object: &Object) -> Result<(), String> {
    let Some(kind) = coracle_objects::by_resource(object.key.resource.as_str()) else { return Ok(()) };
    if !kind.takes("patch") {
        return Ok(());
    }
    let path = format!("{}?dryRun=All", object_path(kind, object));
    let body = json!({ "metadata": { "annotations": { "example.com/touched": "1" } } }).to_string();
    let content_type = "application/merge-patch+json";
    let ask = Ask { method: "PATCH", path, content_type, accept: "", body: body.into_bytes() };
    let answer = door.ask(&ask);
    let what = format!("PATCH of {}", object.key);
    served(&answer, &what)?;
    let by_controller = object.controller().is_some() || object.meta.labels.contains_key(MANAGED_BY);
    match answer.status {
        400 | 422 if by_controller => Err(format!("{what}, as a controller left it: {}", answer.message())),
        _ => Ok(()),
    }
}

fn served(answer: &Answer, what: &str) -> Result<(), String> {
    match answer.status {
        500.. => Err(format!("{what}: {} {}", answer.status, answer.message())),
        _ => Ok(()),
    }
}

fn root(kind: &Kind) -> String {
    match &*kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    }
}

fn list_path(kind: &Kind) -> String {
    format!("{}/{}", root(kind), kind.plural)
}

pub fn object_path(kind: &Kind, object: &Object) -> String {
    match kind.namespaced {
        true => {
            format!("{}/namespaces/{}/{}/{}", root(kind), object.namespace(), kind.plural, object.name())
        }
        false => format!("{}/{}/{}", root(kind), kind.plural, object.name()),
    }
}
