//! Who may open tunnels, and how many.

use super::{
    clients::connect_from,
    cluster::{Cluster, config},
};
use crate::{Fabric, FabricConfig, FabricTls};
use bytes::Bytes;
use coracle_wasi_host::descriptors::{Descriptors, Purpose};
use h2::client::SendRequest;
use h2::{Reason, SendStream};
use http::{Request, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(30);

/// A node `b` that counts its own descriptors, beside what others of the process have.
async fn counting(cluster: &mut Cluster) -> Descriptors {
    let descriptors = Descriptors::within(Some(800));
    counting_by(cluster, &descriptors).await;
    descriptors
}

/// A node `b` that counts by these.
async fn counting_by(cluster: &mut Cluster, descriptors: &Descriptors) {
    let tls = cluster.authority.node("b");
    cluster.b =
        Fabric::start(FabricConfig { descriptors: descriptors.clone(), ..config("b", tls) }).await.unwrap();
    cluster.state.nodes.insert("b".into(), cluster.b.address().to_string());
    cluster.b.update(cluster.state.clone());
}

/// Opens a tunnel by hand and leaves it open. The task ends with it.
async fn open(cluster: &Cluster, tls: &FabricTls) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let mut client = rustls::ClientConfig::clone(&tls.client.load());
    client.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(cluster.b.address()).await.unwrap();
    let name = "b".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender, tokio::spawn(async move { drop(connection.await) }))
}

async fn is_served(sender: &SendRequest<Bytes>) -> bool {
    let Ok(mut sender) = sender.clone().ready().await else { return false };
    let request = Request::get("https://fabric/nothing").body(()).unwrap();
    let Ok((response, _)) = sender.send_request(request, true) else { return false };
    response.await.is_ok_and(|response| response.status() == StatusCode::NOT_FOUND)
}

async fn until_given_back(descriptors: &Descriptors, left: usize) {
    let given_back = async {
        while descriptors.taken(Purpose::Tunnels) > left {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, given_back).await.expect("the descriptors are free");
}

#[tokio::test]
async fn who_says_nothing_at_the_door_keeps_no_peer_out_and_is_given_up() {
    let mut cluster = Cluster::new().await;
    let descriptors = Descriptors::within(Some(20_000));
    counting_by(&mut cluster, &descriptors).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(connect_from(9, cluster.b.address()).await.unwrap());
    }
    let (sender, _tunnel) = open(&cluster, &cluster.authority.node("a")).await;
    assert!(is_served(&sender).await);
    // All that came before have been seen; one source has a part, and the peer is no newcomer any more.
    assert!(descriptors.taken(Purpose::Tunnels) <= 257, "{}", descriptors.taken(Purpose::Tunnels));
    until_given_back(&descriptors, 1).await;
    assert!(is_served(&sender).await);
}

#[tokio::test]
async fn who_is_no_member_any_more_has_no_tunnel() {
    let mut cluster = Cluster::new().await;
    let descriptors = counting(&mut cluster).await;
    let gone = cluster.authority.node("gone");
    let mut tunnels = Vec::new();
    for _ in 0..8 {
        tunnels.push(open(&cluster, &gone).await);
    }
    for (sender, ended) in tunnels {
        tokio::time::timeout(PATIENCE, ended).await.expect("it is closed").unwrap();
        assert!(!is_served(&sender).await);
    }
    until_given_back(&descriptors, 0).await;
    // One that is a member has, as long as it is.
    cluster.state.nodes.insert("gone".into(), "192.0.2.9:7443".into());
    cluster.b.update(cluster.state.clone());
    let (sender, _) = open(&cluster, &gone).await;
    assert!(is_served(&sender).await);
    cluster.state.nodes.remove("gone");
    cluster.b.update(cluster.state.clone());
    until_given_back(&descriptors, 0).await;
    assert!(!is_served(&sender).await);
}

#[tokio::test]
async fn of_a_peers_tunnels_the_newest_stand() {
    let mut cluster = Cluster::new().await;
    let descriptors = counting(&mut cluster).await;
    let (a, other) = (cluster.authority.node("a"), cluster.authority.node("c"));
    cluster.state.nodes.insert("c".into(), "192.0.2.9:7443".into());
    cluster.b.update(cluster.state.clone());
    let (others, _other) = open(&cluster, &other).await;
    assert!(is_served(&others).await);
    let mut tunnels = Vec::new();
    for _ in 0..7 {
        let (sender, ended) = open(&cluster, &a).await;
        assert!(is_served(&sender).await);
        tunnels.push((sender, ended));
    }
    let newest = tunnels.split_off(3);
    for (_, ended) in tunnels {
        tokio::time::timeout(PATIENCE, ended).await.expect("it has made room").unwrap();
    }
    until_given_back(&descriptors, 5).await;
    for (sender, _) in &newest {
        assert!(is_served(sender).await);
    }
    assert!(is_served(&others).await, "another's are its own");
    // What ends makes room for as many again, and nothing is kept of it.
    drop((newest, others));
    until_given_back(&descriptors, 0).await;
}

/// Opens a stream to this path and sends something on it: why it was reset, and the stream, which ends with its handle.
async fn reset_of(sender: &SendRequest<Bytes>, path: &str) -> (Option<Reason>, SendStream<Bytes>) {
    let mut sender = sender.clone().ready().await.unwrap();
    // From a block that nobody has heard of: it is waited for.
    let request = Request::post(format!("https://fabric{path}"))
        .header("coracle-from", "10.200.0.2:1")
        .header("coracle-to", "10.128.9.9:80")
        .body(())
        .unwrap();
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    stream.send_data(Bytes::from_static(b"x"), false).unwrap();
    let answered = tokio::time::timeout(Duration::from_secs(1), response).await;
    (answered.ok().and_then(|answer| answer.err()?.reason()), stream)
}

#[tokio::test]
async fn what_a_peer_sends_unasked_is_not_kept() {
    let mut cluster = Cluster::new().await;
    counting(&mut cluster).await;
    let a = cluster.authority.node("a");
    let (sender, _connection) = open(&cluster, &a).await;
    assert_eq!(reset_of(&sender, "/v1/tcp").await.0, Some(Reason::PROTOCOL_ERROR));
    let (none, _stands) = reset_of(&sender, "/v1/datagrams").await;
    assert_eq!(none, None, "the first of them stands");
    assert_eq!(reset_of(&sender, "/v1/datagrams").await.0, Some(Reason::REFUSED_STREAM));
}
