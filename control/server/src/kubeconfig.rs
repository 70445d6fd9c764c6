//! The administrator's kubeconfig: one context a control node, so that a client can go on with another one.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use coracle_pki::Leaf;

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

/// The administrator's certificate in a kubeconfig that [`kubeconfig`] has made; `None` where it has none.
pub fn admin_of(text: &str) -> Option<Leaf> {
    let config: Value = serde_yaml_ng::from_str(text).ok()?;
    let pem = |field: &str| {
        let encoded = config["users"][0]["user"][field].as_str()?;
        String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
    };
    Some(Leaf { chain_pem: pem("client-certificate-data")?, key_pem: pem("client-key-data")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_certificate_is_read_back() {
        let admin = Leaf { chain_pem: "certificate".into(), key_pem: "key".into() };
        let read = admin_of(&kubeconfig("ca", &admin, "127.0.0.1:1", &BTreeMap::new())).unwrap();
        assert_eq!((read.chain_pem, read.key_pem), (admin.chain_pem, admin.key_pem));
        assert!(admin_of("users: []").is_none() && admin_of("\t").is_none());
    }
}
