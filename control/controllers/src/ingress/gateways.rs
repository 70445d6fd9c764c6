//! Where the gateways of nodes listen.

use core::net::{IpAddr, SocketAddr};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::Object;

use serde_json::{Value, json};

use crate::{index::Index, model::Models};

/// Annotation of a Node: the host:port of its gateway.
pub const GATEWAY_ANNOTATION: &str = "coracle.dev/gateway-address";

/// Addresses that one status names: a client needs one that answers, not all of a large cluster.
const ADDRESSES_MAX: usize = 16;

/// The gateways of all nodes that there are, whether they are ready or not: a node that is away for a moment is no reason
/// to write every Ingress anew.
#[derive(Debug, Default)]
pub struct Gateways {
    by_node: BTreeMap<String, SocketAddr>,
}

impl Index for Gateways {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        if let Some(gateway) = models.node(object).and_then(|node| node.gateway) {
            self.by_node.insert(object.name().to_owned(), gateway);
        }
    }

    fn remove(&mut self, object: &Arc<Object>, _: &Models) {
        if object.key.resource.as_str() == "nodes" {
            self.by_node.remove(object.name());
        }
    }
}

impl Gateways {
    /// A port on which one of them listens.
    pub fn port(&self) -> Option<u16> {
        self.by_node.values().map(SocketAddr::port).min()
    }

    /// `status.loadBalancer` of an Ingress that they serve, or of whose hosts another has some: then each port tells the
    /// `error`.
    pub fn load_balancer(&self, error: Option<&str>) -> Value {
        let mut ports: BTreeMap<IpAddr, BTreeSet<u16>> = BTreeMap::new();
        for gateway in self.by_node.values() {
            ports.entry(gateway.ip()).or_default().insert(gateway.port());
        }
        let port = |port: u16| match error {
            Some(error) => json!({"port": port, "protocol": "TCP", "error": error}),
            None => json!({"port": port, "protocol": "TCP"}),
        };
        let point = |(ip, ports): (IpAddr, BTreeSet<u16>)| {
            let ports: Vec<Value> = ports.into_iter().take(ADDRESSES_MAX).map(port).collect();
            json!({"ip": ip.to_string(), "ports": ports})
        };
        let points: Vec<Value> = ports.into_iter().take(ADDRESSES_MAX).map(point).collect();
        if points.is_empty() { json!({}) } else { json!({"ingress": points}) }
    }
}

/// A gateway's address, by what the annotation says. One that listens on all of its node's addresses is reached at the
/// first of them.
pub fn gateway(annotation: &str, addresses: &[String]) -> Option<SocketAddr> {
    let address: SocketAddr = annotation.parse().ok()?;
    if !address.ip().is_unspecified() {
        return Some(address);
    }
    let own = addresses.iter().find_map(|own| own.parse::<IpAddr>().ok())?;
    Some(SocketAddr::new(own, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_named_once_and_not_without_bound() {
        assert_eq!(gateway("0.0.0.0:80", &["10.0.0.1".into()]), "10.0.0.1:80".parse().ok());
        assert_eq!(gateway("0.0.0.0:80", &["a.example".into()]), None);
        assert_eq!(gateway("", &[]), None);
        let mut gateways = Gateways::default();
        assert_eq!(gateways.load_balancer(None), json!({}));
        gateways.by_node.insert("a".to_owned(), "127.0.0.1:8080".parse().unwrap());
        gateways.by_node.insert("b".to_owned(), "127.0.0.1:81".parse().unwrap());
        gateways.by_node.insert("c".to_owned(), "127.0.0.1:81".parse().unwrap());
        let ports = json!([{"port": 81, "protocol": "TCP"}, {"port": 8080, "protocol": "TCP"}]);
        assert_eq!(gateways.load_balancer(None), json!({"ingress": [{"ip": "127.0.0.1", "ports": ports}]}));
        for node in 0..100_u8 {
            gateways.by_node.insert(node.to_string(), SocketAddr::from(([10, 0, 0, node], 80)));
        }
        let many = gateways.load_balancer(Some("x.example/Y"));
        assert_eq!(many["ingress"].as_array().unwrap().len(), ADDRESSES_MAX);
        assert_eq!(many["ingress"][3]["ports"][0]["error"], "x.example/Y");
    }
}
