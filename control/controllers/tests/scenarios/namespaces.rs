//! Namespaces: their birth gifts and their end.

use coracle_objects::ObjectKey;
use expect_test::expect;
use serde_json::{Value, json};

use crate::harness::{Cluster, deployment};

#[test]
fn a_namespace_gets_an_account_and_the_certificate() {
    let mut cluster = Cluster::new();
    cluster.namespace("team");
    cluster.settle();
    let certificate = ObjectKey::new("configmaps", "team", "kube-root-ca.crt");
    assert_eq!(cluster.get(&certificate)["data"]["ca.crt"], "PEM");
    cluster.edit(&certificate, |value| value["data"]["ca.crt"] = "forged".into());
    cluster.delete(&ObjectKey::new("serviceaccounts", "team", "default"), None);
    cluster.settle();
    assert_eq!(cluster.get(&certificate)["data"]["ca.crt"], "PEM");
    assert_eq!(cluster.names("serviceaccounts"), ["default/default", "team/default"]);
}

#[test]
fn a_deleted_namespace_takes_everything_with_it() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.namespace("team");
    let mut value = deployment(2);
    value["metadata"]["namespace"] = "team".into();
    cluster.put(ObjectKey::new("deployments.apps", "team", "web"), value);
    cluster.run(1_000);
    let held = ObjectKey::new("configmaps", "team", "held");
    cluster.put(
        held.clone(),
        json!({"metadata": {"name": "held", "namespace": "team", "uid": "held", "finalizers": ["example.com/hold"]}}),
    );
    cluster.settle();
    cluster.read();
    let namespace = ObjectKey::new("namespaces", "", "team");
    cluster.delete(&namespace, None);
    cluster.run(1_000);
    expect![[r#"
        update configmaps team/held metadata.deletionTimestamp="2026-01-01T00:00:01Z" metadata.deletionGracePeriodSeconds=0
        delete configmaps team/kube-root-ca.crt
        delete deployments.apps team/web
        update pods team/web-7f7q9qg7lh-5mnvp metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:31Z" metadata.deletionGracePeriodSeconds=30
        update pods team/web-7f7q9qg7lh-8rqf7 metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:31Z" metadata.deletionGracePeriodSeconds=30
        delete replicasets.apps team/web-7f7q9qg7lh
        delete serviceaccounts team/default
        update namespaces team NamespaceDeletionDiscoveryFailure=False(ResourcesDiscovered) NamespaceDeletionGroupVersionParsingFailure=False(ParsedGroupVersions) NamespaceDeletionContentFailure=False(ContentDeleted) NamespaceContentRemaining=True(SomeResourcesRemain) NamespaceFinalizersRemaining=True(SomeFinalizersRemain)
    "#]].assert_eq(&cluster.read());
    let value = cluster.get(&namespace);
    let remaining = value["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["type"] == "NamespaceContentRemaining");
    assert_eq!(
        remaining.unwrap()["message"],
        "Some resources are remaining: configmaps. has 1 resource instances"
    );
    cluster.edit(&held, |value| value["metadata"]["finalizers"] = json!([]));
    cluster.delete(&held, None);
    cluster.settle();
    assert!(cluster.find(&namespace).is_none());
    assert!(cluster.names("pods").is_empty());
    assert_eq!(cluster.names("configmaps"), ["default/kube-root-ca.crt"]);
    assert_eq!(cluster.refusals, 0);
}

#[test]
fn a_namespace_that_is_deleted_in_the_foreground_waits_for_what_is_in_it() {
    let mut cluster = Cluster::new();
    cluster.namespace("team");
    let held = ObjectKey::new("configmaps", "team", "held");
    cluster.put(
        held.clone(),
        json!({"metadata": {"name": "held", "namespace": "team", "uid": "held", "finalizers": ["example.com/hold"]}}),
    );
    cluster.settle();
    let namespace = ObjectKey::new("namespaces", "", "team");
    cluster.delete(&namespace, Some("foregroundDeletion"));
    cluster.run(1_000);
    assert!(cluster.find(&namespace).is_some(), "it is not empty");
    cluster.edit(&held, |value| value["metadata"]["finalizers"] = json!([]));
    cluster.delete(&held, None);
    cluster.run(1_000);
    assert!(cluster.find(&held).is_none() && cluster.find(&namespace).is_none());
}

#[test]
fn a_namespace_that_others_hold_is_written_once() {
    let mut cluster = Cluster::new();
    cluster.namespace("team");
    let namespace = ObjectKey::new("namespaces", "", "team");
    cluster.edit(&namespace, |value| value["metadata"]["finalizers"] = json!(["example.com/hold"]));
    cluster.settle();
    cluster.delete(&namespace, None);
    cluster.run(1_000);
    let value = cluster.get(&namespace);
    assert_eq!(value["spec"]["finalizers"], json!([]), "nothing is in it");
    for _ in 0..3 {
        cluster.pass(20_000);
        assert_eq!(cluster.plan().transactions.len(), 0);
    }
    cluster.edit(&namespace, |value| value["metadata"]["finalizers"] = json!([]));
    cluster.run(1_000);
    assert!(cluster.find(&namespace).is_none());
}

#[test]
fn the_namespaces_that_every_cluster_has_stay_whoever_is_said_to_own_them() {
    let mut cluster = Cluster::new();
    for name in ["default", "kube-system", "kube-public"] {
        let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "gone"}]);
        cluster.put(
            ObjectKey::new("namespaces", "", name),
            json!({"metadata": {"name": name, "uid": name, "ownerReferences": owner},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
        );
    }
    cluster.run(1_000);
    for name in ["default", "kube-system", "kube-public"] {
        let namespace = cluster.get(&ObjectKey::new("namespaces", "", name));
        assert_eq!(namespace["metadata"].get("deletionTimestamp"), None, "{name}");
    }
}

#[test]
fn services_give_back_what_they_claimed_whoever_removes_them() {
    let mut cluster = Cluster::new();
    cluster.namespace("team");
    let owner = ObjectKey::new("configmaps", "team", "owner");
    cluster.put(owner.clone(), json!({"metadata": {"name": "owner", "namespace": "team", "uid": "owner"}}));
    let mut service = |name: &str, owners: Value, address: &str, port: u16| {
        let key = ObjectKey::new("services", "team", name);
        let metadata = json!({"name": name, "namespace": "team", "uid": name, "ownerReferences": owners});
        let spec = json!({"clusterIP": address, "ports": [{"port": 80, "nodePort": port}]});
        cluster.put(key, json!({"metadata": metadata, "spec": spec}));
        let parent = json!({"resource": "services", "namespace": "team", "name": name});
        let address_claim = json!({"metadata": {"name": address}, "spec": {"parentRef": parent}});
        cluster.put(ObjectKey::new("ipaddresses.networking.k8s.io", "", address), address_claim);
        let port_claim =
            json!({"metadata": {"name": port.to_string()}, "spec": {"service": format!("team/{name}")}});
        cluster.put(ObjectKey::new("portallocations.coracle.dev", "", &port.to_string()), port_claim);
    };
    service("plain", json!([]), "10.96.0.7", 30007);
    let owned = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "owner"}]);
    service("owned", owned, "10.96.0.8", 30008);
    cluster.settle();
    cluster.delete(&owner, None);
    cluster.settle();
    assert_eq!(cluster.names("services"), ["team/plain"]);
    assert_eq!(cluster.names("ipaddresses.networking.k8s.io"), ["10.96.0.7"]);
    assert_eq!(cluster.names("portallocations.coracle.dev"), ["30007"]);
    cluster.delete(&ObjectKey::new("namespaces", "", "team"), None);
    cluster.run(1_000);
    assert!(cluster.names("services").is_empty());
    assert!(cluster.names("ipaddresses.networking.k8s.io").is_empty());
    assert!(cluster.names("portallocations.coracle.dev").is_empty());
    assert_eq!(cluster.refusals, 0);
}
