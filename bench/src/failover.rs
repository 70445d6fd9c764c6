//! Row 8: a leader is killed, and the time until the next write at a survivor, against etcd; a node is killed, and the
//! time until its pods are Ready elsewhere.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::{
    client::Rest,
    cluster::Cluster,
    load::ms,
    process::{Running, free_port},
    store::{Door, EtcdCluster, GrpcDoor},
};

/// One try of a write; a member without a leader would keep it for seconds.
const TRY: Duration = Duration::from_millis(100);
/// Between two tries at one member.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two looks at the API.
const POLL: Duration = Duration::from_millis(20);
/// After this long something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Writes go on so long before the next leader is killed.
const SETTLE: Duration = Duration::from_secs(3);
/// Pods of the deployment.
const REPLICAS: usize = 4;

const KILLED: &str = "leader killed -> next write";

pub async fn run(rounds: u32) -> Result<()> {
    let mut ours = Cluster::start(3).await?;
    let mut etcd = EtcdCluster::start().await?;
    let (mut our_gaps, mut their_gaps) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let leader = ours.leader().await?;
        let mut doors: Vec<Box<dyn Door>> = Vec::new();
        for survivor in ours.alive().filter(|number| *number != leader) {
            doors.push(Box::new(GrpcDoor::new(&ours.client(survivor)?)));
        }
        next_write(&doors).await?;
        let killed = Instant::now();
        ours.kill(leader);
        next_write(&doors).await?;
        our_gaps.push(killed.elapsed());
        ours.resume(leader)?;
        if let Some(etcd) = &mut etcd {
            let leader = etcd.leader().await?;
            let mut doors: Vec<Box<dyn Door>> = Vec::new();
            for survivor in etcd.alive().filter(|number| *number != leader) {
                doors.push(Box::new(etcd.door(survivor)?));
            }
            next_write(&doors).await?;
            let killed = Instant::now();
            etcd.kill(leader);
            next_write(&doors).await?;
            their_gaps.push(killed.elapsed());
            etcd.resume(leader)?;
        }
        sleep(SETTLE).await;
    }
    report(KILLED, "coracle", &mut our_gaps, 1000);
    report(KILLED, "etcd", &mut their_gaps, 1000);
    drop((ours, etcd));
    replaced(rounds).await
}

/// Writes at all doors at once, each again and again, until one is acknowledged.
async fn next_write(doors: &[Box<dyn Door>]) -> Result<()> {
    let mut tries: FuturesUnordered<_> = doors
        .iter()
        .enumerate()
        .map(|(number, door)| async move {
            // A try that is given up may still be done: the key is written over and over, so that does no harm.
            while !matches!(timeout(TRY, door.put(number, number as u64)).await, Ok(Ok(()))) {
                sleep(PAUSE).await;
            }
        })
        .collect();
    timeout(PATIENCE, tries.next()).await.context("no write was acknowledged")?;
    Ok(())
}

fn report(what: &str, who: &str, times: &mut [Duration], target_ms: u64) {
    if times.is_empty() {
        return;
    }
    times.sort_unstable();
    let (median, worst) = (ms(times[times.len() / 2]), ms(times[times.len() - 1]));
    let count = times.len();
    println!(
        "row 8  {what:<36} {who:<8} median {median:>6.0} ms  worst {worst:>6.0} ms of {count} (target {target_ms})"
    );
}

/// Kills one of two nodes and waits for its pods on the other, in turn.
async fn replaced(rounds: u32) -> Result<()> {
    const NAMES: [&str; 2] = ["n1", "n2"];
    let cluster = Cluster::start(3).await?;
    let rest = cluster.client(0)?.rest().await?;
    let mut nodes = Vec::new();
    for name in NAMES {
        nodes.push(Some(node(&cluster, name)?));
    }
    let wasm = coracle_sample_artifacts::wasm("hello-http");
    let wasm = wasm.to_str().context("the path of the sample is not UTF-8")?;
    cluster.cli(&["deploy", wasm, "--name", "hello", "--replicas", &REPLICAS.to_string()])?;
    let mut times = Vec::new();
    for round in 0..rounds as usize {
        let (killed, survivor) = (round % 2, NAMES[1 - round % 2]);
        wait(&rest, "Ready pods on both nodes", |on| {
            on.len() == REPLICAS && NAMES.iter().all(|name| on.iter().any(|node| node == name))
        })
        .await?;
        let begun = Instant::now();
        if let Some(mut node) = nodes[killed].take() {
            node.kill();
        }
        wait(&rest, "all Ready pods on the surviving node", |on| {
            on.len() == REPLICAS && on.iter().all(|node| node == survivor)
        })
        .await?;
        times.push(begun.elapsed());
        nodes[killed] = Some(node(&cluster, NAMES[killed])?);
        wait_node(&rest, NAMES[killed]).await?;
        // Pods do not move back by themselves; new ones are placed on both nodes.
        rest.call("DELETE", PODS, Vec::new()).await?;
    }
    report("node killed -> pods Ready elsewhere", "coracle", &mut times, 3000);
    Ok(())
}

const PODS: &str = "/api/v1/namespaces/default/pods";

/// Starts a node, or resumes the one of that name.
fn node(cluster: &Cluster, name: &str) -> Result<Running> {
    let data_dir = cluster.path().join(name);
    let mut command = Command::new(cluster.binary());
    command.args(["--log", "error", "node", "--name", name, "--data-dir"]).arg(&data_dir);
    command.args(["--fabric", "127.0.0.1:0", "--gateway", &format!("127.0.0.1:{}", free_port()?)]);
    let addresses: Vec<&str> = (0..3).map(|number| cluster.address(number)).collect();
    let token = cluster.cli(&["token", "create", "--role", "node"])?;
    command.args(["--join", &addresses.join(","), "--token", token.trim()]);
    Running::start_until(&mut command, "gateway http")
}

/// Waits until the nodes of the Ready pods, one a pod, are as wanted.
async fn wait(rest: &Rest, what: &str, wanted: impl Fn(&[String]) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pods = rest.get(PODS).await?;
        let ready = pods["items"].as_array().into_iter().flatten().filter(|pod| is_ready(pod));
        let nodes: Vec<String> =
            ready.filter_map(|pod| Some(pod["spec"]["nodeName"].as_str()?.to_owned())).collect();
        if wanted(&nodes) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("waited in vain for {what}; Ready pods are on {nodes:?}");
        }
        sleep(POLL).await;
    }
}

async fn wait_node(rest: &Rest, name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_ready(&rest.get(&format!("/api/v1/nodes/{name}")).await?) {
        if Instant::now() > deadline {
            bail!("node {name} did not become Ready again");
        }
        sleep(POLL).await;
    }
    Ok(())
}

fn is_ready(object: &Value) -> bool {
    let gone = object["metadata"]["deletionTimestamp"].is_string();
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    !gone && conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}
