//! `coracle node --metrics`: who may read it, what it tells, and that monitoring goes on without the control plane.

use std::{fs, sync::Arc};

use coracle_proto::tls;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Daemon, alone, control, eventually, get, run, sample};

/// Monitoring that knows the cluster's client authority.
struct Scraper {
    tls: Arc<ClientConfig>,
    address: String,
}

impl Scraper {
    /// The status and the whole answer to who shows this token, where the node shows that it has this name.
    fn scrape(&self, name: &'static str, token: Option<&str>) -> (u16, String) {
        let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {name}\r\n{bearer}Connection: close\r\n\r\n");
        let name = ServerName::try_from(name).unwrap();
        let asked = async {
            let mut stream = tls::connect_named(&self.address, name, self.tls.clone()).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map(|_| answer)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(asked).unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no status in {answer:?}")), answer)
    }
}

/// What a page says of a series.
fn figure(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in:\n{page}")).parse().unwrap()
}

#[test]
fn a_reader_scrapes_a_node_and_goes_on_when_the_control_plane_is_gone() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (mut control, api) = control(&path("c1"));
    let kubeconfig = path("c1/kubeconfig");
    let token =
        |role| run(&["token", "create", "--role", role, "--kubeconfig", &kubeconfig]).trim().to_string();
    let (joining, data_dir) = (token("node"), path("n1"));
    let node = ["node", "--data-dir", &data_dir, "--name", "n1", "--join", &api, "--token", &joining];
    let ports = ["--fabric", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let node = Daemon::start(&[&node[..], &ports].concat(), "gateway http");

    let wasm = sample("hello-http");
    let url = run(&["deploy", &wasm, "--name", "hello", "--kubeconfig", &kubeconfig]);
    let host = url.trim().trim_start_matches("http://").split(':').next().unwrap();
    let gateway = node.said("gateway ");
    eventually("the gateway to answer", || match get(&gateway, host) {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });

    let ca = fs::read_to_string(path("c1/pki/client-ca.crt")).unwrap();
    let tls = Arc::new(tls::anonymous_client_config(&ca).unwrap());
    let address = node.said("metrics https://").trim_end_matches("/metrics").to_string();
    let scraper = Scraper { tls, address };
    let (status, answer) = scraper.scrape("n1", None);
    assert!(status == 401 && answer.to_lowercase().contains("www-authenticate: bearer"), "{answer}");
    let (reader, pusher) = (token("reader"), token("pusher"));
    // As it would be shown were it one to read with.
    let proof = joining.rsplit(':').next().unwrap();
    for (token, expected) in [(pusher.as_str(), 403), (&joining, 401), (proof, 401), ("made.up", 401)] {
        let (status, answer) = scraper.scrape("n1", Some(token));
        assert!(status == expected && !answer.contains("coracle_"), "{answer}");
    }

    let (status, page) = scraper.scrape("n1", Some(&reader));
    assert_eq!(status, 200, "{page}");
    for series in [
        "coracle_gateway_requests_total{code=\"2xx\"}",
        "coracle_gateway_request_duration_seconds_count",
        "coracle_guest_containers",
        "coracle_guest_cpu_seconds_total",
        "coracle_guest_host_bytes",
        "coracle_compile_started_total",
        "coracle_compile_ended_total{result=\"succeeded\"}",
        "coracle_compile_duration_seconds_sum",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
        "coracle_node_tasks",
        "coracle_node_held{what=\"pods wanted\"}",
        concat!("coracle_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"),
    ] {
        assert!(figure(&page, series) > 0.0, "{series} in:\n{page}");
    }
    assert_eq!(figure(&page, "coracle_gateway_requests_in_flight"), 0.0);
    // A component of WASI 0.2 has memory only while it serves.
    assert_eq!(figure(&page, "coracle_guest_memory_bytes"), 0.0);
    assert_eq!(figure(&page, "coracle_guest_ends_total{reason=\"trapped\"}"), 0.0);

    control.kill();
    let (status, page) = scraper.scrape("127.0.0.1", Some(&reader));
    assert_eq!(status, 200, "the same token, by the address that the node's certificate names: {page}");
    let (status, answer) = scraper.scrape("n1", Some("made.later"));
    assert!(status == 503 && answer.to_lowercase().contains("retry-after: "), "{answer}");
    let logged = node.output();
    assert!([&reader, &pusher].iter().all(|token| !logged.contains(token.as_str())), "{logged}");
}
