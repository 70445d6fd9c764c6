//! Service addresses and node ports: claimed and released in the same transaction as the service.
//!
//! A claim is an object (`ipaddresses.networking.k8s.io`, `portallocations.coracle.dev`), so that two services can
//! never have the same: whoever comes second finds it there when its transaction is applied, and picks another.

mod claims;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use coracle_objects::{
    Expect, FieldError, Object, ObjectKey, Transaction,
    claims::{
        ADDRESSES, Claims, PORTS, address_key, claimed_by, is_kept, node_port, owner, port_key, release_keys,
    },
    fields,
    kinds::{SERVICE_FIELDS_OF_A_TYPE, service_address_errors, service_takes},
};
use futures::future::{self, BoxFuture, FutureExt};
use serde_json::{Value, json};

pub use self::claims::{LostClaims, lost_claims};
use self::claims::{address_claim, claim, keeps, port_claim};
use super::{Operation, Plugin, Write};
use crate::{error::ApiError, metadata};

/// Addresses at the network's start that are never given out unasked: those that people write into manifests.
const RESERVED_ADDRESSES: u32 = 256;
/// Random picks before the whole range is searched.
const PICKS_MAX: usize = 32;

/// See the module.
pub struct ServiceClaims;

impl Plugin for ServiceClaims {
    fn name(&self) -> &'static str {
        "ServiceClaims"
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        match write.operation {
            Operation::Create | Operation::Update => write.is_of("", "Service"),
            Operation::Delete => is_claim(write.key),
        }
    }

    fn changes_objects(&self) -> bool {
        true
    }

    fn completes(&self) -> bool {
        true
    }

    fn mutate<'a>(
        &'a self,
        write: &'a Write<'a>,
        object: &'a mut Value,
    ) -> BoxFuture<'a, Result<Transaction, ApiError>> {
        future::ready(allocate(write, write.old, object)).boxed()
    }

    fn validate<'a>(
        &'a self,
        write: &'a Write<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        let claim = write.view.get(write.key).filter(|_| object.is_none());
        let kept = claim.and_then(|claim| keeps(write.view, claim));
        let refused = |reason| ApiError::forbidden(write.kind, &write.key.name.name, reason);
        future::ready(kept.map_or(Ok(()), |reason| Err(refused(reason)))).boxed()
    }
}

/// Whether an object says whose an address or a node port is.
fn is_claim(key: &ObjectKey) -> bool {
    matches!(key.resource.as_str(), ADDRESSES | PORTS)
}

/// Gives a service its address and node ports, keeps those that it has, and plans the claims.
fn allocate(context: &Write<'_>, old: Option<&Value>, service: &mut Value) -> Result<Transaction, ApiError> {
    if !service.get("spec").is_some_and(Value::is_object) {
        return Ok(Transaction::default());
    }
    if let Some(old) = old {
        keep(old, service);
        // What is being deleted is not held back by rules that came after it; without a claim it has no traffic.
        if metadata::deleting(old) && asks_for_the_same(old, service) {
            return Ok(Transaction::default());
        }
    }
    // What is only written down and was never claimed is claimed now, or refused.
    let before = old.map(Claims::of).unwrap_or_default().held_by(&owner(context.key), context.view);
    let mut errors = Vec::new();
    cluster_address(context, &before, service, &mut errors);
    node_ports(context, &before, service, &mut errors);
    if !errors.is_empty() {
        return Err(ApiError::invalid(context.kind, &context.key.name.name, errors));
    }
    let after = Claims::of(service);
    let mut along = Transaction::default();
    for address in after.addresses.difference(&before.addresses) {
        let key = address_key(*address);
        match kept_for(context, &key) {
            // It must be there still when the service comes to it.
            Some(kept) => along = along.expecting(key, Expect::Revision(kept.revision)),
            None => claim(key, address_claim(context.key), (context.config.now)(), &mut along),
        }
    }
    for port in after.ports.difference(&before.ports) {
        claim(port_key(*port), port_claim(context.key), (context.config.now)(), &mut along);
    }
    let gone_addresses = before.addresses.difference(&after.addresses).map(|address| address_key(*address));
    let gone_ports = before.ports.difference(&after.ports).map(|port| port_key(*port));
    along.join(release_keys(context.view, &owner(context.key), gone_addresses.chain(gone_ports)));
    Ok(along)
}

/// The claim of an address that the cluster keeps for this service.
fn kept_for<'a>(context: &Write<'a>, key: &ObjectKey) -> Option<&'a Object> {
    let owner = owner(context.key);
    let claim = context.view.get(key).filter(|claim| is_kept(key, &owner) && claimed_by(claim) == owner);
    claim.map(|claim| &**claim)
}

/// Whether a service of this type has node ports.
fn wants_node_ports(service: &Value) -> bool {
    match fields::text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn asks_for_the_same(old: &Value, new: &Value) -> bool {
    let fields = ["/spec/type", "/spec/clusterIP", "/spec/clusterIPs", "/spec/ports"];
    fields.into_iter().all(|path| old.pointer(path) == new.pointer(path))
}

/// An update that does not name the address or a node port keeps it; one that changes the type gives it up.
fn keep(old: &Value, new: &mut Value) {
    let external = fields::text(new, "/spec/type") == "ExternalName";
    let was_external = fields::text(old, "/spec/type") == "ExternalName";
    let address = fields::text(old, "/spec/clusterIP");
    let given = fields::text(new, "/spec/clusterIP");
    let all = fields::list(new, "/spec/clusterIPs");
    let names_no_other = (given.is_empty() || given == address)
        && (all.is_empty() || all == fields::list(old, "/spec/clusterIPs"));
    if external && names_no_other {
        // The address of the old type goes with it; so does one that was once stored where none may be.
        if let Some(spec) = new["spec"].as_object_mut() {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
            {
                spec.shift_remove(field);
            }
        }
    } else if !external
        && !was_external
        && !address.is_empty()
        && fields::text(new, "/spec/clusterIP").is_empty()
    {
        new["spec"]["clusterIP"] = address.into();
        new["spec"]["clusterIPs"] = json!([address]);
    }
    drop_fields_of_the_old_type(old, new);
    let wants = wants_node_ports(new);
    let had = wants_node_ports(old);
    let known = known_ports(old);
    for port in fields::elements(&mut new["spec"], "ports") {
        let known = known.get(&port_id(port)).copied().flatten();
        if wants && node_port(port).is_none() {
            if let Some(number) = known {
                port["nodePort"] = number.into();
            }
        } else if !wants
            && had
            && node_port(port) == known
            && let Some(map) = port.as_object_mut()
        {
            map.shift_remove("nodePort");
        }
    }
}

/// What only the old type had, and the client leaves as it was, goes with the type.
fn drop_fields_of_the_old_type(old: &Value, new: &mut Value) {
    for field in SERVICE_FIELDS_OF_A_TYPE {
        let same = old.get("spec").and_then(|spec| spec.get(field)) == new["spec"].get(field);
        if same
            && !service_takes(new, field)
            && let Some(spec) = new["spec"].as_object_mut()
        {
            spec.shift_remove(field);
        }
    }
}

/// What tells a port of a service apart: name, number, protocol.
type PortId = (String, Option<i64>, String);

fn port_id(port: &Value) -> PortId {
    let text = |path: &str| fields::text(port, path).to_owned();
    (text("/name"), fields::integer(port, "/port"), text("/protocol"))
}

/// The node ports of a service's ports; of two alike the first counts.
fn known_ports(service: &Value) -> BTreeMap<PortId, Option<u16>> {
    let ports = fields::list(service, "/spec/ports").iter().rev();
    ports.map(|port| (port_id(port), node_port(port))).collect()
}

fn cluster_address(context: &Write<'_>, before: &Claims, service: &mut Value, errors: &mut Vec<FieldError>) {
    // Here and not by validation alone, which objects that are being deleted do not pass through.
    errors.extend(service_address_errors(service));
    if !errors.is_empty() || fields::text(service, "/spec/type") == "ExternalName" {
        return;
    }
    let given = fields::text(service, "/spec/clusterIP").to_owned();
    if given == "None" {
        service["spec"]["clusterIPs"] = json!(["None"]);
        return;
    }
    if given.is_empty() {
        match free_address(context) {
            Some(address) => {
                service["spec"]["clusterIP"] = address.to_string().into();
                service["spec"]["clusterIPs"] = json!([address.to_string()]);
            }
            None => errors.push(FieldError::invalid(
                "spec.clusterIPs",
                json!([]),
                "failed to allocate a serviceIP: range is full",
            )),
        }
        return;
    }
    service["spec"]["clusterIPs"] = json!([given]);
    let Ok(address) = given.parse::<Ipv4Addr>() else { return };
    if before.addresses.contains(&address) {
        return;
    }
    let fault = if !context.config.service_network.contains(address) {
        "the provided network does not match the current range"
    } else if kept_for(context, &address_key(address)).is_some() {
        return;
    } else if context.view.get(&address_key(address)).is_some() {
        "provided IP is already allocated"
    } else {
        return;
    };
    let detail = format!("failed to allocate IP {address}: {fault}");
    errors.push(FieldError::invalid("spec.clusterIPs", json!([given]), detail));
}

fn free_address(context: &Write<'_>) -> Option<Ipv4Addr> {
    let network = &context.config.service_network;
    let (first, last) = (RESERVED_ADDRESSES.min(network.size() / 16).max(1), network.size() - 2);
    let free = |offset: &u32| context.view.get(&address_key(network.at(*offset))).is_none();
    let picked = (0..PICKS_MAX).map(|_| rand::random_range(first..=last)).find(|offset| free(offset));
    picked
        .or_else(|| (first..=last).find(free))
        .or_else(|| (1..first).find(free))
        .map(|offset| network.at(offset))
}

fn node_ports(context: &Write<'_>, before: &Claims, service: &mut Value, errors: &mut Vec<FieldError>) {
    if !wants_node_ports(service) {
        return;
    }
    let range = &context.config.node_ports;
    let free = |port: u16| context.view.get(&port_key(port)).is_none();
    let ports = fields::list(service, "/spec/ports").to_vec();
    let mut taken: BTreeSet<u16> = ports.iter().filter_map(node_port).collect();
    // What was found taken stays so: the range is searched once for all ports.
    let mut rest = range.clone();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}].nodePort");
        match node_port(port) {
            Some(given) if before.ports.contains(&given) => {}
            Some(given) if !range.contains(&given) => {
                let detail = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    range.start(),
                    range.end()
                );
                errors.push(FieldError::invalid(field, given, detail));
            }
            Some(given) if !free(given) => {
                errors.push(FieldError::invalid(field, given, "provided port is already allocated"));
            }
            Some(_) => {}
            None => {
                let usable = |port: &u16| free(*port) && !taken.contains(port);
                let picked = (0..PICKS_MAX).map(|_| rand::random_range(range.clone())).find(usable);
                match picked.or_else(|| rest.find(usable)) {
                    Some(number) => {
                        taken.insert(number);
                        service["spec"]["ports"][index]["nodePort"] = number.into();
                    }
                    None => errors.push(FieldError::invalid(
                        field,
                        0,
                        "failed to allocate a nodePort: range is full",
                    )),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
