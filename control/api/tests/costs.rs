//! What a request may cost: time and memory that are linear in it, whatever it is made of.

mod support;

use std::time::{Duration, Instant};

use axum::http::header;
use bytes::Bytes;
use coracle_api::Storage;
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use support::{Memory, ask, cluster};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// More than any of these takes on a busy machine, and far less than what is multiplied takes.
const SOON: Duration = Duration::from_secs(10);

/// Puts config maps of so many bytes each.
fn fill(memory: &Memory, maps: usize, bytes: usize) {
    for at in 0..maps {
        let name = format!("m{at}");
        let map = json!({
            "kind": "ConfigMap", "apiVersion": "v1",
            "metadata": { "name": name, "namespace": "default", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "data": { "x": "y".repeat(bytes) },
        });
        memory.put("configmaps", "default", &name, map);
    }
}

#[tokio::test]
async fn a_patch_of_an_object_with_a_long_name_costs_its_fields_once() {
    let (_, router) = cluster();
    ask("POST", MAPS).json(json!({ "metadata": { "name": "a" } })).ok(&router).await;
    let fields: Map<String, Value> = (0..100_000).map(|at| (at.to_string(), json!(1))).collect();
    let patch = json!({ "metadata": { "k".repeat(1_300_000): fields } }).to_string();
    let began = Instant::now();
    let response = ask("PATCH", &format!("{MAPS}/a")).body(STRATEGIC, patch).send(&router).await;
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    assert_eq!(response.status(), 200);
    let warnings: usize =
        response.headers().get_all(header::WARNING).iter().map(|warning| warning.len()).sum();
    assert!((100..5000).contains(&warnings), "{warnings} bytes of warnings");
}

#[tokio::test]
async fn what_is_named_often_is_named_shortly() {
    let (_, router) = cluster();
    let twice = "\"a\":1,".repeat(200);
    let body = format!(r#"{{"metadata":{{"name":"a"}},"{}":{{{twice}"a":1}}}}"#, "k".repeat(1_300_000));
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let (code, text) = ask("POST", &strict).body("application/json", body).fail(&router).await;
    assert_eq!(code, 400);
    assert!(text.len() < 100_000, "{} bytes", text.len());
}

#[tokio::test]
async fn a_body_of_a_million_empty_elements_is_refused_at_once() {
    let (_, router) = cluster();
    let began = Instant::now();
    let empty = format!("{{}}{}", ",{}".repeat(999_999));
    for spec in ["containers", "initContainers", "ephemeralContainers", "volumes", "tolerations"] {
        let body = format!(r#"{{"metadata":{{"name":"a"}},"spec":{{"{spec}":[{empty}]}}}}"#);
        let (code, text) = ask("POST", PODS).body("application/json", body).fail(&router).await;
        assert!(code == 400 && text.contains("more than 250000 values"), "{spec}: {text}");
    }
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
    // spec (2) with a million of containers (2), all of them empty; each length is a varint.
    let varint = |mut number: usize| {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let field =
        |number: u8, bytes: &[u8]| [vec![number << 3 | 2], varint(bytes.len()), bytes.to_vec()].concat();
    let spec = [2 << 3 | 2, 0].repeat(1_040_000);
    let raw = [field(1, &field(1, b"a")), field(2, &spec)].concat();
    let meta = [field(1, b"v1"), field(2, b"Pod")].concat();
    let body = [b"k8s\0".to_vec(), field(1, &meta), field(2, &raw)].concat();
    let pods = ask("POST", PODS).body("application/vnd.kubernetes.protobuf", body);
    let (code, text) = pods.fail(&router).await;
    assert!(code == 400 && text.contains("more than 250000 values"), "{text}");
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_list_that_is_too_long_is_named_before_it_is_filled_in() {
    let (_, router) = cluster();
    let template = |spec: Value| {
        json!({ "metadata": { "name": "a" }, "spec": { "selector": { "matchLabels": { "a": "b" } },
            "template": { "metadata": { "labels": { "a": "b" } }, "spec": spec } } })
    };
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let many = template(json!({ "containers": vec![json!({}); 50_000] }));
    let (code, text) = ask("POST", deployments).json(many).fail(&router).await;
    let expected = "Deployment.apps \"a\" is invalid: spec.template.spec.containers: Too many: 50000: must have at most \
                    1000 items";
    assert_eq!((code, text.as_str()), (422, expected));
    let ports = json!({ "ports": vec![json!({}); 100] });
    let nested = template(json!({ "containers": vec![ports; 600] }));
    let (code, text) = ask("POST", deployments).json(nested).fail(&router).await;
    assert!(code == 422 && text.contains("all lists of the object together"), "{text}");
    let container = json!({ "name": "a", "image": "a:1" });
    ask("POST", deployments).json(template(json!({ "containers": [container] }))).ok(&router).await;
    let tolerations = vec![json!({ "operator": "Exists" }); 35_000];
    let patch = json!({ "spec": { "template": { "spec": { "tolerations": tolerations } } } }).to_string();
    for kind in [STRATEGIC, "application/merge-patch+json"] {
        let patch = ask("PATCH", &format!("{deployments}/a")).body(kind, patch.clone());
        let (code, text) = patch.fail(&router).await;
        assert!(code == 422 && text.contains("tolerations: Too many: 35000"), "{text}");
    }
    let rule = json!({ "host": "a.example" });
    let ingress = json!({ "metadata": { "name": "a" }, "spec": { "rules": vec![rule; 20_000] } });
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let (code, text) = ask("POST", ingresses).json(ingress).fail(&router).await;
    assert!(code == 422 && text.contains("spec.rules: Too many: 20000"), "{text}");
}

#[tokio::test]
async fn a_large_list_comes_in_frames_and_copies_no_large_object() {
    let (memory, router) = cluster();
    fill(&memory, 5, 1_000_000);
    let stored: Vec<Bytes> =
        memory.view().list("configmaps", None).map(|object| object.json.clone()).collect();
    let mut body = ask("GET", MAPS).send(&router).await.into_body();
    let (mut whole, mut shared) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.unwrap().into_data().unwrap();
        assert!(frame.len() <= 64 * 1024, "{} bytes", frame.len());
        if stored.iter().any(|json| json.as_ptr_range().contains(&frame.as_ptr())) {
            shared += frame.len();
        }
        whole.extend_from_slice(&frame);
    }
    assert!(shared > 4_900_000, "{shared} bytes are those of the state");
    let list: Value = serde_json::from_slice(&whole).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 5);
    assert_eq!(list["items"][4]["metadata"]["name"], "m4");
}

#[tokio::test]
async fn large_lists_are_whole_in_every_form() {
    let (memory, router) = cluster();
    fill(&memory, 300, 1000);
    let forms = [
        ("application/json", "items"),
        ("application/json;as=Table;v=v1;g=meta.k8s.io", "rows"),
        ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "items"),
    ];
    for (accept, field) in forms {
        for uri in [MAPS, &format!("{MAPS}?limit=1"), &format!("{MAPS}?labelSelector=a%3Db")] {
            let list = ask("GET", uri).header(header::ACCEPT, accept).ok(&router).await;
            let expected = if uri == MAPS { 300 } else { usize::from(uri.contains("limit")) };
            assert_eq!(list[field].as_array().unwrap().len(), expected, "{accept} {uri}");
            assert!(list["metadata"]["resourceVersion"].is_string());
        }
    }
}

/// An answer of which the network took one frame that it has not written yet.
async fn unread(router: &axum::Router) -> Option<(Bytes, Option<axum::body::Body>)> {
    let answer = ask("GET", MAPS).send(router).await;
    if answer.status() == 429 {
        return None;
    }
    let mut body = answer.into_body();
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let more = !http_body::Body::is_end_stream(&body);
    Some((frame, more.then_some(body)))
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads_are_no_more_than_a_users_share() {
    let (memory, router) = cluster();
    fill(&memory, 8, 100_000);
    let mut kept = Vec::new();
    while let Some(answer) = unread(&router).await {
        kept.push(answer);
        assert!(kept.len() <= 200, "more than a user's share");
    }
    let bytes: usize = kept.iter().map(|(frame, _)| frame.len()).sum();
    assert!(kept.len() == 200 && bytes < 200 * 64 * 1024, "{bytes} bytes");
    // Other users are served, and this one as soon as his are given up.
    let joe = coracle_api::UserInfo::new("joe", &["system:masters"]);
    ask("GET", MAPS).by(Some(joe)).ok(&router).await;
    tokio::time::sleep(Duration::from_secs(31)).await;
    let object = memory.view().list("configmaps", None).next().cloned().unwrap();
    assert!(std::sync::Arc::strong_count(&object) < 10, "the lists do not hold the state any more");
    kept.clear();
    ask("GET", MAPS).ok(&router).await;
}

#[tokio::test]
async fn a_page_token_keeps_no_state() {
    let (memory, router) = cluster();
    fill(&memory, 3, 100);
    let page = ask("GET", &format!("{MAPS}?limit=1")).ok(&router).await;
    let old: Vec<_> = memory.view().list("configmaps", None).map(std::sync::Arc::downgrade).collect();
    fill(&memory, 3, 200);
    let token = page["metadata"]["continue"].as_str().unwrap();
    let next = ask("GET", &format!("{MAPS}?limit=1&continue={token}")).ok(&router).await;
    assert_eq!(next["items"][0]["data"]["x"].as_str().unwrap().len(), 100, "the state of the first page");
    memory.compact();
    assert!(old.iter().all(|object| object.upgrade().is_none()), "the window alone kept it");
    let (status, gone) = ask("GET", &format!("{MAPS}?limit=1&continue={token}")).value(&router).await;
    assert_eq!((status.as_u16(), &gone["reason"]), (410, &json!("Expired")));
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let rest = ask("GET", &format!("{MAPS}?continue={token}")).ok(&router).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 2);
}
