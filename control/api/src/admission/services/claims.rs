//! The claims of services: objects that say whose an address or a node port is.

use coracle_objects::{
    Expect, Object, ObjectKey, Transaction, View,
    claims::{Claims, address_key, claimed_by, holder, owner, port_key},
    fields,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{config::ApiConfig, draft::fresh_uid, metadata};

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
    let mut missing = Transaction::default();
    for (claimed, object) in wanted {
        match view.get(&claimed).map(|claim| claimed_by(claim)) {
            None => claim(claimed, object, (config.now)(), &mut missing),
            Some(other) if other != owner(key) => lost.taken.push((claimed, other)),
            Some(_) => {}
        }
    }
    if !missing.writes.is_empty() {
        lost.transaction = Some(missing.expecting(key.clone(), Expect::Revision(service.revision)));
    }
    lost
}

/// Claims what nobody has.
pub fn claim(key: ObjectKey, mut object: Value, now: Timestamp, along: &mut Transaction) {
    let metadata = metadata::of(&mut object);
    metadata.insert("name".to_owned(), (*key.name.name).into());
    metadata.insert("uid".to_owned(), fresh_uid().into());
    metadata.insert("creationTimestamp".to_owned(), metadata::time(now).into());
    let draft =
        metadata::draft(fields::text(&object, "/kind"), fields::text(&object, "/apiVersion"), &object);
    along.join(Transaction::create(key, draft.into()));
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
