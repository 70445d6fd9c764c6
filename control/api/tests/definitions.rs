//! Kinds that CustomResourceDefinitions declare, over the router: served like others as soon as they are there.

mod support;

use axum::http::{StatusCode, header};
use serde_json::{Value, json};
use support::{ask, cluster};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const FOOS: &str = "/apis/example.com/v1/namespaces/default/foos";

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "foos.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "foos", "kind": "Foo", "shortNames": ["fo"], "categories": ["all"] },
            "versions": [
                {
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["size"],
                                "properties": {
                                    "size": { "type": "integer", "minimum": 1 },
                                    "color": { "type": "string", "enum": ["red", "blue"], "default": "red" },
                                    "raw": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                                    "port": { "x-kubernetes-int-or-string": true },
                                },
                            },
                            "status": { "type": "object", "properties": {
                                "size": { "type": "integer" }, "selector": { "type": "string" },
                            } },
                        },
                    } },
                    "subresources": {
                        "status": {},
                        "scale": { "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size",
                            "labelSelectorPath": ".status.selector" },
                    },
                    "additionalPrinterColumns": [{ "name": "Size", "type": "integer", "jsonPath": ".spec.size" }],
                    "selectableFields": [{ "jsonPath": ".spec.color" }],
                },
                {
                    "name": "v1beta1", "served": true, "storage": false,
                    "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
                },
            ],
        },
    })
}

fn foo(name: &str, size: i64) -> Value {
    json!({ "apiVersion": "example.com/v1", "kind": "Foo", "metadata": { "name": name }, "spec": { "size": size } })
}

#[tokio::test]
async fn a_declared_kind_lives_like_others() {
    let (_, router) = cluster();
    assert_eq!(ask("POST", FOOS).json(foo("a", 1)).send(&router).await.status(), StatusCode::NOT_FOUND);
    let made = ask("POST", DEFINITIONS).json(definition()).ok(&router).await;
    assert_eq!(made["spec"]["names"]["listKind"], "FooList");
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    let created = ask("POST", FOOS).json(foo("a", 1)).ok(&router).await;
    assert_eq!((&created["metadata"]["generation"], &created["spec"]["color"]), (&json!(1), &json!("red")));
    assert_eq!(ask("GET", &format!("{FOOS}/a")).ok(&router).await, created);
    let list = ask("GET", "/apis/example.com/v1/foos").ok(&router).await;
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("FooList"), 1));
    let other = ask("GET", "/apis/example.com/v1beta1/namespaces/default/foos/a").ok(&router).await;
    assert_eq!((&other["apiVersion"], &other["spec"]), (&json!("example.com/v1beta1"), &created["spec"]));
    // Written in one version, kept in another.
    let mut beta = foo("b", 7);
    beta["apiVersion"] = "example.com/v1beta1".into();
    ask("POST", "/apis/example.com/v1beta1/namespaces/default/foos").json(beta).ok(&router).await;
    let kept = ask("GET", &format!("{FOOS}/b")).ok(&router).await;
    assert_eq!((&kept["apiVersion"], &kept["spec"]["size"]), (&json!("example.com/v1"), &json!(7)));
    let table = ask("GET", FOOS)
        .header(header::ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io")
        .ok(&router)
        .await;
    assert_eq!(table["columnDefinitions"][1]["name"], "Size");
    assert_eq!(table["rows"][0]["cells"], json!(["a", 1]));
    let blue = ask("GET", &format!("{FOOS}?fieldSelector=spec.color%3Dblue")).ok(&router).await;
    assert_eq!(blue["items"], json!([]));
    ask("DELETE", &format!("{FOOS}/b")).ok(&router).await;
    assert_eq!(ask("GET", &format!("{FOOS}/b")).send(&router).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_a_schema_asks_is_asked_of_every_write() {
    let (_, router) = cluster();
    ask("POST", DEFINITIONS).json(definition()).ok(&router).await;
    let (code, text) = ask("POST", FOOS).json(foo("a", 0)).fail(&router).await;
    let words = "Foo.example.com \"a\" is invalid: spec.size: Invalid value: 0: spec.size in body should be greater than \
                 or equal to 1";
    assert_eq!((code, text.as_str()), (422, words));
    let mut wrong = foo("a", 1);
    wrong["spec"]["size"] = "x".into();
    let (code, text) = ask("POST", FOOS).json(wrong).fail(&router).await;
    assert_eq!(code, 422);
    assert!(text.contains("spec.size in body must be of type integer: \"string\""), "{text}");
    let mut unknown = foo("a", 1);
    unknown["spec"]["other"] = 1.into();
    unknown["spec"]["raw"] = json!({ "any": [{ "thing": null }] });
    unknown["spec"]["port"] = "http".into();
    let (code, text) =
        ask("POST", &format!("{FOOS}?fieldValidation=Strict")).json(unknown.clone()).fail(&router).await;
    assert_eq!(code, 400);
    assert!(text.contains("unknown field \"spec.other\""), "{text}");
    let made = ask("POST", FOOS).json(unknown).ok(&router).await;
    assert_eq!(made["spec"].get("other"), None, "pruned");
    assert_eq!(made["spec"]["raw"], json!({ "any": [{ "thing": null }] }));
    let at = format!("{FOOS}/a");
    let merge = |body: Value| ask("PATCH", &at).body("application/merge-patch+json", body.to_string());
    let (code, _) = merge(json!({ "spec": { "color": "green" } })).fail(&router).await;
    assert_eq!(code, 422);
    let blue = merge(json!({ "spec": { "color": "blue" } })).ok(&router).await;
    assert_eq!((&blue["spec"]["color"], &blue["metadata"]["generation"]), (&json!("blue"), &json!(2)));
    let strategic = ask("PATCH", &at).body("application/strategic-merge-patch+json", "{}".to_owned());
    assert_eq!(strategic.send(&router).await.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn nulls_numbers_and_closed_objects_are_as_the_schema_says() {
    let (_, router) = cluster();
    let mut definition = definition();
    let text = |nullable: bool| json!({ "type": "string", "nullable": nullable });
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"] = json!({
        "size": { "type": "integer" },
        "list": { "type": "array", "items": text(false) },
        "nulls": { "type": "array", "items": text(true) },
        "map": { "type": "object", "additionalProperties": text(true) },
        "closed": { "type": "object" },
        "bytes": { "x-kubernetes-int-or-string": true },
    });
    ask("POST", DEFINITIONS).json(definition).ok(&router).await;
    let with = |field: &str, value: Value| {
        let mut object = foo("a", 1);
        object["spec"][field] = value;
        object
    };
    let (code, told) = ask("POST", FOOS).json(with("list", json!([null]))).fail(&router).await;
    assert_eq!(code, 422, "{told}");
    let mut object = with("nulls", json!([null]));
    object["spec"]["map"] = json!({ "a": null });
    object["spec"]["closed"] = json!({ "a": 1 });
    object["spec"]["bytes"] = 10_737_418_240_i64.into();
    let made = ask("POST", FOOS).json(object).ok(&router).await;
    let spec = &made["spec"];
    assert_eq!(
        (&spec["nulls"], &spec["map"], &spec["closed"]),
        (&json!([null]), &json!({ "a": null }), &json!({}))
    );
    assert_eq!(spec["bytes"], 10_737_418_240_i64);
    let (code, _) = ask("POST", FOOS).json(with("bytes", json!({}))).fail(&router).await;
    assert_eq!(code, 422);
}

#[tokio::test]
async fn a_status_and_a_scale_are_where_the_definition_says() {
    let (_, router) = cluster();
    ask("POST", DEFINITIONS).json(definition()).ok(&router).await;
    let mut object = foo("a", 3);
    object["status"] = json!({ "size": 9 });
    let made = ask("POST", FOOS).json(object).ok(&router).await;
    assert_eq!(made.get("status"), None, "a status is written apart");
    let mut told = made.clone();
    told["status"] = json!({ "size": 2, "selector": "app=a" });
    told["spec"]["size"] = 8.into();
    let written = ask("PUT", &format!("{FOOS}/a/status")).json(told).ok(&router).await;
    assert_eq!((&written["spec"]["size"], &written["status"]["size"]), (&json!(3), &json!(2)));
    assert_eq!(written["metadata"]["generation"], 1);
    let mut scale = ask("GET", &format!("{FOOS}/a/scale")).ok(&router).await;
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]),
        (&json!(3), &json!({ "replicas": 2, "selector": "app=a" }))
    );
    scale["spec"]["replicas"] = 5.into();
    ask("PUT", &format!("{FOOS}/a/scale")).json(scale).ok(&router).await;
    assert_eq!(ask("GET", &format!("{FOOS}/a")).ok(&router).await["spec"]["size"], 5);
    let beta = ask("GET", "/apis/example.com/v1beta1/namespaces/default/foos/a/scale").send(&router).await;
    assert_eq!(beta.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_member_that_is_behind_looks_again_before_it_knows_no_such_path() {
    let (memory, router) = cluster();
    memory.fall_behind();
    assert_eq!(ask("GET", FOOS).send(&router).await.status(), StatusCode::NOT_FOUND);
    ask("POST", DEFINITIONS).json(definition()).ok(&router).await;
    assert_eq!(ask("GET", FOOS).ok(&router).await["items"], json!([]));
    memory.set_led(false);
    assert_eq!(ask("GET", FOOS).send(&router).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let other = ask("GET", "/apis/example.com/v1/bars").send(&router).await;
    assert_eq!(other.status(), StatusCode::SERVICE_UNAVAILABLE, "nobody knows");
    let stranger = ask("GET", "/apis/example.com/v1/bars").by(None).send(&router).await;
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED, "who may not ask costs no read");
}

#[tokio::test]
async fn no_object_is_made_behind_the_back_of_a_definition_that_ends() {
    let (memory, router) = cluster();
    let made = ask("POST", DEFINITIONS).json(definition()).ok(&router).await;
    ask("POST", FOOS).json(foo("a", 1)).ok(&router).await;
    // This member does not know yet that the definition is being deleted.
    memory.fall_behind();
    let mut ending = made;
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    memory.put("customresourcedefinitions.apiextensions.k8s.io", "", "foos.example.com", ending);
    let late = ask("POST", FOOS).json(foo("b", 1)).send(&router).await;
    assert_eq!(late.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask("GET", FOOS).ok(&router).await["items"].as_array().unwrap().len(), 1);
    ask("DELETE", &format!("{FOOS}/a")).ok(&router).await;
}

#[tokio::test]
async fn clients_find_what_is_declared() {
    let (_, router) = cluster();
    let without = ask("GET", "/openapi/v3").ok(&router).await;
    ask("POST", DEFINITIONS).json(definition()).ok(&router).await;
    let groups = ask("GET", "/apis").ok(&router).await;
    let group =
        groups["groups"].as_array().unwrap().iter().find(|group| group["name"] == "example.com").unwrap();
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let resources = ask("GET", "/apis/example.com/v1").ok(&router).await;
    let names: Vec<&str> =
        resources["resources"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, ["foos", "foos/scale", "foos/status"]);
    assert_eq!(resources["resources"][0]["shortNames"], json!(["fo"]));
    let index = ask("GET", "/openapi/v3").ok(&router).await;
    let same = |path: &str| index["paths"][path] == without["paths"][path] && !index["paths"][path].is_null();
    assert!(same("api/v1") && same("apis/apps/v1") && !same("apis/example.com/v1"));
    let document = ask("GET", "/openapi/v3/apis/example.com/v1").ok(&router).await;
    let item = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/foos/{name}"];
    let forms: Vec<&String> = item["patch"]["requestBody"]["content"].as_object().unwrap().keys().collect();
    assert_eq!(
        forms,
        ["application/json-patch+json", "application/merge-patch+json"],
        "kubectl goes by this"
    );
    let schema = &document["components"]["schemas"]["com.example.v1.Foo"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["minimum"], 1);
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Foo");
    assert!(
        document["components"]["schemas"].get("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").is_some()
    );
}

#[tokio::test]
async fn a_definition_is_checked_and_what_of_it_has_no_effect_is_said() {
    let (_, router) = cluster();
    let refused = |change: fn(&mut Value), fault: &'static str| {
        let mut bad = definition();
        change(&mut bad);
        (bad, fault)
    };
    for (bad, fault) in [
        refused(
            |it| it["metadata"]["name"] = "bars.example.com".into(),
            "must be spec.names.plural+\".\"+spec.group",
        ),
        refused(
            |it| it["spec"]["versions"][1]["storage"] = true.into(),
            "exactly one version marked as storage version",
        ),
        refused(|it| it["spec"]["versions"][0]["schema"] = json!({}), "schemas are required"),
        refused(
            |it| it["spec"]["conversion"] = json!({ "strategy": "Webhook" }),
            "conversion by webhooks is not served",
        ),
        refused(
            |it| {
                it["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["type"] =
                    "".into()
            },
            "must not be empty for specified object fields",
        ),
        refused(
            |it| it["spec"]["versions"][0]["additionalPrinterColumns"][0]["jsonPath"] = ".a[".into(),
            "must be a json path",
        ),
        refused(
            |it| {
                it["metadata"]["name"] = "foos.x.k8s.io".into();
                it["spec"]["group"] = "x.k8s.io".into();
            },
            "protected groups must have approval annotation",
        ),
        refused(|it| it["spec"]["scope"] = "Galaxy".into(), "supported values: \"Cluster\", \"Namespaced\""),
    ] {
        let (code, text) = ask("POST", DEFINITIONS).json(bad).fail(&router).await;
        assert_eq!(code, 422, "{text}");
        assert!(text.contains(fault), "{text}");
    }
    // Objects may be stored in a version that an update leaves out.
    let mut moved = ask("POST", DEFINITIONS).json(definition()).ok(&router).await;
    ask("POST", FOOS).json(foo("old", 1)).ok(&router).await;
    moved["spec"]["versions"][0]["storage"] = false.into();
    moved["spec"]["versions"][1]["storage"] = true.into();
    let at = format!("{DEFINITIONS}/foos.example.com");
    let mut moved = ask("PUT", &at).json(moved).ok(&router).await;
    assert_eq!(moved["status"]["storedVersions"], json!(["v1", "v1beta1"]));
    moved["spec"]["versions"].as_array_mut().unwrap().remove(0);
    let (code, text) = ask("PUT", &at).json(moved).fail(&router).await;
    assert_eq!(code, 422);
    assert!(
        text.contains("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions"),
        "{text}"
    );
    // Once none are, the version may go; one that is stored in it all the same is shown in the one that is left.
    let mut left = ask("GET", &at).ok(&router).await;
    left["status"]["storedVersions"] = json!(["v1beta1"]);
    let mut left = ask("PUT", &format!("{at}/status")).json(left).ok(&router).await;
    left["spec"]["versions"].as_array_mut().unwrap().remove(0);
    ask("PUT", &at).json(left).ok(&router).await;
    let beta = "/apis/example.com/v1beta1/namespaces/default/foos/old";
    let mut shown = ask("GET", beta).ok(&router).await;
    assert_eq!(shown["apiVersion"], "example.com/v1beta1");
    shown["spec"]["size"] = 2.into();
    assert_eq!(ask("PUT", beta).json(shown).ok(&router).await["spec"]["size"], 2);
    let (_, router) = cluster();
    let mut warned = definition();
    warned["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] =
        json!([{ "rule": "self.size < 10" }]);
    let answer = ask("POST", DEFINITIONS).json(warned).send(&router).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let warning = answer.headers()["warning"].to_str().unwrap();
    assert!(warning.contains("x-kubernetes-validations are not evaluated"), "{warning}");
}
