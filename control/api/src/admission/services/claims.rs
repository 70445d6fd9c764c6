//! The claims of services: objects that say whose an address or a node port is.

use std::{collections::BTreeSet, net::Ipv4Addr};

use coracle_objects::{
    Expect, Object, ObjectKey, Precondition, Transaction, View, Write,
    claims::{ADDRESSES, PORTS, claimed_by, holder, is_kept},
    fields,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{config::ApiConfig, metadata, transact::Extra};

pub fn address_key(address: Ipv4Addr) -> ObjectKey {
    ObjectKey::new(ADDRESSES, "", &address.to_string())
}

pub fn port_key(port: u16) -> ObjectKey {
    ObjectKey::new(PORTS, "", &port.to_string())
}

/// What a service holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    pub addresses: BTreeSet<Ipv4Addr>,
    pub ports: BTreeSet<u16>,
}

impl Claims {
    pub fn of(service: &Value) -> Self {
        if fields::text(service, "/spec/type") == "ExternalName" {
            return Self::default();
        }
        let address = fields::text(service, "/spec/clusterIP").parse().ok();
        let ports = fields::list(service, "/spec/ports");
        Self { addresses: address.into_iter().collect(), ports: ports.iter().filter_map(node_port).collect() }
    }

    /// Those that the store has under the owner's name.
    pub fn held_by(mut self, owner: &str, view: &View) -> Self {
        let held = |key: ObjectKey| view.get(&key).is_some_and(|claim| claimed_by(claim) == owner);
        self.addresses.retain(|address| held(address_key(*address)));
        self.ports.retain(|port| held(port_key(*port)));
        self
    }
}

pub fn node_port(port: &Value) -> Option<u16> {
    fields::integer(port, "/nodePort").and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
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
pub fn owner(key: &ObjectKey) -> String {
    format!("{}/{}", key.name.namespace, key.name.name)
}

pub fn release_keys(view: &View, owner: &str, keys: impl Iterator<Item = ObjectKey>, extra: &mut Extra) {
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

pub fn claim(key: ObjectKey, mut object: Value, now: Timestamp, extra: &mut Extra) {
    let metadata = metadata::of(&mut object);
    metadata.insert("name".to_owned(), (*key.name.name).into());
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".to_owned(), metadata::time(now).into());
    let draft =
        metadata::draft(fields::text(&object, "/kind"), fields::text(&object, "/apiVersion"), &object);
    extra.preconditions.push(Precondition { key: key.clone(), expect: Expect::Absent });
    extra.writes.push(Write::Put { key, draft: draft.into() });
}

pub fn address_claim(service: &ObjectKey) -> Value {
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

pub fn port_claim(service: &ObjectKey) -> Value {
    json!({
        "kind": "PortAllocation",
        "apiVersion": "coracle.dev/v1",
        "spec": { "service": owner(service) },
    })
}
