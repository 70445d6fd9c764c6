//! Functions: deployed, called, at rest, woken, changed, split and rolled back, with kubectl looking on.

use std::{path::Path, time::Duration};

use crate::harness::{Kubectl, alone, coracle, eventually, fails, get, run, sample, up};

struct Subject<'a> {
    config: &'a str,
    kubectl: Kubectl,
    gateway: String,
}

impl Subject<'_> {
    fn on(&self, words: &[&str]) -> String {
        run(&[words, &["--kubeconfig", self.config]].concat())
    }

    fn refused(&self, words: &[&str]) -> String {
        fails(&[words, &["--kubeconfig", self.config]].concat())
    }

    fn field(&self, object: &str, path: &str) -> String {
        self.kubectl.run(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    fn asks(&self, host: &str) -> String {
        let (status, body) = get(&self.gateway, host);
        assert_eq!(status, 200, "{host}: {body}");
        body
    }
}

#[test]
fn a_function_is_called_rests_is_woken_split_and_rolled_back() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = up(folder.path());
    let kubeconfig = folder.path().join("kubeconfig");
    let Some(kubectl) = Kubectl::find(&kubeconfig) else { return };
    let config = kubeconfig.to_str().unwrap();
    let subject = Subject { config, kubectl, gateway: daemon.said("gateway     ") };
    deployed(&subject);
    at_rest_and_woken(&subject);
    split_and_rolled_back(&subject);
    wrong(&subject, folder.path());
    let gone = subject.on(&["delete", "hello"]);
    assert!(gone.contains("function.coracle.dev \"hello\" deleted"), "{gone}");
    eventually("all of it to go", || {
        let left = subject.on(&["get", "fn,functionrevisions,rs,pods", "-o", "name"]);
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
    eventually("the gateway to hear of it", || match get(&subject.gateway, "hello.localhost").0 {
        404 => Ok(()),
        other => Err(other.to_string()),
    });
}

fn deployed(subject: &Subject<'_>) {
    let url = subject.on(&[
        "deploy",
        &sample("hello-http"),
        "--name",
        "hello",
        "--function",
        "--env",
        "GREETING=one",
    ]);
    assert!(url.starts_with("http://hello.localhost:"), "{url}");
    assert!(subject.asks("hello.localhost").contains("one"), "it answers when deploy says so");
    let table = subject.kubectl.run(&["get", "functions"]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(&row[..2], ["hello", "True"], "{table}");
    assert_eq!(&row[3..6], ["hello-1", "hello-1=100", "1"], "{table}");
    assert_eq!(subject.on(&["functions"]).lines().count(), 2);
    subject.kubectl.run(&["wait", "--for=condition=Ready", "function/hello", "--timeout=5s"]);
    eventually("the events to be told", || {
        let described = subject.kubectl.run(&["describe", "function", "hello"]);
        let told = ["RevisionCreated", "TrafficChanged"].iter().all(|reason| described.contains(reason));
        if told { Ok(()) } else { Err(described) }
    });
    let said = subject.on(&["invoke", "hello"]);
    assert!(said.contains("one"), "{said}");
}

fn at_rest_and_woken(subject: &Subject<'_>) {
    subject.kubectl.run(&[
        "patch",
        "fn",
        "hello",
        "--type=merge",
        "-p",
        r#"{"spec":{"scale":{"idleSeconds":1}}}"#,
    ]);
    let rests = || {
        eventually("it to rest", || {
            let pods = subject.on(&["get", "pods", "-o", "name"]);
            if pods.trim().is_empty() { Ok(()) } else { Err(pods) }
        });
    };
    rests();
    assert_eq!(subject.field("fn/hello", ".status.conditions[?(@.type==\"Ready\")].status"), "True");
    assert_eq!(subject.field("fn/hello", ".status.replicas"), "0");
    assert!(subject.asks("hello.localhost").contains("one"), "the first request waits for an instance");
    // Many first ones are all answered.
    rests();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..20).map(|_| scope.spawn(|| subject.asks("hello.localhost"))).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| answer.contains("one")));
    subject.kubectl.run(&[
        "patch",
        "fn",
        "hello",
        "--type=merge",
        "-p",
        r#"{"spec":{"scale":{"idleSeconds":600}}}"#,
    ]);
}

fn split_and_rolled_back(subject: &Subject<'_>) {
    subject.on(&["deploy", &sample("hello-http"), "--name", "hello", "--env", "GREETING=two"]);
    // What is a function stays one. Gateways hear of it a moment later.
    eventually("the second to answer", || match subject.asks("hello.localhost") {
        answer if answer.contains("two") => Ok(()),
        answer => Err(answer),
    });
    let shown = subject.on(&["traffic", "hello", "hello-2=50", "hello-1=50", "--tag", "old=hello-1"]);
    assert!(shown.contains("hello-2=50\n") && shown.contains("old: http://old-hello.localhost:"), "{shown}");
    let counted = || (0..200).filter(|_| subject.asks("hello.localhost").contains("two")).count();
    let two = eventually("both to answer", || {
        let two = counted();
        if (60..140).contains(&two) { Ok(two) } else { Err(format!("{two} of 200")) }
    });
    assert!(two > 0);
    eventually("the tag's host to answer", || match get(&subject.gateway, "old-hello.localhost") {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!((0..20).all(|_| subject.asks("old-hello.localhost").contains("one")));
    let back = subject.on(&["rollback", "hello", "--to", "hello-1"]);
    assert!(back.contains("hello-1=100"), "{back}");
    eventually("all to go to the first", || match counted() {
        0 => Ok(()),
        two => Err(format!("{two} of 200")),
    });
    assert!(subject.refused(&["rollback", "hello"]).contains("no earlier revision"));
    let revisions = subject.on(&["revisions", "hello"]);
    assert!(revisions.contains("hello-1") && revisions.contains("hello-2"), "{revisions}");
    // A deployment puts all requests on what it deploys; the tag stays.
    subject.on(&["deploy", &sample("hello-http"), "--name", "hello", "--env", "GREETING=three"]);
    eventually("the newest to answer", || match subject.asks("hello.localhost") {
        answer if answer.contains("three") => Ok(()),
        answer => Err(answer),
    });
    assert!(subject.asks("old-hello.localhost").contains("one"));
}

fn wrong(subject: &Subject<'_>, folder: &Path) {
    let said = subject.refused(&["traffic", "hello", "hello-2=50"]);
    assert!(said.contains("50 in sum"), "{said}");
    let said = subject.refused(&["traffic", "hello", "hello-9=100", "--timeout", "1s"]);
    assert!(said.contains("there is no revision hello-9"), "{said}");
    subject.on(&["traffic", "hello", "latest=100"]);
    assert!(subject.refused(&["traffic", "other"]).contains("there is no function \"other\""));
    assert!(subject.refused(&["revisions", "other"]).contains("there is no function \"other\""));
    let manifest = "{apiVersion: coracle.dev/v1, kind: Function, metadata: {name: bad}, spec: {image: x:1, imagee: y, \
                    scale: {min: 3, max: 2}, env: [{name: '1=2', value: x}]}}";
    let said = subject.kubectl.feed(&["create", "--validate=false"], manifest).unwrap_err();
    assert!(said.contains("spec.scale.min") && said.contains("spec.env[0].name"), "{said}");
    let said = subject.kubectl.feed(&["create"], manifest).unwrap_err();
    assert!(said.contains("unknown field \"spec.imagee\""), "{said}");
    // One whose image is not there says so, and a deployment that fails leaves nothing.
    let manifest =
        "{apiVersion: coracle.dev/v1, kind: Function, metadata: {name: lost}, spec: {image: lost:1}}";
    subject.kubectl.feed(&["create"], manifest).unwrap();
    let why = ".status.conditions[?(@.type==\"Ready\")].message";
    eventually("the fault to be told", || match subject.field("fn/lost", why) {
        told if told.contains("ErrImagePull") || told.contains("ImagePullBackOff") => Ok(()),
        told => Err(told),
    });
    assert_eq!(get(&subject.gateway, "lost.localhost").0, 404, "nothing of it serves");
    subject.kubectl.run(&["delete", "fn", "lost"]);
    let broken = folder.join("echo.wasm");
    std::fs::copy(sample("tcp-echo"), &broken).unwrap();
    let failed = coracle(&[
        "deploy",
        broken.to_str().unwrap(),
        "--function",
        "--name",
        "echo",
        "--timeout",
        "3s",
        "--kubeconfig",
        subject.config,
        "--",
        "no-port",
    ])
    .output()
    .unwrap();
    assert!(!failed.status.success());
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("nothing of it is left"), "{said}");
    std::thread::sleep(Duration::from_millis(100));
    assert!(!subject.on(&["get", "fn", "-o", "name"]).contains("echo"));
}
