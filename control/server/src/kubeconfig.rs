//! The administrator's kubeconfig: one context a control node, so that a client can go on with another one.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::pki::Leaf;

/// The text of a kubeconfig (YAML) with its certificates embedded. `addresses` are the members' by name; `current`
/// is the address that the current context names. The first context is called `coracle`, the others
/// `coracle-<member>`.
pub fn kubeconfig(ca_pem: &str, admin: &Leaf, current: &str, addresses: &BTreeMap<String, String>) -> String {
    let mut targets = vec![("coracle".to_owned(), current)];
    targets.extend(addresses.iter().map(|(member, address)| (format!("coracle-{member}"), address.as_str())));
    let ca = STANDARD.encode(ca_pem);
    let clusters: Vec<_> = targets
        .iter()
        .map(|(name, address)| {
            let cluster = json!({
                "server": format!("https://{address}"),
                "certificate-authority-data": ca,
            });
            json!({ "name": name, "cluster": cluster })
        })
        .collect();
    let contexts: Vec<_> = targets
        .iter()
        .map(|(name, _)| json!({ "name": name, "context": { "cluster": name, "user": "coracle-admin" } }))
        .collect();
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "coracle",
        "preferences": {},
        "clusters": clusters,
        "contexts": contexts,
        "users": [{
            "name": "coracle-admin",
            "user": {
                "client-certificate-data": STANDARD.encode(&admin.chain_pem),
                "client-key-data": STANDARD.encode(&admin.key_pem),
            },
        }],
    });
    serde_yaml_ng::to_string(&config).expect("a plain value encodes as YAML")
}
