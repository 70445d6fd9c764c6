//! What a node's network holds.

use super::cluster::{Cluster, address, pod};
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

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
