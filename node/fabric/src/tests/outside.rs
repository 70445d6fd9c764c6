//! What lies outside the cluster: egress, the API server, NodePorts.

use super::cluster::{
    Authority, Cluster, SERVICE, address, block, config, endpoint, identity, pod, pod_in, service,
};
use crate::peer::{Peer, Who};
use crate::resolver::{Resolver, System};
use crate::{Fabric, FabricConfig, NetworkState, Protocol, ServiceEntry};
use coracle_wasi_host::net::NetError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Whether a pod of the node in this namespace may connect to an address of the outside.
fn leaves(node: &Fabric, namespace: &str, to: &str) -> Result<(), NetError> {
    let (from, to) = ("10.128.1.2".parse().unwrap(), address(to));
    let source = Peer::here(from, identity(namespace, "pod", from).into());
    let outside = Peer { address: to.ip(), who: Who::Outside };
    let inner = node.inner();
    inner.policy().decide(&inner.tables(), &source, &outside, to.port(), Protocol::Tcp).ok()
}

/// Answers each connection with "real".
async fn real_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"real").await.unwrap();
        }
    });
    here
}

#[tokio::test]
async fn pods_never_reach_what_trusts_its_neighbours() {
    let cluster = Cluster::new().await;
    let client = pod(&cluster.a, "10.128.1.9");
    // Loopback of the node is the pod's own loopback to it, where nobody listens.
    let real = real_server().await;
    assert_eq!(client.net.connect(real).await.unwrap_err(), NetError::ConnectionRefused);
    for denied in ["169.254.169.254:80", "0.1.2.3:80", "255.255.255.255:80"] {
        let error = client.net.connect(address(denied)).await.unwrap_err();
        assert!(matches!(error, NetError::AccessDenied | NetError::HostUnreachable), "{denied}: {error}");
    }
    let check = |to| leaves(&cluster.a, "default", to);
    for denied in [
        "127.0.0.1:22",
        "127.8.8.8:22",
        "[::1]:22",
        "[::ffff:127.0.0.1]:22",
        "[::ffff:169.254.169.254]:80",
        "[64:ff9b::7f00:1]:80",
        "[2002:a9fe:a9fe::1]:80",
        "[fe80::1]:80",
        "[fd00:ec2::254]:80",
        "[fdaa::1]:80",
        "224.0.0.1:80",
        // What is the cluster's is not outside, in whatever form.
        "[::ffff:10.128.2.2]:80",
        "[64:ff9b::a60:1]:443",
        "[2002:a80:202::1]:80",
    ] {
        assert_eq!(check(denied), Err(NetError::AccessDenied), "{denied}");
    }
    for allowed in ["198.51.100.1:443", "192.0.2.77:80", "[2001:db8::1]:443"] {
        assert_eq!(check(allowed), Ok(()), "{allowed}");
    }
}

#[tokio::test]
async fn pods_leave_the_cluster_only_where_they_are_allowed_to() {
    let authority = Authority::new();
    let config = FabricConfig { egress: false, ..config("a", authority.node("a")) };
    let hosts = System::parse("198.51.100.1 open.example", "nameserver 127.0.0.1");
    let node = Fabric::start_with(config, Resolver::given(hosts)).await.unwrap();
    let mut state = NetworkState { pod_blocks: vec![block("10.128.1.0/24", "a")], ..NetworkState::default() };
    let external = service("external", vec![endpoint("198.51.100.1".parse().unwrap())]);
    state.services = vec![ServiceEntry { namespace: "shut".into(), ..external }];
    state.egress_namespaces.insert("open".into());
    node.update(state.clone());
    let shut = pod_in("shut", &node, "10.128.1.2");
    let denied = Err(NetError::AccessDenied);
    assert_eq!(shut.net.connect(address("198.51.100.1:443")).await.map(drop), denied);
    assert_eq!(shut.net.resolve("open.example").await.map(drop), denied);
    // Neither by a service of external endpoints, nor by the gateway.
    assert_eq!(shut.net.connect(address(SERVICE)).await.map(drop), denied);
    let external = node.inner().tables().service("shut", "external").unwrap().clone();
    let (from, to) = (address("192.0.2.1:5"), address("198.51.100.1:8080"));
    assert_eq!(node.inner().dial_endpoint(from, from.ip(), to, &external).await.map(drop), denied);

    let open = pod_in("open", &node, "10.128.1.3");
    assert_eq!(open.net.resolve("open.example").await.unwrap(), [address("198.51.100.1:0").ip()]);
    let check = |namespace| leaves(&node, namespace, "198.51.100.1:443");
    assert_eq!((check("open"), check("shut")), (Ok(()), denied));
    state.egress_namespaces = ["shut".to_owned()].into();
    node.update(state);
    assert_eq!((check("open"), check("shut")), (denied, Ok(())));
}

#[tokio::test]
async fn no_name_opens_what_its_address_would_not() {
    let authority = Authority::new();
    let hosts = "169.254.169.254 metadata.example near.example\n127.0.0.1 local.example\n\
                 198.51.100.1 open.example near.example\n10.128.9.9 pod.example\n";
    let system = System::parse(hosts, "nameserver 127.0.0.1");
    let node = Fabric::start_with(config("a", authority.node("a")), Resolver::given(system)).await.unwrap();
    let mut headless = service("near", vec![endpoint("169.254.169.254".parse().unwrap())]);
    headless.addresses.clear();
    let mut alias = service("alias", vec![]);
    alias.addresses.clear();
    alias.external_name = Some("metadata.example".into());
    node.update(NetworkState { services: vec![headless, alias], ..NetworkState::default() });
    let pod = pod(&node, "10.128.1.2");
    for closed in
        ["metadata.example", "local.example", "near", "alias", "169-254-169-254.default.pod.cluster.local"]
    {
        assert_eq!(pod.net.resolve(closed).await, Err(NetError::AccessDenied), "{closed}");
    }
    for open in ["open.example", "near.example"] {
        assert_eq!(pod.net.resolve(open).await.unwrap(), [address("198.51.100.1:0").ip()], "{open}");
    }
}

#[tokio::test]
async fn the_api_server_is_reached_through_its_service_alone() {
    let mut cluster = Cluster::new().await;
    let client = pod(&cluster.a, "10.128.1.9");
    let real = real_server().await;
    let mut kubernetes = service("kubernetes", vec![endpoint(real.ip())]);
    kubernetes.addresses = vec!["10.96.0.1".parse().unwrap()];
    kubernetes.ports[0].port = 443;
    kubernetes.endpoints[0].ports = Arc::new(BTreeMap::from([("http".to_owned(), real.port())]));
    let mut forged = kubernetes.clone();
    forged.name = "forged".into();
    forged.addresses = vec!["10.96.0.66".parse().unwrap()];
    cluster.state.services = vec![kubernetes, forged];
    cluster.tell();
    let mut conn = client.net.connect(address("10.96.0.1:443")).await.unwrap();
    let mut text = String::new();
    conn.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "real");
    assert_eq!(client.net.connect(address("10.96.0.66:443")).await.unwrap_err(), NetError::AccessDenied);
}

#[tokio::test]
async fn node_ports_lead_to_the_service() {
    let mut cluster = Cluster::new().await;
    let (near, far) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    far.say("from afar");
    cluster.state.services = vec![service("web", vec![endpoint(near.ip), endpoint(far.ip)])];
    let mut tries = 0;
    let free = loop {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        cluster.state.services[0].ports[0].node_port = Some(free.port());
        cluster.a.update(cluster.state.clone());
        // Another program may take the port before the node does.
        match TcpStream::connect(free).await {
            Ok(_) => break free,
            Err(error) => assert!(tries < 5, "{error}"),
        }
        tries += 1;
    };
    for _ in 0..10 {
        let mut text = String::new();
        TcpStream::connect(free).await.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "from afar");
    }
    // Without an endpoint the client is reset; without the service nobody listens.
    cluster.state.services[0].endpoints.clear();
    cluster.a.update(cluster.state.clone());
    let mut stream = TcpStream::connect(free).await.unwrap();
    let refused = stream.read_u8().await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
    cluster.state.services.clear();
    cluster.a.update(cluster.state.clone());
    let closing = async {
        while TcpStream::connect(free).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), closing).await.expect("nobody listens any more");
}
