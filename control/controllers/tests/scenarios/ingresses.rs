//! The status of Ingresses.

use coracle_objects::{ObjectKey, View, kinds::note_hosts};
use serde_json::{Value, json};

use crate::harness::Cluster;

fn ingress(cluster: &mut Cluster, namespace: &str, created: &str, host: &str) -> ObjectKey {
    let key = ObjectKey::new("ingresses.networking.k8s.io", namespace, "i");
    let value = json!({
        "metadata": {"name": "i", "namespace": namespace, "uid": format!("{namespace}-i"), "creationTimestamp": created},
        "spec": {"rules": [{"host": host}]}, "status": {"loadBalancer": {}},
    });
    cluster.put(key.clone(), value);
    key
}

fn gateway(cluster: &mut Cluster, node: &str, address: &str) {
    let key = ObjectKey::new("nodes", "", node);
    let mut value = cluster.get(&key);
    value["metadata"]["annotations"] = json!({"coracle.dev/gateway-address": address});
    cluster.put(key, value);
}

fn points(cluster: &Cluster, key: &ObjectKey) -> Value {
    cluster.get(key)["status"]["loadBalancer"]["ingress"].clone()
}

#[test]
fn the_status_names_the_gateways_as_they_come_and_go() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let key = ingress(&mut cluster, "default", "2026-01-01T00:00:00Z", "a.example");
    cluster.settle();
    assert_eq!(points(&cluster, &key), Value::Null);
    gateway(&mut cluster, "n1", "10.0.0.1:8080");
    cluster.settle();
    let one = json!({"ip": "10.0.0.1", "ports": [{"port": 8080, "protocol": "TCP"}]});
    assert_eq!(points(&cluster, &key), json!([one]));
    // A node that is away for a moment changes nothing.
    cluster.node("n1", "Unknown");
    cluster.settle();
    assert_eq!(points(&cluster, &key), json!([one]));
    cluster.node("n2", "True");
    gateway(&mut cluster, "n2", "10.0.0.2:80");
    cluster.settle();
    assert_eq!(points(&cluster, &key)[1]["ip"], "10.0.0.2");
    cluster.delete(&ObjectKey::new("nodes", "", "n1"), None);
    cluster.settle();
    assert_eq!(
        points(&cluster, &key),
        json!([{"ip": "10.0.0.2", "ports": [{"port": 80, "protocol": "TCP"}]}])
    );
    // What another controller serves is left to it.
    cluster.edit(&key, |ingress| {
        ingress["spec"]["ingressClassName"] = "nginx".into();
        ingress["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    });
    cluster.settle();
    assert_eq!(points(&cluster, &key), json!([{"ip": "192.0.2.1"}]));
}

#[test]
fn an_ingress_is_the_gateways_as_long_as_its_class_is() {
    let mut cluster = Cluster::new();
    for name in ["old", "young"] {
        cluster.namespace(name);
    }
    cluster.node("n1", "True");
    gateway(&mut cluster, "n1", "10.0.0.1:80");
    let served = json!([{"ip": "10.0.0.1", "ports": [{"port": 80, "protocol": "TCP"}]}]);
    let held = json!("coracle.dev/HostHeld");
    let class = ObjectKey::new("ingressclasses.networking.k8s.io", "", "own");
    let made =
        json!({"metadata": {"name": "own", "uid": "own"}, "spec": {"controller": "coracle.dev/gateway"}});
    let old = ingress(&mut cluster, "old", "2026-01-01T00:00:00Z", "a.example");
    let young = ingress(&mut cluster, "young", "2026-02-01T00:00:00Z", "a.example");
    cluster.settle();
    assert_eq!(points(&cluster, &old), served);
    assert_eq!(points(&cluster, &young)[0]["ports"][0]["error"], held);
    // As long as there is no such class, nobody serves it, and the host is free.
    cluster.edit(&old, |ingress| ingress["spec"]["ingressClassName"] = "own".into());
    cluster.settle();
    assert_eq!(points(&cluster, &old), Value::Null);
    assert_eq!(points(&cluster, &young), served);
    cluster.put(class.clone(), made);
    cluster.settle();
    assert_eq!(points(&cluster, &old), served);
    assert_eq!(points(&cluster, &young)[0]["ports"][0]["error"], held);
    cluster.delete(&class, None);
    cluster.settle();
    assert_eq!(points(&cluster, &old), Value::Null);
    assert_eq!(points(&cluster, &young), served);
}

#[test]
fn the_status_says_that_another_namespace_has_the_host_until_it_gives_it_up() {
    let mut cluster = Cluster::new();
    for name in ["old", "young"] {
        cluster.namespace(name);
    }
    cluster.node("n1", "True");
    gateway(&mut cluster, "n1", "10.0.0.1:80");
    let error = |cluster: &Cluster, key: &ObjectKey| points(cluster, key)[0]["ports"][0]["error"].clone();
    for host in ["a.example", "*.example"] {
        let old = ingress(&mut cluster, "old", "2026-01-01T00:00:00Z", host);
        let young = ingress(&mut cluster, "young", "2026-02-01T00:00:00Z", "a.example");
        cluster.settle();
        assert_eq!(error(&cluster, &old), Value::Null);
        assert_eq!(error(&cluster, &young), "coracle.dev/HostHeld");
        assert!(
            cluster
                .read()
                .contains("HostHeld: Ingresses or Functions of other namespaces had these hosts before")
        );
        // As the API server does it.
        let ask_for = |cluster: &mut Cluster, host: &str| {
            cluster.edit(&old, |ingress| {
                let before = ingress.clone();
                ingress["spec"]["rules"][0]["host"] = host.into();
                note_hosts(&View::default(), Some(&before), ingress, "2026-03-01T00:00:00Z");
            });
            cluster.settle();
        };
        ask_for(&mut cluster, "b.other");
        assert_eq!(error(&cluster, &young), Value::Null);
        // What it has given up is another's now; a wildcard is for what nobody else has.
        ask_for(&mut cluster, host);
        assert_eq!(error(&cluster, &young), Value::Null);
        let lost = if host == "a.example" { "coracle.dev/HostHeld".into() } else { Value::Null };
        assert_eq!(error(&cluster, &old), lost);
        cluster.delete(&young, None);
        cluster.settle();
        assert_eq!(error(&cluster, &old), Value::Null);
        cluster.delete(&old, None);
        cluster.settle();
    }
}
