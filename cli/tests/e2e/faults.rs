//! Three control processes and two node processes, killed under load.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, PostParams},
};

use crate::{
    cluster::{Cluster, is_ready},
    harness::{PATIENCE, alone, eventually, get, within},
};

/// ConfigMaps that the client writes each second.
const WRITES_PER_SECOND: u64 = 200;
/// How long writes go on after the kill.
const WRITES_AFTER_KILL: Duration = Duration::from_secs(6);
/// The longest that writes may pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Until a dead node's pods are Ready elsewhere.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);
/// Until a client asks another control node.
const READ_TIMEOUT: Duration = Duration::from_millis(1500);

/// What the writer knows to be written, and when each was acknowledged.
#[derive(Default)]
struct Acknowledged {
    names: BTreeSet<String>,
    times: Vec<Instant>,
}

#[test]
fn killed_leaders_and_nodes_lose_nothing() {
    let _turn = alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut cluster = Cluster::start(3, &["n1", "n2"]);
    let host = cluster.deploy_hello(4);
    let clients: Vec<Client> = runtime.block_on(async {
        let mut clients = Vec::new();
        for (address, _) in &cluster.controls {
            clients.push(cluster.client(address, READ_TIMEOUT).await);
        }
        clients
    });

    kill_the_leader(&runtime, &mut cluster, &clients);
    kill_a_node(&runtime, &mut cluster, &clients, &host);
}

fn kill_the_leader(runtime: &tokio::runtime::Runtime, cluster: &mut Cluster, clients: &[Client]) {
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let enough = Arc::new(AtomicBool::new(false));
    let writer = runtime.spawn(write(clients.to_vec(), acknowledged.clone(), enough.clone()));
    eventually("a second of writes", || {
        let count = acknowledged.lock().unwrap().names.len() as u64;
        if count > WRITES_PER_SECOND { Ok(()) } else { Err(count.to_string()) }
    });
    let leader = cluster.leader();
    let killed = cluster.controls.iter_mut().find(|(address, _)| *address == leader).unwrap();
    let at = Instant::now();
    killed.1.kill();
    std::thread::sleep(WRITES_AFTER_KILL);
    enough.store(true, Ordering::Relaxed);
    runtime.block_on(writer).unwrap();

    let acknowledged = acknowledged.lock().unwrap();
    let pause = acknowledged.times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    let after = acknowledged.times.iter().filter(|time| **time > at).count();
    println!(
        "{} writes acknowledged, {after} after the kill, longest pause {pause:?}",
        acknowledged.names.len()
    );
    assert!(after > 0 && pause < PAUSE_MAX, "writes paused for {pause:?}");
    let (survivor, _) = cluster.controls.iter().find(|(address, _)| *address != leader).unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(runtime.block_on(cluster.client(survivor, PATIENCE)));
    let list = eventually("a list of what was written", || {
        runtime.block_on(maps.list(&ListParams::default())).map_err(|error| error.to_string())
    });
    let there: BTreeSet<String> = list.into_iter().filter_map(|map| map.metadata.name).collect();
    let lost: Vec<_> = acknowledged.names.difference(&there).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

/// Creates ConfigMaps at a steady pace until there are enough; every write is tried at each control node in turn.
async fn write(clients: Vec<Client>, acknowledged: Arc<Mutex<Acknowledged>>, enough: Arc<AtomicBool>) {
    let mut pace = tokio::time::interval(Duration::from_millis(1000 / WRITES_PER_SECOND));
    let mut tasks = Vec::new();
    for number in 0.. {
        if enough.load(Ordering::Relaxed) {
            break;
        }
        pace.tick().await;
        let (clients, acknowledged) = (clients.clone(), acknowledged.clone());
        tasks.push(tokio::spawn(async move {
            let name = format!("write-{number}");
            let map = ConfigMap {
                metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
                ..ConfigMap::default()
            };
            let deadline = Instant::now() + PATIENCE;
            for client in clients.iter().cycle().skip(number) {
                let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
                let done = match maps.create(&PostParams::default(), &map).await {
                    Ok(_) => true,
                    Err(kube::Error::Api(status)) => status.code == 409,
                    Err(_) => false,
                };
                if done {
                    let mut acknowledged = acknowledged.lock().unwrap();
                    acknowledged.names.insert(name);
                    acknowledged.times.push(Instant::now());
                    return;
                }
                assert!(Instant::now() < deadline, "{name} was never acknowledged");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

fn kill_a_node(runtime: &tokio::runtime::Runtime, cluster: &mut Cluster, clients: &[Client], host: &str) {
    let survivor = cluster.nodes[0].1.said("gateway ");
    let ready_on = |node: &str| {
        let pods = runtime.block_on(async {
            for client in clients {
                let pods: Api<Pod> = Api::default_namespaced(client.clone());
                if let Ok(list) = pods.list(&ListParams::default().labels("app=hello")).await {
                    return list.items;
                }
            }
            Vec::new()
        });
        pods.iter()
            .filter(|pod| {
                is_ready(pod) && pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)
            })
            .count()
    };
    eventually("pods on both nodes", || match (ready_on("n1"), ready_on("n2")) {
        (1.., 1..) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually("the surviving gateway to answer", || match get(&survivor, host) {
        (200, _) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.nodes[1].1.kill();
    let at = Instant::now();
    let mut answered = 0;
    within(REPLACED_WITHIN, "4 Ready pods on the surviving node", || {
        let (status, body) = get(&survivor, host);
        assert_eq!(status, 200, "the service stopped answering {:?} after the kill: {body}", at.elapsed());
        answered += 1;
        match ready_on("n1") {
            4 => Ok(()),
            count => Err(count.to_string()),
        }
    });
    println!(
        "4 pods Ready on the other node after {:?}, {answered} requests answered meanwhile",
        at.elapsed()
    );
}
