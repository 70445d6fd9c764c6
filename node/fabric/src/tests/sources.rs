//! What connections and datagrams come from: the pod's own address, told apart by its flows, and nothing else.

use super::cluster::{
    Cluster, SERVICE, address, anybody, block, dial, endpoint, entry as pod_entry, node, pod, pod_in, service,
};
use crate::{Fabric, Name, Protocol, ServiceEntry, ServicePort};
use bytes::Bytes;
use coracle_wasi_host::net::NetError;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

const HELLO: Bytes = Bytes::from_static(b"hello");

#[tokio::test]
async fn a_pod_sends_from_its_own_address_alone() {
    let cluster = Cluster::new().await;
    let (client, other) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.a, "10.128.1.3"));
    for server in [pod(&cluster.a, "10.128.1.7"), pod(&cluster.b, "10.128.2.7")] {
        server.say("hello");
        let mailbox = server.net.bind_udp(address("0.0.0.0:53")).unwrap();
        let to = |port| SocketAddr::new(server.ip, port);
        let uplink = client.net.uplink();
        for from in ["127.0.0.1:9", "10.128.1.3:9", "10.128.2.7:9", "10.128.1.1:9", "192.0.2.1:9"] {
            let refused = uplink.dial(address(from), to(8080)).await.unwrap_err();
            assert_eq!(refused, NetError::AddressNotAvailable, "{from}");
            let refused = uplink.send(address(from), to(53), HELLO);
            assert_eq!(refused, Err(NetError::AddressNotAvailable), "{from}");
        }
        let own = SocketAddr::new(client.ip, 9);
        uplink.send(own, to(53), HELLO).unwrap();
        assert_eq!(mailbox.recv().await.unwrap(), (HELLO, own), "the first that came is the right one");
        assert!(uplink.dial(own, to(8080)).await.is_ok());
    }
    drop(other);
    cluster.a.detach(client.ip);
    let gone = client.net.uplink().dial(SocketAddr::new(client.ip, 9), address("10.128.1.7:8080")).await;
    assert_eq!(gone.unwrap_err(), NetError::AddressNotAvailable);
}

#[tokio::test]
async fn a_node_speaks_for_its_own_blocks_alone() {
    let mut cluster = Cluster::new().await;
    let server = pod(&cluster.b, "10.128.2.2");
    server.say("secret");
    let mailbox = server.net.bind_udp(address("0.0.0.0:53")).unwrap();
    let to = SocketAddr::new(server.ip, 8080);
    let denied = ["127.0.0.1:9", "192.0.2.1:9", "10.96.0.20:9", "10.128.3.5:9", "10.128.2.2:9", "[::1]:9"];
    for from in denied {
        let refused = dial(&cluster.a, address(from), to).await;
        assert_eq!(refused.unwrap_err(), NetError::AccessDenied, "{from}");
        send(&cluster.a, from, "10.128.2.2:53");
    }
    // A block that nobody has told of is waited for, in case that the news is slow.
    let from = address("10.128.9.5:9");
    assert_eq!(dial(&cluster.a, from, to).await.unwrap_err(), NetError::AccessDenied);
    let (a, waiting) = (cluster.a.clone(), tokio::sync::oneshot::channel());
    let dialed = tokio::spawn(async move {
        waiting.0.send(()).unwrap();
        dial(&a, from, to).await
    });
    waiting.1.await.unwrap();
    cluster.state.pod_blocks.push(block("10.128.9.0/24", "a"));
    cluster.tell();
    assert!(dialed.await.unwrap().is_ok());
    send(&cluster.a, "10.128.9.5:9", "10.128.2.2:53");
    assert_eq!(mailbox.recv().await.unwrap(), (HELLO, from), "none of the others came before");
}

/// Sends to the other node what no pod of this one could.
fn send(node: &Fabric, from: &str, to: &str) {
    let from = address(from);
    node.inner().send(&anybody(node, from.ip()), from, address(to), HELLO).unwrap();
}

#[tokio::test]
async fn clients_of_node_ports_and_the_gateway_are_no_pods() {
    let mut cluster = Cluster::new().await;
    let pods = [pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2")];
    let listeners = pods.each_ref().map(|pod| pod.listen());
    cluster.state.services = vec![service("web", pods.iter().map(|pod| endpoint(pod.ip)).collect())];
    let expected: IpAddr = "10.128.1.1".parse().unwrap();
    assert_eq!(cluster.a.inner().gateway_ip(), Some(expected));
    let port = loop {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        cluster.state.services[0].ports[0].node_port = Some(free.port());
        cluster.a.update(cluster.state.clone());
        // Another program may take the port before the node does.
        if TcpStream::connect(free).await.is_ok() {
            break free;
        }
    };
    let mut seen = BTreeSet::new();
    let mut held = Vec::new();
    while seen.len() < 2 {
        held.push(TcpStream::connect(port).await.unwrap());
        let (at, peer) = tokio::select! {
            accepted = listeners[0].accept() => (0, accepted.unwrap().1),
            accepted = listeners[1].accept() => (1, accepted.unwrap().1),
        };
        assert_eq!(peer.ip(), expected, "a client from loopback is not the pod itself");
        seen.insert(at);
    }
    let policy = cluster.a.inner().policy();
    let tables = cluster.a.inner().tables();
    for (client, source) in [
        ("192.0.2.7:9", "192.0.2.7:9"),
        ("10.128.2.2:9", "10.128.1.1:9"),
        ("10.96.0.1:9", "10.128.1.1:9"),
        ("[::ffff:127.0.0.1]:9", "10.128.1.1:9"),
    ] {
        assert_eq!(policy.client_source(&tables, address(client)), address(source));
    }
}

#[tokio::test]
async fn a_server_knows_whose_pod_asks() {
    let mut cluster = Cluster::new().await;
    let here = pod_in("one", &cluster.a, "10.128.1.2");
    let entry = |namespace: &str, name: &str, address: &str| {
        (Name::new(namespace, name), pod_entry(name, address.parse().unwrap()))
    };
    cluster.state.pods = vec![
        // Of a pod of this node the node knows more than it is told.
        entry("two", "old", "10.128.1.2"),
        entry("two", "there", "10.128.2.2"),
        entry("one", "before", "10.128.2.3"),
        entry("two", "now", "10.128.2.3"),
    ];
    cluster.tell();
    for (ip, namespace) in [
        ("10.128.1.2", Some("one")),
        ("10.128.2.2", Some("two")),
        // Of two that are told of nobody knows which it is, and of the last nothing yet.
        ("10.128.2.3", Some("")),
        ("10.128.2.9", Some("")),
        // Nodes, and who is outside.
        ("10.128.1.1", None),
        ("10.128.2.1", None),
        ("10.255.255.255", None),
        ("192.0.2.1", None),
    ] {
        let known = here.net.uplink().namespace_of(ip.parse().unwrap());
        assert_eq!(known.as_deref(), namespace, "{ip}");
    }
}

#[tokio::test]
async fn a_gateway_without_pods_is_let_in() {
    let mut cluster = Cluster::new().await;
    let server = pod(&cluster.b, "10.128.2.2");
    let listener = server.listen();
    let edge = node(&cluster.authority, "edge").await;
    cluster.state.nodes.insert("edge".into(), edge.address().to_string());
    cluster.serve(&[&server]);
    edge.update(cluster.state.clone());
    let web = edge.inner().tables().service("default", "web").unwrap().clone();
    let dialed = edge.inner().dial_service(address("192.0.2.1:9"), address(SERVICE), &web, 0).await;
    assert!(dialed.is_ok());
    assert_eq!(listener.accept().await.unwrap().1.ip(), edge.inner().gateway_ip().unwrap());
}

/// A service of datagrams at port 53, which one server serves at 5353.
fn dns(name: &str, ip: &str, server: IpAddr) -> ServiceEntry {
    let mut entry = service(name, vec![endpoint(server)]);
    entry.addresses = vec![ip.parse().unwrap()];
    entry.ports =
        vec![ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: None }];
    entry.endpoints[0].ports = Arc::new(BTreeMap::from([("dns".to_owned(), 5353)]));
    entry
}

#[tokio::test]
async fn who_answers_many_can_still_ask() {
    let mut cluster = Cluster::new().await;
    let (server, asked) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.a, "10.128.1.3"));
    let mailbox = asked.net.bind_udp(address("0.0.0.0:5353")).unwrap();
    cluster.state.services = vec![dns("dns", "10.96.0.10", asked.ip)];
    cluster.tell();
    // What pods of this node and of another one send to it, from all ports that they have, is answered.
    let near = pod(&cluster.a, "10.128.1.9");
    let own = SocketAddr::new(server.ip, 53);
    for port in 1..=u16::MAX {
        let far = SocketAddr::new("10.128.2.9".parse().unwrap(), port);
        let near = (SocketAddr::new(near.ip, port), near.net.uplink());
        // Nobody listens at either end: that is told for the near one.
        let _ = near.1.send(near.0, own, HELLO);
        let _ = server.net.uplink().send(own, near.0, HELLO);
        server.net.uplink().send(own, far, HELLO).unwrap();
    }
    let socket = server.net.bind_udp(address("0.0.0.0:0")).unwrap();
    socket.try_send(HELLO, Some(address("10.96.0.10:53"))).unwrap();
    let (question, from) =
        tokio::time::timeout(Duration::from_secs(10), mailbox.recv()).await.unwrap().unwrap();
    assert_eq!(question, HELLO);
    mailbox.try_send(question, Some(from)).unwrap();
    assert_eq!(socket.recv().await.unwrap(), (HELLO, address("10.96.0.10:53")));
}

#[tokio::test]
async fn answers_to_datagrams_come_from_where_they_were_sent() {
    let mut cluster = Cluster::new().await;
    let client = pod(&cluster.a, "10.128.1.9");
    for (node, ip) in [(&cluster.a, "10.128.1.2"), (&cluster.b, "10.128.2.2")] {
        let server = pod(node, ip);
        let socket = server.net.bind_udp(address("0.0.0.0:5353")).unwrap();
        cluster.state.services =
            vec![dns("dns", "10.96.0.10", server.ip), dns("dns-too", "10.96.0.11", server.ip)];
        cluster.tell();
        let asking = client.net.bind_udp(address("0.0.0.0:0")).unwrap();
        let targets = [address("10.96.0.10:53"), SocketAddr::new(server.ip, 5353), address("10.96.0.11:53")];
        // All three are asked before any is answered.
        let mut waiting = Vec::new();
        for to in targets {
            asking.try_send(Bytes::from(to.to_string()), Some(to)).unwrap();
            let received = tokio::time::timeout(Duration::from_secs(10), socket.recv()).await;
            waiting.push(received.expect("it arrives").unwrap());
        }
        for (question, from) in waiting {
            socket.try_send(question, Some(from)).unwrap();
            let answer = tokio::time::timeout(Duration::from_secs(10), asking.recv()).await;
            let (question, from) = answer.expect("it is answered").unwrap();
            assert_eq!(question, Bytes::from(from.to_string()));
        }
    }
}
