//! A disk that is nearly full: the pod goes that has taken most of it beyond what it asked for, and no other.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::harness::{Daemon, Kubectl, alone, coracle, run, sample, within};

const DISK_MIB: u64 = 512;
/// What is free of it when it is nearly full: guests leave 256 MiB to the node.
const LEFT_MIB: u64 = 300;
/// Two looks at the disk, and their consequences.
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFEST: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  containers:
  - name: c
    image: files:1
    args: [fill, /data]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {sizeLimit: 40Mi}}]
---
apiVersion: v1
kind: Pod
metadata: {name: modest}
spec:
  containers: [{name: c, image: "files:1", args: [input], stdin: true}]
"#;

/// `coracle up` on a disk of its own, a tmpfs that only it sees; and where others find it.
fn up_on_a_small_disk(folder: &Path) -> Option<(Daemon, PathBuf)> {
    let disk = folder.join("disk");
    fs::create_dir(&disk).unwrap();
    let mount = format!("mount -t tmpfs -o size={DISK_MIB}m none \"$0\"");
    let within_namespaces = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(&disk);
        command
    };
    if !within_namespaces(&mount).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this user may mount nothing, not even in a user namespace (user_namespaces(7))");
        return None;
    }
    let data = disk.join("data");
    let up = coracle(&["up", "--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--data-dir"]);
    let mut command = within_namespaces(&format!("{mount} && exec \"$@\""));
    command.arg(up.get_program()).args(up.get_args()).arg(&data);
    for (name, value) in up.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let daemon = Daemon::run(command, "The cluster is up");
    let seen = PathBuf::from(format!("/proc/{}/root{}", daemon.id(), disk.display()));
    Some((daemon, seen))
}

#[test]
fn a_pod_that_fills_the_disk_is_evicted_and_others_stay() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let Some((_daemon, disk)) = up_on_a_small_disk(folder.path()) else { return };
    let kubeconfig = disk.join("data/kubeconfig");
    let Some(kubectl) = Kubectl::find(&kubeconfig) else { return };
    run(&["push", &sample("files"), "files:1", "--kubeconfig", kubeconfig.to_str().unwrap()]);
    kubectl.feed(&["create"], MANIFEST).unwrap();
    let is = |what: &str, words: &[&str], wanted: &str| {
        within(PATIENCE, what, || {
            let found = kubectl.run(words);
            if found == wanted {
                Ok(())
            } else {
                Err(format!("{found}\n{}", kubectl.run(&["get", "pod,event"])))
            }
        });
    };
    is(
        "the hog to be full",
        &["get", "pod", "hog", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"],
        "1",
    );
    let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    is("the other to run", &["get", "pod", "modest", "-o", ready], "True");
    // Others than pods fill the rest.
    let free = free_mib(&disk);
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1; ((free - LEFT_MIB) << 20) as usize]).unwrap();
    is(
        "the hog to go",
        &["get", "pod", "hog", "-o", "jsonpath={.status.phase} {.status.reason}"],
        "Failed Evicted",
    );
    let told = kubectl.run(&["get", "pod", "hog", "-o", "jsonpath={.status.message}"]);
    assert!(told.starts_with("The node was low on resource: ephemeral-storage. Threshold"), "{told}");
    let event = kubectl.run(&["get", "events", "--field-selector=reason=Evicted,type=Warning", "-o", "name"]);
    assert!(!event.is_empty());
    within(PATIENCE, "its files to go", || {
        let free = free_mib(&disk);
        if free > LEFT_MIB + 30 { Ok(()) } else { Err(format!("{free} MiB are free")) }
    });
    let pressure = "jsonpath={.items[0].status.conditions[?(@.type==\"DiskPressure\")].status} {.items[0].spec.taints[*].key}";
    is("the node to say so", &["get", "node", "-o", pressure], "True node.kubernetes.io/disk-pressure");
    // Which attempt was the last depends on the moment.
    let logs =
        [&["logs", "hog"][..], &["logs", "hog", "--previous"]].map(|words| kubectl.run(words)).concat();
    assert!(logs.contains("(os error"), "what it said is kept: {logs}");
    fs::remove_file(&ballast).unwrap();
    is("the pressure to end", &["get", "node", "-o", pressure], "False ");
    is("the other to stay", &["get", "pod", "modest", "-o", ready], "True");
}

fn free_mib(disk: &Path) -> u64 {
    let found = rustix::fs::statvfs(disk).unwrap();
    (found.f_bavail * found.f_frsize) >> 20
}
