//! What a node's network holds, and where it says so.

use super::cluster::{Cluster, address, pod};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("{request} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_page_is_served_where_it_was_asked_for() {
    let cluster = Cluster::new().await;
    let page = || async { "figures".to_owned() };
    let at = cluster.a.serve_metrics(address("127.0.0.1:0"), page).await.unwrap();
    let answer = ask(at, "GET /metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("figures"), "{answer}");
    assert!(ask(at, "POST /metrics").await.starts_with("HTTP/1.1 405"));
    assert!(ask(at, "GET /").await.starts_with("HTTP/1.1 404"));
    cluster.a.shutdown();
    while TcpStream::connect(at).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nothing_is_held_of_pods_and_services_that_are_gone() {
    let mut cluster = Cluster::new().await;
    // Descriptors and listeners are the process', and other tests have some too.
    let own = |what: &str| !what.starts_with("descriptors") && what != "listeners";
    let held = |cluster: &Cluster| {
        let all = cluster.a.held();
        all.into_iter().filter(|(what, _)| own(what)).collect::<Vec<_>>()
    };
    let before = held(&cluster);
    for round in 2..6 {
        let (client, server) =
            (pod(&cluster.a, &format!("10.128.1.{round}")), pod(&cluster.b, &format!("10.128.2.{round}")));
        server.say("here");
        cluster.serve(&[&server]).client_affinity = Some(Duration::from_secs(10_800));
        cluster.tell();
        assert_eq!(client.ask().await.unwrap(), "here");
        let socket = client.net.bind_udp(address("0.0.0.0:0")).unwrap();
        for port in 1000..1050 {
            let to = SocketAddr::new(server.ip, port);
            socket.try_send(Bytes::from_static(b"?"), Some(to)).unwrap();
        }
        let now = held(&cluster);
        let count = |what: &str| now.iter().find(|(of, _)| *of == what).unwrap().1;
        assert_eq!((count("flows"), count("clients of services with affinity")), (50, 1));
        for (node, gone) in [(&cluster.a, &client), (&cluster.b, &server)] {
            node.detach(gone.ip);
            gone.net.shutdown();
        }
        cluster.state.services.clear();
        cluster.tell();
    }
    // Tasks that carry connections need a moment to see that their pods are gone.
    let begun = Instant::now();
    while held(&cluster) != before {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?} and not {before:?}", held(&cluster));
        tokio::task::yield_now().await;
    }
}
