//! Many objects and many watches on one control node: memory, LIST, the time until a change has come to all watches,
//! restart, snapshot.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use coracle_objects::{ObjectKey, Transaction, Write};
use coracle_proto::store::RangeRequest;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    client::{Client, Rest, Store, new_request},
    cluster::Cluster,
    load::ms,
};

/// Clients that write the objects at a time.
const WRITERS: usize = 64;
/// Connections that the watches share.
const CONNECTIONS: usize = 10;
/// Objects of a page, as kubectl's default.
const PAGE: usize = 500;
/// How often each time is taken; the median counts.
const TRIES: usize = 5;
/// Writes between two looks whether a snapshot was made.
const SNAPSHOT_LOOK: u64 = 1000;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

const LIST: &str = "/api/v1/namespaces/default/configmaps";

pub async fn run(objects: usize, watches: usize) -> Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let client = cluster.client(0)?;
    say("RSS, empty", &memory(&cluster)?);
    let begun = Instant::now();
    fill(&client, objects).await?;
    let per_second = objects as f64 / begun.elapsed().as_secs_f64();
    say("objects written", &format!("{objects} of 1 KiB, {per_second:.0}/s at {WRITERS} clients"));
    say("RSS with the objects", &memory(&cluster)?);
    lists(&client, objects).await?;
    watched(&cluster, &client, watches).await?;
    snapshot(&client).await?;

    let mut restarts = Vec::new();
    for _ in 0..TRIES {
        cluster.kill(0);
        let begun = Instant::now();
        cluster.resume(0)?;
        wait_ready(&client).await?;
        restarts.push(begun.elapsed());
    }
    say("kill -9, then start to /readyz", &format!("{:.0} ms", median(restarts)));
    let list = client.rest().await?.get(&format!("{LIST}?limit=1")).await?;
    let left = list["metadata"]["remainingItemCount"].as_u64().context("the list is in pages")? + 1;
    ensure!(left as usize >= objects, "{left} objects are left of {objects}");
    say("RSS after the restart", &memory(&cluster)?);
    Ok(())
}

fn say(what: &str, figure: &str) {
    println!("scale  {what:<34} {figure}");
}

fn memory(cluster: &Cluster) -> Result<String> {
    let (rss, _) = cluster.running(0).context("the control node runs")?.memory_mib()?;
    Ok(format!("{rss:.0} MiB"))
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    ms(times[times.len() / 2])
}

fn object(number: usize, version: u64) -> (ObjectKey, Vec<u8>) {
    let name = format!("scale-{number:06}");
    let head = format!(
        r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"default"}},"data":{{"version":"{version}","value":""#
    );
    let padding = "x".repeat(1024 - head.len() - 3);
    (ObjectKey::new("configmaps", "default", &name), format!("{head}{padding}\"}}}}").into_bytes())
}

async fn put(store: &Store, number: usize, version: u64) -> Result<()> {
    let (key, draft) = object(number, version);
    let transaction =
        Transaction { preconditions: vec![], writes: vec![Write::Put { key, draft: draft.into() }] };
    let outcome = store.txn(new_request(std::process::id().into()), transaction).await?;
    ensure!(outcome.is_ok(), "refused: {outcome:?}");
    Ok(())
}

async fn fill(client: &Client, objects: usize) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (store, next) = (client.store(), next.clone());
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number as usize >= objects {
                    return anyhow::Ok(());
                }
                put(&store, number as usize, 0).await?;
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(())
}

async fn lists(client: &Client, objects: usize) -> Result<()> {
    let rest = client.rest().await?;
    let (mut whole, mut paged, mut ranged) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..TRIES {
        let begun = Instant::now();
        let (status, body) = rest.call("GET", LIST, Vec::new()).await?;
        whole.push(begun.elapsed());
        ensure!(status == 200, "LIST: HTTP {status}");
        bytes = body.len();

        let begun = Instant::now();
        let count = pages(&rest).await?;
        paged.push(begun.elapsed());
        ensure!(count >= objects, "the pages hold {count} of {objects}");

        let begun = Instant::now();
        let count = range(client.store()).await?;
        ranged.push(begun.elapsed());
        ensure!(count >= objects, "the ranges hold {count} of {objects}");
    }
    say("LIST by REST, whole", &format!("{:.0} ms, {:.1} MB", median(whole), bytes as f64 / 1e6));
    say(&format!("LIST by REST, pages of {PAGE}"), &format!("{:.0} ms", median(paged)));
    say("Range by gRPC, pages of 4 MiB", &format!("{:.0} ms", median(ranged)));
    Ok(())
}

async fn pages(rest: &Rest) -> Result<usize> {
    let (mut count, mut after) = (0, String::new());
    loop {
        let page: Value = rest.get(&format!("{LIST}?limit={PAGE}&continue={after}")).await?;
        count += page["items"].as_array().context("a list has items")?.len();
        match page["metadata"]["continue"].as_str() {
            Some(token) if !token.is_empty() => after = token.to_owned(),
            _ => return Ok(count),
        }
    }
}

async fn range(mut store: Store) -> Result<usize> {
    let (resource, namespace) = ("configmaps".to_owned(), "default".to_owned());
    let mut request = RangeRequest { resource, namespace, ..RangeRequest::default() };
    let mut count = 0;
    loop {
        let page = store.client.range(request.clone()).await?.into_inner();
        count += page.objects.len();
        match page.objects.last() {
            Some(last) if page.more => request.after = format!("{}/{}", last.namespace, last.name),
            _ => return Ok(count),
        }
    }
}

/// Opens the watches, and takes the time from a write until all have its event.
async fn watched(cluster: &Cluster, client: &Client, watches: usize) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS.min(watches.max(1)) {
        connections.push(client.rest().await?);
    }
    let list = connections[0].get(&format!("{LIST}?limit=1")).await?;
    let revision = list["metadata"]["resourceVersion"].as_str().context("a list has a revision")?;
    let path = format!("{LIST}?watch=true&resourceVersion={revision}");
    let events = Arc::new(AtomicU64::new(0));
    let mut watchers = JoinSet::new();
    for number in 0..watches {
        let (status, mut body) = connections[number % connections.len()].send("GET", &path, vec![]).await?;
        ensure!(status == 200, "a watch was refused: HTTP {status}");
        let events = events.clone();
        watchers.spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                let lines =
                    frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
                events.fetch_add(lines as u64, Ordering::Relaxed);
            }
        });
    }
    say(&format!("RSS with {watches} watches"), &memory(cluster)?);
    let store = client.store();
    let mut times = Vec::new();
    for round in 1..=TRIES as u64 {
        let begun = Instant::now();
        put(&store, 0, round).await?;
        let all = async {
            while events.load(Ordering::Relaxed) < round * watches as u64 {
                sleep(Duration::from_micros(200)).await;
            }
        };
        timeout(PATIENCE, all).await.context("an event did not come to all watches")?;
        times.push(begun.elapsed());
    }
    say(&format!("one write to all {watches} watches"), &format!("{:.1} ms", median(times)));
    Ok(())
}

/// Writes until the control node has made one more snapshot, and says how long that took it.
async fn snapshot(client: &Client) -> Result<()> {
    let (store, deadline) = (client.store(), Instant::now() + PATIENCE);
    let before = Snapshots::of(client).await?;
    for version in u64::from(u32::MAX).. {
        put(&store, 0, version).await?;
        if version.is_multiple_of(SNAPSHOT_LOOK) {
            let now = Snapshots::of(client).await?;
            if now.count > before.count {
                let took = (now.seconds - before.seconds) / (now.count - before.count) * 1000.0;
                say("one snapshot, fsync included", &format!("{took:.0} ms, {:.1} MB", now.bytes / 1e6));
                return Ok(());
            }
        }
        if Instant::now() > deadline {
            bail!("no snapshot was made within {} s", PATIENCE.as_secs());
        }
    }
    Ok(())
}

/// What the control node itself measured.
struct Snapshots {
    count: f64,
    seconds: f64,
    bytes: f64,
}

impl Snapshots {
    async fn of(client: &Client) -> Result<Self> {
        let (status, page) = client.rest().await?.call("GET", "/metrics", Vec::new()).await?;
        ensure!(status == 200, "/metrics: HTTP {status}");
        let page = String::from_utf8(page.to_vec())?;
        let sample = |name: &str| -> Result<f64> {
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.with_context(|| format!("no {name} in /metrics"))?.parse()?)
        };
        Ok(Self {
            count: sample("coracle_disk_snapshot_save_duration_seconds_count")?,
            seconds: sample("coracle_disk_snapshot_save_duration_seconds_sum")?,
            bytes: sample("coracle_disk_snapshot_size_bytes")?,
        })
    }
}

async fn wait_ready(client: &Client) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(rest) = client.rest().await
            && let Ok((200, _)) = rest.call("GET", "/readyz?exclude=nospace", Vec::new()).await
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the control node did not become ready again");
        }
        sleep(Duration::from_millis(5)).await;
    }
}
