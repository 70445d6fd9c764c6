//! What a user gets wrong, and that each answer names the fault and the mend.

use std::fs;

use crate::harness::{
    Daemon, FOREIGN_MODULE, Kubectl, alone, control, coracle, eventually, fails, run, sample, up,
};

#[test]
fn pods_say_why_they_do_not_run() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let _daemon = up(folder.path());
    let kubeconfig = folder.path().join("kubeconfig");
    let config = kubeconfig.to_str().unwrap();
    let garbage = folder.path().join("garbage.wasm");
    fs::write(&garbage, "this is no wasm").unwrap();
    let said = fails(&["push", garbage.to_str().unwrap(), "garbage:1", "--kubeconfig", config]);
    assert!(said.contains("is not WebAssembly"), "{said}");
    let cut = folder.path().join("cut.wasm");
    fs::write(&cut, &fs::read(sample("hello-http")).unwrap()[..2000]).unwrap();
    let foreign = folder.path().join("foreign.wasm");
    fs::write(&foreign, FOREIGN_MODULE).unwrap();
    for (file, name) in [(cut.to_str().unwrap(), "cut:1"), (foreign.to_str().unwrap(), "foreign:1")] {
        run(&["push", file, name, "--kubeconfig", config]);
    }
    run(&["push", &sample("crash"), "crash:1", "--kubeconfig", config]);
    let Some(kubectl) = Kubectl::find(&kubeconfig) else { return };
    for (image, reason, message) in [
        ("missing:1", "ErrImagePull|ImagePullBackOff", "missing"),
        ("UPPER:1", "InvalidImageName", "UPPER"),
        ("cut:1", "CreateContainerError|ErrImagePull|ImagePullBackOff", ""),
        ("foreign:1", "CreateContainerError|ErrImagePull|ImagePullBackOff", "mystery"),
        ("crash:1", "CrashLoopBackOff", "back-off"),
    ] {
        let name = image.trim_end_matches(":1").to_lowercase();
        // Not `kubectl run`: it checks the image's name by itself.
        let manifest = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: '{image}'}}]}}}}"
        );
        kubectl.feed(&["create"], &manifest).unwrap();
        eventually(&format!("pod {name} to be in {reason}"), || {
            let path = "jsonpath={.status.containerStatuses[0].state.waiting}";
            let waiting = kubectl.run(&["get", "pod", &name, "-o", path]);
            let hit = reason.split('|').any(|reason| waiting.contains(&format!("\"{reason}\"")));
            if hit && waiting.contains(message) { Ok(()) } else { Err(waiting) }
        });
    }
    let manifest = "{apiVersion: v1, kind: Pod, metadata: {name: odd}, spec: {containers: [{name: a, image: 'a:1', colour: red}]}}";
    let said = kubectl.feed(&["create"], manifest).unwrap_err();
    assert!(said.contains("unknown field \"spec.containers[0].colour\""), "{said}");
    let manifest = "{apiVersion: v1, kind: Pod, metadata: {name: odd}, spec: {hostPID: true, containers: [{name: a, image: 'a:1'}]}}";
    let said = kubectl.feed(&["create"], manifest).unwrap_err();
    assert!(said.contains("spec.hostPID"), "{said}");
}

#[test]
fn daemons_say_why_they_do_not_start() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (daemon, address) = control(&path("c1"));
    let config = format!("{}/kubeconfig", path("c1"));
    let listed = run(&["token", "list", "--kubeconfig", &config]);
    assert!(
        !daemon.output().contains("::node:") && listed.lines().count() == 1,
        "a daemon prints no token: {listed}"
    );
    let said = fails(&["cluster", "remove", "1", "--kubeconfig", &config]);
    assert!(said.contains("--force") && said.contains("Nothing was done"), "the last voter: {said}");
    let kept = folder.path().join("kept");
    run(&["token", "create", "--token-file", kept.to_str().unwrap(), "--kubeconfig", &config]);
    let token = fs::read_to_string(&kept).unwrap().trim().to_string();
    assert!(token.starts_with("C1"), "{token}");

    for arguments in [
        &["delete", "pods", ""][..],
        &["delete", "pods", "?labelSelector=a"],
        &["delete", "pods", "a", ""],
        &["get", "pods", ""],
        &["logs", "pod/a?x="],
        &["deploy", "hello", "--name", ""],
    ] {
        let said = fails(&[arguments, &["--kubeconfig", &config]].concat());
        assert!(said.contains("is no name of"), "{arguments:?}: {said}");
    }
    let said = fails(&["delete", "nodes", "../pods", "--kubeconfig", &config]);
    assert!(said.contains("there is no kind apart"), "{said}");
    let said = fails(&["logs", "a/log?x=", "--kubeconfig", &config]);
    assert!(said.contains("doesn't have a resource type \"a\""), "{said}");
    let said = fails(&["delete", "pods", "a", "--namespace", "", "--kubeconfig", &config]);
    assert!(said.contains("it is empty"), "{said}");

    let said = fails(&["control", "--data-dir", &path("c2"), "--listen", &address, "--init"]);
    assert!(said.contains("in use") && said.contains("--listen"), "a port in use: {said}");
    let said = fails(&["control", "--data-dir", &path("c1"), "--listen", "127.0.0.1:0", "--init"]);
    assert!(
        said.contains("lock") || said.contains("in use") || said.contains("running"),
        "a data dir in use: {said}"
    );

    let node = |data_dir: &str, token: &str| {
        let arguments =
            ["node", "--data-dir", data_dir, "--name", "n1", "--fabric", "127.0.0.1:0", "--join", &address];
        let output = coracle(&arguments).args(["--token", token]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = node(&path("n1"), "nonsense");
    assert!(said.contains("token"), "no token at all: {said}");
    let (front, secret) = token.rsplit_once('.').unwrap();
    let said = node(&path("n2"), &format!("{front}.{}", "0".repeat(secret.len())));
    assert!(said.contains("token"), "a wrong secret: {said}");
    let pin_at = 2;
    let flipped = if &token[pin_at..=pin_at] == "0" { "1" } else { "0" };
    let said = node(&path("n3"), &format!("{}{flipped}{}", &token[..pin_at], &token[pin_at + 1..]));
    assert!(said.contains("CA"), "a wrong CA: {said}");
    let wrong_role = run(&["token", "create", "--role", "control", "--kubeconfig", &config]);
    let said = node(&path("n4"), wrong_role.trim());
    assert!(said.contains("control") && said.contains("node"), "a token of the other role: {said}");

    // A node of this cluster does not serve another.
    let started = Daemon::start(
        &[
            "node",
            "--data-dir",
            &path("n5"),
            "--name",
            "n5",
            "--fabric",
            "127.0.0.1:0",
            "--join",
            &address,
            "--token",
            &token,
        ],
        "is up",
    );
    let line = started.command_line();
    assert!(line.contains("--join") && !line.contains(&token), "a token stays in the command line: {line}");
    started.stop();
    let file = folder.path().join("token");
    fs::write(&file, format!("{token}\n")).unwrap();
    let from_file = Daemon::start(
        &[
            "node",
            "--data-dir",
            &path("n6"),
            "--name",
            "n6",
            "--fabric",
            "127.0.0.1:0",
            "--join",
            &address,
            "--token-file",
            file.to_str().unwrap(),
        ],
        "is up",
    );
    from_file.stop();
    let (other, other_address) = control(&path("other"));
    let other_token = run(&["token", "create", "--kubeconfig", &format!("{}/kubeconfig", path("other"))]);
    let said = fails(&[
        "node",
        "--data-dir",
        &path("n5"),
        "--fabric",
        "127.0.0.1:0",
        "--join",
        &other_address,
        "--token",
        other_token.trim(),
    ]);
    assert!(said.contains("another cluster"), "a data dir of another cluster: {said}");
    other.stop();
    let said = fails(&[
        "node",
        "--data-dir",
        &path("other"),
        "--fabric",
        "127.0.0.1:0",
        "--join",
        &address,
        "--token",
        &token,
    ]);
    assert!(said.contains("something else than a node's data"), "a data dir of a control node: {said}");
}

#[test]
fn clients_say_how_to_find_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        coracle(&["get", "pods"]).env("HOME", folder.path()).env_remove("XDG_DATA_HOME").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("coracle up") && said.contains("--kubeconfig"),
        "{said}"
    );
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("cluster.json"), "{}").unwrap();
    let said = fails(&["up", "--data-dir", taken.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert!(said.contains("cluster.json") && said.contains("--data-dir"), "{said}");
    let said = fails(&["up", "--control", "2", "--data-dir", folder.path().join("d").to_str().unwrap()]);
    assert!(said.contains("1, 3 or 5"), "{said}");
}
