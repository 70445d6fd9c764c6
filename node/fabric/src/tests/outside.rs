//! What lies outside the cluster: egress, the API server, NodePorts.

use super::cluster::{Cluster, address, endpoint, pod, service};
use coracle_wasi_host::net::NetError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
    let tables = crate::tables::Tables::build(cluster.state.clone(), &Default::default());
    let policy = cluster.a.policy();
    for denied in [
        "127.0.0.1:22",
        "127.8.8.8:22",
        "[::1]:22",
        "[::ffff:127.0.0.1]:22",
        "[::ffff:169.254.169.254]:80",
        "[64:ff9b::7f00:1]:80",
        "[2002:a9fe:a9fe::1]:80",
        "[fe80::1]:80",
        "224.0.0.1:80",
    ] {
        assert_eq!(policy.check_egress(&tables, address(denied)), Err(NetError::AccessDenied), "{denied}");
    }
    for allowed in ["198.51.100.1:443", "192.0.2.77:80", "[2001:db8::1]:443"] {
        assert_eq!(policy.check_egress(&tables, address(allowed)), Ok(()), "{allowed}");
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
    assert!(stream.read_u8().await.is_err());
    cluster.state.services.clear();
    cluster.a.update(cluster.state.clone());
    let closing = async {
        while TcpStream::connect(free).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), closing).await.expect("nobody listens any more");
}
