//! What nobody reads of what comes from other nodes: it is on the account of who receives it, and stops nobody who reads.

use super::cluster::{Authority, Cluster, Pod, address, config, endpoint, identity, pod, service};
use crate::tables::{Service, Tables};
use crate::{Fabric, FabricConfig, NetworkState, ServiceEntry};
use coracle_wasi_host::net::{Conn, Namespace, NamespaceConfig, NetLimits, TenantBuffers};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(60);

/// Connections of which nothing is read.
const UNREAD: usize = 12;

/// Those that stand in the end: four windows and what is on its way to one more.
const UNREAD_MAX: usize = 6;

/// A pod that may buffer so much, in pipes that hold next to nothing.
fn pod_of(buffered_bytes_max: usize, node: &Fabric, ip: &str) -> Pod {
    let ip = ip.parse().unwrap();
    let limits = NetLimits { buffered_bytes_max, pipe_bytes: 1024, ..NetLimits::default() };
    let config =
        NamespaceConfig { hostname: "pod".into(), tenant: "default".into(), addresses: vec![ip], limits };
    let net = Namespace::new(config, node.uplink("default"));
    node.attach(ip, net.clone(), identity("default", "pod", ip));
    Pod { ip, net }
}

/// Connections from one pod to the other, the dialers' ends first.
async fn connect(client: &Pod, server: &Pod, count: usize) -> Vec<(Conn, Conn)> {
    let listener = server.listen();
    let mut conns = Vec::new();
    for _ in 0..count {
        let near = client.net.connect(SocketAddr::new(server.ip, 8080)).await.unwrap();
        conns.push((near, listener.accept().await.unwrap().0));
    }
    conns
}

/// Carries much from one end to the other, which reads.
async fn carry((from, to): (&mut Conn, &mut Conn)) {
    let (sent, mut read) = (vec![7; 8 << 20], vec![0; 8 << 20]);
    let both = async { tokio::try_join!(from.write_all(&sent), to.read_exact(&mut read)).map(drop) };
    tokio::time::timeout(PATIENCE, both).await.expect("it does not stop").unwrap();
    assert_eq!(read, sent);
}

/// Writes without end to ends that nobody reads; most of them are reset, and who reads is served meanwhile.
async fn hoard(unread: Vec<(Conn, Conn)>, reads: (&mut Conn, &mut Conn)) {
    let (mut writing, mut kept) = (Vec::new(), Vec::new());
    for (mut from, to) in unread {
        kept.push(to);
        writing.push(tokio::spawn(async move { while from.write_all(&[7; 16 * 1024]).await.is_ok() {} }));
    }
    let stand = || writing.iter().filter(|task| !task.is_finished()).count();
    let fewer = async {
        while stand() > UNREAD_MAX {
            tokio::task::yield_now().await;
        }
    };
    let (fewer, ()) = tokio::join!(tokio::time::timeout(PATIENCE, fewer), carry(reads));
    fewer.expect("those that stand still make room");
    assert!(stand() > 0, "no more of them than have to");
    writing.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn of_what_a_pod_never_reads_its_node_holds_what_the_pod_may() {
    let cluster = Cluster::new().await;
    let small = pod_of(1 << 20, &cluster.b, "10.128.2.2");
    let ample = pod_of(64 << 20, &cluster.a, "10.128.1.2");
    let mut conns = connect(&ample, &small, UNREAD + 1).await;
    let (mut near, mut far) = conns.pop().unwrap();
    hoard(conns, (&mut near, &mut far)).await;
    // The same for one who dials, and is sent to.
    let mut conns = connect(&small, &ample, UNREAD + 1).await;
    let (mut near, mut far) = conns.pop().unwrap();
    let conns = conns.into_iter().map(|(near, far)| (far, near)).collect();
    hoard(conns, (&mut far, &mut near)).await;
}

/// A service of this namespace with this endpoint.
fn service_in(namespace: &str, server: &Pod) -> Arc<Service> {
    let entry = ServiceEntry { namespace: namespace.into(), ..service("web", vec![endpoint(server.ip)]) };
    let state = NetworkState { services: vec![entry], ..NetworkState::default() };
    Tables::build(state, &Default::default()).service(namespace, "web").unwrap().clone()
}

#[tokio::test]
async fn of_what_clients_from_outside_never_read_a_namespace_has_its_part() {
    let authority = Authority::new();
    let mut cluster = Cluster::new().await;
    // Half a MiB is every namespace's for certain.
    let few = FabricConfig { outside: TenantBuffers::within(0), ..config("a", authority.node("a")) };
    cluster.a = Fabric::start(few).await.unwrap();
    cluster.b = Fabric::start(config("b", authority.node("b"))).await.unwrap();
    cluster.state.nodes.insert("a".into(), cluster.a.address().to_string());
    cluster.state.nodes.insert("b".into(), cluster.b.address().to_string());
    cluster.tell();
    let server = pod(&cluster.b, "10.128.2.2");
    let listener = server.listen();
    let (greedy, modest) = (service_in("greedy", &server), service_in("modest", &server));
    let dial = async |service: &Service| {
        let (client, to) = (address("192.0.2.1:5"), SocketAddr::new(server.ip, 8080));
        let conn = cluster.a.inner().dial_endpoint(client, client.ip(), to, service).await.unwrap();
        (listener.accept().await.unwrap().0, conn)
    };
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        unread.push(dial(&greedy).await);
    }
    let (mut from, mut to) = dial(&modest).await;
    hoard(unread, (&mut from, &mut to)).await;
}
