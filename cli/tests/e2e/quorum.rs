//! A cluster that has lost its quorum: every command answers within seconds, with what is known.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    cluster::Cluster,
    harness::{alone, coracle, sample},
};

/// Seconds, not minutes. A change of members waits longest, 15 s for a leader.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// What the API promises.
const API_WITHIN: Duration = Duration::from_secs(10);

/// (stdout, stderr, success) of a command that must answer in time.
fn asked(config: &str, words: &[&str]) -> (String, String, bool) {
    let began = Instant::now();
    let output = coracle(&[words, &["--kubeconfig", config]].concat()).output().unwrap();
    let took = began.elapsed();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = (text(&output.stdout), text(&output.stderr), output.status.success());
    assert!(took < ANSWERED_WITHIN, "{words:?} took {took:?}: {said:?}");
    println!("{words:?} after {took:?}");
    said
}

#[test]
fn without_a_quorum_every_command_answers_with_what_is_known() {
    let _turn = alone();
    let mut cluster = Cluster::start(3, &["n1"]);
    cluster.deploy_hello(1);
    let config = cluster.kubeconfig();
    let (_, _, well) = asked(&config, &["doctor"]);
    assert!(well, "all is well");
    // One is dead, the other only silent: its sockets stay open.
    cluster.controls[1].1.kill();
    cluster.controls[2].1.freeze();
    std::thread::sleep(Duration::from_secs(3));

    let (out, error, success) = asked(&config, &["get", "deploy,svc"]);
    assert!(
        success && out.contains("deployment.apps/hello") && error.contains("no quorum answers"),
        "{out}{error}"
    );
    let (out, error, success) = asked(&config, &["doctor"]);
    assert!(!success && error.contains("checks failed"), "{out}{error}");
    for line in
        ["is not ready: raft-leader failed", "does not answer", "WRONG   NoLeader: ", "node n1 is Ready"]
    {
        assert!(out.contains(line), "no {line:?} in:\n{out}");
    }
    for (words, wanted) in [
        (&["cluster", "status"][..], "NoLeader"),
        (&["version"], "Server Version"),
        (&["cluster", "members"], "voter"),
    ] {
        let (out, error, success) = asked(&config, words);
        assert!(success && out.contains(wanted), "{words:?}: {out}{error}");
    }
    let hello = sample("hello-http");
    for words in [
        &["push", &hello, "hello:2"][..],
        &["deploy", &hello, "--name", "more"],
        &["delete", "deploy", "hello"],
        &["logs", "hello"],
        &["token", "list"],
        &["token", "create"],
        &["cluster", "keys"],
        &["cluster", "remove", "2", "--force"],
    ] {
        let (out, error, success) = asked(&config, words);
        let told = ["quorum", "no leader", "does not answer", "control nodes have the content"];
        let told = told.iter().any(|words| error.contains(words));
        assert!(!success && told, "{words:?}: {out}{error}");
    }
    api(&cluster);
}

/// Reads of what is known go on, all else is refused in time and told when to try again.
fn api(cluster: &Cluster) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async {
        let mut config = cluster.config(&cluster.controls[0].0, Duration::from_secs(60)).await;
        // What it is told to try again it would, for minutes.
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    });
    let send = |method: &str, path: &str, body: &str| {
        let request =
            http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(kube::client::Body::from(body.as_bytes().to_vec())).unwrap();
        let began = Instant::now();
        let response = runtime.block_on(client.send(request)).unwrap();
        (response.status().as_u16(), response.headers().get("retry-after").cloned(), began.elapsed())
    };
    let pods = "/api/v1/namespaces/default/pods";
    for path in ["?resourceVersion=0", "?resourceVersion=0&limit=1"] {
        let (status, _, took) = send("GET", &format!("{pods}{path}"), "");
        assert!(status == 200 && took < Duration::from_secs(1), "{path}: {status} after {took:?}");
    }
    let map = serde_json::json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" } });
    let maps = "/api/v1/namespaces/default/configmaps";
    for (method, path, body) in [
        ("GET", pods.to_owned(), Value::Null),
        ("GET", format!("{maps}/m"), Value::Null),
        ("POST", maps.to_owned(), map.clone()),
        ("PUT", format!("{maps}/m"), map),
        ("DELETE", format!("{maps}/m"), Value::Null),
        ("GET", format!("{pods}?watch=true"), Value::Null),
        ("GET", "/v2/hello/manifests/1".to_owned(), Value::Null),
    ] {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, wait, took) = send(method, &path, &body);
        assert!(matches!(status, 503 | 504), "{method} {path}: {status}");
        // What makes something, and may have done so, is not to be sent again unasked.
        let may_wait = wait.is_some() || (method, status) == ("POST", 504);
        assert!(may_wait && took < API_WITHIN, "{method} {path}: Retry-After {wait:?} after {took:?}");
    }
}
