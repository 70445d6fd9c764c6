//! Row 2: functions at rest on one node, and a request to a random one each 10 ms: how long it takes where no instance runs,
//! beside one that does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use crate::{client::Rest, cluster::Cluster, load::ms, node, node::Node};

const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(200);
/// Between two requests.
const EVERY: Duration = Duration::from_millis(10);
/// Requests to a function of which an instance runs.
const WARM: usize = 500;
/// Functions are made so many at a time.
const AT_ONCE: usize = 16;

const FUNCTIONS: &str = "/apis/coracle.dev/v1/namespaces/default/functions";

pub async fn run(functions: usize, time: Duration) -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let node = Node::start(&cluster, "n1", "127.0.0.1", &[])?;
    node::push(&cluster, &coracle_sample_artifacts::wasm("hello-http"), "hello:1")?;
    let rest = cluster.client(0)?.rest().await?;
    make(&rest, "warm", 600).await?;
    until(&rest, |all| all.iter().all(is_ready)).await?;
    let before = node.running.memory_mib()?.0;
    let begun = Instant::now();
    let mut under_way = JoinSet::new();
    for number in 0..functions {
        if under_way.len() >= AT_ONCE {
            under_way.join_next().await.context("some are under way")???;
        }
        let rest = rest.clone();
        under_way.spawn(async move { make(&rest, &format!("f-{number}"), 1).await });
    }
    while let Some(made) = under_way.join_next().await {
        made??;
    }
    until(&rest, |all| all.len() > functions && all.iter().all(is_ready)).await?;
    let ready = begun.elapsed();
    until(&rest, |all| all.iter().filter(|one| one["status"]["replicas"] == 0).count() >= functions).await?;
    // What has ended is given back.
    sleep(Duration::from_secs(5)).await;
    let memory = node.running.memory_mib()?.0;
    println!(
        "row 2  {functions} functions, each started once, Ready after {:.1} s; at rest the node has {memory:.0} MiB, {:.1} KiB each \
         (control node {:.0} MiB)",
        ready.as_secs_f64(),
        (memory - before) * 1024.0 / functions as f64,
        cluster.running(0).map_or(Ok((0.0, 0.0)), |control| control.memory_mib())?.0,
    );
    let mut warm = Vec::new();
    for _ in 0..WARM {
        warm.push(call(&node, "warm").await?);
        sleep(EVERY / 5).await;
    }
    let (mut calls, begun) = (JoinSet::new(), Instant::now());
    while begun.elapsed() < time {
        let (gateway, name) = (node.gateway.clone(), format!("f-{}", rand::rng().random_range(0..functions)));
        calls.spawn(async move { call_at(&gateway, &name).await });
        sleep(EVERY).await;
    }
    let mut cold = Vec::new();
    while let Some(called) = calls.join_next().await {
        cold.push(called??);
    }
    tell("warm", &mut warm);
    tell("a random one, mostly at rest", &mut cold);
    let over = |part: f64| ms(at(&cold, part).saturating_sub(at(&warm, part)));
    println!(
        "row 2  over the warm one: p50 {:.2} ms (target 1), p99 {:.2} ms (target 5)",
        over(0.5),
        over(0.99)
    );
    Ok(())
}

async fn make(rest: &Rest, name: &str, idle_seconds: u64) -> Result<()> {
    let function = json!({
        "apiVersion": "coracle.dev/v1", "kind": "Function", "metadata": { "name": name },
        "spec": { "image": "hello:1", "scale": { "idleSeconds": idle_seconds } },
    });
    let (status, body) = rest.call("POST", FUNCTIONS, function.to_string().into()).await?;
    ensure!(status == 201, "{name}: HTTP {status}: {}", String::from_utf8_lossy(&body));
    Ok(())
}

fn is_ready(function: &Value) -> bool {
    let conditions = function["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

async fn until(rest: &Rest, is_so: impl Fn(&[Value]) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let list = rest.get(FUNCTIONS).await?;
        let all = list["items"].as_array().context("a list")?;
        if is_so(all) {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "{} of {} are Ready",
            all.iter().filter(|one| is_ready(one)).count(),
            all.len()
        );
        sleep(POLL).await;
    }
}

async fn call(node: &Node, name: &str) -> Result<Duration> {
    call_at(&node.gateway, name).await
}

/// One request over a connection of its own.
async fn call_at(gateway: &str, name: &str) -> Result<Duration> {
    let begun = Instant::now();
    let (status, _) = node::get(gateway, &format!("{name}.localhost"), "/").await?;
    ensure!(status == 200, "{name}: HTTP {status}");
    Ok(begun.elapsed())
}

fn tell(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    println!(
        "row 2  {what:<30} {:>6} calls  p50 {:.2} ms  p90 {:.2} ms  p99 {:.2} ms  worst {:.1} ms",
        times.len(),
        ms(at(times, 0.5)),
        ms(at(times, 0.9)),
        ms(at(times, 0.99)),
        ms(at(times, 1.0))
    );
}

/// The part of the times, in order, that is below.
fn at(times: &[Duration], part: f64) -> Duration {
    let index = (times.len() as f64 * part) as usize;
    times.get(index.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
