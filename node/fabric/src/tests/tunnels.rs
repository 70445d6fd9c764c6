//! Tunnels between nodes: half-close, resets, backpressure, dead and lying peers.

use super::cluster::{Cluster, SERVICE, address, config, dial, identity, node, pod, pod_in, read_all};
use crate::Fabric;
use coracle_wasi_host::net::{Conn, Gone, NetError, NetLimits};
use coracle_wasi_host::shares::Holder;
use std::future::poll_fn;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn half_close_crosses_nodes() {
    let cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let listener = server.listen();
    let mut conn = client.net.connect(SocketAddr::new(server.ip, 8080)).await.unwrap();
    let (mut inner, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, conn.local_addr());
    conn.write_all(b"question").await.unwrap();
    conn.shutdown(Shutdown::Write);
    assert_eq!(read_all(&mut inner).await.unwrap(), "question");
    inner.write_all(b"answer").await.unwrap();
    drop(inner);
    assert_eq!(read_all(&mut conn).await.unwrap(), "answer");
}

#[tokio::test]
async fn tunnels_of_a_node_that_is_gone_end_at_once() {
    let mut cluster = Cluster::new().await;
    let (one, other) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let (first, second) = (one.listen(), other.listen());
    let mut out = one.net.connect(SocketAddr::new(other.ip, 8080)).await.unwrap();
    let mut back = other.net.connect(SocketAddr::new(one.ip, 8080)).await.unwrap();
    let _held = (second.accept().await.unwrap(), first.accept().await.unwrap());
    // Only a is told: what b still believes does not matter.
    cluster.state.nodes.remove("b");
    cluster.a.update(cluster.state.clone());
    for conn in [&mut out, &mut back] {
        let ended = tokio::time::timeout(Duration::from_secs(5), conn.read_u8()).await.expect("it ends");
        assert!(ended.is_err());
    }
    let refused = other.net.connect(SocketAddr::new(one.ip, 8080)).await.unwrap_err();
    assert!(matches!(refused, NetError::AccessDenied | NetError::HostUnreachable), "{refused}");
}

#[tokio::test]
async fn refusals_and_resets_cross_nodes() {
    let cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let to = SocketAddr::new(server.ip, 8080);
    assert_eq!(client.net.connect(to).await.unwrap_err(), NetError::ConnectionRefused);
    assert_eq!(client.net.connect(address("10.128.2.3:8080")).await.unwrap_err(), NetError::HostUnreachable);
    let listener = server.listen();
    let mut conn = client.net.connect(to).await.unwrap();
    let (inner, _) = listener.accept().await.unwrap();
    conn.write_all(b"never read").await.unwrap();
    poll_fn(|cx| inner.poll_readable(cx)).await;
    drop(inner);
    let error = conn.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_a_far_pod_does_not_read_waits_in_pipes_and_windows_alone() {
    const WINDOW: usize = 256 * 1024;
    let cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let listener = server.listen();
    let conn = client.net.connect(SocketAddr::new(server.ip, 8080)).await.unwrap();
    let (_unread, _) = listener.accept().await.unwrap();
    let pipe = NetLimits::default().pipe_bytes;
    let held = || client.net.buffers().held();
    // Full is what stays full for a while. The near pipe is kept half empty meanwhile: one that was full takes nothing until it
    // is half empty again, and how much of it the tunnel takes yet is a matter of how the tasks take turns.
    let (mut written, mut at) = (0, Instant::now());
    while at.elapsed() < Duration::from_millis(500) {
        if held() < pipe / 2 {
            let more = conn.try_write(&[7; 16 * 1024]).expect("there is room");
            (written, at) = (written + more, Instant::now());
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    // Nothing goes on from here: what is written now fills the pipe.
    while let Ok(more) = conn.try_write(&[7; 16 * 1024]) {
        written += more;
    }
    assert!((WINDOW..=WINDOW + 2 * pipe).contains(&written), "{written}");
    assert_eq!(held(), pipe, "on the account of who wrote it");
    assert!(written - pipe <= server.net.buffers().held(), "and of who does not read it");
}

#[tokio::test]
async fn a_stalled_stream_is_bounded_and_stops_no_other() {
    static BLOCK: [u8; 64 * 1024] = [7; 64 * 1024];
    let cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let listener = server.listen();
    let to = SocketAddr::new(server.ip, 8080);
    let (mut stalled, mut writing) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let mut conn = client.net.connect(to).await.unwrap();
        stalled.push(listener.accept().await.unwrap());
        writing.push(tokio::spawn(async move {
            let mut written = 0;
            while tokio::time::timeout(Duration::from_secs(3), conn.write_all(&BLOCK)).await.is_ok() {
                written += BLOCK.len();
            }
            (written, conn)
        }));
    }
    let stopped = futures::future::join_all(writing).await;
    let stopped: Vec<_> = stopped.into_iter().map(Result::unwrap).collect();
    for (written, _) in &stopped {
        // Two pipes, a window and what is on its way between them.
        assert!(
            (256 * 1024..2 * 1024 * 1024).contains(written),
            "{written} bytes were taken without a reader"
        );
    }
    // All twenty stand still with full windows; this one moves.
    let mut conn = client.net.connect(to).await.unwrap();
    let (mut inner, _) = listener.accept().await.unwrap();
    let reader = tokio::spawn(async move {
        let mut buffer = vec![0; BLOCK.len()];
        let mut read = 0;
        loop {
            match inner.read(&mut buffer).await.unwrap() {
                0 => return read,
                length => read += length,
            }
        }
    });
    for _ in 0..128 {
        conn.write_all(&BLOCK).await.unwrap();
    }
    drop(conn);
    assert_eq!(reader.await.unwrap(), 128 * BLOCK.len());
    // A stalled one goes on where it stood once it is read.
    let mut first = [0; 1024];
    stalled[0].0.read_exact(&mut first).await.unwrap();
    assert_eq!(first, [7; 1024]);
}

#[tokio::test]
async fn many_connections_share_one_tunnel() {
    let mut cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let (proxy, accepted, _) = proxy(cluster.b.address()).await;
    cluster.state.nodes.insert("b".into(), proxy.to_string());
    cluster.serve(&[&server]);
    server.say("hello");
    let asks = (0..200).map(|_| client.ask());
    for answer in futures::future::join_all(asks).await {
        assert_eq!(answer.unwrap(), "hello");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_silent_peer_is_noticed() {
    let mut cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let (proxy, _, frozen) = proxy(cluster.b.address()).await;
    cluster.state.nodes.insert("b".into(), proxy.to_string());
    cluster.tell();
    let listener = server.listen();
    let mut conn = client.net.connect(SocketAddr::new(server.ip, 8080)).await.unwrap();
    let (mut inner, _) = listener.accept().await.unwrap();
    frozen.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    // Neither end was told anything; both must learn of it.
    let (at_client, at_server) = tokio::join!(conn.read_u8(), inner.read_u8());
    assert_eq!(at_client.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(at_server.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_peer_that_goes_and_comes_back_is_reached_again() {
    let mut cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    cluster.serve(&[&server]);
    let listener = server.listen();
    let mut conn = client.net.connect(address(SERVICE)).await.unwrap();
    let held = listener.accept().await.unwrap();
    cluster.b.shutdown();
    assert!(conn.read_u8().await.is_err());
    drop(held);
    let again = node(&cluster.authority, "b").await;
    again.attach(server.ip, server.net.clone(), identity("default", "pod", server.ip));
    again.update(cluster.state.clone());
    cluster.state.nodes.insert("b".into(), again.address().to_string());
    cluster.a.update(cluster.state.clone());
    drop(listener);
    server.say("back");
    assert_eq!(client.ask().await.unwrap(), "back");
}

#[tokio::test]
async fn only_nodes_are_let_in_and_only_with_their_own_addresses() {
    let cluster = Cluster::new().await;
    let server = pod(&cluster.b, "10.128.2.2");
    server.say("secret");
    let to = SocketAddr::new(server.ip, 8080);
    // Node a speaks for a pod of node c.
    let spoofed = dial(&cluster.a, address("10.128.3.5:4000"), to).await;
    assert_eq!(spoofed.unwrap_err(), NetError::AccessDenied);
    // Certificates of the same authority that are no node's.
    for tls in [cluster.authority.tls("a", "system:masters"), super::cluster::Authority::new().node("a")] {
        let stranger = Fabric::start(config("a", tls)).await.unwrap();
        stranger.update(cluster.state.clone());
        assert!(dial(&stranger, address("10.128.1.5:4000"), to).await.is_err());
    }
    assert!(dial(&cluster.a, address("10.128.1.5:4000"), to).await.is_ok());
}

/// Writes until nothing more is taken for a while.
async fn fill(conn: &mut Conn) {
    while tokio::time::timeout(Duration::from_millis(300), conn.write_all(&[7; 64 * 1024])).await.is_ok() {}
}

#[tokio::test]
async fn what_a_far_end_never_takes_ends_with_its_pod() {
    let cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let listener = server.listen();
    let to = SocketAddr::new(server.ip, 8080);
    let (mut kept, mut closed) =
        (client.net.connect(to).await.unwrap(), client.net.connect(to).await.unwrap());
    let (mut first, _) = listener.accept().await.unwrap();
    let (mut second, _) = listener.accept().await.unwrap();
    for conn in [&mut kept, &mut closed, &mut first] {
        fill(conn).await;
    }
    // This one has read all that came: it is closed in order, and what it wrote may still be taken.
    drop(closed);
    let streams = || cluster.a.inner().streams_to("b");
    assert_eq!(streams(), 2, "who is slow may be slow");
    cluster.a.detach(client.ip);
    client.net.shutdown();
    let ended = async {
        while streams() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.expect("nobody holds the streams any more");
    for conn in [&mut first, &mut second] {
        let error = conn.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_pod_that_goes_resets_what_nobody_takes_of_it() {
    let cluster = Cluster::new().await;
    let (client, server) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let listener = server.listen();
    let conn = client.net.connect(SocketAddr::new(server.ip, 8080)).await.unwrap();
    let (mut inner, _) = listener.accept().await.unwrap();
    fill(&mut inner).await;
    // The program ends before its pod does.
    drop(inner);
    cluster.b.detach(server.ip);
    // The client hears of it though it neither reads nor writes.
    let gone = poll_fn(|cx| conn.poll_peer_gone(cx));
    let gone = tokio::time::timeout(Duration::from_secs(15), gone).await.expect("the connection is reset");
    assert_eq!(gone, Gone::Reset);
}

#[tokio::test]
async fn one_pod_leaves_streams_of_a_tunnel_to_others() {
    let cluster = Cluster::new().await;
    let server = pod(&cluster.b, "10.128.2.2");
    let listener = server.listen();
    let to = SocketAddr::new(server.ip, 8080);
    let greedy = pod_in("greedy", &cluster.a, "10.128.1.2");
    let mut held = Vec::new();
    let refused = loop {
        match greedy.net.connect(to).await {
            Ok(conn) => held.push((conn, listener.accept().await.unwrap())),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, held.len()), (NetError::TooManySockets, 1368), "a third of 4,096, and 2");
    let modest = pod_in("modest", &cluster.a, "10.128.1.3");
    assert!(modest.net.connect(to).await.is_ok());
}

#[tokio::test]
async fn whatever_neighbours_hold_a_pod_has_a_few_streams() {
    let cluster = Cluster::new().await;
    let server = pod(&cluster.b, "10.128.2.2");
    let _listener = server.listen();
    let to = SocketAddr::new(server.ip, 8080);
    let modest = pod_in("modest", &cluster.a, "10.128.1.3");
    drop(modest.net.connect(to).await.unwrap());
    while cluster.a.inner().streams_to("b") > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let shares = cluster.a.inner().stream_shares_to("b").unwrap();
    let mut held = Vec::new();
    for namespace in 0..20 {
        for last in 100..103 {
            let pod = Some([10, 128, 1, last].into());
            let holder = Holder { namespace: namespace.to_string().into(), pod };
            held.extend(std::iter::from_fn(|| shares.take(&holder).ok()));
        }
    }
    assert_eq!(held.len(), 4096 + 2 * 60, "all that is shared, and what is certain of each");
    let connected = [modest.net.connect(to).await, modest.net.connect(to).await];
    assert!(connected.iter().all(Result::is_ok));
    assert_eq!(modest.net.connect(to).await.err(), Some(NetError::TooManySockets));
    let told = cluster.a.inner().refusals().next().await;
    assert_eq!((&*told[0].holder.namespace, told[0].holder.pod), ("modest", Some(modest.ip)));
    assert_eq!(
        told[0].to_string(),
        "connections to the pods of another node: all pods of this node hold 4096 of the 4096 that they may; try again when others have \
         given some back, or add a node"
    );
}

/// Carries TCP to `to` until it is frozen; counts connections.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let frozen = Arc::new(AtomicBool::new(false));
    let (count, freeze) = (accepted.clone(), frozen.clone());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let far = TcpStream::connect(to).await.unwrap();
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::spawn(carry(near_read, far_write, freeze.clone()));
            tokio::spawn(carry(far_read, near_write, freeze.clone()));
        }
    });
    (here, accepted, frozen)
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    frozen: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if frozen.load(Ordering::SeqCst) {
            // Neither forwarded nor closed: as a pulled cable.
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
