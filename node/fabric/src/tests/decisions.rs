//! Who may reach whom, and whom a node takes somebody for.

use super::cluster::{
    Cluster, address, anybody, config, dial, endpoint, entry, identity, node, pod_in, service,
};
use crate::caller::Caller;
use crate::door::Door;
use crate::peer::{At, Known, Peer, Who};
use crate::place::Target;
use crate::policy::{NodeSource, Verdict};
use crate::tunnel::{self, Arrivals, Arrived, Datagram, Members, Opening, Reception};
use crate::{Fabric, FabricConfig, Name, NetworkChange, Protocol};
use bytes::Bytes;
use coracle_wasi_host::descriptors::{Descriptors, Purpose};
use coracle_wasi_host::net::NetError;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const HELLO: Bytes = Bytes::from_static(b"hello");

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "yes",
        Verdict::Refused(NetError::AccessDenied) => "denied",
        Verdict::Refused(NetError::HostUnreachable) => "unreachable",
        Verdict::Refused(error) => panic!("{error}"),
    }
}

/// A cluster whose node a lets the pods of the namespace `open` alone leave it.
async fn guarded() -> Cluster {
    let mut cluster = Cluster::new().await;
    let tls = cluster.authority.node("a");
    cluster.a = Fabric::start(FabricConfig { egress: false, ..config("a", tls) }).await.unwrap();
    cluster.state.nodes.insert("a".into(), cluster.a.address().to_string());
    cluster.state.nodes.insert("c".into(), "198.51.100.3:7443".into());
    cluster.state.egress_namespaces.insert("open".into());
    let mut kubernetes = service("kubernetes", vec![endpoint(ip("198.51.100.6"))]);
    kubernetes.addresses = vec![ip("10.96.0.1")];
    cluster.state.services = vec![kubernetes];
    cluster.state.pods = vec![(Name::new("shut", "far"), entry("far", ip("10.128.2.2")))];
    cluster.tell();
    cluster
}

#[tokio::test]
async fn who_may_reach_whom() {
    let cluster = guarded().await;
    let (inner, _pods) = (
        cluster.a.inner(),
        [pod_in("open", &cluster.a, "10.128.1.2"), pod_in("shut", &cluster.a, "10.128.1.3")],
    );
    let (policy, tables) = (inner.policy(), inner.tables());
    let known = |text: &str| policy.peer(&tables, ip(text));
    let client = |namespace: &str| Peer::client(ip("192.0.2.9"), namespace.into());
    let of_node = |from: &str, client: &str| match policy.node_source(
        &tables,
        &"b".into(),
        ip(from),
        (!client.is_empty()).then(|| ip(client)),
    ) {
        NodeSource::Proven(peer) => peer,
        claim => panic!("{claim:?}"),
    };
    // Those within the cluster, then what is outside, by TCP.
    let (all, closed) = (["yes", "yes", "yes"], ["yes", "denied", "denied"]);
    let nobody = (["denied"; 3], ["denied"; 3]);
    let sources = [
        ("a pod that may leave", known("10.128.1.2"), (all, ["yes", "yes", "denied"])),
        ("a pod that may not", known("10.128.1.3"), (all, closed)),
        ("a pod of another node", of_node("10.128.2.2", ""), (all, closed)),
        ("one that nobody has told of", of_node("10.128.2.9", ""), (all, closed)),
        ("a node", of_node("10.128.2.1", ""), (all, closed)),
        ("another node's client", of_node("10.128.2.1", "192.0.2.9"), (all, closed)),
        ("a client of who may leave", client("open"), (all, ["yes", "yes", "denied"])),
        ("a client of who may not", client("shut"), (all, closed)),
        ("somebody outside", known("192.0.2.9"), nobody),
        ("this machine", known("127.0.0.1"), nobody),
        ("a service's address", known("10.96.0.1"), nobody),
    ];
    let within = [("10.128.1.2", 80), ("10.128.2.9", 80), ("10.128.2.1", 80)];
    let api = Peer { address: ip("198.51.100.6"), who: Who::ApiServer };
    let open = [("198.51.100.1", 443), ("2001:db8::1", 443), ("198.51.100.3", 443), ("198.51.100.6", 443)];
    let near = [
        ("127.0.0.1", 22),
        ("::ffff:127.0.0.1", 22),
        ("169.254.169.254", 80),
        ("168.63.129.16", 80),
        ("64:ff9b::a9fe:a9fe", 80),
        ("224.0.0.1", 80),
        // What only looks as if it were outside, a node's fabric, and the API server without its service.
        ("::ffff:10.128.2.2", 80),
        ("198.51.100.3", 7443),
        ("::ffff:198.51.100.3", 7443),
        ("198.51.100.6", 8080),
    ];
    for (name, source, (inside, [by_service, outside, forbidden])) in &sources {
        let decide = |to: &Peer, port, protocol| word(policy.decide(&tables, source, to, port, protocol));
        for (expected, (to, port)) in inside.iter().zip(within) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                assert_eq!(decide(&known(to), port, protocol), *expected, "{name} to {to} by {protocol:?}");
            }
        }
        assert_eq!(decide(&api, 8080, Protocol::Tcp), *by_service, "{name} to the API server");
        for (to, port) in open {
            assert_eq!(decide(&known(to), port, Protocol::Tcp), *outside, "{name} to {to}:{port}");
        }
        for (to, port) in near {
            let outside = Peer { address: ip(to), who: Who::Outside };
            assert_eq!(decide(&outside, port, Protocol::Tcp), *forbidden, "{name} to {to}:{port}");
        }
        // Datagrams leave the cluster for nobody.
        let lost = if inside[0] == "denied" { "denied" } else { "unreachable" };
        for to in [&api, &known("198.51.100.1"), &client("open")] {
            assert_eq!(decide(to, 53, Protocol::Udp), lost, "{name} to {to}");
        }
    }
}

#[tokio::test]
async fn the_api_server_is_one_by_its_own_service_alone() {
    let mut cluster = guarded().await;
    let mut forged = service("forged", vec![endpoint(ip("198.51.100.6")), endpoint(ip("10.96.0.1"))]);
    forged.addresses = vec![ip("10.96.0.66")];
    forged.ports[0].port = 8080;
    cluster.state.services[0].ports[0].port = 8080;
    cluster.state.services.push(forged);
    cluster.tell();
    let (policy, tables) = (cluster.a.inner().policy(), cluster.a.inner().tables());
    let place = |name: &str, endpoint: &str, protocol| {
        let service = tables.service("default", name).unwrap();
        policy.place_endpoint(&tables, service, address(endpoint), protocol).map(|found| found.peer.who)
    };
    let real = "198.51.100.6:8080";
    assert_eq!(place("kubernetes", real, Protocol::Tcp), Ok(Who::ApiServer));
    assert_eq!(place("forged", real, Protocol::Tcp), Ok(Who::Outside));
    // A service is no endpoint of another.
    let refused = place("forged", "10.96.0.1:8080", Protocol::Tcp);
    assert_eq!(refused, Err(NetError::ConnectionRefused));
}

#[tokio::test]
async fn who_has_an_address() {
    let mut cluster = guarded().await;
    let _pod = pod_in("open", &cluster.a, "10.128.1.2");
    cluster.state.pods.extend([
        // Two of one namespace, two of two.
        (Name::new("shut", "before"), entry("before", ip("10.128.2.3"))),
        (Name::new("shut", "now"), entry("now", ip("10.128.2.3"))),
        (Name::new("shut", "theirs"), entry("theirs", ip("10.128.2.4"))),
        (Name::new("shut", "theirs-too"), entry("theirs-too", ip("10.128.2.4"))),
        (Name::new("shut-too", "ours"), entry("ours", ip("10.128.2.4"))),
    ]);
    cluster.tell();
    let (policy, tables) = (cluster.a.inner().policy(), cluster.a.inner().tables());
    let pod = |namespace, name, at: &str| Known::Pod(identity(namespace, name, ip(at)).into());
    let b = || At::Node("b".into());
    for (at, who) in [
        ("10.128.1.2", Who::Pod { at: At::Here, known: pod("open", "pod", "10.128.1.2") }),
        ("10.128.1.3", Who::Pod { at: At::Here, known: Known::Nothing }),
        ("10.128.2.2", Who::Pod { at: b(), known: pod("shut", "far", "10.128.2.2") }),
        ("10.128.2.3", Who::Pod { at: b(), known: Known::Namespace("shut".into()) }),
        ("10.128.2.4", Who::Pod { at: b(), known: Known::Nothing }),
        ("10.128.2.9", Who::Pod { at: b(), known: Known::Nothing }),
        ("10.200.0.9", Who::Pod { at: At::Unheard, known: Known::Nothing }),
        ("10.128.1.1", Who::Node { name: Some("a".into()) }),
        ("10.128.2.1", Who::Node { name: Some("b".into()) }),
        ("10.255.255.255", Who::Node { name: None }),
        ("10.96.0.1", Who::Outside),
        ("127.0.0.1", Who::Outside),
    ] {
        assert_eq!(policy.peer(&tables, ip(at)), Peer { address: ip(at), who }, "{at}");
    }
    // What goes there is decided by the same.
    for to in ["10.128.1.2:80", "10.128.2.2:80", "192.0.2.1:80"] {
        let Ok(Target::Peer(found)) = policy.place(&tables, address(to), Protocol::Tcp) else {
            panic!("{to}")
        };
        assert_eq!(found.peer, policy.peer(&tables, address(to).ip()));
    }
    let texts = ["10.128.2.2", "10.128.2.3", "10.128.2.1"].map(|at| policy.peer(&tables, ip(at)).to_string());
    assert_eq!(
        texts,
        ["pod shut/far 10.128.2.2 at node b", "a pod of shut 10.128.2.3 at node b", "node b 10.128.2.1"]
    );
}

#[tokio::test]
async fn a_pod_of_this_node_has_the_labels_that_it_was_told_of_last() {
    let cluster = Cluster::new().await;
    let (name, at) = (Name::new("default", "pod"), ip("10.128.1.2"));
    let labels = |value: &str| Arc::new(BTreeMap::from([("app".to_owned(), value.to_owned())]));
    let told = |uid: &str, value: &str| {
        let pod = crate::PodEntry { uid: uid.into(), labels: labels(value), ..entry("pod", at) };
        cluster.a.change(vec![NetworkChange::Pod(name.clone(), Some(pod))]);
    };
    let now = || match cluster.a.inner().policy().peer(&cluster.a.inner().tables(), at).who {
        Who::Pod { at: At::Here, known: Known::Pod(pod) } => pod.labels["app"].clone(),
        who => panic!("{who:?}"),
    };
    let own = at.to_string();
    let pod = pod_in("default", &cluster.a, &own);
    assert_eq!(now(), "pod", "known from its start");
    told(&own, "new");
    assert_eq!(now(), "new");
    told("another", "another's");
    assert_eq!(now(), "new", "one of the same name is another");
    // What was told before it came is newer than what it came with.
    told(&own, "newest");
    cluster.a.attach(at, pod.net.clone(), identity("default", "pod", at));
    assert_eq!(now(), "newest");
    // That it has ended for the cluster takes nothing from it.
    cluster.a.change(vec![NetworkChange::Pod(name.clone(), None)]);
    assert_eq!(now(), "newest");
}

/// A node's arrivals, and whom it took their senders for.
struct Recorded {
    fabric: Fabric,
    seen: Arc<Mutex<Vec<NodeSource>>>,
}

impl Recorded {
    fn note(&self, node: &Arc<str>, from: IpAddr, client: Option<IpAddr>) {
        let inner = self.fabric.inner();
        self.seen.lock().push(inner.policy().node_source(&inner.tables(), node, from, client));
    }
}

impl Arrivals for Recorded {
    fn arrive(&self, node: &Arc<str>, opening: Opening) -> BoxFuture<'static, Result<Arrived, NetError>> {
        self.note(node, opening.from.ip(), opening.client);
        self.fabric.arrive(node, opening)
    }

    fn arrive_datagram(&self, node: &Arc<str>, datagram: Datagram) {
        self.note(node, datagram.from.ip(), None);
        self.fabric.arrive_datagram(node, datagram);
    }
}

/// Has tunnels to the node b arrive where they are recorded.
async fn recorded(cluster: &mut Cluster) -> Arc<Mutex<Vec<NodeSource>>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    cluster.state.nodes.insert("b".into(), listener.local_addr().unwrap().to_string());
    let seen = Arc::<Mutex<Vec<NodeSource>>>::default();
    let members = Arc::new(Members::new());
    members.set(cluster.state.nodes.keys().map(|name| (name.clone(), None)).collect());
    let reception = Reception {
        tls: cluster.authority.node("b").server,
        arrivals: Box::new(Recorded { fabric: cluster.b.clone(), seen: seen.clone() }),
        members,
        whereabouts: cluster.b.inner().whereabouts().clone(),
    };
    let door = Door::new(listener, tunnel::NEWCOMERS, Descriptors::of_process(), Purpose::Tunnels);
    tokio::spawn(tunnel::serve(door, Arc::new(reception), CancellationToken::new()));
    seen
}

#[tokio::test]
async fn who_sends_through_a_tunnel_is_known_at_its_other_end() {
    let mut cluster = Cluster::new().await;
    let seen = recorded(&mut cluster).await;
    let (known, new) = (pod_in("shop", &cluster.a, "10.128.1.2"), pod_in("shop", &cluster.a, "10.128.1.3"));
    let server = pod_in("default", &cluster.b, "10.128.2.2");
    cluster.state.pods = vec![(Name::new("shop", "cart"), entry("cart", known.ip))];
    cluster.serve(&[&server]);
    let (listener, mailbox) = (server.listen(), server.net.bind_udp(address("0.0.0.0:53")).unwrap());
    let to = SocketAddr::new(server.ip, 8080);
    let at = || At::Node("a".into());
    let of = |address, who| NodeSource::Proven(Peer { address, who });
    let cart =
        of(known.ip, Who::Pod { at: at(), known: Known::Pod(identity("shop", "cart", known.ip).into()) });
    let last = || seen.lock().last().cloned().unwrap();

    known.net.connect(to).await.unwrap();
    assert_eq!(last(), cart, "with its labels");
    listener.accept().await.unwrap();
    // Nobody has told of it: what it is is known, and not which.
    new.net.connect(to).await.unwrap();
    assert_eq!(last(), of(new.ip, Who::Pod { at: at(), known: Known::Nothing }));
    listener.accept().await.unwrap();
    // Whom the node speaks for is no pod, whatever address he has.
    let web = cluster.a.inner().tables().service("default", "web").unwrap().clone();
    for client in ["203.0.113.7", "10.128.1.2"] {
        let from = SocketAddr::new(ip(client), 9);
        cluster.a.inner().dial_endpoint(from, from.ip(), to, &web).await.unwrap();
        assert_eq!(last(), of(ip(client), Who::Client { at: at(), service: None }));
        listener.accept().await.unwrap();
    }
    let from = SocketAddr::new(known.ip, 9);
    known.net.uplink().send(from, SocketAddr::new(server.ip, 53), HELLO).unwrap();
    assert_eq!(mailbox.recv().await.unwrap(), (HELLO, from));
    assert_eq!(last(), cart);

    // Another node's pod, the other end's own, its node, a service, the outside, loopback.
    for forged in
        ["10.128.3.5:9", "10.128.2.2:9", "10.128.2.1:9", "10.96.0.20:9", "192.0.2.1:9", "127.0.0.1:9"]
    {
        let forged = address(forged);
        assert_eq!(dial(&cluster.a, forged, to).await.unwrap_err(), NetError::AccessDenied, "{forged}");
        assert_eq!(last(), NodeSource::Forged);
        send(&cluster.a, &anybody(&cluster.a, forged.ip()), forged, server.ip);
    }
    assert_eq!(dial(&cluster.a, address("10.200.0.5:9"), to).await.unwrap_err(), NetError::AccessDenied);
    assert_eq!(last(), NodeSource::Unheard);
    send(&cluster.a, &anybody(&cluster.a, known.ip), from, server.ip);
    assert_eq!(mailbox.recv().await.unwrap(), (HELLO, from), "none of the others came before");
}

fn send(node: &Fabric, caller: &Caller, from: SocketAddr, to: IpAddr) {
    node.inner().send(caller, from, SocketAddr::new(to, 53), HELLO).unwrap();
}

#[tokio::test]
async fn a_pod_is_no_client_whatever_its_node_says_and_a_node_without_pods_is_one() {
    let mut cluster = Cluster::new().await;
    let edge = node(&cluster.authority, "edge").await;
    cluster.state.nodes.insert("edge".into(), edge.address().to_string());
    cluster.tell();
    let (policy, tables) = (cluster.b.inner().policy(), cluster.b.inner().tables());
    let client = Some(ip("203.0.113.7"));
    let source = |node: &str, from: &str| policy.node_source(&tables, &node.into(), ip(from), client);
    let pod =
        Peer { address: ip("10.128.1.2"), who: Who::Pod { at: At::Node("a".into()), known: Known::Nothing } };
    assert_eq!(source("a", "10.128.1.2"), NodeSource::Proven(pod));
    let who = Who::Client { at: At::Node("edge".into()), service: None };
    assert_eq!(
        source("edge", "10.255.255.255"),
        NodeSource::Proven(Peer { address: ip("203.0.113.7"), who })
    );
    assert_eq!(source("edge", "10.128.1.1"), NodeSource::Forged);
}
