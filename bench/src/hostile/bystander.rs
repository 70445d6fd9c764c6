//! The other user: writes, reads and calls a pod, each again and again with a short pause, and keeps how long it took.
//! Where a node is to suffer he also starts pods on it, one after the other.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    client::{Client, Rest},
    load::ms,
};

/// Between two requests of a kind.
const PAUSE: Duration = Duration::from_millis(10);
/// Who call the pod beside each other.
const CALLERS: usize = 4;
/// Between two starts of a pod.
const START_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks whether it is Ready.
const START_POLL: Duration = Duration::from_millis(20);
/// A pod that takes longer has failed.
const START_TOO_LONG: Duration = Duration::from_secs(20);
const PODS: &str = "/api/v1/namespaces/default/pods";
/// A request that takes longer has failed.
const TOO_LONG: Duration = Duration::from_secs(10);
const OBJECT: &str = "/api/v1/namespaces/default/configmaps/bystander";

pub struct Bystander {
    seen: Arc<Seen>,
    /// Its tasks end with it.
    _working: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    writes: Mutex<Vec<Duration>>,
    reads: Mutex<Vec<Duration>>,
    calls: Mutex<Vec<Duration>>,
    starts: Mutex<Vec<Duration>>,
    /// Since when the pod that is not Ready yet is waited for.
    starting: Mutex<Option<Instant>>,
    failed: AtomicU64,
    /// Writes that may have become entries of the log.
    written: AtomicU64,
}

/// Figures of one look.
#[derive(Clone, Default)]
pub struct Figures {
    pub writes: Latency,
    pub reads: Latency,
    pub calls: Latency,
    /// Calls that were tried.
    pub called: usize,
    /// The slowest pod, one that is not Ready yet among them.
    pub slowest_start: Option<Duration>,
    pub failed: usize,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    p99: Duration,
    worst: Duration,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ({:.0})", ms(self.p99), ms(self.worst))
    }
}

impl Latency {
    fn of(times: &Mutex<Vec<Duration>>) -> Self {
        let mut times = times.lock().clone();
        times.sort_unstable();
        let Some(worst) = times.last().copied() else { return Self::default() };
        Self { p99: times[times.len() * 99 / 100], worst }
    }
}

impl Bystander {
    /// Begins once an object is written and the pod answers. Pods are started where an image and a node for them are named.
    pub async fn start(
        client: &Client,
        gateway: &str,
        pod: &str,
        starts: Option<(&'static str, &'static str)>,
    ) -> Result<Self> {
        let seen = Arc::<Seen>::default();
        let rest = client.rest().await?;
        let (status, _) = rest.call("POST", OBJECT.trim_end_matches("/bystander"), object(0)).await?;
        ensure!(status == 201, "the bystander's object: HTTP {status}");
        let begun = Instant::now();
        while call(gateway, pod).await.is_err() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "the bystander's pod does not answer");
            sleep(PAUSE).await;
        }
        let mut working = JoinSet::new();
        working.spawn(write(client.rest().await?, seen.clone()));
        working.spawn(read(client.rest().await?, seen.clone()));
        for _ in 0..CALLERS {
            working.spawn(calls(gateway.to_owned(), pod.to_owned(), seen.clone()));
        }
        if let Some((image, node)) = starts {
            working.spawn(start_pods(client.rest().await?, image, node, seen.clone()));
        }
        Ok(Self { seen, _working: working })
    }

    pub fn forget(&self) {
        for times in [&self.seen.writes, &self.seen.reads, &self.seen.calls, &self.seen.starts] {
            times.lock().clear();
        }
        self.seen.failed.store(0, Ordering::Relaxed);
    }

    pub fn seen(&self) -> Figures {
        Figures {
            writes: Latency::of(&self.seen.writes),
            reads: Latency::of(&self.seen.reads),
            calls: Latency::of(&self.seen.calls),
            called: self.seen.calls.lock().len(),
            slowest_start: {
                let waiting = self.seen.starting.lock().map(|since| since.elapsed());
                // One that is under way counts once it is slower than those that were there.
                self.seen.starts.lock().iter().copied().max().max(waiting)
            },
            failed: self.seen.failed.load(Ordering::Relaxed) as usize,
        }
    }

    pub fn written(&self) -> u64 {
        self.seen.written.load(Ordering::Relaxed)
    }
}

impl Seen {
    /// Waits for one request, and keeps its time. Whether it succeeded.
    async fn time(&self, kind: &Mutex<Vec<Duration>>, request: impl Future<Output = Result<()>>) {
        let begun = Instant::now();
        if !matches!(timeout(TOO_LONG, request).await, Ok(Ok(()))) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        kind.lock().push(begun.elapsed());
        sleep(PAUSE).await;
    }
}

async fn write(rest: Rest, seen: Arc<Seen>) {
    for number in 1.. {
        let writing = async {
            let (status, _) = rest.call("PUT", OBJECT, object(number)).await?;
            ensure!(status == 200, "HTTP {status}");
            seen.written.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        seen.time(&seen.writes, writing).await;
    }
}

async fn read(rest: Rest, seen: Arc<Seen>) {
    loop {
        seen.time(&seen.reads, async { rest.get(OBJECT).await.map(drop) }).await;
    }
}

async fn calls(gateway: String, pod: String, seen: Arc<Seen>) {
    loop {
        seen.time(&seen.calls, call(&gateway, &pod)).await;
    }
}

async fn start_pods(rest: Rest, image: &str, node: &str, seen: Arc<Seen>) {
    for number in 1.. {
        let name = format!("start-{number}");
        let spec = json!({
            "nodeSelector": {"kubernetes.io/hostname": node}, "containers": [{"name": "c", "image": image}],
        });
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        let begun = Instant::now();
        *seen.starting.lock() = Some(begun);
        if !matches!(timeout(START_TOO_LONG, start_pod(&rest, &name, &pod)).await, Ok(Ok(()))) {
            seen.failed.fetch_add(1, Ordering::Relaxed);
        }
        *seen.starting.lock() = None;
        seen.starts.lock().push(begun.elapsed());
        // What cannot be deleted is one pod more.
        let path = format!("{PODS}/{name}?gracePeriodSeconds=0");
        let _ = timeout(TOO_LONG, rest.call("DELETE", &path, Vec::new())).await;
        sleep(START_PAUSE).await;
    }
}

/// Makes a pod and waits until it is Ready.
async fn start_pod(rest: &Rest, name: &str, pod: &Value) -> Result<()> {
    let (status, _) = rest.call("POST", PODS, pod.to_string().into()).await?;
    ensure!(status == 201, "a pod: HTTP {status}");
    loop {
        let pod = rest.get(&format!("{PODS}/{name}")).await?;
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        if conditions.into_iter().any(|it| it["type"] == "Ready" && it["status"] == "True") {
            return Ok(());
        }
        sleep(START_POLL).await;
    }
}

fn object(number: u64) -> Vec<u8> {
    let metadata = json!({"name": "bystander", "namespace": "default"});
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"n": number.to_string()}});
    object.to_string().into()
}

/// One request to the pod through the gateway.
async fn call(gateway: &str, pod: &str) -> Result<()> {
    let status = ask(gateway, pod).await?;
    ensure!(status == 200, "the pod: HTTP {status}");
    Ok(())
}

/// The status of one GET of a pod, over a connection of its own.
pub async fn ask(address: &str, pod: &str) -> Result<u16> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let port = address.rsplit_once(':').context("the address has a port")?.1;
    let request = http::Request::get("/").header("host", format!("{pod}.localhost:{port}"));
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    connection.abort();
    Ok(status)
}
