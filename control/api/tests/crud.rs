//! Create, read, update, patch and delete over the router.

mod support;

use axum::http::{StatusCode, header};
use serde_json::{Value, json};
use support::{ask, cluster};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn config_map(name: &str) -> Value {
    json!({ "kind": "ConfigMap", "apiVersion": "v1", "metadata": { "name": name }, "data": { "a": "1" } })
}

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": "hello:1.0" }, { "name": "side", "image": "b:1" }] },
            },
        },
    })
}

#[tokio::test]
async fn an_object_lives_its_life() {
    let (_, router) = cluster();
    let created = ask("POST", MAPS).json(config_map("a")).ok(&router).await;
    assert_eq!(created["metadata"]["namespace"], "default");
    assert!(created["metadata"]["uid"].as_str().unwrap().len() == 36);
    assert!(created["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > 2);
    assert_eq!(ask("GET", &format!("{MAPS}/a")).ok(&router).await, created);

    let (code, text) = ask("POST", MAPS).json(config_map("a")).fail(&router).await;
    assert_eq!((code, text.as_str()), (409, "configmaps \"a\" already exists"));

    let mut changed = created.clone();
    changed["data"]["a"] = "2".into();
    let updated = ask("PUT", &format!("{MAPS}/a")).json(changed.clone()).ok(&router).await;
    assert_ne!(updated["metadata"]["resourceVersion"], created["metadata"]["resourceVersion"]);
    let again = ask("PUT", &format!("{MAPS}/a")).json(updated.clone()).ok(&router).await;
    assert_eq!(again, updated, "a write that changes nothing keeps its resourceVersion");

    changed["data"]["a"] = "3".into();
    let (code, text) = ask("PUT", &format!("{MAPS}/a")).json(changed).fail(&router).await;
    assert_eq!(code, 409);
    assert_eq!(
        text,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your \
         changes to the latest version and try again"
    );
    ask("PUT", &format!("{MAPS}/a")).json(config_map("a")).ok(&router).await;

    let deleted = ask("DELETE", &format!("{MAPS}/a"))
        .json(json!({ "propagationPolicy": "Background" }))
        .ok(&router)
        .await;
    assert_eq!(deleted["status"], "Success");
    assert_eq!(deleted["details"]["uid"], created["metadata"]["uid"]);
    let (code, text) = ask("GET", &format!("{MAPS}/a")).fail(&router).await;
    assert_eq!((code, text.as_str()), (404, "configmaps \"a\" not found"));
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let (_, router) = cluster();
    let cases = [
        ("POST", "/api/v1/namespaces/none/configmaps", config_map("a"), 404, "namespaces \"none\" not found"),
        (
            "POST",
            MAPS,
            json!({ "apiVersion": "apps/v1", "metadata": { "name": "a" } }),
            400,
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        ),
        (
            "POST",
            MAPS,
            json!({ "metadata": { "name": "a", "namespace": "other" } }),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            "POST",
            MAPS,
            json!({ "metadata": { "name": "a", "resourceVersion": "3" } }),
            400,
            "resourceVersion should not be set on objects to be created",
        ),
        (
            "POST",
            MAPS,
            json!({ "metadata": {} }),
            422,
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/a",
            config_map("a"),
            404,
            "configmaps \"a\" not found",
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/b",
            config_map("a"),
            400,
            "the name of the object (a) does not match the name on the URL (b)",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/nonsense",
            json!({}),
            404,
            "the server could not find the requested resource: nonsense of v1 are not served",
        ),
        (
            "POST",
            "/apis/batch/v1/namespaces/default/jobs",
            json!({}),
            404,
            "the server could not find the requested resource: jobs of batch/v1 are not served",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/pods/p/exec",
            json!({}),
            404,
            "the server could not find the requested resource: the subresource exec of pods is not served",
        ),
        ("PUT", MAPS, json!({}), 405, "the server does not allow this method on the requested resource"),
        (
            "POST",
            MAPS,
            json!({ "metadata": { "name": "a" }, "data": { "x": 1 } }),
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go \
             struct field ConfigMap.data.x of type string",
        ),
    ];
    for (method, path, body, code, text) in cases {
        let answer = ask(method, path).json(body).fail(&router).await;
        assert_eq!((answer.0, answer.1.as_str()), (code, text), "{method} {path}");
    }
}

#[tokio::test]
async fn bodies_of_other_types_or_too_large_are_refused() {
    let (_, router) = cluster();
    let (code, _) = ask("POST", MAPS).body("text/plain", "x").fail(&router).await;
    assert_eq!(code, 415);
    let large = format!("{{\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(4 << 20));
    let (code, text) = ask("POST", MAPS).body("application/json", large).fail(&router).await;
    assert_eq!((code, text.as_str()), (413, "Request entity too large: limit is 3145728"));
}

#[tokio::test]
async fn unknown_and_duplicate_fields_are_told() {
    let (_, router) = cluster();
    let body = r#"{"metadata":{"name":"a"},"dat":{},"data":{"x":"1","x":"2"}}"#;
    let strict = ask("POST", &format!("{MAPS}?fieldValidation=Strict")).body("application/json", body);
    let (code, text) = strict.fail(&router).await;
    assert_eq!(code, 400);
    assert_eq!(
        text,
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \
         \"dat\", duplicate field \"data.x\""
    );
    let warned = ask("POST", MAPS).body("application/json", body).send(&router).await;
    let warnings: Vec<_> = warned.headers().get_all(header::WARNING).iter().collect();
    assert_eq!(warnings, [r#"299 - "unknown field \"dat\"""#, r#"299 - "duplicate field \"data.x\"""#]);
    let stored = ask("GET", &format!("{MAPS}/a")).ok(&router).await;
    assert!(stored.get("dat").is_none(), "unknown fields are not kept");
    let ignored = body.replace("\"a\"", "\"b\"");
    let ignored = ask("POST", &format!("{MAPS}?fieldValidation=Ignore")).body("application/json", ignored);
    assert!(ignored.send(&router).await.headers().get(header::WARNING).is_none());
    let yaml = "metadata:\n  name: y\ndata:\n  a: '1'\n";
    let stored = ask("POST", MAPS).body("application/yaml", yaml).ok(&router).await;
    assert_eq!(stored["data"]["a"], "1");
}

#[tokio::test]
async fn patches_of_all_kinds() {
    let (_, router) = cluster();
    ask("POST", DEPLOYMENTS).json(deployment("web")).ok(&router).await;
    let path = format!("{DEPLOYMENTS}/web");
    let strategic =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "side", "image": "b:2" }] } } } });
    let patched = ask("PATCH", &path)
        .body("application/strategic-merge-patch+json", strategic.to_string())
        .ok(&router)
        .await;
    let containers = &patched["spec"]["template"]["spec"]["containers"];
    assert_eq!((&containers[0]["image"], &containers[1]["image"]), (&json!("hello:1.0"), &json!("b:2")));
    assert_eq!(patched["metadata"]["generation"], 2);

    let merge = json!({ "metadata": { "labels": { "x": "y" } }, "status": { "replicas": 7 } });
    let patched =
        ask("PATCH", &path).body("application/merge-patch+json", merge.to_string()).ok(&router).await;
    assert_eq!(patched["metadata"]["labels"]["x"], "y");
    assert_eq!(patched["metadata"]["generation"], 2, "only the spec moves the generation");
    assert_ne!(patched["status"]["replicas"], 7, "the status is a part of its own");

    let operations = json!([{ "op": "replace", "path": "/spec/replicas", "value": 3 }]);
    let patched =
        ask("PATCH", &path).body("application/json-patch+json", operations.to_string()).ok(&router).await;
    assert_eq!(patched["spec"]["replicas"], 3);

    let status = json!({ "spec": { "replicas": 9 }, "status": { "replicas": 2 } });
    let patched = ask("PATCH", &format!("{path}/status"))
        .body("application/merge-patch+json", status.to_string())
        .ok(&router)
        .await;
    assert_eq!((&patched["spec"]["replicas"], &patched["status"]["replicas"]), (&json!(3), &json!(2)));
    assert_eq!(patched["metadata"]["generation"], 3);

    let stale = json!({ "metadata": { "resourceVersion": "1", "labels": { "x": "z" } } });
    let (code, _) =
        ask("PATCH", &path).body("application/merge-patch+json", stale.to_string()).fail(&router).await;
    assert_eq!(code, 409);
    let (code, text) = ask("PATCH", &format!("{path}?fieldManager=k"))
        .body("application/apply-patch+yaml", "{}")
        .fail(&router)
        .await;
    assert_eq!(code, 415);
    assert!(text.contains("server-side apply"), "{text}");
    let unknown = json!({ "spec": { "replica": 1 } });
    let (code, text) = ask("PATCH", &format!("{path}?fieldValidation=Strict"))
        .body("application/merge-patch+json", unknown.to_string())
        .fail(&router)
        .await;
    assert_eq!(code, 422);
    assert!(text.contains("strict decoding error: unknown field \"spec.replica\""), "{text}");
    let dry = ask("PATCH", &format!("{path}?dryRun=All"))
        .body("application/merge-patch+json", json!({ "spec": { "replicas": 5 } }).to_string())
        .ok(&router)
        .await;
    assert_eq!(dry["spec"]["replicas"], 5);
    assert_eq!(ask("GET", &path).ok(&router).await["spec"]["replicas"], 3);
}

#[tokio::test]
async fn scale_is_a_view_of_replicas() {
    let (_, router) = cluster();
    ask("POST", DEPLOYMENTS).json(deployment("web")).ok(&router).await;
    let path = format!("{DEPLOYMENTS}/web/scale");
    let mut scale = ask("GET", &path).ok(&router).await;
    assert_eq!(scale["spec"]["replicas"], 1);
    assert_eq!(scale["status"]["selector"], "app=web");
    scale["spec"]["replicas"] = 4.into();
    // kubectl scale --current-replicas sends no Content-Type.
    let scaled = ask("PUT", &path).body("", scale.to_string()).ok(&router).await;
    assert_eq!(scaled["spec"]["replicas"], 4);
    let patch = json!({ "spec": { "replicas": 0 } }).to_string();
    let scaled = ask("PATCH", &path).body("application/merge-patch+json", patch).ok(&router).await;
    assert_eq!(scaled["spec"]["replicas"], 0);
    assert_eq!(ask("GET", &format!("{DEPLOYMENTS}/web")).ok(&router).await["spec"]["replicas"], 0);
    let (code, _) = ask("PUT", &path).json(scale).fail(&router).await;
    assert_eq!(code, 409);
}

#[tokio::test]
async fn names_are_generated_and_secrets_encoded() {
    let (_, router) = cluster();
    let body = json!({ "metadata": { "generateName": "s-" }, "stringData": { "k": "v" } });
    let secret = ask("POST", "/api/v1/namespaces/default/secrets").json(body).ok(&router).await;
    assert_eq!(secret["metadata"]["name"].as_str().unwrap().len(), 7);
    assert_eq!(secret["data"]["k"], "dg==");
    assert!(secret.get("stringData").is_none());
    assert_eq!(secret["type"], "Opaque");
}

#[tokio::test]
async fn protobuf_bodies_are_taken() {
    let (_, router) = cluster();
    // k8s\0, TypeMeta{v1, ConfigMap}, raw: metadata{name: pb}, data{k: v}
    let mut body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x10".to_vec();
    body.extend_from_slice(b"\x0a\x04\x0a\x02pb\x12\x06\x0a\x01k\x12\x01v");
    body[4 + 17 + 1] = 14;
    let created = ask("POST", MAPS).body("application/vnd.kubernetes.protobuf", body).ok(&router).await;
    assert_eq!(created["metadata"]["name"], "pb");
    assert_eq!(created["data"]["k"], "v");
    let (code, _) = ask("POST", MAPS).body("application/vnd.kubernetes.protobuf", "{}").fail(&router).await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn services_have_addresses_that_return() {
    let (_, router) = cluster();
    let services = "/api/v1/namespaces/default/services";
    let body =
        json!({ "metadata": { "name": "web" }, "spec": { "type": "NodePort", "ports": [{ "port": 80 }] } });
    let service = ask("POST", services).json(body).ok(&router).await;
    let address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(address.starts_with("10."), "{address}");
    assert!(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap() >= 30000);
    let claim = format!("/apis/networking.k8s.io/v1/ipaddresses/{address}");
    assert_eq!(ask("GET", &claim).ok(&router).await["spec"]["parentRef"]["name"], "web");
    let taken =
        json!({ "metadata": { "name": "b" }, "spec": { "clusterIP": address, "ports": [{ "port": 80 }] } });
    let (code, text) = ask("POST", services).json(taken).fail(&router).await;
    assert_eq!(code, 422);
    assert!(text.contains("provided IP is already allocated"), "{text}");
    ask("DELETE", &format!("{services}/web")).ok(&router).await;
    assert_eq!(ask("GET", &claim).fail(&router).await.0, 404);
    let ports = ask("GET", "/apis/coracle.dev/v1/portallocations").ok(&router).await;
    assert_eq!(ports["items"], json!([]));
}

#[tokio::test]
async fn deletion_waits_for_finalizers() {
    let (_, router) = cluster();
    let mut body = config_map("a");
    body["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ask("POST", MAPS).json(body).ok(&router).await;
    let path = format!("{MAPS}/a");
    let marked = ask("DELETE", &path).ok(&router).await;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let add = json!({ "metadata": { "finalizers": ["example.com/hold", "example.com/new"] } }).to_string();
    let (code, text) = ask("PATCH", &path).body("application/merge-patch+json", add).fail(&router).await;
    assert_eq!(code, 422);
    assert!(text.contains("no new finalizers can be added if the object is being deleted"), "{text}");
    let release = json!({ "metadata": { "finalizers": null } }).to_string();
    ask("PATCH", &path).body("application/merge-patch+json", release).ok(&router).await;
    assert_eq!(ask("GET", &path).fail(&router).await.0, 404);
}

#[tokio::test]
async fn namespaces_end_with_their_finalizer() {
    let (memory, router) = cluster();
    ask("POST", "/api/v1/namespaces").json(json!({ "metadata": { "name": "n" } })).ok(&router).await;
    let mut namespace = ask("DELETE", "/api/v1/namespaces/n").ok(&router).await;
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let (code, text) =
        ask("POST", "/api/v1/namespaces/n/configmaps").json(config_map("a")).fail(&router).await;
    assert_eq!(code, 403);
    assert_eq!(
        text,
        "configmaps \"a\" is forbidden: unable to create new content in namespace n because it is being terminated"
    );
    namespace["spec"]["finalizers"] = json!([]);
    ask("PUT", "/api/v1/namespaces/n/finalize").json(namespace).ok(&router).await;
    assert_eq!(ask("GET", "/api/v1/namespaces/n").fail(&router).await.0, 404);
    let lease = json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": "kube-node-lease", "uid": "l" } });
    memory.put("namespaces", "", "kube-node-lease", lease);
    for name in ["default", "kube-node-lease"] {
        let (code, text) = ask("DELETE", &format!("/api/v1/namespaces/{name}")).fail(&router).await;
        let expected = format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted");
        assert_eq!((code, text), (403, expected));
    }
}

#[tokio::test]
async fn pods_are_bound_logged_and_ended() {
    let (memory, router) = cluster();
    let pods = "/api/v1/namespaces/default/pods";
    let body =
        json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "x:1" }] } });
    let pod = ask("POST", pods).json(body).ok(&router).await;
    assert_eq!(pod["status"]["phase"], "Pending");
    let path = format!("{pods}/p");
    let (code, text) = ask("GET", &format!("{path}/log")).fail(&router).await;
    assert_eq!((code, text.as_str()), (400, "pod p does not have a host assigned"));

    let binding = json!({ "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n1" } });
    let (status, _) = ask("POST", &format!("{path}/binding")).json(binding.clone()).value(&router).await;
    assert_eq!(status, StatusCode::CREATED);
    let (code, text) = ask("POST", &format!("{path}/binding")).json(binding).fail(&router).await;
    assert_eq!(code, 409);
    assert!(text.ends_with("pod p is already assigned to node \"n1\""), "{text}");

    let mut bound = ask("GET", &path).ok(&router).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    bound["status"]["containerStatuses"] = json!([{ "name": "c", "state": { "running": {} } }]);
    memory.put("pods", "default", "p", bound);
    let (_, log) = ask("GET", &format!("{path}/log")).value(&router).await;
    assert_eq!(log, "c: one\ntwo\n");
    let (_, log) = ask("GET", &format!("{path}/log?limitBytes=5")).value(&router).await;
    assert_eq!(log, "c: on");

    let marked = ask("DELETE", &path).ok(&router).await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    ask("DELETE", &format!("{path}?gracePeriodSeconds=0")).ok(&router).await;
    assert_eq!(ask("GET", &path).fail(&router).await.0, 404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let (_, router) = cluster();
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut body = config_map(name);
        body["metadata"]["labels"] = json!({ "l": label });
        ask("POST", MAPS).json(body).ok(&router).await;
    }
    let deleted = ask("DELETE", &format!("{MAPS}?labelSelector=l%3Dx")).ok(&router).await;
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = ask("GET", MAPS).ok(&router).await;
    assert_eq!(left["items"][0]["metadata"]["name"], "b");
}

/// A JSON patch that nests `depth` lists into a place where anything may be.
fn deepening(depth: usize, path: &str) -> String {
    let nested = "[".repeat(depth) + &"]".repeat(depth);
    format!(r#"[{{"op":"add","path":"{path}","value":{nested}}}]"#)
}

#[tokio::test]
async fn what_no_reader_could_read_is_refused_at_every_door() {
    let (_, router) = cluster();
    let yaml = |lists: usize| {
        let nested = "[".repeat(lists) + &"]".repeat(lists);
        format!("kind: ConfigMap\nmetadata: {{name: deep, managedFields: [{{fieldsV1: {{x: {nested}}}}}]}}\n")
    };
    let deep = |lists| ask("POST", MAPS).body("application/yaml", yaml(lists));
    assert_eq!(deep(110).fail(&router).await.0, 400);
    assert_eq!(deep(97).fail(&router).await.0, 400);
    deep(20).ok(&router).await;

    // Step by step does not get there either: the outcome of a patch is looked at, not the patch.
    ask("POST", DEPLOYMENTS).json(deployment("web")).ok(&router).await;
    let whole = format!("{DEPLOYMENTS}/web");
    let fields = "/metadata/managedFields";
    for (depth, code) in [(95, 422), (200, 400)] {
        let patch = deepening(depth, fields);
        assert_eq!(
            ask("PATCH", &whole).body("application/json-patch+json", patch).fail(&router).await.0,
            code
        );
    }

    let wrong = [
        ("/spec/replicas", json!(1.0)),
        ("/spec/replicas", json!(1_u64 << 31)),
        ("/spec/progressDeadlineSeconds", json!(1e300)),
        ("/spec/template/spec/containers/0/resources", json!({ "limits": { "cpu": "much" } })),
        ("/metadata/creationTimestamp", json!("yesterday")),
    ];
    for (pointer, value) in wrong {
        let patch = json!([{ "op": "add", "path": pointer, "value": value }]).to_string();
        let (code, text) =
            ask("PATCH", &whole).body("application/json-patch+json", patch).fail(&router).await;
        assert_eq!(code, 422, "{pointer}: {text}");
        let mut body = ask("GET", &whole).ok(&router).await;
        support::set(&mut body, pointer, value);
        assert_eq!(ask("PUT", &whole).json(body.clone()).fail(&router).await.0, 400, "{pointer}");
        body["metadata"] = json!({ "name": "other" });
        if !pointer.starts_with("/metadata") {
            assert_eq!(ask("POST", DEPLOYMENTS).json(body).fail(&router).await.0, 400, "{pointer}");
        }
    }
    for replicas in [json!(1_u64 << 40), json!(-1)] {
        let status = json!({ "status": { "replicas": replicas } }).to_string();
        let patched = ask("PATCH", &format!("{whole}/status")).body("application/merge-patch+json", status);
        assert_eq!(patched.fail(&router).await.0, 422);
    }
}

#[tokio::test]
async fn null_means_that_a_field_is_absent() {
    let (_, router) = cluster();
    let mut body = deployment("web");
    let spec = &mut body["spec"]["template"]["spec"];
    for field in ["tolerations", "initContainers", "hostname", "nodeName", "volumes"] {
        spec[field] = Value::Null;
    }
    body["spec"]["template"]["metadata"]["labels"]["version"] = Value::Null;
    let created = ask("POST", DEPLOYMENTS).json(body).ok(&router).await;
    let template = &created["spec"]["template"];
    assert!(!template.to_string().contains("null"), "{template}");
    assert_eq!(template["metadata"]["labels"]["version"], "");
    let patch = json!({ "spec": { "template": { "spec": { "containers": [{ "name": "main", "env": [{
        "name": "A", "value": null, "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }] }] } } } });
    let whole = format!("{DEPLOYMENTS}/web");
    let patched = ask("PATCH", &whole)
        .body("application/strategic-merge-patch+json", patch.to_string())
        .ok(&router)
        .await;
    assert!(!patched["spec"].to_string().contains("null"), "{}", patched["spec"]);
}

#[tokio::test]
async fn a_large_body_holds_up_nobody() {
    let (_, router) = cluster();
    // Of a current-thread runtime: were the work done on it, nothing else would get to run meanwhile.
    let finalizers: Vec<String> = (0..40_000).map(|at| format!("example.com/f{at}")).collect();
    ask("POST", MAPS).json(config_map("a")).ok(&router).await;
    let path = format!("{MAPS}/a");
    let patch = ask("PATCH", &path).body(
        "application/strategic-merge-patch+json",
        json!({ "metadata": { "finalizers": finalizers } }).to_string(),
    );
    let large = patch.ok(&router);
    tokio::pin!(large);
    let mut turns = 0_u64;
    let patched = loop {
        tokio::select! {
            biased;
            patched = &mut large => break patched,
            () = tokio::task::yield_now() => turns += 1,
        }
    };
    assert_eq!(patched["metadata"]["finalizers"].as_array().unwrap().len(), 40_000);
    assert!(turns > 100, "others had {turns} turns meanwhile");
    let gone = json!({ "metadata": { "finalizers": null } });
    ask("PATCH", &path).body("application/merge-patch+json", gone.to_string()).ok(&router).await;
}

#[tokio::test]
async fn an_object_of_very_many_faults_names_the_first() {
    let (_, router) = cluster();
    let mut map = config_map("a");
    map["data"] =
        (0..50_000).map(|at| (format!("/{at}"), Value::from("x"))).collect::<serde_json::Map<_, _>>().into();
    let (code, text) = ask("POST", MAPS).json(map).fail(&router).await;
    assert_eq!(code, 422);
    assert!(text.len() < 1024 * 1024, "{} bytes", text.len());
}

#[tokio::test]
async fn a_wide_service_is_answered_at_once() {
    let (_, router) = cluster();
    let began = std::time::Instant::now();
    let service = |count: usize| {
        let ports: Vec<Value> =
            (0..count).map(|at| json!({ "name": format!("p{at}"), "port": at + 1 })).collect();
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "wide" }, "spec": { "ports": ports } })
    };
    let services = "/api/v1/namespaces/default/services";
    let (code, text) = ask("POST", services).json(service(20_000)).fail(&router).await;
    assert_eq!(code, 422);
    assert!(text.contains("spec.ports: Too many: 20000: must have at most 2000 items"), "{text}");
    ask("POST", services).json(service(2000)).ok(&router).await;
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn a_name_that_was_left_empty_deletes_nothing() {
    let (_, router) = cluster();
    ask("POST", MAPS).json(config_map("a")).ok(&router).await;
    for path in
        [format!("{MAPS}/"), format!("{MAPS}//"), format!("{MAPS}/%3FlabelSelector=x"), format!("{MAPS}/a/")]
    {
        assert_eq!(ask("DELETE", &path).fail(&router).await.0, 404, "{path}");
    }
    ask("GET", &format!("{MAPS}/a")).ok(&router).await;
}

#[tokio::test]
async fn what_is_being_deleted_is_still_validated_where_more_than_its_metadata_changes() {
    let (_, router) = cluster();
    let mut body = deployment("web");
    body["metadata"]["finalizers"] = json!(["example.com/hold"]);
    ask("POST", DEPLOYMENTS).json(body).ok(&router).await;
    let whole = format!("{DEPLOYMENTS}/web");
    ask("DELETE", &whole).ok(&router).await;
    let patch = |value: Value| ask("PATCH", &whole).body("application/merge-patch+json", value.to_string());
    let (code, text) =
        patch(json!({ "spec": { "template": { "spec": { "containers": [] } } } })).fail(&router).await;
    assert_eq!(code, 422, "{text}");
    patch(json!({ "metadata": { "labels": { "a": "b" } } })).ok(&router).await;
}

#[tokio::test]
async fn fields_without_effect_are_warned_of_where_they_are_set() {
    let (_, router) = cluster();
    let mut hello = deployment("hello");
    hello["spec"]["template"]["spec"]["securityContext"] = json!({ "runAsUser": 1000 });
    let warned = ask("POST", DEPLOYMENTS).json(hello.clone()).send(&router).await;
    let told = warned.headers()[header::WARNING].to_str().unwrap();
    let expected =
        "299 - \"spec.template.spec.securityContext.runAsUser: has no effect: a component has no users";
    assert!(told.starts_with(expected), "{told}");
    let status = ask("PUT", &format!("{DEPLOYMENTS}/hello/status")).json(hello.clone()).send(&router).await;
    assert_eq!((status.status().as_u16(), status.headers().get(header::WARNING)), (200, None));
    hello["spec"]["template"]["spec"]["runtimeClassName"] = "gvisor".into();
    let (code, text) = ask("PUT", &format!("{DEPLOYMENTS}/hello")).json(hello).fail(&router).await;
    assert_eq!(code, 422);
    assert!(
        text.contains("spec.template.spec.runtimeClassName: Forbidden: there are no RuntimeClasses"),
        "{text}"
    );
}
