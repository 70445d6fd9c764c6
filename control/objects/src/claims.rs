//! Claims of service addresses and node ports: objects whose names are what is claimed. A claim lasts as long as its
//! service lives and has the address: what was given out twice would have the traffic of both.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    fields::{list, text},
    name::ObjectKey,
    object::Object,
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
