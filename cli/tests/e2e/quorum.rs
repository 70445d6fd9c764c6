//! A cluster that has lost its quorum: every command answers within seconds, with what is known.

use std::{
    thread,
    time::{Duration, Instant},
};

use futures::future::join_all;
use serde_json::Value;

use crate::{
    cluster::Cluster,
    harness::{alone, coracle, eventually, sample},
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
    eventually("the leader to be missed", || {
        let (out, error, success) = asked(&config, &["cluster", "status"]);
        if success && out.contains("NoLeader") { Ok(()) } else { Err(out + &error) }
    });
    let (config, hello) = (config.as_str(), sample("hello-http"));
    // All at once, as each waits for itself.
    thread::scope(|scope| {
        scope.spawn(|| what_is_known_is_listed(config));
        scope.spawn(|| doctor_says_what_is_wrong(config));
        for (words, wanted) in [
            (&["cluster", "status"][..], "NoLeader"),
            (&["version"], "Server Version"),
            (&["cluster", "members"], "voter"),
        ] {
            scope.spawn(move || {
                let (out, error, success) = asked(config, words);
                assert!(success && out.contains(wanted), "{words:?}: {out}{error}");
            });
        }
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
            let words = words.to_vec();
            scope.spawn(move || is_refused(config, &words));
        }
    });
    api(&cluster);
}

fn what_is_known_is_listed(config: &str) {
    let (out, error, success) = asked(config, &["get", "deploy,svc"]);
    assert!(
        success && out.contains("deployment.apps/hello") && error.contains("no quorum answers"),
        "{out}{error}"
    );
}

fn doctor_says_what_is_wrong(config: &str) {
    let (out, error, success) = asked(config, &["doctor"]);
    assert!(!success && error.contains("checks failed"), "{out}{error}");
    for line in
        ["is not ready: raft-leader failed", "does not answer", "WRONG   NoLeader: ", "node n1 is Ready"]
    {
        assert!(out.contains(line), "no {line:?} in:\n{out}");
    }
}

fn is_refused(config: &str, words: &[&str]) {
    let (out, error, success) = asked(config, words);
    let told = ["quorum", "no leader", "does not answer", "control nodes have the content"];
    let told = told.iter().any(|words| error.contains(words));
    assert!(!success && told, "{words:?}: {out}{error}");
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
    let send = async |method: &str, path: &str, body: &str| {
        let request =
            http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(kube::client::Body::from(body.as_bytes().to_vec())).unwrap();
        let began = Instant::now();
        let response = client.send(request).await.unwrap();
        (response.status().as_u16(), response.headers().get("retry-after").cloned(), began.elapsed())
    };
    let pods = "/api/v1/namespaces/default/pods";
    for path in ["?resourceVersion=0", "?resourceVersion=0&limit=1"] {
        let (status, _, took) = runtime.block_on(send("GET", &format!("{pods}{path}"), ""));
        assert!(status == 200 && took < Duration::from_secs(1), "{path}: {status} after {took:?}");
    }
    let map = serde_json::json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" } });
    let maps = "/api/v1/namespaces/default/configmaps";
    let asked = [
        ("GET", pods.to_owned(), Value::Null),
        ("GET", format!("{maps}/m"), Value::Null),
        ("POST", maps.to_owned(), map.clone()),
        ("PUT", format!("{maps}/m"), map),
        ("DELETE", format!("{maps}/m"), Value::Null),
        ("GET", format!("{pods}?watch=true"), Value::Null),
        ("GET", "/v2/hello/manifests/1".to_owned(), Value::Null),
    ];
    runtime.block_on(join_all(asked.iter().map(async |(method, path, body)| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, wait, took) = send(method, path, &body).await;
        assert!(matches!(status, 503 | 504), "{method} {path}: {status}");
        // What makes something, and may have done so, is not to be sent again unasked.
        let may_wait = wait.is_some() || (*method, status) == ("POST", 504);
        assert!(may_wait && took < API_WITHIN, "{method} {path}: Retry-After {wait:?} after {took:?}");
    })));
}
