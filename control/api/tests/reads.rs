//! Lists, pages, tables, watches, discovery and health over the router.

mod support;

use std::time::Duration;

use axum::{
    Router,
    http::{StatusCode, header},
};
use coracle_api::UserInfo;
use futures::StreamExt;
use serde_json::{Value, json};
use support::{Lines, ask, cluster};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

async fn create(router: &Router, name: &str, label: &str) -> Value {
    let body = json!({ "metadata": { "name": name, "labels": { "l": label } } });
    ask("POST", MAPS).json(body).ok(router).await
}

async fn label(router: &Router, name: &str, label: &str) {
    let patch = json!({ "metadata": { "labels": { "l": label } } }).to_string();
    ask("PATCH", &format!("{MAPS}/{name}")).body("application/merge-patch+json", patch).ok(router).await;
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn lists_come_in_pages_of_one_revision() {
    let (memory, router) = cluster();
    for name in ["a", "b", "c", "d", "e"] {
        create(&router, name, "x").await;
    }
    let first = ask("GET", &format!("{MAPS}?limit=2")).ok(&router).await;
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(3)));
    create(&router, "bb", "x").await;
    ask("DELETE", &format!("{MAPS}/d")).ok(&router).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = ask("GET", &format!("{MAPS}?limit=10&continue={token}")).ok(&router).await;
    assert_eq!(names(&second), ["c", "d", "e"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["metadata"].get("continue").is_none());

    let other = support::member(&memory);
    assert_eq!(ask("GET", &format!("{MAPS}?limit=10&continue={token}")).ok(&other).await, second);
    memory.compact();
    let other = support::member(&memory);
    let (status, expired) = ask("GET", &format!("{MAPS}?continue={token}")).value(&other).await;
    assert_eq!((status, &expired["reason"]), (StatusCode::GONE, &json!("Expired")));
    let token = expired["metadata"]["continue"].as_str().unwrap();
    let rest = ask("GET", &format!("{MAPS}?continue={token}")).ok(&other).await;
    assert_eq!(names(&rest), ["bb", "c", "e"]);
}

#[tokio::test]
async fn selectors_and_revisions() {
    let (memory, router) = cluster();
    create(&router, "a", "x").await;
    create(&router, "b", "y").await;
    let list = ask("GET", "/api/v1/configmaps?labelSelector=l+in+(y,z)").ok(&router).await;
    assert_eq!(names(&list), ["b"]);
    let list =
        ask("GET", &format!("{MAPS}?fieldSelector=metadata.name%3Da,metadata.name%3Da")).ok(&router).await;
    assert_eq!(names(&list), ["a"]);
    let (code, text) = ask("GET", &format!("{MAPS}?fieldSelector=spec.x%3D1")).fail(&router).await;
    assert_eq!(code, 400);
    assert!(text.contains("field label not supported"), "{text}");
    let (status, large) = ask("GET", &format!("{MAPS}?resourceVersion=999")).value(&router).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(large["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    let exact = format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion=");
    let now = memory_revision(&memory);
    assert_eq!(names(&ask("GET", &format!("{exact}{now}")).ok(&router).await), ["a", "b"]);
    assert_eq!(names(&ask("GET", &format!("{exact}{}", now - 1)).ok(&router).await).len(), 1);
    memory.compact();
    let router = support::member(&memory);
    assert_eq!(ask("GET", &format!("{exact}{}", now - 1)).fail(&router).await.0, 410);
}

fn memory_revision(memory: &support::Memory) -> u64 {
    coracle_api::Storage::view(memory).revision
}

#[tokio::test]
async fn tables_and_metadata() {
    let (_, router) = cluster();
    create(&router, "a", "x").await;
    let table = ask("GET", MAPS).header(header::ACCEPT, TABLE).ok(&router).await;
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole =
        ask("GET", &format!("{MAPS}?includeObject=Object")).header(header::ACCEPT, TABLE).ok(&router).await;
    assert_eq!(whole["rows"][0]["object"]["kind"], "ConfigMap");
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let partial = ask("GET", MAPS).header(header::ACCEPT, partial).ok(&router).await;
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0]["metadata"]["labels"]["l"], "x");
    let (code, _) = ask("GET", MAPS).header(header::ACCEPT, "text/html").fail(&router).await;
    assert_eq!(code, 406);
}

#[tokio::test]
async fn yaml_and_protobuf_go_out_where_json_is_not_taken() {
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    let (_, router) = cluster();
    create(&router, "a", "x").await;
    let one = format!("{MAPS}/a");
    let read = async |uri: &str, accept: &str| {
        let answer = ask("GET", uri).header(header::ACCEPT, accept).send(&router).await;
        let media_type = answer.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let code = answer.status().as_u16();
        (code, media_type, axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap())
    };
    let json = ask("GET", &one).ok(&router).await;
    let (code, media_type, body) = read(&one, "application/yaml").await;
    assert_eq!((code, &*media_type), (200, "application/yaml"));
    assert_eq!(serde_yaml_ng::from_slice::<serde_json::Value>(&body).unwrap(), json);
    let (_, _, body) = read(MAPS, &TABLE.replace("json", "yaml")).await;
    assert!(body.starts_with(b"kind: Table\n"), "{body:?}");
    let (code, media_type, body) = read(&format!("{MAPS}/none"), "application/yaml").await;
    assert_eq!((code, &*media_type), (404, "application/yaml"));
    assert!(body.windows(16).any(|part| part == b"reason: NotFound"), "{body:?}");
    assert_eq!(read(&format!("{MAPS}?watch=true"), "application/yaml").await.0, 406);
    let (code, media_type, body) = read("/api", "application/yaml").await;
    assert_eq!((code, &*media_type), (200, "application/yaml"));
    assert!(body.starts_with(b"kind: APIVersions"), "{body:?}");

    let (code, media_type, body) = read(&one, PROTOBUF).await;
    assert_eq!((code, &*media_type), (200, PROTOBUF));
    let mut written = ask("PUT", &one).body(PROTOBUF, body.to_vec()).ok(&router).await;
    written["metadata"]["resourceVersion"] = json["metadata"]["resourceVersion"].clone();
    assert_eq!(written, json, "nothing was lost on the way");
    assert_eq!(read(MAPS, PROTOBUF).await.0, 200);
    assert_eq!(read("/apis/coracle.dev/v1/members", PROTOBUF).await.0, 406, "it has no form in protobuf");

    let watch = ask("GET", &format!("{MAPS}?watch=true&timeoutSeconds=1")).header(header::ACCEPT, PROTOBUF);
    let answer = watch.send(&router).await;
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/vnd.kubernetes.protobuf;stream=watch");
    let events = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    let length = u32::from_be_bytes(events[..4].try_into().unwrap()) as usize;
    assert!(events.len() >= 4 + length && events[4..].starts_with(b"\x0a\x05ADDED\x12"), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn watches_in_protobuf_are_few_and_those_that_end_make_room() {
    let (_, router) = cluster();
    // More than is encoded beside other requests.
    let data = json!({ "k": "x".repeat(100_000) });
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data });
    ask("POST", MAPS).json(map).ok(&router).await;
    let watch = async || {
        let accept = "application/vnd.kubernetes.protobuf";
        ask("GET", &format!("{MAPS}?watch=true&timeoutSeconds=3600"))
            .header(header::ACCEPT, accept)
            .send(&router)
            .await
    };
    let mut open = vec![];
    for _ in 0..128 {
        open.push(watch().await);
    }
    assert!(open.iter().all(|answer| answer.status() == 200));
    assert_eq!(watch().await.status(), 429, "of one user");
    let plain = ask("GET", &format!("{MAPS}?watch=true")).send(&router).await;
    assert_eq!(plain.status(), 200, "JSON has no bound");
    let mut event = open.pop().unwrap().into_body().into_data_stream();
    let mut read = vec![];
    while read.len() < 100_000 {
        read.extend(event.next().await.unwrap().unwrap());
    }
    let length = u32::from_be_bytes(read[..4].try_into().unwrap()) as usize;
    assert_eq!(read.len(), 4 + length);
    assert_eq!(watch().await.status(), 429, "it goes on");
    drop(event);
    assert_eq!(watch().await.status(), 200);
}

#[tokio::test]
async fn watches_follow_selectors() {
    let (_, router) = cluster();
    create(&router, "a", "x").await;
    let mut all = Lines::open(ask("GET", &format!("{MAPS}?watch=true")), &router).await;
    let mut some =
        Lines::open(ask("GET", &format!("{MAPS}?watch=1&labelSelector=l%3Dx&resourceVersion=0")), &router)
            .await;
    assert_eq!(all.event().await, ("ADDED".into(), "a".into()));
    assert_eq!(some.event().await, ("ADDED".into(), "a".into()));
    label(&router, "a", "y").await;
    assert_eq!(all.event().await.0, "MODIFIED");
    let gone = some.next().await.unwrap();
    assert_eq!(gone["type"], "DELETED");
    assert_eq!(gone["object"]["metadata"]["labels"]["l"], "x");
    label(&router, "a", "x").await;
    assert_eq!(all.event().await.0, "MODIFIED");
    assert_eq!(some.event().await.0, "ADDED");
    let deleted = ask("GET", &format!("{MAPS}/a")).ok(&router).await;
    ask("DELETE", &format!("{MAPS}/a")).ok(&router).await;
    let event = all.next().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_ne!(event["object"]["metadata"]["resourceVersion"], deleted["metadata"]["resourceVersion"]);
    assert_eq!(some.event().await.0, "DELETED");
}

#[tokio::test]
async fn watches_resume_and_expire() {
    let (memory, router) = cluster();
    let created = create(&router, "a", "x").await;
    create(&router, "b", "x").await;
    let revision = created["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{MAPS}?watch=true&resourceVersion={revision}");
    let mut lines = Lines::open(ask("GET", &path), &router).await;
    assert_eq!(lines.event().await, ("ADDED".into(), "b".into()));
    memory.compact();
    let (status, expired) = ask("GET", &path).value(&router).await;
    assert_eq!((status, &expired["reason"]), (StatusCode::GONE, &json!("Expired")));
    assert!(expired["message"].as_str().unwrap().starts_with("too old resource version: "));
    let (code, _) = ask("GET", &format!("{MAPS}?watch=true&resourceVersion=999")).fail(&router).await;
    assert_eq!(code, 504);
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let (memory, router) = cluster();
    create(&router, "a", "x").await;
    let path = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let mut lines = Lines::open(ask("GET", &path), &router).await;
    assert_eq!(lines.event().await.0, "ADDED");
    let mark = lines.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(mark["object"]["metadata"]["resourceVersion"], memory_revision(&memory).to_string());
    create(&router, "b", "x").await;
    assert_eq!(lines.event().await, ("ADDED".into(), "b".into()));
}

#[tokio::test(start_paused = true)]
async fn watches_are_marked_and_end_in_time() {
    let (_, router) = cluster();
    let path = format!("{MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=70&labelSelector=l%3Dnone");
    let mut lines = Lines::open(ask("GET", &path), &router).await;
    create(&router, "a", "x").await;
    let started = tokio::time::Instant::now();
    let mark = lines.next().await.unwrap();
    assert_eq!((&mark["type"], started.elapsed().as_secs()), (&json!("BOOKMARK"), 30));
    assert_eq!(mark["object"]["metadata"]["resourceVersion"], "3");
    assert_eq!(lines.next().await.unwrap()["type"], "BOOKMARK");
    assert!(lines.next().await.is_none());
    assert_eq!(started.elapsed(), Duration::from_secs(70));
}

#[tokio::test]
async fn watches_can_be_tables() {
    let (_, router) = cluster();
    let mut lines =
        Lines::open(ask("GET", &format!("{MAPS}?watch=true")).header(header::ACCEPT, TABLE), &router).await;
    create(&router, "a", "x").await;
    create(&router, "b", "x").await;
    let (one, two) = (lines.next().await.unwrap(), lines.next().await.unwrap());
    assert_eq!(one["object"]["kind"], "Table");
    assert_eq!(one["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(two["object"]["columnDefinitions"], Value::Null);
    assert_eq!(two["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn discovery_in_all_forms() {
    let (_, router) = cluster();
    for version in ["v2", "v2beta1"] {
        let accept = format!(
            "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList,application/json"
        );
        let response = ask("GET", "/apis").header(header::ACCEPT, &accept).send(&router).await;
        let content_type =
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        assert_eq!(response.headers()[header::CONTENT_TYPE], content_type);
        assert_eq!(response.headers()[header::VARY], "Accept");
        let etag = response.headers()[header::ETAG].to_str().unwrap().to_owned();
        let known = ask("GET", "/apis").header(header::ACCEPT, &accept).header(header::IF_NONE_MATCH, &etag);
        assert_eq!(known.send(&router).await.status(), StatusCode::NOT_MODIFIED);
        let core = ask("GET", "/api/").header(header::ACCEPT, &accept).ok(&router).await;
        let pods = core["items"][0]["versions"][0]["resources"].as_array().unwrap();
        let pods = pods.iter().find(|resource| resource["resource"] == "pods").unwrap();
        assert_eq!(pods["scope"], "Namespaced");
        assert!(pods["subresources"].as_array().unwrap().iter().any(|sub| sub["subresource"] == "log"));
    }
    assert_eq!(ask("GET", "/api").ok(&router).await["versions"], json!(["v1"]));
    let groups = ask("GET", "/apis").ok(&router).await;
    let apps = groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "apps").unwrap();
    assert_eq!(apps["preferredVersion"]["groupVersion"], "apps/v1");
    assert_eq!(ask("GET", "/apis/apps").ok(&router).await["kind"], "APIGroup");
    let resources = ask("GET", "/apis/apps/v1/").ok(&router).await;
    let names: Vec<&str> = resources["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"deployments") && names.contains(&"deployments/scale"), "{names:?}");
    assert_eq!(ask("GET", "/openapi/v2").fail(&router).await.0, 406);
    assert!(ask("GET", "/openapi/v3").ok(&router).await["paths"]["apis/apps/v1"].is_object());
}

#[tokio::test]
async fn health_version_and_who_may_ask() {
    let (_, router) = cluster();
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping"] {
        let (status, text) = ask("GET", path).by(None).value(&router).await;
        assert_eq!((status, text), (StatusCode::OK, json!("ok")), "{path}");
    }
    let (_, text) = ask("GET", "/readyz?verbose").by(None).value(&router).await;
    assert_eq!(text, "[+]ping ok\n[+]storage ok\nreadyz check passed\n");
    let (_, text) = ask("GET", "/readyz?verbose&exclude=storage&exclude=no").by(None).value(&router).await;
    let warning = "warn: some health checks cannot be excluded: no matches for \"no\"\n";
    assert_eq!(text, format!("[+]ping ok\n[+]storage excluded: ok\n{warning}readyz check passed\n"));
    assert_eq!(ask("GET", "/readyz/no").by(None).fail(&router).await.0, 404);
    assert_eq!(ask("GET", "/livez/storage").by(None).fail(&router).await.0, 404);
    assert_eq!(ask("GET", "/version").by(None).ok(&router).await["minor"], "33");
    assert_eq!(ask("GET", MAPS).by(None).fail(&router).await, (401, "Unauthorized".to_owned()));
    let joe = UserInfo::new("joe", &[]);
    assert_eq!(ask("GET", MAPS).by(Some(joe)).fail(&router).await.0, 403);
    let response = ask("GET", "/api").send(&router).await;
    assert!(response.headers().contains_key("audit-id"));

    let review = json!({ "spec": { "resourceAttributes": { "verb": "get", "resource": "pods" } } });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(ask("POST", path).json(review).ok(&router).await["status"]["allowed"], true);
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = ask("POST", path).json(json!({})).ok(&router).await;
    assert_eq!(who["status"]["userInfo"]["username"], "admin");
}

#[tokio::test]
async fn events_are_the_same_in_both_groups() {
    let (_, router) = cluster();
    let body = json!({
        "metadata": { "name": "e", "namespace": "default" }, "reason": "Started", "message": "m", "type": "Normal",
        "involvedObject": { "kind": "Pod", "name": "p", "namespace": "default" },
    });
    ask("POST", "/api/v1/namespaces/default/events").json(body).ok(&router).await;
    let other = ask("GET", "/apis/events.k8s.io/v1/namespaces/default/events/e").ok(&router).await;
    assert_eq!((&other["apiVersion"], &other["note"]), (&json!("events.k8s.io/v1"), &json!("m")));
    let list = ask("GET", "/api/v1/events?fieldSelector=involvedObject.name%3Dp").ok(&router).await;
    assert_eq!(names(&list), ["e"]);
    let list = ask("GET", "/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp").ok(&router).await;
    assert_eq!(names(&list), ["e"]);
    let none = ask("GET", "/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dq").ok(&router).await;
    assert!(names(&none).is_empty());
}
