//! `/metrics` and the health endpoints, as a parser of the format and a real Prometheus read them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_server::Control;
use futures::StreamExt;
use http::Method;
use kube::{
    Client,
    api::{PostParams, WatchParams},
    config::Kubeconfig,
};

use crate::bench::{PATIENCE, admin, client, config_map, config_maps, init, send, send_with, three, until};

/// Samples by their names with labels, and the types by family.
#[derive(Default)]
struct Page {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Page {
    /// Reads the text format (version 0.0.4) and holds it to its rules.
    fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap().to_owned();
                assert!(rest.len() > family.len() + 1, "no help: {line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family, "the type follows the help");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(page.types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let base = match page.types[&family].as_str() {
                    "histogram" => ["_bucket", "_sum", "_count"]
                        .iter()
                        .find_map(|suffix| name.strip_suffix(suffix))
                        .unwrap_or_else(|| panic!("{line} in a histogram")),
                    _ => name,
                };
                assert_eq!(base, family, "a family's samples stand together");
                let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                assert!(page.samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
            }
        }
        page.check_histograms();
        page
    }

    fn check_histograms(&self) {
        for (name, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut last: BTreeMap<String, (f64, f64)> = BTreeMap::new();
            let prefix = format!("{name}_bucket{{");
            let mut buckets: Vec<(String, f64, f64)> = self
                .samples
                .iter()
                .filter_map(|(series, count)| {
                    let labels = series.strip_prefix(&prefix)?.strip_suffix('}')?;
                    let (rest, bound) = labels.rsplit_once("le=\"")?;
                    let bound = bound.trim_end_matches('"').replace("+Inf", "inf");
                    Some((rest.trim_end_matches(',').to_owned(), bound.parse().unwrap(), *count))
                })
                .collect();
            buckets.sort_by(|one, other| (&one.0, one.1).partial_cmp(&(&other.0, other.1)).unwrap());
            for (labels, bound, count) in buckets {
                let before = last.insert(labels, (bound, count));
                assert!(before.is_none_or(|(_, before)| before <= count), "{name}: buckets are cumulative");
            }
            for (labels, (bound, count)) in last {
                let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                assert!(bound.is_infinite(), "{name}{labels} has a bucket for all");
                assert_eq!(self.samples[&format!("{name}_count{labels}")], count);
                assert!(self.samples.contains_key(&format!("{name}_sum{labels}")));
            }
        }
    }

    fn get(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("{series} is not among {:?}", self.samples.keys()))
    }
}

async fn get(client: &Client, path: &str) -> (u16, String) {
    let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect_bytes().await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn scrape(client: &Client) -> (Page, String) {
    let (status, text) = get(client, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    (Page::parse(&text), text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_say_what_happened() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let (client, maps) = (client(&control).await, config_maps(&control).await);
    let mut watch = maps.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    for number in 0..3 {
        maps.create(&PostParams::default(), &config_map(&format!("m{number}"), "x")).await.unwrap();
        watch.next().await.unwrap().unwrap();
    }
    assert_eq!(maps.get_opt("nowhere").await.unwrap(), None);

    let (page, text) = scrape(&client).await;
    let maps = r#"group="",version="v1",resource="configmaps""#;
    assert_eq!(page.get(&format!(r#"apiserver_request_total{{verb="POST",{maps},code="201"}}"#)), 3.0);
    assert_eq!(page.get(&format!(r#"apiserver_request_total{{verb="GET",{maps},code="404"}}"#)), 1.0);
    let durations = format!(r#"apiserver_request_duration_seconds_count{{verb="POST",{maps}}}"#);
    assert_eq!(page.get(&durations), 3.0);
    assert_eq!(page.get(&format!(r#"apiserver_longrunning_requests{{verb="WATCH",{maps}}}"#)), 1.0);
    assert!(page.get(&format!("apiserver_watch_events_total{{{maps}}}")) >= 3.0);
    assert!(page.get(r#"coracle_store_watchers{resource="configmaps"}"#) >= 1.0);
    assert!(page.get(r#"apiserver_storage_objects{resource="configmaps"}"#) >= 3.0);
    assert!(page.get(r#"coracle_store_watch_window_events{resource="configmaps"}"#) >= 3.0);
    assert_eq!(page.get("coracle_server_is_leader"), 1.0);
    assert_eq!(page.get("coracle_server_has_leader"), 1.0);
    assert_eq!(page.get("coracle_server_leader_changes_seen_total"), 1.0);
    assert!(page.get("coracle_disk_wal_fsync_duration_seconds_count") >= 3.0);
    assert!(page.get("coracle_disk_wal_write_bytes_total") > 1000.0);
    assert_eq!(page.get("coracle_disk_wal_segments"), 1.0);
    assert!(page.get("coracle_server_proposals_applied_total") >= 3.0);
    assert!(page.get("coracle_raft_applied_index") <= page.get("coracle_raft_last_index"));
    assert!(page.get("process_resident_memory_bytes") > 1e6 && page.get("process_open_fds") > 3.0);

    drop(watch);
    let gauge = format!(r#"apiserver_longrunning_requests{{verb="WATCH",{maps}}}"#);
    until("the watch is no longer counted", || async {
        !scrape(&client).await.0.samples.contains_key(&gauge)
    })
    .await;
    promtool(&text);
    prometheus(&control, dir.path()).await;
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_acts_as_somebody_else_is_that_one_on_every_surface() {
    let dir = tempfile::tempdir().unwrap();
    let control = init(dir.path()).await;
    let (address, admin) = (control.address(), admin(&control));
    let status = "/coracle.cluster.v1.Cluster/Status";
    let as_joe = [("impersonate-user", "joe")];
    for (method, path) in [
        (Method::GET, "/api/v1/secrets"),
        (Method::GET, "/metrics"),
        (Method::GET, "/v2/"),
        (Method::POST, "/v2/hello/blobs/uploads/"),
    ] {
        let own = send(&address, &admin, method.clone(), path, b"").await;
        assert!(own.status().is_success(), "{path}: {own:?}");
        let answer = send_with(&address, &admin, method, path, &as_joe, b"").await;
        assert_eq!(answer.status(), 403, "{path}: {answer:?}");
    }
    let grpc = [("impersonate-user", "joe"), ("content-type", "application/grpc")];
    let answer = send_with(&address, &admin, Method::POST, status, &grpc, b"").await;
    assert_eq!(answer.headers()["grpc-status"], "7", "{answer:?}");
    control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_knows_how_far_the_others_are_and_checks_have_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut controls = three(dir.path()).await;
    let leader = controls.iter().position(|control| control.storage().leads()).unwrap();
    let asked = client(&controls[leader]).await;
    let (page, _) = scrape(&asked).await;
    let prefix = "coracle_raft_follower_lag_entries{";
    let lags = page.samples.keys().filter(|series| series.starts_with(prefix)).count();
    assert_eq!((lags, page.get("coracle_raft_voters")), (2, 3.0));

    let (status, text) = get(&asked, "/readyz?verbose").await;
    let names: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("[+]")).collect();
    let expected = ["ping", "wal", "raft-leader", "apply-lag", "first-objects", "nospace", "storage"];
    let expected: Vec<String> = expected.iter().map(|name| format!("{name} ok")).collect();
    assert_eq!((status, names), (200, expected.iter().map(String::as_str).collect()), "{text}");
    assert_eq!(get(&asked, "/livez?verbose").await.1, "[+]ping ok\n[+]wal ok\nlivez check passed\n");
    assert_eq!(get(&asked, "/readyz/apply-lag").await, (200, "ok".to_owned()));

    // Alone it has no quorum: alive, but not ready.
    let survivor = controls.remove(leader);
    for control in controls {
        control.abort().await;
    }
    until("the survivor knows no leader", || async { survivor.storage().status().leader.is_none() }).await;
    let (status, text) = get(&asked, "/readyz?exclude=storage").await;
    assert_eq!(status, 500);
    assert!(text.contains("[-]raft-leader failed: no leader is known\n"), "{text}");
    assert!(text.contains("[+]storage excluded: ok\n") && text.ends_with("readyz check failed\n"), "{text}");
    assert_eq!(get(&asked, "/readyz/raft-leader").await.0, 500);
    assert_eq!(get(&asked, "/livez").await, (200, "ok".to_owned()));
    survivor.abort().await;
}

/// Whether a program is here; says so where it is not.
fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("CORACLE_REQUIRE_CLIENTS").is_none(),
            "{program} is required and not installed"
        );
        eprintln!("skipped: {program} is not installed (for example: apt-get install prometheus)");
    }
    found
}

fn promtool(text: &str) {
    if !installed("promtool") {
        return;
    }
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "promtool: {said}");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A real Prometheus scrapes the control node with the administrator's certificate and answers a query about it.
async fn prometheus(control: &Control, dir: &Path) {
    if !installed("prometheus") {
        return;
    }
    let kubeconfig = Kubeconfig::read_from(control.kubeconfig_path()).unwrap();
    let cluster = kubeconfig.clusters[0].cluster.clone().unwrap();
    let user = serde_json::to_value(&kubeconfig.auth_infos[0].auth_info).unwrap();
    let write = |name: &str, base64: &str| {
        std::fs::write(dir.join(name), STANDARD.decode(base64).unwrap()).unwrap();
    };
    write("ca.pem", &cluster.certificate_authority_data.unwrap());
    write("client.pem", user["client-certificate-data"].as_str().unwrap());
    write("client.key", user["client-key-data"].as_str().unwrap());
    let folder = dir.display();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: coracle\n  scheme: https\n  tls_config: \
         {{ca_file: {folder}/ca.pem, cert_file: {folder}/client.pem, key_file: {folder}/client.key}}\n  \
         static_configs: [{{targets: [\"{}\"]}}]\n",
        control.address()
    );
    std::fs::write(dir.join("prometheus.yml"), config).unwrap();
    // Another program may take the port before Prometheus does, which then ends.
    for _ in 0..3 {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={folder}/prometheus.yml"));
        command.arg(format!("--storage.tsdb.path={folder}/tsdb"));
        command.arg(format!("--web.listen-address={address}"));
        let mut prometheus = Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let query = format!("http://{address}/api/v1/query?query=coracle_server_is_leader");
        let waiting = async {
            while prometheus.0.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let answer = ask(&query).await;
                if answer.is_some_and(|answer| answer["data"]["result"][0]["value"][1] == "1") {
                    return true;
                }
            }
            false
        };
        let scraped = tokio::time::timeout(PATIENCE, waiting).await;
        if scraped.expect("Prometheus scrapes the leader") {
            return;
        }
    }
    panic!("Prometheus ended three times");
}

async fn ask(url: &str) -> Option<serde_json::Value> {
    let uri: http::Uri = url.parse().unwrap();
    let stream = tokio::net::TcpStream::connect(uri.authority()?.as_str()).await.ok()?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
    tokio::spawn(connection);
    let request = http::Request::get(uri.path_and_query()?.as_str()).header("host", "prometheus");
    let body = http_body_util::Empty::<bytes::Bytes>::new();
    let response = sender.send_request(request.body(body).unwrap()).await.ok()?;
    let body = http_body_util::BodyExt::collect(response.into_body()).await.ok()?.to_bytes();
    serde_json::from_slice(&body).ok()
}
