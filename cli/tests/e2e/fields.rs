//! `docs/fields.md` on a live cluster: what is served is admitted as it is, what is refused is refused by its name, and of
//! what has no effect the answer warns.

use std::path::Path;

use coracle_objects::support::{Example, Support, examples};
use http_body_util::BodyExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use crate::harness::{Kubectl, alone, eventually, run, sample, up};

/// What came of a manifest.
struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

async fn client(kubeconfig: &Path) -> kube::Client {
    let config = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

async fn create(client: &kube::Client, example: &Example) -> Answer {
    let (version, plural) = example.resource;
    let root = if version == "v1" { "api" } else { "apis" };
    let path = format!("/{root}/{version}/namespaces/default/{plural}?dryRun=All");
    let body = kube::client::Body::from(serde_json::to_vec(&example.object).unwrap());
    let request = http::Request::post(path).header("content-type", "application/json").body(body).unwrap();
    let answer = client.send(request).await.unwrap();
    let code = answer.status().as_u16();
    let warnings = answer.headers().get_all("warning").iter();
    let warnings = warnings.map(|value| value.to_str().unwrap().replace("\\\"", "\"")).collect();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    Answer { code, warnings, body: serde_json::from_slice(&bytes).unwrap() }
}

/// What is wrong with the answer to an example, if anything.
fn fault(example: &Example, answer: &Answer) -> Option<String> {
    let Example { field, support, note, .. } = example;
    let warned = |beginning: &str| answer.warnings.iter().any(|told| told.starts_with(beginning));
    let note: String = note.chars().take(60).collect();
    let causes = answer.body.pointer("/details/causes").and_then(Value::as_array);
    let is_named = || causes.into_iter().flatten().any(|cause| cause["field"] == **field);
    let pointer = format!("/{}", field.replace('[', "/").replace(']', "").replace('.', "/"));
    let is_right = match support {
        Support::Served => {
            let kept = answer.body.pointer(&pointer).zip(example.object.pointer(&pointer));
            let is_kept = kept.is_some_and(|(found, given)| contains(found, given));
            answer.code == 201 && is_kept && !warned(&format!("299 - \"{field}: "))
        }
        Support::Warned => answer.code == 201 && warned(&format!("299 - \"{field}: {note}")),
        Support::Refused => answer.code == 422 && is_named(),
    };
    (!is_right).then(|| {
        let Answer { code, warnings, body } = answer;
        format!("{field} is {support:?}, but: {code} {warnings:?} {}\n  {}", body["message"], example.object)
    })
}

/// Whether all that was given is there, whatever was filled in beside it.
fn contains(found: &Value, given: &Value) -> bool {
    match (found, given) {
        (Value::Object(found), Value::Object(given)) => {
            given.iter().all(|(key, value)| found.get(key).is_some_and(|found| contains(found, value)))
        }
        (Value::Array(found), Value::Array(given)) => {
            found.len() == given.len() && found.iter().zip(given).all(|(found, value)| contains(found, value))
        }
        (found, given) => found == given,
    }
}

#[test]
fn every_field_is_what_the_document_says() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let _daemon = up(folder.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let faults = runtime.block_on(async {
        let client = client(&folder.path().join("kubeconfig")).await;
        let mut faults = Vec::new();
        for example in examples() {
            faults.extend(fault(&example, &create(&client, &example).await));
        }
        faults
    });
    assert!(examples().len() > 200);
    assert!(faults.is_empty(), "{} fields:\n{}", faults.len(), faults.join("\n"));
}

/// As charts harden their pods.
const HARDENED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: hardened}
spec:
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: hello
    image: hello:1.0
    ports: [{containerPort: 80}]
    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1, timeoutSeconds: 30}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: tmp, mountPath: /tmp}]
  volumes: [{name: tmp, emptyDir: {medium: Memory}}]
"#;

/// A pod that says why it ended, one that says it by its log, one that works in a folder, and one that waits for input.
const ENDS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: notes}
data: {note.txt: here}
---
apiVersion: v1
kind: Pod
metadata: {name: ends}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - {name: file, image: "files:1", args: [write, /dev/termination-log, all, is, well]}
  - {name: volume, image: "files:1", args: [write, /data/why, so], terminationMessagePath: /data/why, volumeMounts: [{name: data, mountPath: /data}]}
  - {name: logs, image: "files:1", args: [read, /nothing], terminationMessagePolicy: FallbackToLogsOnError}
  - {name: silent, image: "files:1", args: [read, /nothing]}
  - {name: dir, image: "files:1", args: [read, note.txt, /desk/note.txt], workingDir: /desk, volumeMounts: [{name: notes, mountPath: /desk}]}
  - {name: made, image: "files:1", args: [write, note, x], workingDir: /data/deep/er, volumeMounts: [{name: data, mountPath: /data}]}
  - {name: input, image: "files:1", args: [input]}
  - {name: open, image: "files:1", args: [input], stdin: true}
  volumes:
  - {name: data, emptyDir: {}}
  - {name: notes, configMap: {name: notes}}
"#;

#[test]
fn what_is_served_does_what_it_says() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let _daemon = up(folder.path());
    let kubeconfig = folder.path().join("kubeconfig");
    let Some(kubectl) = Kubectl::find(&kubeconfig) else { return };
    for (name, tag) in [("files", "files:1"), ("hello-http", "hello:1.0"), ("hello-http-p3", "hello:2.0")] {
        run(&["push", &sample(name), tag, "--kubeconfig", kubeconfig.to_str().unwrap()]);
    }
    kubectl.feed(&["create"], ENDS).unwrap();
    kubectl.feed(&["create"], HARDENED).unwrap();
    let of_ends = |path: &str| {
        let path = format!("jsonpath={{range .status.containerStatuses[*]}}{{.name}}={{{path}}}\n{{end}}");
        kubectl.run(&["get", "pod", "ends", "-o", &path])
    };
    let lasting = "open=";
    eventually("all but one to end", || {
        let codes = of_ends(".state.terminated.exitCode");
        let running = codes.lines().filter(|line| line.ends_with('=')).collect::<Vec<_>>();
        if running == [lasting] { Ok(()) } else { Err(codes) }
    });
    let codes = of_ends(".state.terminated.exitCode");
    assert_eq!(codes, "dir=0\nfile=0\ninput=0\nlogs=1\nmade=0\nopen=\nsilent=1\nvolume=0\n");
    let messages = of_ends(".state.terminated.message");
    let said: Vec<&str> = messages.lines().filter(|line| !line.is_empty() && !line.ends_with('=')).collect();
    assert_eq!(said[0], "file=all is well", "{messages}");
    assert!(said[1].starts_with("logs=/nothing: "), "{messages}");
    assert_eq!((said[2], said.len()), ("volume=so", 3), "{messages}");
    assert_eq!(kubectl.run(&["logs", "ends", "-c", "dir"]), "note.txt: here\n/desk/note.txt: here\n");
    assert_eq!(kubectl.run(&["logs", "ends", "-c", "input"]), "the input ends\n");
    assert_eq!(kubectl.run(&["logs", "ends", "-c", "open"]), "", "its input is open");

    // Another image: the pod is the same, and what its status names is what runs.
    kubectl.run(&["wait", "pod/hardened", "--for=condition=Ready", "--timeout=180s"]);
    kubectl.run(&["set", "image", "pod/hardened", "hello=hello:2.0"]);
    eventually("the other image to run", || {
        let path = "jsonpath={.status.containerStatuses[0]['image', 'restartCount', 'ready', 'imageID']}";
        let shown = kubectl.run(&["get", "pod", "hardened", "-o", path]);
        let is_named_before = shown.starts_with("hello:2.0 0");
        assert!(!is_named_before, "status names what does not run: {shown}");
        if shown.starts_with("hello:2.0 1 true hello@sha256:") { Ok(()) } else { Err(shown) }
    });
    kubectl.run(&["delete", "pod", "ends", "hardened", "--timeout=60s"]);
}
