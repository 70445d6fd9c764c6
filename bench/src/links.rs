//! Links of nodes: what an event of a pod costs by how many nodes are linked, and what each idle link holds.
//!
//! The events are routed in this process, by the router that the leader runs. The idle links are real ones to a control
//! node, over TLS, of nodes that run nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use coracle_leader::router::{Router, Wake};
use coracle_objects::{Object, ObjectKey, View};
use coracle_proto::{
    PROTOCOL_RANGE,
    join::{JoinToken, Joined, join},
    node::{Heartbeat, Hello, NodeDown, NodeUp, node_down, node_link_client::NodeLinkClient, node_up::Body},
    tls,
};
use futures::{StreamExt, stream};
use serde_json::json;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::cluster::Cluster;

/// Events that are routed for each number of links.
const EVENTS: usize = 20_000;
const NODES: usize = 5_000;
/// So many nodes have links in each case, and the events are of their pods: only the number of links differs.
const FEW: usize = 50;
/// Nodes that join at once.
const JOINING: usize = 16;
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Before memory is read.
const SETTLE: Duration = Duration::from_secs(15);
/// Until what closed connections held has been given back, and before nodes count as gone.
const CLOSING: Duration = Duration::from_secs(4);
const PODS: &str = "pods";
/// Pods of each node that change, at most as many as it has.
const PODS_A_NODE: usize = 20;
/// Nobody dials it: it is one of the addresses for documentation (RFC 5737).
const ADVERTISED: &str = "192.0.2.1:7443";

pub async fn run(pods: usize, real: usize) -> Result<()> {
    let view = view(pods)?;
    // The most first: what they hold is then new memory.
    let mut all = Vec::new();
    for links in [NODES, 500, FEW] {
        all.push((links, routed(&view, links)?));
    }
    let few = all.last().map_or(Duration::ZERO, |(_, (each, _))| *each);
    for (links, (each, held)) in all {
        let (us, ratio) = (each.as_secs_f64() * 1e6, each.as_secs_f64() / few.as_secs_f64());
        print!(
            "links  {links:>5} links, {pods} pods     an event of a pod {us:>6.2} us, {ratio:.2} x that of {FEW}"
        );
        match links {
            NODES => println!("  an idle link {held:.1} KiB in the router"),
            _ => println!(),
        }
    }
    idle(real).await
}

struct Wakes(Arc<Notify>);

impl Wake for Wakes {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// The time of one event, and what each link holds in KiB.
fn routed(view: &Arc<View>, links: usize) -> Result<(Duration, f64)> {
    let mut router = Router::begin(view.clone());
    let before = resident_kib()?;
    for number in 0..links {
        router.attach(&node(number), number as u64, Wakes(Arc::new(Notify::new())));
        take_all(&mut router, number)?;
    }
    let held = (resident_kib()? - before) / links as f64;
    let (mut now, mut spent) = (View::clone(view), Duration::ZERO);
    for event in 0..EVENTS {
        let number = event % FEW;
        let pod = pod(number + event / FEW % PODS_A_NODE * NODES, event + 1)?;
        now.revision += 1;
        if let Some(table) = now.tables.get_mut(PODS) {
            table.insert(pod.key.name.clone(), Arc::new(pod));
        }
        let next = Arc::new(now.clone());
        let begun = Instant::now();
        router.catch_up(next);
        let taken = take_all(&mut router, number)?;
        spent += begun.elapsed();
        ensure!(taken == 1, "a link took {taken} messages for one event");
    }
    Ok((spent / EVENTS as u32, held))
}

fn take_all(router: &mut Router<Wakes>, number: usize) -> Result<usize> {
    let node = node(number);
    Ok(std::iter::from_fn(|| router.take(&node, number as u64).ok().flatten()).count())
}

fn node(number: usize) -> String {
    format!("n{number}")
}

fn pod(number: usize, round: usize) -> Result<Object> {
    let name = format!("p{number}");
    let container = json!({"name": "c", "image": "registry.example/app:1", "env": [{"name": "A", "value": "b"}],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}});
    let draft = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "a"}, "uid": format!("{number:032x}")},
        "spec": {"nodeName": node(number % NODES), "containers": [container], "serviceAccountName": "default"},
        "status": {"phase": "Running", "podIP": "10.128.0.2", "message": round.to_string()},
    });
    let key = ObjectKey::new(PODS, "default", &name);
    Ok(Object::from_draft(key, draft.to_string().as_bytes(), round as u64)?)
}

fn view(pods: usize) -> Result<Arc<View>> {
    let mut view = View { revision: 1, ..View::default() };
    for number in 0..pods {
        let pod = pod(number, 0)?;
        let table = view.tables.entry(pod.key.resource.clone()).or_default();
        table.insert(pod.key.name.clone(), Arc::new(pod));
    }
    Ok(Arc::new(view))
}

fn resident_kib() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Memory of a control node before and after so many nodes have linked.
async fn idle(links: usize) -> Result<()> {
    let cluster = Cluster::start(1).await?;
    let token = cluster.cli(&["token", "create", "--role", "node"])?;
    let token: JoinToken = token.trim().parse()?;
    sleep(SETTLE).await;
    let memory = || Ok::<_, anyhow::Error>(cluster.running(0).context("it runs")?.memory_mib()?.0);
    let before = memory()?;
    let (address, mut open) = (cluster.address(0).to_owned(), JoinSet::new());
    let mut joining = stream::iter(0..links)
        .map(|number| enter(address.clone(), token.clone(), number))
        .buffer_unordered(JOINING);
    let mut joined = Vec::with_capacity(links);
    while let Some(one) = joining.next().await {
        joined.push(one?);
    }
    sleep(SETTLE).await;
    let known = memory()?;
    let mut linking =
        stream::iter(joined).map(|joined| link(address.clone(), joined)).buffer_unordered(JOINING);
    while let Some(linked) = linking.next().await {
        open.spawn(linked?);
    }
    sleep(SETTLE).await;
    let after = memory()?;
    if let Some(ended) = open.try_join_next() {
        bail!("a link ended: {}", ended?);
    }
    open.shutdown().await;
    sleep(CLOSING).await;
    let closed = memory()?;
    let each = |from: f64, to: f64| (to - from) * 1024.0 / links as f64;
    println!(
        "links  {links:>5} nodes, joined           {:.1} KiB each  control node {before:.0}, {known:.0} MiB",
        each(before, known)
    );
    println!(
        "links  {links:>5} links over TLS, idle    {:.1} KiB each, the Node's status, lease and events included (target 64)  control node {known:.0}, {after:.0} MiB",
        each(known, after)
    );
    println!(
        "links  {links:>5} links, closed           {:.1} KiB of each are given back",
        each(closed, after)
    );
    Ok(())
}

/// Joins as a node of this number.
async fn enter(address: String, token: JoinToken, number: usize) -> Result<(usize, Joined)> {
    Ok((number, join(std::slice::from_ref(&address), &token, &node(number), ADVERTISED).await?))
}

/// Links; what is given back keeps the link, and ends with it.
async fn link(
    address: String,
    (number, joined): (usize, Joined),
) -> Result<impl Future<Output = String> + Send + 'static> {
    let response = joined.response;
    let config = tls::client_config(&response.serving_ca_pem, &response.certificate_pem, &joined.key_pem)?;
    let mut client = NodeLinkClient::new(tls::streaming_channel(&address, config));
    let (up, sent) = mpsc::channel(4);
    let hello = Hello {
        name: node(number),
        cluster_id: response.cluster_id,
        protocol_min: *PROTOCOL_RANGE.start(),
        protocol_max: *PROTOCOL_RANGE.end(),
        fabric_address: ADVERTISED.into(),
        capacity: [
            ("cpu".into(), "4".into()),
            ("memory".into(), "4Gi".into()),
            ("pods".into(), "110".into()),
        ]
        .into(),
        node_info_json: r#"{"kubeletVersion":"v1.33.0"}"#.into(),
        boot_id: number.to_string(),
        flow_control: true,
        ..Hello::default()
    };
    up.try_send(NodeUp { body: Some(Body::Hello(hello)), sequence: 0 })?;
    let mut down = client.link(ReceiverStream::new(sent)).await?.into_inner();
    let welcomed =
        matches!(down.message().await?, Some(NodeDown { body: Some(node_down::Body::Welcome(_)), .. }));
    anyhow::ensure!(welcomed, "the link is not welcome");
    Ok(async move {
        let mut beats = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                message = down.message() => match message {
                    Ok(Some(_)) => {}
                    Ok(None) => return "closed".to_owned(),
                    Err(status) => return status.to_string(),
                },
                _ = beats.tick() => {
                    let beat = Body::Heartbeat(Heartbeat::default());
                    if up.send(NodeUp { body: Some(beat), sequence: 0 }).await.is_err() {
                        return "closed".to_owned();
                    }
                }
            }
        }
    })
}
