//! Processes that freeze and go on, their sockets open all the time: the leader among three control nodes, the only
//! control node, all nodes of a cluster.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, api::ListParams};

use crate::{
    cluster::{Cluster, is_ready},
    harness::{Daemon, PATIENCE, alone, eventually, get, within},
};

/// How long the leaders are frozen.
const FROZEN: Duration = Duration::from_secs(15);
/// Whatever a leader that goes on would do wrong it has done after so long: its patience with nodes is over.
const AFTERWARDS: Duration = Duration::from_secs(8);
/// Between two requests to one gateway.
const PACE: Duration = Duration::from_millis(30);
/// Until a dead node's pods are Ready elsewhere.
const HEALED_WITHIN: Duration = Duration::from_secs(3);

#[test]
fn what_freezes_and_goes_on_moves_no_pod() {
    let _turn = alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut three = Subject::start(Cluster::start(3, &["n1", "n2", "n3"]), 9);
    let one = Subject::start(Cluster::start(1, &["n1", "n2"]), 4);
    let silent = Subject::start(Cluster::start(1, &["n1", "n2"]), 4);
    let (three_before, one_before) = (three.standing(&runtime), one.standing(&runtime));
    let (silent_pods, _) = silent.standing(&runtime);

    let frozen = three.cluster.leader();
    let load = [three.load(), one.load()];
    three.control(&frozen).freeze();
    one.cluster.controls[0].1.freeze();
    silent.cluster.nodes.iter().for_each(|(_, node)| node.freeze());
    std::thread::sleep(FROZEN);
    let (pods, nodes) = silent.standing(&runtime);
    assert!(nodes.values().all(|ready| ready.starts_with("Unknown")), "{nodes:?}");
    assert_eq!(pods, silent_pods, "no node is heard of: nothing is done to any pod");
    silent.cluster.nodes.iter().for_each(|(_, node)| node.thaw());
    three.control(&frozen).thaw();
    one.cluster.controls[0].1.thaw();
    std::thread::sleep(AFTERWARDS);
    for load in load {
        load.end();
    }
    assert_eq!(three.standing(&runtime), three_before, "one of three control nodes was frozen");
    assert_eq!(one.standing(&runtime), one_before, "the only control node was frozen");
    let (pods, nodes) = silent.standing(&runtime);
    assert!(nodes.values().all(|ready| ready.starts_with("True")), "{nodes:?}");
    assert_eq!(pods, silent_pods, "all nodes were silent together, and came back");
    assert_ne!(three.cluster.leader(), frozen, "another leads meanwhile");
    drop((one, silent));

    three.cluster.nodes[2].1.kill();
    let at = Instant::now();
    within(HEALED_WITHIN, "9 Ready pods on the nodes that are left", || {
        let ready = three.pods(&runtime).iter().filter(|pod| is_ready(pod) && node_of(pod) != "n3").count();
        if ready == 9 { Ok(()) } else { Err(ready.to_string()) }
    });
    println!("a node that really died: its pods are Ready elsewhere after {:?}", at.elapsed());
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// A cluster with a service whose pods are Ready on all nodes.
struct Subject {
    cluster: Cluster,
    host: String,
}

/// Pods by uid and nodes by name, with the moment since when each is Ready.
type Standing = (BTreeMap<String, String>, BTreeMap<String, String>);

impl Subject {
    fn start(cluster: Cluster, replicas: usize) -> Self {
        let host = cluster.deploy_hello(replicas);
        let subject = Self { cluster, host };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        eventually("Ready pods on every node", || {
            let ready: Vec<Pod> = subject.pods(&runtime).into_iter().filter(is_ready).collect();
            let everywhere =
                subject.cluster.nodes.iter().all(|(node, _)| ready.iter().any(|pod| node_of(pod) == node));
            if ready.len() == replicas && everywhere { Ok(()) } else { Err(ready.len().to_string()) }
        });
        for gateway in subject.gateways() {
            eventually("the gateways to answer", || match get(&gateway, &subject.host) {
                (200, _) => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
        subject
    }

    fn gateways(&self) -> Vec<String> {
        self.cluster.nodes.iter().map(|(_, daemon)| daemon.said("gateway ")).collect()
    }

    fn control(&self, address: &str) -> &Daemon {
        &self.cluster.controls.iter().find(|(known, _)| known == address).unwrap().1
    }

    /// Asks the control nodes one after the other: one of them may be frozen or dead.
    fn ask<T>(&self, runtime: &tokio::runtime::Runtime, ask: impl AsyncFn(Client) -> kube::Result<T>) -> T {
        eventually("an answer of a control node", || {
            for (address, _) in &self.cluster.controls {
                let client = runtime.block_on(self.cluster.client(address, PATIENCE));
                if let Ok(answer) = runtime.block_on(ask(client)) {
                    return Ok(answer);
                }
            }
            Err("none answered".to_owned())
        })
    }

    fn pods(&self, runtime: &tokio::runtime::Runtime) -> Vec<Pod> {
        let list = async |client| {
            Api::<Pod>::default_namespaced(client).list(&ListParams::default().labels("app=hello")).await
        };
        self.ask(runtime, list).items
    }

    fn standing(&self, runtime: &tokio::runtime::Runtime) -> Standing {
        let nodes =
            self.ask(runtime, async |client| Api::<Node>::all(client).list(&ListParams::default()).await);
        let pods = self.pods(runtime).into_iter().map(|pod| {
            let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap();
            (pod.metadata.uid.unwrap(), format!("{} since {:?}", ready.status, ready.last_transition_time))
        });
        let nodes = nodes.items.into_iter().map(|node| {
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").unwrap();
            (node.metadata.name.unwrap(), format!("{} since {:?}", ready.status, ready.last_transition_time))
        });
        (pods.collect(), nodes.collect())
    }

    /// Requests to all gateways until the load is ended.
    fn load(&self) -> Load {
        let enough = Arc::new(AtomicBool::new(false));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let begun = Instant::now();
        let threads = self.gateways().into_iter().map(|gateway| {
            let (enough, failures, host) = (enough.clone(), failures.clone(), self.host.clone());
            std::thread::spawn(move || {
                let mut count = 0_u64;
                while !enough.load(Ordering::Relaxed) {
                    let (status, body) = get(&gateway, &host);
                    count += 1;
                    if status != 200 {
                        failures.lock().unwrap().push((begun.elapsed(), status, body));
                    }
                    std::thread::sleep(PACE);
                }
                count
            })
        });
        Load { threads: threads.collect(), enough, failures }
    }
}

struct Load {
    threads: Vec<std::thread::JoinHandle<u64>>,
    enough: Arc<AtomicBool>,
    failures: Arc<Mutex<Vec<(Duration, u16, String)>>>,
}

impl Load {
    /// Ends it. None of the requests may have failed.
    fn end(self) {
        self.enough.store(true, Ordering::Relaxed);
        let count: u64 = self.threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        let failures = self.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} of {count} requests failed: {failures:?}", failures.len());
        println!("{count} requests answered");
    }
}
