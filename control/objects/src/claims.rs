//! Claims of service addresses and node ports: objects whose names are what is claimed. A claim lasts as long as its
//! service lives and has the address: what was given out twice would have the traffic of both.

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use serde_json::Value;

use crate::{
    fields::{integer, list, text},
    name::ObjectKey,
    object::Object,
    transaction::Transaction,
    view::View,
};

/// The resource of claimed addresses.
pub const ADDRESSES: &str = "ipaddresses.networking.k8s.io";
/// The resource of claimed node ports.
pub const PORTS: &str = "portallocations.coracle.dev";

/// The address of the service `default/kubernetes`, and the one at which nodes answer for names.
pub const KUBERNETES_SERVICE_IP: &str = "10.96.0.1";
pub const DNS_SERVICE_IP: &str = "10.96.0.10";

/// Addresses that the cluster itself uses, and the services for which they are kept: also while there is none.
pub const KEPT_ADDRESSES: [(&str, &str); 2] =
    [(KUBERNETES_SERVICE_IP, "default/kubernetes"), (DNS_SERVICE_IP, "kube-system/kube-dns")];

/// The claim of an address.
pub fn address_key(address: Ipv4Addr) -> ObjectKey {
    ObjectKey::new(ADDRESSES, "", &address.to_string())
}

/// The claim of a node port.
pub fn port_key(port: u16) -> ObjectKey {
    ObjectKey::new(PORTS, "", &port.to_string())
}

/// `namespace/name` of the service, as claims name it.
pub fn owner(service: &ObjectKey) -> String {
    format!("{}/{}", service.name.namespace, service.name.name)
}

/// What a service holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    pub addresses: BTreeSet<Ipv4Addr>,
    pub ports: BTreeSet<u16>,
}

impl Claims {
    pub fn of(service: &Value) -> Self {
        if text(service, "/spec/type") == "ExternalName" {
            return Self::default();
        }
        let address = text(service, "/spec/clusterIP").parse().ok();
        let ports = list(service, "/spec/ports");
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

/// The node port of a service's port.
pub fn node_port(port: &Value) -> Option<u16> {
    integer(port, "/nodePort").and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

/// What is given back with an object that is removed: a service's claims. Whoever removes one goes by this.
pub fn release(view: &View, object: &Object) -> Transaction {
    if object.key.resource.as_str() != "services" {
        return Transaction::default();
    }
    let claims = object.parse::<Value>().map(|service| Claims::of(&service)).unwrap_or_default();
    let addresses = claims.addresses.into_iter().map(address_key);
    let ports = claims.ports.into_iter().map(port_key);
    release_keys(view, &owner(&object.key), addresses.chain(ports))
}

/// Gives back those of these claims that are the owner's and not kept for it.
pub fn release_keys(view: &View, owner: &str, keys: impl Iterator<Item = ObjectKey>) -> Transaction {
    let mut released = Transaction::default();
    for key in keys {
        let Some(claim) = view.get(&key) else { continue };
        if claimed_by(claim) == owner && !is_kept(&key, owner) {
            released.join(Transaction::delete(key, claim.revision));
        }
    }
    released
}

/// `namespace/name` of the service that a claim names; without either part where it names none.
pub fn claimed_by(claim: &Object) -> String {
    let claim: Value = claim.parse().unwrap_or_default();
    match text(&claim, "/spec/service") {
        "" => {
            let part = |key: &str| text(&claim, &format!("/spec/parentRef/{key}")).to_owned();
            format!("{}/{}", part("namespace"), part("name"))
        }
        service => service.to_owned(),
    }
}

/// Whether this claim is kept for the service by the cluster itself.
pub fn is_kept(claim: &ObjectKey, service: &str) -> bool {
    claim.resource.as_str() == ADDRESSES && KEPT_ADDRESSES.contains(&(&*claim.name.name, service))
}

/// The service that has what is claimed, where there is one. `get` finds an object.
pub fn holder(claim: &Object, get: impl Fn(&ObjectKey) -> Option<Arc<Object>>) -> Option<String> {
    if claim.key.resource.as_str() != ADDRESSES {
        return None;
    }
    let owner = claimed_by(claim);
    let (namespace, name) = owner.split_once('/')?;
    if is_kept(&claim.key, &owner) {
        return Some(owner);
    }
    let service = get(&ObjectKey::new("services", namespace, name))?.parse::<Value>().ok()?;
    let has = |address: &str| address == claim.name();
    let held = text(&service, "/spec/type") != "ExternalName"
        && (has(text(&service, "/spec/clusterIP"))
            || list(&service, "/spec/clusterIPs").iter().filter_map(Value::as_str).any(has));
    held.then_some(owner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(key: ObjectKey, spec: Value) -> Arc<Object> {
        let draft =
            json!({"metadata": {"name": *key.name.name, "namespace": *key.name.namespace}, "spec": spec});
        Object::from_draft(key, draft.to_string().as_bytes(), 1).unwrap().into()
    }

    #[test]
    fn a_claim_is_held_while_its_service_has_the_address() {
        let held = |address: &str, name: &str, service: Option<Value>| {
            let parent = json!({"parentRef": {"resource": "services", "namespace": "default", "name": name}});
            let claim = object(ObjectKey::new(ADDRESSES, "", address), parent);
            let get = |key: &ObjectKey| service.clone().map(|spec| object(key.clone(), spec));
            holder(&claim, get).is_some()
        };
        assert!(held("10.96.0.7", "web", Some(json!({"clusterIP": "10.96.0.7"}))));
        assert!(!held("10.96.0.7", "web", Some(json!({"clusterIP": "10.96.0.8"}))));
        let external = json!({"type": "ExternalName", "clusterIP": "10.96.0.7"});
        assert!(!held("10.96.0.7", "web", Some(external)));
        assert!(!held("10.96.0.7", "web", None));
        assert!(held(KUBERNETES_SERVICE_IP, "kubernetes", None));
        assert!(!held(KUBERNETES_SERVICE_IP, "other", None), "it is kept for one service alone");
    }
}
