//! A day's worth of pods on two nodes: of all kinds in turn, as fast as the cluster takes them, a bounded number alive at a
//! time. Whatever was not there before must not be there after, in any process, counted by the kernel and by itself.

pub mod bursts;
mod census;
mod kinds;
mod pods;
mod table;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use self::{
    census::{Census, Process},
    kinds::Stage,
    pods::Pods,
    table::Table,
};
use crate::{
    client::Rest,
    cluster::Cluster,
    node::{self, Node, Scraper},
};

/// Namespaces, one after the other, each with its part of the pods; each is deleted whole, and what is left then is counted.
const TENTHS: usize = 10;
/// Before the first count: pods that fill the caches and pools that stay.
const WARM_UP: usize = 4;
/// After a tenth, until it is counted: only the last count has to find everything given back.
const REST: Duration = Duration::from_secs(3);
/// The longest that it may take until nothing is left. The longest time that something is kept for is that of an idle
/// UDP flow of a pod that stays, 120 s.
const QUIET: Duration = Duration::from_secs(180);
/// A namespace that is not gone by then does not go.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(200);
/// Connections to the API.
const CONNECTIONS: usize = 4;
/// One pod in so many may fail: connections that are refused because a pod has just gone are part of a churn.
const FAILED_PART: u64 = 100;
/// Components that no node has compiled, one a tenth: their pods are deleted while they compile.
const FRESH: usize = TENTHS + 1;

pub struct Settings {
    pub pods: usize,
    /// At a time.
    pub alive: usize,
}

struct Bench {
    /// Ends before the cluster does.
    _watching: JoinSet<()>,
    cluster: Cluster,
    nodes: Vec<Node>,
    scraper: Scraper,
    rests: Vec<Rest>,
    pods: Pods,
    settings: Settings,
    counted: Arc<Counted>,
    next: Arc<AtomicUsize>,
}

#[derive(Default)]
pub struct Counted {
    pub pods: AtomicU64,
    pub failed: AtomicU64,
    pub calls: AtomicU64,
    pub cut: AtomicU64,
    pub words: Mutex<Vec<String>>,
}

pub async fn run(settings: Settings) -> Result<()> {
    let bench = Bench::start(settings).await?;
    println!("{} pods, {} at a time", bench.settings.pods, bench.settings.alive);
    bench.part("warm", bench.settings.alive * WARM_UP, 0).await?;
    sleep(REST * 5).await;
    let mut table = Table::new(bench.census().await?);
    let mut lived = Duration::ZERO;
    for tenth in 1..=TENTHS {
        let count = bench.settings.pods * tenth / TENTHS - bench.settings.pods * (tenth - 1) / TENTHS;
        let begun = Instant::now();
        bench.part(&format!("tenth-{tenth}"), count, tenth).await?;
        let rate = count as f64 / begun.elapsed().as_secs_f64();
        lived += begun.elapsed();
        sleep(REST).await;
        let census = bench.census().await?;
        println!("{tenth:>2}/{TENTHS}  {rate:>6.1} pods/s  {}", census.summary());
        table.middle(tenth, census);
    }
    let lived = lived.as_secs_f64();
    let counted = &bench.counted;
    let [pods, failed, calls, cut] = [&counted.pods, &counted.failed, &counted.calls, &counted.cut]
        .map(|count| count.load(Ordering::Relaxed));
    println!(
        "{} pods in {lived:.0} s ({:.1} a second), {calls} calls from outside, {cut} logs cut, {failed} of {pods} failed",
        bench.settings.pods,
        bench.settings.pods as f64 / lived
    );
    counted.words.lock().iter().for_each(|words| println!("  {words}"));
    let ended = Instant::now();
    loop {
        table.end(bench.census().await?);
        if table.left().next().is_none() || ended.elapsed() > QUIET {
            break;
        }
        sleep(POLL * 10).await;
    }
    println!("counted {:.0} s after the last pod\n", ended.elapsed().as_secs_f64());
    table.print();
    let left = table.left().count();
    ensure!(failed * FAILED_PART <= pods, "{failed} of {pods} pods failed");
    ensure!(left == 0, "{left} figures are not what they were: something is left that was not there");
    Ok(())
}

impl Bench {
    async fn start(settings: Settings) -> Result<Self> {
        let cluster = Cluster::start(1).await?;
        for name in ["churn", "hello-http", "guestbook-caller", "crash"] {
            node::push(&cluster, &coracle_sample_artifacts::wasm(name), &format!("{name}:1"))?;
        }
        push_fresh(&cluster)?;
        let mut nodes = Vec::new();
        for (name, ip) in [("n1", "127.0.0.1"), ("n2", "127.0.0.2")] {
            nodes.push(Node::start(&cluster, name, ip, &[])?);
        }
        let (client, scraper) = (cluster.client(0)?, Scraper::of(&cluster)?);
        let mut rests = Vec::new();
        for _ in 0..CONNECTIONS {
            rests.push(client.rest().await?);
        }
        let (pods, watching) = Pods::watch(client.rest().await?);
        let (counted, next) = (Arc::default(), Arc::default());
        Ok(Self { _watching: watching, cluster, nodes, scraper, rests, pods, settings, counted, next })
    }

    /// Makes a namespace, runs so many pods in it, and deletes it.
    async fn part(&self, namespace: &str, count: usize, tenth: usize) -> Result<()> {
        let rest = &self.rests[0];
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        let (status, _) = rest.call("POST", "/api/v1/namespaces", object.to_string().into()).await?;
        ensure!(status == 201, "the namespace {namespace}: HTTP {status}");
        let gateways = self.nodes.iter().map(|node| node.gateway.clone()).collect();
        let stage = Stage::new(namespace, &self.rests, &self.pods, gateways, &self.counted);
        let begun = Instant::now();
        stage.anchor().await.context("what the pods call")?;
        let anchored = begun.elapsed();
        let mut working = JoinSet::new();
        let (first, alive) = (self.next.fetch_add(count, Ordering::Relaxed), self.settings.alive);
        for number in first..first + count {
            while working.len() >= alive
                && let Some(done) = working.join_next().await
            {
                done.context("a pod's task panicked")?;
            }
            let (stage, fresh) = (stage.clone(), (number == first).then_some(tenth));
            working.spawn(async move { stage.live(number, fresh).await });
        }
        while let Some(done) = working.join_next().await {
            done.context("a pod's task panicked")?;
        }
        let lived = begun.elapsed();
        self.delete(namespace).await?;
        let [anchored, lived, all] = [anchored, lived, begun.elapsed()].map(|time| time.as_secs_f64());
        println!(
            "       {namespace}: called pods {anchored:.1} s, {count} pods {:.1} s, deleted {:.1} s",
            lived - anchored,
            all - lived
        );
        Ok(())
    }

    async fn delete(&self, namespace: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}");
        let rest = &self.rests[0];
        rest.call("DELETE", &path, Vec::new()).await?;
        let begun = Instant::now();
        while rest.call("GET", &path, Vec::new()).await?.0 != 404 {
            if begun.elapsed() > PATIENCE {
                bail!("the namespace {namespace} is not gone after {} s", PATIENCE.as_secs());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn census(&self) -> Result<Census> {
        let control = self.cluster.running(0).context("the control node runs")?;
        // No connection of its own: it would be counted, or just not.
        let (_, page) = self.rests[0].call("GET", "/metrics", Vec::new()).await?;
        let mut census = Census::default();
        census.take(
            &Process { name: "control", id: control.id(), data_dir: &self.cluster.data_dir(0) },
            &page,
        )?;
        for node in &self.nodes {
            let page = self.scraper.scrape(node).await?;
            let process = Process { name: &node.name, id: node.running.id(), data_dir: &node.data_dir };
            census.take(&process, &page)?;
        }
        Ok(census)
    }
}

/// The same component under other digests: with a custom section that says a number.
fn push_fresh(cluster: &Cluster) -> Result<()> {
    let wasm = std::fs::read(coracle_sample_artifacts::wasm("churn"))?;
    for number in 0..FRESH {
        let mut fresh = wasm.clone();
        // Id 0, the length of the rest, the length of the name, the name, the content.
        fresh.extend([0, 7, 5, b'c', b'h', b'u', b'r', b'n', number as u8]);
        let path = cluster.path().join(format!("fresh-{number}.wasm"));
        std::fs::write(&path, fresh)?;
        node::push(cluster, &path, &format!("fresh:{number}"))?;
    }
    Ok(())
}
