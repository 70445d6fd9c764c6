//! Volumes, environment and init containers, as a component sees them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::harness::{Kubectl, alone, eventually, run, sample, up};

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: teal}
---
apiVersion: v1
kind: Secret
metadata: {name: password}
stringData: {word: sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {team: blue}}
spec:
  restartPolicy: Never
  initContainers:
  - name: prepare
    image: files:1
    args: [write, /scratch/note, from, $(WHO)]
    env: [{name: WHO, value: the init container}]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  containers:
  - name: read
    image: files:1
    args: [read, /scratch/note, /settings/colour, /password/word, /about/labels]
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: settings, mountPath: /settings}
    - {name: password, mountPath: /password, readOnly: true}
    - {name: about, mountPath: /about}
  - name: environment
    image: pi-legacy:1
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: password, key: word}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - name: trespass
    image: files:1
    args: [write, /settings/colour, red]
    volumeMounts: [{name: settings, mountPath: /settings}]
  - name: outside
    image: files:1
    args: [read, /etc/hostname]
  - name: greedy
    image: files:1
    args: [write, /small/note, more than there is room for with its name]
    volumeMounts: [{name: small, mountPath: /small}]
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: small, emptyDir: {sizeLimit: 1Ki}}
  - {name: settings, configMap: {name: settings}}
  - {name: password, secret: {secretName: password}}
  - name: about
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
"#;

/// One that writes more than its pod may have of the disk.
const GREEDY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: files:1
    args: [fill, /data]
    resources: {limits: {ephemeral-storage: 64Ki}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
"#;

#[test]
fn volumes_and_environment_reach_the_component() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let _daemon = up(folder.path());
    let kubeconfig = folder.path().join("kubeconfig");
    let Some(kubectl) = Kubectl::find(&kubeconfig) else { return };
    for name in ["files", "pi-legacy"] {
        run(&["push", &sample(name), &format!("{name}:1"), "--kubeconfig", kubeconfig.to_str().unwrap()]);
    }
    kubectl.feed(&["create"], MANIFEST).unwrap();
    kubectl.feed(&["create"], GREEDY).unwrap();
    // Three containers must fail: one writes where it may only read, one reads what it was never given, one writes more
    // than its volume may hold.
    eventually("the pod to end", || {
        let phase = kubectl.run(&["get", "pod", "reader", "-o", "jsonpath={.status.phase}"]);
        if phase == "Failed" { Ok(()) } else { Err(kubectl.run(&["get", "pod", "reader", "-o", "yaml"])) }
    });
    let log = |container: &str| kubectl.run(&["logs", "reader", "-c", container]);
    assert_eq!(
        log("read"),
        "/scratch/note: from the init container\n/settings/colour: teal\n/password/word: sesame\n/about/labels: team=\"blue\"\n"
    );
    let environment = log("environment");
    for line in
        ["COLOUR=teal", "WORD=sesame", "POD=reader", "HOSTNAME=reader", "KUBERNETES_SERVICE_HOST=10.96.0.1"]
    {
        assert!(environment.lines().any(|found| found == line), "no {line} in:\n{environment}");
    }
    let refused = log("greedy");
    assert!(refused.contains("No space left on device"), "{refused}");
    for (bound, mend) in [
        ("the volume holds the 1024 bytes that it may", "raise the volume's sizeLimit"),
        ("the pod holds the 65536 bytes that it may", "raise resources.limits.ephemeral-storage"),
    ] {
        eventually(&format!("an event that says {bound:?}"), || {
            let select = "--field-selector=reason=LimitReached";
            let told = kubectl.run(&["get", "events", select, "-o", "jsonpath={.items[*].message}"]);
            if told.contains(bound) && told.contains(mend) { Ok(()) } else { Err(told) }
        });
    }
    let ended = kubectl.run(&[
        "get",
        "pod",
        "reader",
        "-o",
        "jsonpath={range .status.containerStatuses[*]}{.name}={.state.terminated.exitCode} {end}",
    ]);
    assert_eq!(ended.trim(), "environment=0 greedy=1 outside=1 read=0 trespass=1");
    let open = open_to_others(folder.path());
    assert!(open.is_empty(), "{open:?}");
    let said = run(&["doctor", "--data-dir", folder.path().to_str().unwrap()]);
    assert!(said.contains("is its owner's alone"), "{said}");
}

/// Files and folders that others than their owner may look into or change.
fn open_to_others(folder: &Path) -> Vec<PathBuf> {
    let (mut open, mut left) = (vec![], vec![folder.to_owned()]);
    while let Some(path) = left.pop() {
        // Some come and go meanwhile.
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().map(|entry| entry.unwrap().path()));
        }
        if !found.is_symlink() && found.permissions().mode() & 0o077 != 0 {
            open.push(path);
        }
    }
    open
}
