//! UDP in a namespace.

use super::super::{DATAGRAM_BYTES_MAX, Isolated, NetError, NetLimits};
use super::{POD, address, context, counter, namespace, namespace_with, pending};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;

const HELLO: Bytes = Bytes::from_static(b"hello");

#[tokio::test]
async fn datagrams_travel_and_can_be_answered() {
    let pod = namespace();
    let server = pod.bind_udp(address("0.0.0.0:53")).unwrap();
    let client = pod.bind_udp(address("0.0.0.0:0")).unwrap();
    client.try_send(HELLO, Some(address("127.0.0.1:53"))).unwrap();
    let (payload, from) = server.recv().await.unwrap();
    assert_eq!((payload, from.ip()), (HELLO, "127.0.0.1".parse().unwrap()));
    server.try_send(Bytes::from_static(b"back"), Some(from)).unwrap();
    assert_eq!(client.recv().await.unwrap(), (Bytes::from_static(b"back"), address("127.0.0.1:53")));
}

#[test]
fn connected_socket_learns_of_a_closed_port_at_receive() {
    let pod = namespace();
    let client = pod.bind_udp(address("127.0.0.1:0")).unwrap();
    client.connect(Some(address("127.0.0.1:9"))).unwrap();
    let (waker, woken) = counter();
    assert!(pending(client.poll_receivable(&mut context(&waker))));
    assert_eq!(client.try_send(HELLO, None), Ok(()));
    assert_eq!(woken.times(), 1);
    assert_eq!(client.try_recv(), Err(NetError::ConnectionRefused));
    assert_eq!(client.try_recv(), Err(NetError::WouldBlock));
    // Or at the next send; a socket without a peer never learns of it.
    client.try_send(HELLO, None).unwrap();
    assert_eq!(client.try_send(HELLO, None), Err(NetError::ConnectionRefused));
    client.connect(None).unwrap();
    assert_eq!(client.try_send(HELLO, Some(address("127.0.0.1:9"))), Ok(()));
    assert_eq!(client.try_recv(), Err(NetError::WouldBlock));
    assert_eq!(client.try_send(HELLO, None), Err(NetError::NotConnected));
}

#[test]
fn connected_socket_hears_its_peer_alone() {
    let pod = namespace();
    let (a, b) =
        (pod.bind_udp(address("127.0.0.1:1")).unwrap(), pod.bind_udp(address("127.0.0.1:2")).unwrap());
    let client = pod.bind_udp(address("127.0.0.1:3")).unwrap();
    b.try_send(HELLO, Some(address("127.0.0.1:3"))).unwrap();
    client.connect(Some(address("127.0.0.1:1"))).unwrap();
    b.try_send(HELLO, Some(address("127.0.0.1:3"))).unwrap();
    assert_eq!(client.try_recv(), Err(NetError::WouldBlock));
    a.try_send(HELLO, Some(address("127.0.0.1:3"))).unwrap();
    assert_eq!(client.try_recv(), Ok((HELLO, address("127.0.0.1:1"))));
}

#[test]
fn floods_are_dropped_and_sizes_are_checked() {
    let pod = namespace();
    let server = pod.bind_udp(SocketAddr::new(POD, 53)).unwrap();
    let from = address("10.128.9.9:5");
    for _ in 0..100_000 {
        pod.deliver_datagram(from, SocketAddr::new(POD, 53), Bytes::new()).unwrap();
    }
    let mut waiting = 0;
    while server.try_recv().is_ok() {
        waiting += 1;
    }
    assert_eq!(waiting, 256 * 1024 / 64 / 2, "what is free is left to others");
    let refused = pod.deliver_datagram(from, SocketAddr::new(POD, 54), HELLO);
    assert_eq!(refused, Err(NetError::ConnectionRefused));
    let huge = Bytes::from(vec![0; DATAGRAM_BYTES_MAX + 1]);
    assert_eq!(server.try_send(huge, Some(from)), Err(NetError::MessageTooLarge));
}

#[test]
fn mailboxes_share_the_pods_budget() {
    let limits = NetLimits { buffered_bytes_max: 512 * 1024, ..NetLimits::default() };
    let pod = namespace_with(limits, Arc::new(Isolated));
    let sockets: Vec<_> = (0..20).map(|_| pod.bind_udp(address("0.0.0.0:0")).unwrap()).collect();
    let payload = Bytes::from(vec![0; 1000]);
    for socket in &sockets {
        for _ in 0..300 {
            let to = SocketAddr::new(POD, socket.local_addr().port());
            pod.deliver_datagram(address("10.128.9.9:5"), to, payload.clone()).unwrap();
        }
    }
    assert!(pod.buffered_bytes() <= (512 + 4 * 20 + 2) * 1024, "{}", pod.buffered_bytes());
    assert!(sockets.iter().all(|socket| socket.try_recv().is_ok()));
    drop(sockets);
    assert_eq!(pod.buffered_bytes(), 0);
}

#[test]
fn ports_are_shared_with_nobody_and_free_at_once() {
    let pod = namespace();
    let socket = pod.bind_udp(address("0.0.0.0:53")).unwrap();
    assert_eq!(pod.bind_udp(SocketAddr::new(POD, 53)).unwrap_err(), NetError::AddressInUse);
    let tcp = pod.listen(address("0.0.0.0:53")).unwrap();
    drop(socket);
    assert!(pod.bind_udp(SocketAddr::new(POD, 53)).is_ok());
    drop(tcp);
    assert_eq!(pod.sockets(), 0);
}

#[test]
fn local_address_of_a_connected_socket_is_what_its_peer_sees() {
    let pod = namespace();
    let socket = pod.bind_udp(address("0.0.0.0:7000")).unwrap();
    assert_eq!(socket.local_addr(), address("0.0.0.0:7000"));
    socket.connect(Some(address("127.0.0.1:1"))).unwrap();
    assert_eq!(socket.local_addr(), address("127.0.0.1:7000"));
    socket.connect(Some(address("10.128.3.3:1"))).unwrap();
    assert_eq!(socket.local_addr(), SocketAddr::new(POD, 7000));
}
