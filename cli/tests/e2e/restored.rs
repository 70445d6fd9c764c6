//! A cluster that was restored from a backup, and a node of the old one.

use std::path::Path;

use crate::harness::{Daemon, alone, control, eventually, fails, run};

fn node(dir: &Path, control: &str, token: &str) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let arguments = ["node", "--data-dir", dir, "--name", "n1", "--fabric", "127.0.0.1:0"];
    let joining = ["--gateway", "127.0.0.1:0", "--join", control, "--token", token];
    arguments.iter().chain(&joining).map(|argument| (*argument).to_owned()).collect()
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn a_node_of_the_old_cluster_says_what_to_do_and_joins_anew() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (old, new, backup) = (path("old"), path("new"), path("backup"));
    let (first, address) = control(&old);
    let token = |dir: &str| {
        let kubeconfig = format!("{dir}/kubeconfig");
        run(&["token", "create", "--role", "node", "--kubeconfig", &kubeconfig]).trim().to_owned()
    };
    let ready = |dir: &str| {
        eventually("the node to be ready", || {
            let nodes = run(&["get", "nodes", "--kubeconfig", &format!("{dir}/kubeconfig")]);
            if nodes.contains(" Ready ") { Ok(()) } else { Err(nodes) }
        });
    };
    let stranded = node(Path::new(&path("n1")), &address, &token(&old));
    let stranded = Daemon::start(&borrowed(&stranded), "gateway http");
    ready(&old);
    run(&["snapshot", "save", &backup, "--kubeconfig", &format!("{old}/kubeconfig")]);
    first.stop();
    let key_ring = format!("{old}/keys/secrets.ring");
    run(&["snapshot", "restore", &backup, "--data-dir", &new, "--key-ring", &key_ring]);
    let control = Daemon::start(&["control", "--data-dir", &new, "--listen", &address], "control node at");

    eventually("the old node to say what to do", || {
        let output = stranded.output();
        let told = output.contains("it has new authorities: join it with an empty --data-dir");
        if told { Ok(()) } else { Err(output) }
    });
    stranded.stop();
    let token = token(&new);
    let refused = fails(&borrowed(&node(Path::new(&path("n1")), &address, &token)));
    assert!(refused.contains("belongs to a node of another cluster than the join token"), "{refused}");
    let joined = node(Path::new(&path("n1-new")), &address, &token);
    let joined = Daemon::start(&borrowed(&joined), "gateway http");
    eventually("the node to be linked", || {
        let output = joined.output();
        if output.contains("linked to the cluster") { Ok(()) } else { Err(output) }
    });
    ready(&new);
    joined.stop();
    control.stop();
}
