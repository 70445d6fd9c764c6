//! The garbage collector's three modes, and owners of several kinds.

use coracle_objects::ObjectKey;
use expect_test::expect;
use serde_json::{Value, json};

use crate::{
    definitions::definition,
    harness::{Cluster, deployment, web},
};

fn running() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    cluster.put(web(), deployment(1));
    cluster.run(1_000);
    cluster.read();
    cluster
}

fn config_map(name: &str, owners: Value) -> (ObjectKey, Value) {
    let value =
        json!({"metadata": {"name": name, "namespace": "default", "uid": name, "ownerReferences": owners}});
    (ObjectKey::new("configmaps", "default", name), value)
}

fn reference(name: &str, blocks: bool) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": name, "blockOwnerDeletion": blocks})
}

#[test]
fn background() {
    let mut cluster = running();
    cluster.delete(&web(), None);
    cluster.run(1_000);
    expect![[r#"
        delete replicasets.apps default/web-7f7q9qg7lh
        update pods default/web-7f7q9qg7lh-lf6bn metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:31Z" metadata.deletionGracePeriodSeconds=30
    "#]].assert_eq(&cluster.read());
    assert_eq!(cluster.names("pods").len(), 0);
}

#[test]
fn foreground() {
    let mut cluster = running();
    cluster.delete(&web(), Some("foregroundDeletion"));
    cluster.run(1_000);
    expect![[r#"
        update replicasets.apps default/web-7f7q9qg7lh metadata.generation=2 metadata.finalizers=["foregroundDeletion"] metadata.deletionTimestamp="2026-01-01T00:00:01Z" metadata.deletionGracePeriodSeconds=0
        update replicasets.apps default/web-7f7q9qg7lh status.observedGeneration=2
        update pods default/web-7f7q9qg7lh-lf6bn metadata.generation=2 metadata.deletionTimestamp="2026-01-01T00:00:31Z" metadata.deletionGracePeriodSeconds=30
        update replicasets.apps default/web-7f7q9qg7lh status.replicas=0 status.fullyLabeledReplicas=null status.readyReplicas=null status.availableReplicas=null
        update deployments.apps default/web Available=False(MinimumReplicasUnavailable) status.unavailableReplicas=1 status.replicas=null status.updatedReplicas=null status.readyReplicas=null status.availableReplicas=null
        delete replicasets.apps default/web-7f7q9qg7lh
        update deployments.apps default/web status.unavailableReplicas=null
        delete deployments.apps default/web
    "#]].assert_eq(&cluster.read());
    assert_eq!(cluster.names("deployments.apps").len(), 0);
}

#[test]
fn orphan() {
    let mut cluster = running();
    cluster.delete(&web(), Some("orphan"));
    cluster.run(1_000);
    expect![[r#"
        update replicasets.apps default/web-7f7q9qg7lh metadata.ownerReferences=null
        update deployments.apps default/web Available=False(MinimumReplicasUnavailable) status.replicas=null status.updatedReplicas=null status.readyReplicas=null status.availableReplicas=null
        delete deployments.apps default/web
    "#]].assert_eq(&cluster.read());
    assert_eq!(cluster.names("pods").len(), 1);
}

#[test]
fn an_object_stays_while_one_owner_does() {
    let mut cluster = Cluster::new();
    for (key, value) in [
        config_map("first", json!([])),
        config_map("second", json!([])),
        config_map("owned", json!([reference("first", false), reference("second", false)])),
        config_map("astray", json!([reference("nobody", false)])),
    ] {
        cluster.put(key, value);
    }
    cluster.settle();
    assert_eq!(
        cluster.names("configmaps"),
        ["default/first", "default/kube-root-ca.crt", "default/owned", "default/second"]
    );
    cluster.delete(&ObjectKey::new("configmaps", "default", "first"), None);
    cluster.settle();
    let owned = cluster.get(&ObjectKey::new("configmaps", "default", "owned"));
    assert_eq!(owned["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
    cluster.delete(&ObjectKey::new("configmaps", "default", "second"), None);
    cluster.settle();
    assert_eq!(cluster.names("configmaps"), ["default/kube-root-ca.crt"]);
}

#[test]
fn the_foreground_waits_only_for_those_that_block() {
    let mut cluster = Cluster::new();
    let held = |mut pair: (ObjectKey, Value)| {
        pair.1["metadata"]["finalizers"] = json!(["example.com/hold"]);
        pair
    };
    let owner = ObjectKey::new("configmaps", "default", "owner");
    let blocking = ObjectKey::new("configmaps", "default", "blocking");
    for (key, value) in [
        config_map("owner", json!([])),
        held(config_map("blocking", json!([reference("owner", true)]))),
        held(config_map("free", json!([reference("owner", false)]))),
    ] {
        cluster.put(key, value);
    }
    cluster.delete(&owner, Some("foregroundDeletion"));
    cluster.settle();
    assert!(cluster.find(&owner).is_some(), "held by the one that blocks");
    assert!(cluster.get(&blocking)["metadata"]["deletionTimestamp"].is_string());
    cluster.edit(&blocking, |value| value["metadata"]["finalizers"] = json!([]));
    cluster.delete(&blocking, None);
    cluster.settle();
    assert!(cluster.find(&owner).is_none());
    assert!(
        cluster.find(&ObjectKey::new("configmaps", "default", "free")).is_some(),
        "still held by its finalizer"
    );
}

#[test]
fn an_owner_in_another_namespace_is_none() {
    let mut cluster = Cluster::new();
    cluster.namespace("other");
    let (_, value) = config_map("owner", json!([]));
    cluster.put(ObjectKey::new("configmaps", "other", "owner"), value);
    let (key, value) = config_map("owned", json!([reference("owner", false)]));
    cluster.put(key.clone(), value);
    cluster.read();
    cluster.settle();
    let said = cluster.read();
    assert_eq!(said.matches("OwnerRefInvalidNamespace").count(), 1, "{said}");
    assert!(cluster.find(&key).is_none());
}

#[test]
fn what_belongs_to_no_namespace_and_names_an_owner_in_one_is_kept() {
    let mut cluster = Cluster::new();
    let (key, value) = config_map("owner", json!([]));
    cluster.put(key, value);
    let owned = ObjectKey::new("persistentvolumes", "", "owned");
    cluster.put(
        owned.clone(),
        json!({"metadata": {"name": "owned", "uid": "owned", "ownerReferences": [reference("owner", false)]}}),
    );
    cluster.settle();
    assert!(cluster.find(&owned).is_some());
}

#[test]
fn an_owner_of_a_kind_that_is_not_served_is_not_shown_to_be_gone() {
    let mut cluster = Cluster::new();
    let of = |name: &str, api_version: &str, kind: &str| json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": name});
    let kept = [
        ("of-a-definition", json!([of("w", "example.com/v1", "Widget")])),
        ("of-an-old-version", json!([of("w", "apps/v1beta1", "Deployment")])),
        ("of-no-version", json!([of("w", "", "Deployment")])),
        ("of-one-gone-too", json!([of("w", "example.com/v1", "Widget"), reference("nobody", false)])),
    ];
    for (name, owners) in &kept {
        let (key, value) = config_map(name, owners.clone());
        cluster.put(key, value);
    }
    cluster.settle();
    for (name, owners) in &kept {
        let left = cluster.get(&ObjectKey::new("configmaps", "default", name));
        assert_eq!(left["metadata"]["ownerReferences"], *owners, "{name}");
    }
    // Once its kind is served it is shown.
    let (key, value) = definition("widgets", "Widget", "example.com", "wi");
    cluster.put(key, value);
    cluster.settle();
    assert_eq!(
        cluster.names("configmaps"),
        ["default/kube-root-ca.crt", "default/of-an-old-version", "default/of-no-version"]
    );
}

#[test]
fn the_claim_of_a_living_service_is_not_collected() {
    let mut cluster = Cluster::new();
    let service = ObjectKey::new("services", "default", "s");
    let spec = json!({"clusterIP": "10.96.3.3", "clusterIPs": ["10.96.3.3"], "ports": [{"port": 80}]});
    let value = json!({"metadata": {"name": "s", "namespace": "default", "uid": "s"}, "spec": spec});
    cluster.put(service.clone(), value);
    let claim = |name: &str| {
        let parent = json!({"resource": "services", "namespace": "default", "name": "s"});
        let value = json!({
            "metadata": {"name": name, "uid": name, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "nobody", "uid": "nobody"}]},
            "spec": {"parentRef": parent},
        });
        (ObjectKey::new("ipaddresses.networking.k8s.io", "", name), value)
    };
    for name in ["10.96.3.3", "10.96.3.4"] {
        let (key, value) = claim(name);
        cluster.put(key, value);
    }
    cluster.run(1_000);
    assert_eq!(cluster.names("ipaddresses.networking.k8s.io"), ["10.96.3.3"], "the other is nobody's");
}
