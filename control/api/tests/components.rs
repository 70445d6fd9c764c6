//! What components of the control plane and nodes write is admitted as a client's writes are, in their names.

mod support;

use coracle_api::{Admission, Admitted, ApiConfig, ProposeError, Storage, UserInfo};
use coracle_objects::{Expect, Object, ObjectKey, Refusal, Transaction, Write, claims};
use serde_json::{Value, json};
use support::{Memory, ask, cluster};

fn as_user(memory: &Memory, user: UserInfo) -> Admitted<Memory> {
    Admission::new(ApiConfig::new("test", "0.0.0")).storage_of(memory.clone(), user)
}

fn controller(memory: &Memory) -> Admitted<Memory> {
    as_user(memory, UserInfo::component("replicaset-controller"))
}

fn pod(namespace: &str, name: &str, spec: &Value) -> Transaction {
    let key = ObjectKey::new("pods", namespace, name);
    let metadata = json!({ "name": name, "namespace": namespace, "uid": name });
    let draft =
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {} });
    Transaction::create(key, draft.to_string().into())
}

fn containers() -> Value {
    json!({ "containers": [{ "name": "c", "image": "i:1" }] })
}

fn make_namespace(memory: &Memory, name: &str) {
    let metadata = json!({ "name": name, "uid": name });
    let spec = json!({ "finalizers": ["kubernetes"] });
    let namespace = json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": metadata, "spec": spec });
    memory.put("namespaces", "", name, namespace);
}

async fn denied(storage: &Admitted<Memory>, transaction: Transaction) -> String {
    match storage.propose(transaction).await {
        Err(ProposeError::Denied(error)) => error.to_string(),
        other => panic!("it is {other:?}"),
    }
}

/// The object of this key with a change made to it.
fn changed(memory: &Memory, key: &ObjectKey, change: impl FnOnce(&mut Value)) -> Transaction {
    let view = memory.view();
    let object: &Object = view.get(key).unwrap();
    let mut value: Value = serde_json::from_slice(&object.draft()).unwrap();
    change(&mut value);
    Transaction::update(key.clone(), value.to_string().into(), object.revision)
}

#[tokio::test]
async fn what_a_controller_makes_is_in_a_namespace_that_stays_and_valid() {
    let (memory, router) = cluster();
    let own = controller(&memory);
    own.propose(pod("default", "good", &containers())).await.unwrap().unwrap();
    let stored = ask("GET", "/api/v1/namespaces/default/pods/good").ok(&router).await;
    assert_eq!(stored["metadata"]["uid"], "good");
    let proposals = memory.proposals();
    let bad = pod("default", "bad", &json!({ "containers": [{ "name": "C", "image": "i:1" }] }));
    let said = denied(&own, bad).await;
    assert!(said.starts_with("Pod \"bad\" is invalid: spec.containers[0].name"), "{said}");
    let mut accounted = containers();
    accounted["serviceAccountName"] = "nobody".into();
    let said = denied(&own, pod("default", "p", &accounted)).await;
    assert!(said.contains("serviceaccount \"nobody\" not found"), "{said}");
    assert_eq!(denied(&own, pod("nowhere", "p", &containers())).await, "namespaces \"nowhere\" not found");
    make_namespace(&memory, "ends");
    ask("DELETE", "/api/v1/namespaces/ends").ok(&router).await;
    let said = denied(&own, pod("ends", "late", &containers())).await;
    assert!(said.contains("because it is being terminated"), "{said}");
    assert_eq!(memory.proposals(), proposals + 1, "only the deletion came to the store");
}

#[tokio::test]
async fn a_namespace_that_ends_meanwhile_takes_nothing() {
    let (memory, router) = cluster();
    make_namespace(&memory, "ends");
    let own = controller(&memory);
    // By the local state it would be fine: what must hold goes with the write.
    memory.fall_behind();
    ask("DELETE", "/api/v1/namespaces/ends").ok(&router).await;
    let refused = own.propose(pod("ends", "p", &containers())).await.unwrap().unwrap_err();
    let Refusal::Precondition { key, expected, .. } = refused else { panic!("{refused:?}") };
    assert_eq!((key, expected), (ObjectKey::new("namespaces", "", "ends"), Expect::NotDeleting));
    // And what the local state lacks the newest has.
    let fresh =
        json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": "fresh", "uid": "f" } });
    memory.put("namespaces", "", "fresh", fresh);
    own.propose(pod("fresh", "p", &containers())).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_services_claims_go_with_it_and_not_before() {
    let (memory, router) = cluster();
    let service = json!({
        "kind": "Service", "apiVersion": "v1", "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }] },
    });
    ask("POST", "/api/v1/namespaces/default/services").json(service).ok(&router).await;
    let own = as_user(&memory, UserInfo::component("garbage-collector-controller"));
    let view = memory.view();
    let service = view.get(&ObjectKey::new("services", "default", "s")).unwrap();
    let claim = view.list(claims::ADDRESSES, None).next().unwrap();
    let said = denied(&own, Transaction::delete(claim.key.clone(), claim.revision)).await;
    assert!(said.contains("default/s"), "{said}");
    let mut all = Transaction::delete(service.key.clone(), service.revision);
    all.join(claims::release(&view, service));
    assert_eq!(all.writes.len(), 2);
    own.propose(all).await.unwrap().unwrap();
    assert_eq!(memory.view().list(claims::ADDRESSES, None).count(), 0);
}

#[tokio::test]
async fn what_was_taken_under_older_rules_is_not_held_back_by_a_controller() {
    let (memory, _) = cluster();
    let key = ObjectKey::new("endpointslices.discovery.k8s.io", "default", "e");
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "e", "namespace": "default", "uid": "e", "finalizers": ["a/b"] },
        "addressType": "IPv4", "endpoints": [{ "addresses": ["1.2.3"] }], "ports": [],
    });
    memory.put(key.resource.as_str(), "default", "e", slice);
    let own = as_user(&memory, UserInfo::component("endpointslice-controller"));
    let labelled = changed(&memory, &key, |slice| slice["metadata"]["labels"] = json!({ "a": "b" }));
    own.propose(labelled).await.unwrap().unwrap();
    let worse = changed(&memory, &key, |slice| slice["endpoints"][0]["addresses"] = json!(["1.2"]));
    let said = denied(&own, worse).await;
    assert!(said.contains("endpoints[0].addresses[0]"), "{said}");
    let better = changed(&memory, &key, |slice| slice["endpoints"][0]["addresses"] = json!(["10.128.0.1"]));
    own.propose(better).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_node_writes_the_status_of_its_pods_also_where_they_are_older_than_a_default() {
    let (memory, _) = cluster();
    let mut spec = containers();
    spec["nodeName"] = "n1".into();
    let made = pod("default", "p", &spec);
    let Write::Put { draft, .. } = &made.writes[0] else { panic!("a put") };
    memory.put("pods", "default", "p", serde_json::from_slice(draft).unwrap());
    let key = ObjectKey::new("pods", "default", "p");
    let running = || changed(&memory, &key, |pod| pod["status"]["phase"] = "Running".into());
    let said = denied(&as_user(&memory, UserInfo::node("n2")), running()).await;
    assert!(said.contains("bound to it, not to \"n1\""), "{said}");
    let own = as_user(&memory, UserInfo::node("n1"));
    own.propose(running()).await.unwrap().unwrap();
    let stored: Value = memory.view().get(&key).unwrap().parse().unwrap();
    assert_eq!((&stored["status"]["phase"], &stored["spec"]), (&json!("Running"), &spec));
    let other = changed(&memory, &key, |pod| pod["spec"]["containers"][0]["image"] = "j:1".into());
    let said = denied(&own, other).await;
    assert!(said.contains("only write the status"), "{said}");
    let revision = memory.view().get(&key).unwrap().revision;
    own.propose(Transaction::delete(key, revision)).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_no_store_takes_is_not_sent_there() {
    let (memory, _) = cluster();
    let mut spec = containers();
    spec["containers"][0]["env"] = json!([{ "name": "a", "value": "x".repeat(2 << 20) }]);
    let refused = controller(&memory).propose(pod("default", "p", &spec)).await.unwrap().unwrap_err();
    assert!(matches!(refused, Refusal::TooLarge { .. }), "{refused:?}");
    assert_eq!(memory.proposals(), 0);
}

#[tokio::test]
async fn what_is_based_on_an_older_state_is_decided_anew_and_not_denied() {
    let (memory, _) = cluster();
    let mut spec = containers();
    spec["nodeName"] = "n1".into();
    let pod = |image: &str| {
        let mut spec = spec.clone();
        spec["containers"][0]["image"] = image.into();
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "default", "uid": "p" },
            "spec": spec, "status": {},
        })
    };
    memory.put("pods", "default", "p", pod("i:1"));
    let key = ObjectKey::new("pods", "default", "p");
    let running = changed(&memory, &key, |pod| pod["status"]["phase"] = "Running".into());
    memory.put("pods", "default", "p", pod("i:2"));
    let own = as_user(&memory, UserInfo::node("n1"));
    let refused = own.propose(running).await.unwrap().unwrap_err();
    assert!(matches!(refused, Refusal::Precondition { .. }), "{refused:?}");
}

#[tokio::test]
async fn metadata_of_what_is_older_than_a_default_is_written() {
    let (memory, _) = cluster();
    let key = ObjectKey::new("secrets", "default", "s");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "default", "uid": "s" },
        "immutable": true, "data": { "a": "YQ==" },
    });
    memory.put("secrets", "default", "s", secret);
    let own = as_user(&memory, UserInfo::component("garbage-collector-controller"));
    let owned = changed(&memory, &key, |secret| secret["metadata"]["labels"] = json!({ "a": "b" }));
    own.propose(owned).await.unwrap().unwrap();
    let other = changed(&memory, &key, |secret| secret["data"]["a"] = "Yg==".into());
    assert!(denied(&own, other).await.contains("immutable"));
}
