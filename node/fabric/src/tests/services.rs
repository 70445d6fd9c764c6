//! Service addresses: balancing, affinity, failover, datagrams.

use super::cluster::{Cluster, SERVICE, address, anybody, endpoint, pod, service};
use crate::{Protocol, ServicePort};
use bytes::Bytes;
use coracle_wasi_host::net::NetError;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test]
async fn connections_spread_over_local_and_remote_pods() {
    let mut cluster = Cluster::new().await;
    let (near, far) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let client = pod(&cluster.a, "10.128.1.9");
    near.say("near");
    far.say("far");
    cluster.serve(&[&near, &far]);
    let mut answers = BTreeSet::new();
    for _ in 0..40 {
        answers.insert(client.ask().await.unwrap());
    }
    assert_eq!(answers, BTreeSet::from(["far".to_owned(), "near".to_owned()]));
    let conn = client.net.connect(address(SERVICE)).await.unwrap();
    assert_eq!(conn.peer_addr(), address(SERVICE), "the service's address is what the client sees");
}

#[tokio::test]
async fn open_connections_are_balanced() {
    let mut cluster = Cluster::new().await;
    let pods: Vec<_> = ["10.128.1.2", "10.128.1.3"].map(|ip| pod(&cluster.a, ip)).into();
    let listeners: Vec<_> = pods.iter().map(|pod| pod.listen()).collect();
    let client = pod(&cluster.a, "10.128.1.9");
    cluster.serve(&[&pods[0], &pods[1]]);
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(client.net.connect(address(SERVICE)).await.unwrap());
        // An update in between forgets no load.
        cluster.tell();
    }
    let accepted = |index: usize| {
        let mut count = 0;
        while listeners[index].try_accept().is_ok() {
            count += 1;
        }
        count
    };
    assert_eq!((accepted(0), accepted(1)), (10, 10));
}

#[tokio::test]
async fn who_is_not_ready_or_refuses_is_passed_over() {
    let mut cluster = Cluster::new().await;
    let (up, down) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let client = pod(&cluster.a, "10.128.1.9");
    up.say("up");
    // One listens nowhere, one is gone with its node.
    cluster.serve(&[&up, &down]);
    for _ in 0..20 {
        assert_eq!(client.ask().await.unwrap(), "up");
    }
    cluster.state.services[0].endpoints[1].address = "10.128.3.7".parse().unwrap();
    cluster.tell();
    for _ in 0..20 {
        assert_eq!(client.ask().await.unwrap(), "up");
    }
    cluster.state.services[0].endpoints[0].ready = false;
    cluster.state.services[0].endpoints[1].ready = false;
    cluster.tell();
    assert_eq!(client.net.connect(address(SERVICE)).await.unwrap_err(), NetError::ConnectionRefused);
    assert_eq!(client.net.connect(address("10.96.0.20:81")).await.unwrap_err(), NetError::ConnectionRefused);
    assert_eq!(client.net.connect(address("10.96.9.9:80")).await.unwrap_err(), NetError::ConnectionRefused);
    assert_eq!(client.net.connect(address("10.128.77.1:80")).await.unwrap_err(), NetError::HostUnreachable);
}

#[tokio::test]
async fn client_affinity_holds() {
    let mut cluster = Cluster::new().await;
    let (one, two) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    one.say("one");
    two.say("two");
    cluster.serve(&[&one, &two]).client_affinity = Some(Duration::from_secs(10_800));
    cluster.tell();
    let client = pod(&cluster.a, "10.128.1.9");
    let first = client.ask().await.unwrap();
    for _ in 0..20 {
        assert_eq!(client.ask().await.unwrap(), first);
    }
    // The one it holds on to goes: the other takes over.
    let gone = usize::from(first == "two");
    cluster.state.services[0].endpoints[gone].ready = false;
    cluster.tell();
    assert_ne!(client.ask().await.unwrap(), first);
}

#[tokio::test]
async fn a_service_reaches_its_own_pod() {
    let mut cluster = Cluster::new().await;
    let alone = pod(&cluster.a, "10.128.1.2");
    alone.say("myself");
    cluster.serve(&[&alone]);
    assert_eq!(alone.ask().await.unwrap(), "myself");
}

#[tokio::test]
async fn datagrams_find_endpoints_and_the_way_back() {
    let mut cluster = Cluster::new().await;
    let dns = "10.96.0.10:53";
    let client = pod(&cluster.a, "10.128.1.9");
    for (node, ip) in [(&cluster.a, "10.128.1.2"), (&cluster.b, "10.128.2.2")] {
        let server = pod(node, ip);
        let socket = server.net.bind_udp(address("0.0.0.0:5353")).unwrap();
        tokio::spawn(async move {
            while let Ok((payload, from)) = socket.recv().await {
                socket.try_send(payload, Some(from)).unwrap();
            }
        });
        let mut entry = service("dns", vec![endpoint(server.ip)]);
        entry.addresses = vec![address(dns).ip()];
        entry.ports =
            vec![ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: None }];
        entry.endpoints[0].ports = Arc::new(BTreeMap::from([("dns".to_owned(), 5353)]));
        cluster.state.services = vec![entry];
        cluster.tell();
        let socket = client.net.bind_udp(address("0.0.0.0:0")).unwrap();
        socket.connect(Some(address(dns))).unwrap();
        socket.try_send(Bytes::from_static(b"who?"), None).unwrap();
        assert_eq!(socket.recv().await.unwrap(), (Bytes::from_static(b"who?"), address(dns)));
        // What has the endpoint's address when that is none of the service's any more speaks for itself.
        let (server, port) = (SocketAddr::new(server.ip, 5353), socket.local_addr().port());
        socket.connect(None).unwrap();
        cluster.state.services[0].endpoints.clear();
        cluster.tell();
        let node = if server.ip() == address("10.128.1.2:1").ip() { &cluster.a } else { &cluster.b };
        let (other, to) = (anybody(node, server.ip()), SocketAddr::new(client.ip, port));
        node.inner().send(&other, server, to, Bytes::from_static(b"me")).unwrap();
        assert_eq!(socket.recv().await.unwrap(), (Bytes::from_static(b"me"), server));
    }
}
