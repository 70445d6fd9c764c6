//! What is made at first, and that a second time changes only what was asked for.

use super::*;

fn wanted() -> Wanted {
    Wanted {
        name: "hello".into(),
        image: "hello:2".into(),
        pushed: false,
        is_program: false,
        is_function: false,
        host: None,
        replicas: None,
        port: None,
        variables: BTreeMap::new(),
        env_from: Vec::new(),
        secrets: BTreeMap::new(),
        args: Vec::new(),
    }
}

/// What others have made of it: replicas, a variable, a sidecar, a second rule.
fn standing() -> Standing {
    let deployment = json!({
        "metadata": { "name": "hello", "resourceVersion": "7", "annotations": { PUSHED: "hello:0,hello:1" } },
        "spec": { "replicas": 5, "selector": { "matchLabels": { "app": "hello" } }, "template": { "spec": { "containers": [
            { "name": "sidecar", "image": "side:1" },
            { "name": "hello", "image": "hello:1", "ports": [{ "containerPort": 80 }, { "containerPort": 90, "name": "more" }],
              "env": [{ "name": "BY_HAND", "value": "x" }], "envFrom": [{ "secretRef": { "name": "s" } }] },
        ] } } },
    });
    let rules = json!([
        { "host": "other.example", "http": { "paths": [{ "backend": { "service": { "name": "other" } } }] } },
        { "host": "hello.localhost", "http": { "paths": [{ "backend": { "service": { "name": "hello" } } }] } },
    ]);
    Standing {
        deployment: Some(deployment),
        service: Some(json!({ "metadata": { "resourceVersion": "8", "labels": labels("hello") },
                              "spec": { "ports": [{ "port": 80, "targetPort": 80 }] } })),
        ingress: Some(
            json!({ "metadata": { "resourceVersion": "9", "labels": labels("hello") }, "spec": { "rules": rules } }),
        ),
        secret: None,
        function: None,
    }
}

fn of<'a>(changes: &'a [Change], kind: &str) -> Option<&'a Change> {
    changes.iter().find(|change| change.kind == kind)
}

#[test]
fn the_first_time_all_is_made_and_marked() {
    let mut wanted = wanted();
    wanted.pushed = true;
    wanted.secrets.insert("PASSWORD".into(), "sesame".into());
    wanted.variables.insert("A".into(), "1".into());
    wanted.env_from = vec![EnvSource::ConfigMap("texts".into())];
    let changes = changes(&wanted, &Standing::default()).unwrap();
    let made = KINDS.into_iter().filter(|kind| *kind != "functions");
    assert!(changes.iter().map(|change| change.kind).eq(made));
    for change in &changes {
        assert!(change.create && change.name() == "hello");
        assert_eq!(change.body["metadata"]["labels"][MADE_BY.0], MADE_BY.1);
    }
    assert_eq!(of(&changes, "secrets").unwrap().body["data"]["PASSWORD"], "c2VzYW1l");
    let deployment = &of(&changes, "deployments").unwrap().body;
    assert_eq!(deployment["metadata"]["annotations"][PUSHED], "hello:2");
    assert_eq!(
        deployment["spec"]["template"]["spec"]["containers"][0],
        json!({
            "name": "hello", "image": "hello:2", "ports": [{ "containerPort": 80 }],
            "env": [{ "name": "A", "value": "1" },
                    { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "hello", "key": "PASSWORD" } } }],
            "envFrom": [{ "configMapRef": { "name": "texts" } }],
        })
    );
    assert!(!deployment.to_string().contains("sesame"), "a secret is in the Secret alone");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(*labels, json!({ "app": "hello" }), "the mark is not for pods");
}

#[test]
fn again_only_the_image_changes_where_nothing_else_was_asked_for() {
    let changes = changes(&wanted(), &standing()).unwrap();
    assert_eq!(changes.len(), 1, "service and ingress stay as they are");
    assert_eq!(
        changes[0].body,
        json!({
            "metadata": { "name": "hello", "resourceVersion": "7" },
            "spec": { "template": { "spec": { "containers": [{ "name": "hello", "image": "hello:2" }] } } },
        })
    );
}

#[test]
fn again_what_was_asked_for_is_merged() {
    let mut wanted = wanted();
    wanted.pushed = true;
    wanted.replicas = Some(2);
    wanted.is_program = true;
    wanted.port = Some(8000);
    wanted.host = Some("new.example".into());
    wanted.variables.insert("A".into(), "1".into());
    wanted.secrets.insert("B".into(), "2".into());
    wanted.env_from = vec![EnvSource::Secret("s".into()), EnvSource::ConfigMap("s".into())];
    let changes = changes(&wanted, &standing()).unwrap();
    let deployment = &of(&changes, "deployments").unwrap().body;
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(deployment["spec"]["minReadySeconds"], PROGRAM_READY_SECONDS);
    assert_eq!(deployment["metadata"]["annotations"][PUSHED], "hello:0,hello:1,hello:2");
    assert_eq!(
        deployment["spec"]["template"]["metadata"]["annotations"][SECRET_VERSION], "2",
        "new pods, with it"
    );
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["env"][0], json!({ "name": "A", "value": "1", "valueFrom": null }));
    assert_eq!(container["env"][1]["value"], Value::Null);
    let sources = json!([{ "secretRef": { "name": "s" } }, { "configMapRef": { "name": "s" } }]);
    assert_eq!(container["envFrom"], sources, "what is there already is not there twice");
    let ports =
        json!([{ "$patch": "replace" }, { "containerPort": 8000 }, { "containerPort": 90, "name": "more" }]);
    assert_eq!(container["ports"], ports);
    assert_eq!(
        of(&changes, "services").unwrap().body["spec"]["ports"],
        json!([{ "port": 80, "targetPort": 8000 }])
    );
    let rules = &of(&changes, "ingresses").unwrap().body["spec"]["rules"];
    assert_eq!((&rules[0]["host"], &rules[1]["host"]), (&json!("other.example"), &json!("new.example")));
    assert!(of(&changes, "secrets").unwrap().create);
}

#[test]
fn what_is_not_of_a_deployment_is_left_alone() {
    let mut wanted = wanted();
    wanted.secrets.insert("B".into(), "2".into());
    let mut standing = standing();
    standing.secret = Some(json!({ "metadata": { "name": "hello" } }));
    let said = changes(&wanted, &standing).err().unwrap().to_string();
    assert!(said.contains("is not of `coracle deploy`"), "{said}");
    standing.deployment.as_mut().unwrap()["spec"]["template"]["spec"]["containers"][1]["name"] = "web".into();
    let said = changed_deployment(&wanted, standing.deployment.as_ref().unwrap()).err().unwrap().to_string();
    assert!(said.contains("has 2 containers, and none is named hello"), "{said}");
    assert_eq!(standing.host("hello").unwrap(), "hello.localhost");
}

#[test]
fn a_service_or_ingress_that_others_made_is_refused() {
    let meta = json!({ "name": "hello", "labels": { "app": "hello" } });
    let spec = json!({ "selector": { "app": "other" }, "ports": [{ "port": 8080 }] });
    let service = Some(json!({ "metadata": meta, "spec": spec }));
    let mut ingress = standing().ingress;
    ingress.as_mut().unwrap()["metadata"] = meta;
    for (standing, what) in [
        (Standing { service: service.clone(), ..Standing::default() }, "Service"),
        (Standing { service, ..standing() }, "Service"),
        (Standing { ingress: ingress.clone(), ..Standing::default() }, "Ingress"),
        (Standing { ingress, ..standing() }, "Ingress"),
    ] {
        let said = changes(&wanted(), &standing).err().unwrap().to_string();
        assert!(said.starts_with(&format!("the {what} hello is not of `coracle deploy`")), "{said}");
        let mend = format!("`coracle delete {}/hello`", what.to_lowercase());
        assert!(said.contains("another --name") && said.contains(&mend), "{said}");
    }
}

#[test]
fn an_ingress_whose_rules_lead_elsewhere_wants_a_host() {
    let mut standing = standing();
    standing.ingress.as_mut().unwrap()["spec"]["rules"].as_array_mut().unwrap().truncate(1);
    let mut wanted = wanted();
    assert_eq!(standing.host("hello"), None, "the other's is not its own");
    let said = changes(&wanted, &standing).err().unwrap().to_string();
    assert!(said.contains("no rule of the Ingress hello leads to") && said.contains("with --host"), "{said}");
    wanted.host = Some("hello.example".into());
    let made = changes(&wanted, &standing).unwrap();
    let rules = &of(&made, "ingresses").unwrap().body["spec"]["rules"];
    assert_eq!((&rules[0]["host"], &rules[1]["host"]), (&json!("other.example"), &json!("hello.example")));
}

#[test]
fn a_host_that_is_there_is_not_there_twice() {
    let mut standing = standing();
    let rules = standing.ingress.as_mut().unwrap()["spec"]["rules"].as_array_mut().unwrap();
    let mut second = rules[1].clone();
    second["host"] = "second.example".into();
    rules.push(second);
    let mut wanted = wanted();
    wanted.host = Some("second.example".into());
    assert!(of(&changes(&wanted, &standing).unwrap(), "ingresses").is_none());
}
