//! Service addresses and node ports: claimed and released in the same transaction as the service.
//!
//! A claim is an object (`ipaddresses.networking.k8s.io`, `portallocations.coracle.dev`), so that two services can
//! never have the same: whoever comes second finds it there when its transaction is applied, and picks another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use coracle_objects::{
    Expect, FieldError, Object, ObjectKey, Precondition, Transaction, View, Write,
    claims::{ADDRESSES, PORTS, claimed_by, holder, is_kept},
    fields,
    kinds::{SERVICE_FIELDS_OF_A_TYPE, service_address_errors, service_takes},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use crate::{config::ApiConfig, error::ApiError, metadata, transact::Extra};

/// Addresses at the network's start that are never given out unasked: those that people write into manifests.
const RESERVED_ADDRESSES: u32 = 256;
/// Random picks before the whole range is searched.
const PICKS_MAX: usize = 32;

fn address_key(address: Ipv4Addr) -> ObjectKey {
    ObjectKey::new(ADDRESSES, "", &address.to_string())
}

fn port_key(port: u16) -> ObjectKey {
    ObjectKey::new(PORTS, "", &port.to_string())
}

/// What a service holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Claims {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

impl Claims {
    fn of(service: &Value) -> Self {
        if fields::text(service, "/spec/type") == "ExternalName" {
            return Self::default();
        }
        let address = fields::text(service, "/spec/clusterIP").parse().ok();
        let ports = fields::list(service, "/spec/ports");
        Self { addresses: address.into_iter().collect(), ports: ports.iter().filter_map(node_port).collect() }
    }
}

impl Claims {
    /// Those that the store has under the owner's name.
    fn held_by(mut self, owner: &str, view: &View) -> Self {
        let held = |key: ObjectKey| view.get(&key).is_some_and(|claim| claimed_by(claim) == owner);
        self.addresses.retain(|address| held(address_key(*address)));
        self.ports.retain(|port| held(port_key(*port)));
        self
    }
}

fn node_port(port: &Value) -> Option<u16> {
    fields::integer(port, "/nodePort").and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

/// Gives a service its address and node ports, keeps those that it has, and plans the claims.
pub fn allocate(context: &Context<'_>, old: Option<&Value>, service: &mut Value) -> Result<Extra, ApiError> {
    if !service.get("spec").is_some_and(Value::is_object) {
        return Ok(Extra::default());
    }
    if let Some(old) = old {
        keep(old, service);
        // What is being deleted is not held back by rules that came after it; without a claim it has no traffic.
        if metadata::deleting(old) && asks_for_the_same(old, service) {
            return Ok(Extra::default());
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
    let mut extra = Extra::default();
    for address in after.addresses.difference(&before.addresses) {
        let key = address_key(*address);
        match kept_for(context, &key) {
            // It must be there still when the service comes to it.
            Some(kept) => {
                extra.preconditions.push(Precondition { key, expect: Expect::Revision(kept.revision) })
            }
            None => claim(key, address_claim(context.key), (context.config.now)(), &mut extra),
        }
    }
    for port in after.ports.difference(&before.ports) {
        claim(port_key(*port), port_claim(context.key), (context.config.now)(), &mut extra);
    }
    let gone_addresses = before.addresses.difference(&after.addresses).map(|address| address_key(*address));
    let gone_ports = before.ports.difference(&after.ports).map(|port| port_key(*port));
    release_keys(context.view, &owner(context.key), gone_addresses.chain(gone_ports), &mut extra);
    Ok(extra)
}

/// What else has to be deleted with a service: its claims. For whoever deletes services without the API.
pub fn release(view: &View, service: &Object) -> Extra {
    let mut extra = Extra::default();
    let claims = service.parse::<Value>().map(|service| Claims::of(&service)).unwrap_or_default();
    let addresses = claims.addresses.into_iter().map(address_key);
    let ports = claims.ports.into_iter().map(port_key);
    release_keys(view, &owner(&service.key), addresses.chain(ports), &mut extra);
    extra
}

/// The claim of an address that the cluster keeps for this service.
fn kept_for<'a>(context: &Context<'a>, key: &ObjectKey) -> Option<&'a Object> {
    let owner = owner(context.key);
    let claim = context.view.get(key).filter(|claim| is_kept(key, &owner) && claimed_by(claim) == owner);
    claim.map(|claim| &**claim)
}

/// Why a claim may not be deleted; none where it may be. What is given up while a service has it would be given out
/// again.
pub fn keeps(view: &View, claim: &Object) -> Option<String> {
    let service = holder(claim, |key| view.get(key).cloned())?;
    let address = claim.name();
    Some(format!(
        "{address} is the address of the service {service}: delete the service, and it goes with it"
    ))
}

/// What a service has and no claim says: see [`lost_claims`].
#[derive(Debug, Default, PartialEq)]
pub struct LostClaims {
    /// Claims it again.
    pub transaction: Option<Transaction>,
    /// What is another service's by now, with the name of that.
    pub taken: Vec<(ObjectKey, String)>,
}

/// The claims that a service lives without. They were lost, or it is older than they are.
pub fn lost_claims(view: &View, config: &ApiConfig, service: &Object) -> LostClaims {
    let mut lost = LostClaims::default();
    let claims = service.parse::<Value>().map(|service| Claims::of(&service)).unwrap_or_default();
    if service.meta.deletion_timestamp.is_some() {
        return lost;
    }
    let key = &service.key;
    let addresses = claims.addresses.iter().filter(|address| config.service_network.contains(**address));
    let wanted = addresses.map(|address| (address_key(*address), address_claim(key)));
    let wanted = wanted.chain(claims.ports.iter().map(|port| (port_key(*port), port_claim(key))));
    let mut extra = Extra::default();
    for (claimed, object) in wanted {
        match view.get(&claimed).map(|claim| claimed_by(claim)) {
            None => claim(claimed, object, (config.now)(), &mut extra),
            Some(other) if other != owner(key) => lost.taken.push((claimed, other)),
            Some(_) => {}
        }
    }
    if !extra.writes.is_empty() {
        let (mut preconditions, writes) = (extra.preconditions, extra.writes);
        let expect = Expect::Revision(service.revision);
        preconditions.push(Precondition { key: key.clone(), expect });
        lost.transaction = Some(Transaction { preconditions, writes });
    }
    lost
}

/// `namespace/name` of the service, as claims name it.
fn owner(key: &ObjectKey) -> String {
    format!("{}/{}", key.name.namespace, key.name.name)
}

fn release_keys(view: &View, owner: &str, keys: impl Iterator<Item = ObjectKey>, extra: &mut Extra) {
    for key in keys {
        let Some(claim) = view.get(&key) else { continue };
        if claimed_by(claim) == owner && !is_kept(&key, owner) {
            extra
                .preconditions
                .push(Precondition { key: key.clone(), expect: Expect::Revision(claim.revision) });
            extra.writes.push(Write::Delete { key });
        }
    }
}

fn claim(key: ObjectKey, mut object: Value, now: Timestamp, extra: &mut Extra) {
    let metadata = metadata::of(&mut object);
    metadata.insert("name".to_owned(), (*key.name.name).into());
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".to_owned(), metadata::time(now).into());
    let draft =
        metadata::draft(fields::text(&object, "/kind"), fields::text(&object, "/apiVersion"), &object);
    extra.preconditions.push(Precondition { key: key.clone(), expect: Expect::Absent });
    extra.writes.push(Write::Put { key, draft: draft.into() });
}

fn address_claim(service: &ObjectKey) -> Value {
    json!({
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": { "labels": {
            "ipaddress.kubernetes.io/ip-family": "IPv4",
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        } },
        "spec": { "parentRef": {
            "group": "",
            "resource": "services",
            "namespace": &*service.name.namespace,
            "name": &*service.name.name,
        } },
    })
}

fn port_claim(service: &ObjectKey) -> Value {
    json!({
        "kind": "PortAllocation",
        "apiVersion": "coracle.dev/v1",
        "spec": { "service": owner(service) },
    })
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

fn cluster_address(
    context: &Context<'_>,
    before: &Claims,
    service: &mut Value,
    errors: &mut Vec<FieldError>,
) {
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

fn free_address(context: &Context<'_>) -> Option<Ipv4Addr> {
    let network = &context.config.service_network;
    let (first, last) = (RESERVED_ADDRESSES.min(network.size() / 16).max(1), network.size() - 2);
    let free = |offset: &u32| context.view.get(&address_key(network.at(*offset))).is_none();
    let picked = (0..PICKS_MAX).map(|_| rand::random_range(first..=last)).find(|offset| free(offset));
    picked
        .or_else(|| (first..=last).find(free))
        .or_else(|| (1..first).find(free))
        .map(|offset| network.at(offset))
}

fn node_ports(context: &Context<'_>, before: &Claims, service: &mut Value, errors: &mut Vec<FieldError>) {
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
mod tests {
    use std::sync::Arc;

    use coracle_objects::by_plural;

    use super::*;

    fn check(view: &View, old: Option<&Value>, service: &mut Value) -> Result<Extra, ApiError> {
        let kind = by_plural("", "v1", "services").unwrap();
        let key = ObjectKey::new("services", "default", "web");
        let config = ApiConfig::new("c", "0");
        (kind.defaults)(service);
        allocate(&Context { kind, view, config: &config, key: &key }, old, service)
    }

    fn put(view: &mut View, extra: &Extra) {
        for write in &extra.writes {
            let Write::Put { key, draft } = write else { continue };
            let object = Arc::new(Object::from_draft(key.clone(), draft, 3).unwrap());
            view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object);
        }
    }

    #[test]
    fn a_service_claims_keeps_and_releases() {
        let mut view = View::default();
        let mut service =
            json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80 }, { "port": 81, "name": "b" }] } });
        let extra = check(&view, None, &mut service).unwrap();
        assert_eq!(extra.writes.len(), 3);
        let address: Ipv4Addr = fields::text(&service, "/spec/clusterIP").parse().unwrap();
        assert!(ApiConfig::new("c", "0").service_network.contains(address));
        put(&mut view, &extra);

        let mut update = json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 80 }] } });
        let extra = check(&view, Some(&service), &mut update).unwrap();
        assert_eq!(update["spec"]["clusterIP"], service["spec"]["clusterIP"]);
        assert_eq!(extra.writes.iter().filter(|write| matches!(write, Write::Delete { .. })).count(), 2);

        let key = ObjectKey::new("services", "default", "web");
        let stored = Object::from_draft(key, &metadata::draft("Service", "v1", &service), 4).unwrap();
        assert_eq!(release(&view, &stored).writes.len(), 3);
    }

    #[test]
    fn what_is_taken_or_out_of_range_is_refused() {
        let mut view = View::default();
        let mut first = json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{ "port": 80, "nodePort": 30080 }] } });
        let extra = check(&view, None, &mut first).unwrap();
        put(&mut view, &extra);
        let error = check(&view, None, &mut first).unwrap_err().to_string();
        assert!(
            error.contains("failed to allocate IP 10.96.0.10: provided IP is already allocated"),
            "{error}"
        );
        assert!(
            error
                .contains("spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated")
        );
        let mut outside = json!({ "spec": { "type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{ "port": 80, "nodePort": 80 }] } });
        let error = check(&view, None, &mut outside).unwrap_err().to_string();
        assert!(error.contains("does not match the current range"), "{error}");
        assert!(error.contains("The range of valid ports is 30000-32767"), "{error}");
    }

    #[test]
    fn an_address_is_never_only_written_down() {
        let mut view = View::default();
        let mut victim = json!({ "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] } });
        let extra = check(&view, None, &mut victim).unwrap();
        put(&mut view, &extra);
        for spec in [
            json!({ "type": "ExternalName", "externalName": "a.b", "clusterIPs": ["10.96.0.10"] }),
            json!({ "type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.0.10" }),
            json!({ "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "10.96.9.9", "clusterIPs": ["10.96.9.9", "10.96.0.10"], "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "::ffff:10.96.0.10", "ports": [{ "port": 80 }] }),
            json!({ "clusterIP": "fd00::1", "ports": [{ "port": 80 }] }),
        ] {
            assert!(check(&view, None, &mut json!({ "spec": spec })).is_err(), "{spec}");
            // An update of what was stored before such things were refused does not keep it either.
            let stored = json!({ "spec": spec });
            let mut again = stored.clone();
            let kept = check(&view, Some(&stored), &mut again).is_ok();
            assert!(!kept || again["spec"].get("clusterIPs").is_none(), "{spec}");
        }
        let stored =
            json!({ "spec": { "clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77"], "ports": [] } });
        let extra = check(&view, Some(&stored), &mut stored.clone()).unwrap();
        assert_eq!(extra.writes.len(), 1, "what was never claimed is claimed");
        // On its way out it may go, but take nothing along.
        let mut ending = json!({ "metadata": { "deletionTimestamp": "x" }, "spec": {
            "type": "ExternalName", "externalName": "a.b" } });
        let mut taking = ending.clone();
        taking["spec"]["clusterIPs"] = json!(["10.96.0.10"]);
        assert!(check(&view, Some(&ending.clone()), &mut taking).is_err());
        assert!(check(&view, Some(&ending.clone()), &mut ending).unwrap().writes.is_empty());
    }

    #[test]
    fn a_service_that_becomes_external_gives_up_its_address() {
        let mut view = View::default();
        let mut service = json!({ "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] } });
        let extra = check(&view, None, &mut service).unwrap();
        put(&mut view, &extra);
        for left in [json!({}), json!({ "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"] })] {
            let mut update = json!({ "spec": { "type": "ExternalName", "externalName": "a.b" } });
            update["spec"].as_object_mut().unwrap().extend(left.as_object().unwrap().clone());
            let extra = check(&view, Some(&service), &mut update).unwrap();
            assert!(matches!(&extra.writes[..], [Write::Delete { .. }]));
            assert!(update["spec"].get("clusterIP").is_none() && update["spec"].get("clusterIPs").is_none());
        }
        let mut other =
            json!({ "spec": { "type": "ExternalName", "externalName": "a.b", "clusterIPs": ["10.96.0.1"] } });
        assert!(check(&view, Some(&service), &mut other).is_err());
    }

    fn stored(service: &Value) -> Arc<Object> {
        let key = ObjectKey::new("services", "default", "web");
        Object::from_draft(key, &metadata::draft("Service", "v1", service), 4).unwrap().into()
    }

    fn put_object(view: &mut View, object: &Arc<Object>) {
        let key = &object.key;
        view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object.clone());
    }

    #[test]
    fn what_a_service_has_stays_claimed_and_is_claimed_again() {
        let mut view = View::default();
        let mut service =
            json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.77", "ports": [{ "port": 80 }] } });
        let extra = check(&view, None, &mut service).unwrap();
        put(&mut view, &extra);
        let service = stored(&service);
        let claim = view.get(&address_key("10.96.0.77".parse().unwrap())).unwrap().clone();
        assert_eq!(keeps(&view, &claim), None, "its service is not there yet");
        put_object(&mut view, &service);
        assert!(keeps(&view, &claim).unwrap().contains("service default/web"));
        let config = ApiConfig::new("c", "0");
        assert_eq!(lost_claims(&view, &config, &service), LostClaims::default());
        for table in [ADDRESSES, PORTS] {
            view.tables.remove(table);
        }
        let lost = lost_claims(&view, &config, &service).transaction.unwrap();
        assert_eq!(lost.writes.len(), 2);
        assert_eq!(lost.preconditions[2].expect, Expect::Revision(4), "only as long as the service is so");
        put(&mut view, &Extra { writes: lost.writes, preconditions: vec![] });
        assert_eq!(lost_claims(&view, &config, &service), LostClaims::default());
        let mut thief = address_claim(&ObjectKey::new("services", "default", "other"));
        thief["metadata"]["name"] = "10.96.0.77".into();
        let draft = metadata::draft("IPAddress", "networking.k8s.io/v1", &thief);
        put_object(&mut view, &Object::from_draft(claim.key.clone(), &draft, 5).unwrap().into());
        let lost = lost_claims(&view, &config, &service);
        assert_eq!((lost.transaction, lost.taken), (None, vec![(claim.key.clone(), "default/other".into())]));
    }

    #[test]
    fn an_address_of_the_cluster_outlives_its_service_and_comes_back_with_it() {
        let key = ObjectKey::new("services", "kube-system", "kube-dns");
        let (config, kind) = (ApiConfig::new("c", "0"), by_plural("", "v1", "services").unwrap());
        let mut view = View::default();
        let mut extra = Extra::default();
        let address = address_key("10.96.0.10".parse().unwrap());
        claim(address.clone(), address_claim(&key), Timestamp::UNIX_EPOCH, &mut extra);
        put(&mut view, &extra);
        let mut service = json!({ "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 53 }] } });
        assert!(check(&view, None, &mut service.clone()).is_err(), "another service does not get it");
        (kind.defaults)(&mut service);
        let context = Context { kind, view: &view, config: &config, key: &key };
        let extra = allocate(&context, None, &mut service).unwrap();
        assert!(extra.writes.is_empty());
        assert_eq!(
            extra.preconditions[0],
            Precondition { key: address.clone(), expect: Expect::Revision(3) }
        );
        let draft = metadata::draft("Service", "v1", &service);
        let service = Object::from_draft(key, &draft, 4).unwrap();
        assert_eq!(release(&view, &service).writes, []);
        assert!(keeps(&view, view.get(&address).unwrap()).is_some());
    }

    #[test]
    fn fields_of_the_old_type_go_with_it() {
        let old = json!({ "spec": { "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30100,
            "allocateLoadBalancerNodePorts": false, "loadBalancerClass": "a", "ports": [{ "port": 80 }] } });
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        check(&View::default(), Some(&old), &mut new).unwrap();
        for field in SERVICE_FIELDS_OF_A_TYPE {
            assert!(new["spec"].get(field).is_none(), "{field}");
        }
        let mut other = old.clone();
        other["spec"]["externalTrafficPolicy"] = "Cluster".into();
        check(&View::default(), Some(&old), &mut other).unwrap();
        assert!(other["spec"].get("healthCheckNodePort").is_none());
        assert_eq!(other["spec"]["loadBalancerClass"], "a");
    }

    #[test]
    fn many_ports_keep_and_find_their_node_ports_at_once() {
        let ports: Vec<Value> =
            (0..2000).map(|at| json!({ "name": format!("p{at}"), "port": at + 1 })).collect();
        let mut view = View::default();
        let mut service = json!({ "spec": { "type": "NodePort", "ports": ports } });
        let began = std::time::Instant::now();
        let extra = check(&view, None, &mut service).unwrap();
        assert_eq!(extra.writes.len(), 2001);
        put(&mut view, &extra);
        let mut update = json!({ "spec": { "type": "NodePort", "ports": ports } });
        assert!(check(&view, Some(&service), &mut update).unwrap().writes.is_empty());
        assert_eq!(update["spec"]["ports"], service["spec"]["ports"]);
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn headless_and_external_services_claim_nothing() {
        for spec in [
            json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }),
            json!({ "type": "ExternalName", "externalName": "x.y" }),
        ] {
            let mut service = json!({ "spec": spec });
            assert!(check(&View::default(), None, &mut service).unwrap().writes.is_empty());
        }
    }
}
