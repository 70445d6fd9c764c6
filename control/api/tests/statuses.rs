//! What is written to statuses, to claims of addresses, and in spellings that other programs use.

mod support;

use axum::http::StatusCode;
use serde_json::{Value, json};
use support::{ask, cluster};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const MERGE: &str = "application/merge-patch+json";

fn pod(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "a:1" }] } })
}

#[tokio::test]
async fn a_status_that_readers_do_not_know_is_refused() {
    let (memory, router) = cluster();
    memory.put("serviceaccounts", "default", "default", json!({ "metadata": { "name": "default" } }));
    ask("POST", PODS).json(pod("a")).ok(&router).await;
    ask("POST", "/api/v1/nodes").json(json!({ "metadata": { "name": "n" } })).ok(&router).await;
    let patch = async |path: &str, status: Value| {
        let body = json!({ "status": status }).to_string();
        ask("PATCH", path).body(MERGE, body).value(&router).await
    };
    let status = format!("{PODS}/a/status");
    let twice = json!([{ "type": "x", "status": "True" }, { "type": "x", "status": "False" }]);
    for (path, bad, field) in [
        (status.as_str(), json!({ "podIP": "1.2.3" }), "status.podIP"),
        (&status, json!({ "podIP": "10.128.0.1", "podIPs": [{ "ip": "x" }] }), "status.podIPs"),
        (&status, json!({ "hostIP": "x" }), "status.hostIP"),
        (&status, json!({ "phase": "Weird" }), "status.phase"),
        (&status, json!({ "conditions": twice }), "status.conditions[1]"),
        ("/api/v1/nodes/n/status", json!({ "allocatable": { "pods": "-5" } }), "status.allocatable[pods]"),
        ("/api/v1/nodes/n/status", json!({ "conditions": twice }), "status.conditions[1]"),
        ("/api/v1/namespaces/default/status", json!({ "conditions": twice }), "status.conditions[1]"),
    ] {
        let (code, answer) = patch(path, bad.clone()).await;
        // Of two addresses that differ the single one counts, as upstream has it.
        if bad.get("podIPs").is_some() {
            assert_eq!((code, &answer["status"]["podIPs"][0]["ip"]), (StatusCode::OK, &json!("10.128.0.1")));
            continue;
        }
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{bad}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains(field), "{answer}");
    }
    let node = json!({ "metadata": { "name": "m" }, "status": { "capacity": { "cpu": "-1" } } });
    let (code, text) = ask("POST", "/api/v1/nodes").json(node).fail(&router).await;
    assert!(code == 422 && text.contains("status.capacity[cpu]"), "{text}");
}

#[tokio::test]
async fn a_status_that_is_older_than_the_rules_holds_nothing_back() {
    let (memory, router) = cluster();
    let metadata = json!({ "name": "old", "namespace": "default", "uid": "u" });
    let mut old = pod("old");
    (old["metadata"], old["status"]) = (metadata, json!({ "phase": "Weird", "qosClass": "BestEffort" }));
    memory.put("pods", "default", "old", old);
    let touch = json!({ "metadata": { "annotations": { "a": "b" } } }).to_string();
    ask("PATCH", &format!("{PODS}/old/status")).body(MERGE, touch).ok(&router).await;
}

#[tokio::test]
async fn an_address_is_not_given_up_while_its_service_lives() {
    let (_, router) = cluster();
    let service = |name: &str, address: &str| {
        let spec = json!({ "clusterIP": address, "ports": [{ "port": 80 }] });
        json!({ "metadata": { "name": name }, "spec": spec })
    };
    ask("POST", SERVICES).json(service("s1", "10.96.3.3")).ok(&router).await;
    let claim = format!("{ADDRESSES}/10.96.3.3");
    let (code, text) = ask("DELETE", &claim).fail(&router).await;
    assert!(code == 403 && text.contains("the address of the service default/s1"), "{text}");
    let (code, _) = ask("DELETE", ADDRESSES).fail(&router).await;
    assert_eq!(code, 403);
    let (code, text) = ask("POST", SERVICES).json(service("s2", "10.96.3.3")).fail(&router).await;
    assert!(code == 422 && text.contains("already allocated"), "{text}");
    // Of a service that is not there a claim may go, and it goes with its service.
    let parent = json!({ "resource": "services", "namespace": "default", "name": "none" });
    let other = json!({ "metadata": { "name": "10.96.3.4" }, "spec": { "parentRef": parent } });
    ask("POST", ADDRESSES).json(other).ok(&router).await;
    ask("DELETE", &format!("{ADDRESSES}/10.96.3.4")).ok(&router).await;
    ask("DELETE", &format!("{SERVICES}/s1")).ok(&router).await;
    assert_eq!(ask("GET", &claim).fail(&router).await.0, 404);
    ask("POST", SERVICES).json(service("s2", "10.96.3.3")).ok(&router).await;
}

#[tokio::test]
async fn the_addresses_of_the_cluster_itself_are_kept_also_without_their_services() {
    let (_, router) = cluster();
    for (address, name, namespace) in
        [("10.96.0.1", "kubernetes", "default"), ("10.96.0.10", "kube-dns", "kube-system")]
    {
        let parent = json!({ "resource": "services", "namespace": namespace, "name": name });
        let claim = json!({ "metadata": { "name": address }, "spec": { "parentRef": parent } });
        ask("POST", ADDRESSES).json(claim).ok(&router).await;
        let (code, text) = ask("DELETE", &format!("{ADDRESSES}/{address}")).fail(&router).await;
        assert!(code == 403 && text.contains(&format!("{namespace}/{name}")), "{text}");
    }
}

#[tokio::test]
async fn what_a_service_says_of_its_traffic_is_checked() {
    let (_, router) = cluster();
    for (field, value) in [
        ("internalTrafficPolicy", json!("Here")),
        ("trafficDistribution", json!("Somewhere")),
        ("loadBalancerClass", json!("example.com/fast")),
    ] {
        let mut service = json!({ "metadata": { "name": "a" }, "spec": { "ports": [{ "port": 80 }] } });
        service["spec"][field] = value;
        let (code, text) = ask("POST", SERVICES).json(service).fail(&router).await;
        assert!(code == 422 && text.contains(&format!("spec.{field}: ")), "{text}");
    }
}

#[tokio::test]
async fn spellings_of_other_programs_are_taken() {
    let (_, router) = cluster();
    let path = "/api/v1/namespaces/default/secrets";
    let secret = json!({ "metadata": { "name": "a" }, "data": { "a": "YQ\n==", "b": "YR==" } });
    let made = ask("POST", path).json(secret).ok(&router).await;
    assert_eq!(made["data"], json!({ "a": "YQ==", "b": "YQ==" }));
    let yaml = "---\nmetadata:\n  name: b\n---\nmetadata:\n  name: c\n";
    let made = ask("POST", path).body("application/yaml", yaml).ok(&router).await;
    assert_eq!(made["metadata"]["name"], "b");
    let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u" });
    let twice = json!({ "metadata": { "name": "d", "ownerReferences": [owner, owner] } });
    let made = ask("POST", path).json(twice).ok(&router).await;
    assert_eq!(made["metadata"]["ownerReferences"], json!([owner]));
}

#[tokio::test]
async fn since_when_an_ingress_asks_for_a_host_only_the_server_says() {
    const INGRESSES: &str = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    const SINCE: &str = "coracle.dev/hosts-since";
    let (_memory, router) = cluster();
    let forged = json!({ SINCE: r#"{"2000-01-01T00:00:00Z":["b.example"]}"# });
    let rules = |hosts: &[&str]| {
        let path = json!({ "path": "/", "pathType": "Prefix",
            "backend": { "service": { "name": "s", "port": { "number": 80 } } } });
        let rule = |host: &&str| json!({ "host": host, "http": { "paths": [path] } });
        json!({ "rules": hosts.iter().map(rule).collect::<Vec<_>>() })
    };
    let ingress =
        |hosts: &[&str]| json!({ "metadata": { "name": "i", "annotations": forged }, "spec": rules(hosts) });
    let since = |ingress: &Value| ingress["metadata"]["annotations"][SINCE].as_str().map(str::to_owned);
    let made = ask("POST", INGRESSES).json(ingress(&["a.example"])).ok(&router).await;
    assert_eq!(since(&made), None, "all are asked for since it was made");
    let path = format!("{INGRESSES}/i");
    let put = ask("PUT", &path).json(ingress(&["a.example", "b.example"])).ok(&router).await;
    let noted = since(&put).unwrap();
    assert!(noted.contains(r#":["b.example"]}"#) && !noted.contains("2000"), "{noted}");
    let patch = json!({ "metadata": { "annotations": forged } }).to_string();
    for path in [path.clone(), format!("{path}/status")] {
        let patched = ask("PATCH", &path).body(MERGE, patch.clone()).ok(&router).await;
        assert_eq!(since(&patched), Some(noted.clone()), "{path}");
    }
}
