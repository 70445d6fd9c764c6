//! TCP in a namespace: listening, connecting, refusing, resetting.

use super::super::{Conn, Gone, Isolated, Namespace, NetError, NetLimits, TRANSFER_BYTES_MAX, Uplink};
use super::{POD, address, context, counter, namespace, namespace_with, pending};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn containers_of_a_pod_meet_on_loopback() {
    let pod = namespace();
    let listener = pod.listen(address("127.0.0.1:6379")).unwrap();
    let mut client = pod.connect(address("127.0.0.1:6379")).await.unwrap();
    let (mut server, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, client.local_addr());
    assert_eq!(server.local_addr(), address("127.0.0.1:6379"));
    client.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    server.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ping");
    // Loopback is not reached by the pod's address, nor from outside.
    let pod_address = SocketAddr::new(POD, 6379);
    assert_eq!(pod.connect(pod_address).await.unwrap_err(), NetError::ConnectionRefused);
    assert_eq!(pod.deliver(address("10.128.9.9:1"), pod_address).unwrap_err(), NetError::ConnectionRefused);
    let outer = pod.deliver(address("10.128.9.9:1"), address("127.0.0.1:6379"));
    assert_eq!(outer.unwrap_err(), NetError::HostUnreachable);
}

#[tokio::test]
async fn all_addresses_are_reached_by_each() {
    let pod = namespace();
    let listener = pod.listen(address("0.0.0.0:80")).unwrap();
    for to in
        [address("127.0.0.1:80"), address("127.1.2.3:80"), SocketAddr::new(POD, 80), address("0.0.0.0:80")]
    {
        let client = pod.connect(to).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        assert_eq!(client.peer_addr(), server.local_addr());
    }
    let outer = pod.deliver(address("10.128.9.9:40000"), SocketAddr::new(POD, 80)).unwrap();
    let (server, peer) = listener.accept().await.unwrap();
    assert_eq!((peer, outer.local_addr()), (address("10.128.9.9:40000"), address("10.128.9.9:40000")));
    drop(server);
}

#[test]
fn addresses_in_use_conflict_and_are_free_at_once() {
    let pod = namespace();
    let all = pod.listen(address("0.0.0.0:80")).unwrap();
    assert_eq!(pod.listen(address("127.0.0.1:80")).unwrap_err(), NetError::AddressInUse);
    drop(all);
    let one = pod.listen(address("127.0.0.1:80")).unwrap();
    let other = pod.listen(SocketAddr::new(POD, 80)).unwrap();
    assert_eq!(pod.listen(address("0.0.0.0:80")).unwrap_err(), NetError::AddressInUse);
    let six = pod.listen(address("[::]:80")).unwrap();
    drop((one, other, six));
    assert!(pod.listen(address("0.0.0.0:80")).is_ok());
    assert_eq!(pod.listen(address("10.128.0.6:80")).unwrap_err(), NetError::AddressNotAvailable);
}

#[test]
fn ephemeral_ports_differ_and_lie_in_the_range() {
    let pod = namespace();
    let listeners: Vec<_> = (0..100).map(|_| pod.listen(address("0.0.0.0:0")).unwrap()).collect();
    let mut ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 100);
    assert!(ports.iter().all(|port| (32768..=60999).contains(port)));
}

#[tokio::test]
async fn bound_but_not_listening_refuses() {
    let pod = namespace();
    let bound = pod.bind_tcp(address("127.0.0.1:81")).unwrap();
    assert_eq!(pod.connect(address("127.0.0.1:81")).await.unwrap_err(), NetError::ConnectionRefused);
    let listener = bound.listen(1).unwrap();
    assert!(pod.connect(address("127.0.0.1:81")).await.is_ok());
    drop(listener);
    assert_eq!(pod.connect(address("127.0.0.1:81")).await.unwrap_err(), NetError::ConnectionRefused);
}

#[tokio::test]
async fn dropping_a_listener_resets_its_backlog() {
    let pod = namespace();
    let listener = pod.listen(address("127.0.0.1:80")).unwrap();
    let client = pod.connect(address("127.0.0.1:80")).await.unwrap();
    let (waker, woken) = counter();
    assert!(pending(client.poll_readable(&mut context(&waker))));
    drop(listener);
    assert_eq!(woken.times(), 1);
    assert_eq!(client.try_read(1), Err(NetError::ConnectionReset));
}

#[tokio::test(start_paused = true)]
async fn full_backlog_makes_connects_wait_and_time_out() {
    let pod = namespace();
    let listener = pod.bind_tcp(address("127.0.0.1:80")).unwrap().listen(2).unwrap();
    let first = pod.connect(address("127.0.0.1:80")).await.unwrap();
    let second = pod.connect(address("127.0.0.1:80")).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(pod.connect(address("127.0.0.1:80")).await.unwrap_err(), NetError::TimedOut);
    assert_eq!(begun.elapsed(), NetLimits::default().connect_timeout);
    let third = tokio::spawn({
        let pod = pod.clone();
        async move { pod.connect(address("127.0.0.1:80")).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!third.is_finished());
    let accepted = listener.accept().await.unwrap();
    let third = third.await.unwrap().unwrap();
    // Those who wait learn of the listener's end at once.
    let fourth = tokio::spawn({
        let pod = pod.clone();
        async move { pod.connect(address("127.0.0.1:80")).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(listener);
    assert_eq!(fourth.await.unwrap().unwrap_err(), NetError::ConnectionRefused);
    drop((first, second, third, accepted));
}

#[tokio::test]
async fn sockets_are_capped_and_given_back() {
    let limits = NetLimits { sockets_max: 5, ..NetLimits::default() };
    let pod = namespace_with(limits, Arc::new(Isolated));
    let listener = pod.listen(address("0.0.0.0:80")).unwrap();
    let first = pod.connect(address("127.0.0.1:80")).await.unwrap();
    let second = pod.connect(address("127.0.0.1:80")).await.unwrap();
    assert_eq!(pod.sockets(), 5);
    assert_eq!(pod.connect(address("127.0.0.1:80")).await.unwrap_err(), NetError::TooManySockets);
    assert_eq!(pod.bind_udp(address("127.0.0.1:0")).unwrap_err(), NetError::TooManySockets);
    // An outside connection to a full pod is refused, which is the outside's view of it.
    let outside = pod.deliver(address("10.128.9.9:1"), SocketAddr::new(POD, 80));
    assert_eq!(outside.unwrap_err(), NetError::ConnectionRefused);
    drop((first, second));
    drop(listener);
    assert_eq!(pod.sockets(), 0);
}

#[tokio::test]
async fn buffered_bytes_of_a_pod_are_bounded() {
    let limits = NetLimits { buffered_bytes_max: 1024 * 1024, ..NetLimits::default() };
    let pod = namespace_with(limits, Arc::new(Isolated));
    let listener = pod.listen(address("127.0.0.1:80")).unwrap();
    let mut clients = Vec::new();
    for _ in 0..50 {
        let client = pod.connect(address("127.0.0.1:80")).await.unwrap();
        while client.try_write(&[0; 64 * 1024]).is_ok() {}
        clients.push(client);
    }
    // Four pipes fill the budget, and each of the others gets its small share.
    assert!(pod.buffered_bytes() <= 1024 * 1024 + 256 * 1024 + 50 * 4096, "{}", pod.buffered_bytes());
    let (server, _) = listener.accept().await.unwrap();
    let read = server.try_read(1000).unwrap();
    assert_eq!(read.len(), 1000);
    drop((clients, server, listener));
    assert_eq!(pod.buffered_bytes(), 0);
}

#[tokio::test]
async fn what_was_permitted_on_many_connections_is_bounded_too() {
    let limits = NetLimits { buffered_bytes_max: 1024 * 1024, ..NetLimits::default() };
    let pod = namespace_with(limits, Arc::new(Isolated));
    let _listener = pod.listen(address("127.0.0.1:80")).unwrap();
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(pod.connect(address("127.0.0.1:80")).await.unwrap());
    }
    let permits: Vec<_> = clients.iter().map(|client| client.write_permit().unwrap()).collect();
    assert!(permits.iter().sum::<usize>() > 4 * 1024 * 1024);
    for (client, permit) in clients.iter().zip(permits) {
        let written = client.write_permitted(vec![0; permit].into());
        assert!(matches!(written, Ok(()) | Err(NetError::NoBuffers)), "{written:?}");
        // A little goes nevertheless.
        assert_eq!(client.write_permitted(vec![0; 1024].into()), Ok(()));
    }
    let most = 1024 * 1024 * 5 / 4 + TRANSFER_BYTES_MAX + 100 * 1024;
    assert!(pod.buffered_bytes() <= most, "{}", pod.buffered_bytes());
}

#[tokio::test]
async fn shutdown_resets_and_refuses() {
    let pod = namespace();
    let listener = pod.listen(address("0.0.0.0:80")).unwrap();
    let outer = pod.deliver(address("10.128.9.9:1"), SocketAddr::new(POD, 80)).unwrap();
    let (inner, _) = listener.accept().await.unwrap();
    inner.try_write(b"last words").unwrap();
    pod.shutdown();
    assert_eq!(outer.try_read(100).as_deref(), Ok(&b"last words"[..]));
    assert_eq!(outer.try_read(100), Err(NetError::ConnectionReset));
    assert_eq!(inner.try_read(1), Err(NetError::ConnectionAborted));
    assert_eq!(listener.accept().await.unwrap_err(), NetError::NetworkDown);
    assert_eq!(pod.connect(address("127.0.0.1:80")).await.unwrap_err(), NetError::NetworkDown);
    assert_eq!(pod.listen(address("127.0.0.1:81")).unwrap_err(), NetError::NetworkDown);
}

#[tokio::test]
async fn closed_listeners_leave_connections_alone() {
    let pod = namespace();
    let listener = pod.listen(address("0.0.0.0:80")).unwrap();
    let mut outer = pod.deliver(address("10.128.9.9:1"), SocketAddr::new(POD, 80)).unwrap();
    let (mut inner, _) = listener.accept().await.unwrap();
    pod.close_listeners();
    let late = pod.deliver(address("10.128.9.9:2"), SocketAddr::new(POD, 80));
    assert_eq!(late.unwrap_err(), NetError::ConnectionRefused);
    inner.write_all(b"bye").await.unwrap();
    drop(inner);
    let mut text = String::new();
    outer.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "bye");
}

#[tokio::test]
async fn an_owner_closes_its_own_listeners_alone() {
    let pod = namespace();
    let (first, second) = (pod.scoped("first"), pod.scoped("second"));
    let mine = first.listen(address("0.0.0.0:80")).unwrap();
    let _others = second.listen(address("0.0.0.0:81")).unwrap();
    first.close_listeners();
    assert_eq!(mine.accept().await.unwrap_err(), NetError::NetworkDown);
    let client = address("10.128.9.9:1");
    assert_eq!(pod.deliver(client, SocketAddr::new(POD, 80)).unwrap_err(), NetError::ConnectionRefused);
    pod.deliver(client, SocketAddr::new(POD, 81)).unwrap();
}

#[tokio::test]
async fn an_owner_has_the_ports_that_it_took_itself() {
    let pod = namespace();
    let (first, second) = (pod.scoped("first"), pod.scoped("second"));
    let tcp = first.listen(address("0.0.0.0:80")).unwrap();
    assert!(first.has_ports() && !second.has_ports() && !pod.has_ports());
    let udp = second.bind_udp(address("0.0.0.0:53")).unwrap();
    drop(tcp);
    assert!(!first.has_ports() && second.has_ports());
    drop(udp);
    assert!(!second.has_ports());
}

#[tokio::test]
async fn a_listener_that_refuses_still_gives_what_waited() {
    let pod = namespace();
    let listener = pod.listen(address("0.0.0.0:80")).unwrap();
    let _outer = pod.deliver(address("10.128.9.9:1"), SocketAddr::new(POD, 80)).unwrap();
    listener.refuse();
    let late = pod.deliver(address("10.128.9.9:2"), SocketAddr::new(POD, 80));
    assert_eq!(late.unwrap_err(), NetError::ConnectionRefused);
    listener.accept().await.unwrap();
    assert_eq!(listener.accept().await.unwrap_err(), NetError::NetworkDown);
}

#[tokio::test]
async fn what_is_bound_to_loopback_does_not_leave_the_namespace() {
    let server = namespace();
    let _listener = server.listen(address("0.0.0.0:8080")).unwrap();
    let config = super::super::NamespaceConfig {
        hostname: "client".into(),
        tenant: "default".into(),
        addresses: vec!["10.128.0.77".parse().unwrap()],
        limits: NetLimits::default(),
    };
    let pod = Namespace::new(config, Arc::new(OneService(server)));
    let to = address("10.96.0.20:80");
    for from in ["127.0.0.1:4000", "127.9.9.9:0", "10.128.0.5:4000"] {
        let refused = pod.connect_from(Some(address(from)), to).await.unwrap_err();
        assert_eq!(refused, NetError::InvalidInput, "{from}");
    }
    assert_eq!(pod.sockets(), 0);
    let conn = pod.connect_from(Some(address("10.128.0.77:4000")), to).await.unwrap();
    assert_eq!(conn.local_addr(), address("10.128.0.77:4000"));
    let socket = pod.bind_udp(address("127.0.0.1:0")).unwrap();
    assert_eq!(socket.try_send(Bytes::new(), Some(to)), Err(NetError::InvalidInput));
    assert_eq!(socket.connect(Some(to)), Err(NetError::InvalidInput));
    // To its own address it may, as on Linux.
    let own = pod.bind_udp(address("10.128.0.77:53")).unwrap();
    socket.try_send(Bytes::from_static(b"x"), Some(own.local_addr())).unwrap();
    assert_eq!(own.try_recv().unwrap().1, socket.local_addr());
}

#[tokio::test]
async fn a_carrier_learns_that_the_other_end_has_gone() {
    let pod = namespace();
    let listener = pod.listen(address("0.0.0.0:80")).unwrap();
    let (waker, woken) = counter();
    let gone = |conn: &Conn| conn.poll_peer_gone(&mut context(&waker));
    for disorder in [false, true] {
        let outer = pod.deliver(address("10.128.9.9:1"), SocketAddr::new(POD, 80)).unwrap();
        let (inner, _) = listener.accept().await.unwrap();
        inner.try_write(b"last words").unwrap();
        inner.shutdown(std::net::Shutdown::Both);
        assert!(pending(gone(&outer)), "shut down is not gone");
        let before = woken.times();
        if disorder {
            pod.shutdown();
        }
        drop(inner);
        assert!(woken.times() > before);
        let expected = if disorder { Gone::Reset } else { Gone::Closed };
        assert_eq!(gone(&outer), std::task::Poll::Ready(expected));
        assert_eq!(outer.try_read(100).as_deref(), Ok(&b"last words"[..]));
    }
}

/// Hands every dial to one pod, whatever the address, as a service with one endpoint would.
struct OneService(Namespace);

impl Uplink for OneService {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>> {
        let endpoint = self.0.clone();
        Box::pin(async move {
            let backend = SocketAddr::new(endpoint.addresses()[0], 8080);
            Ok(endpoint.deliver_when_room(from, backend).await?.with_addresses(from, to))
        })
    }

    fn resolve(&self, _from: IpAddr, _name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> {
        Box::pin(std::future::ready(Err(NetError::NameUnknown)))
    }

    fn send(&self, _from: SocketAddr, _to: SocketAddr, _payload: Bytes) -> Result<(), NetError> {
        Ok(())
    }
}

#[tokio::test]
async fn beyond_the_pod_the_uplink_decides() {
    let server = namespace();
    let listener = server.listen(address("0.0.0.0:8080")).unwrap();
    let config = super::super::NamespaceConfig {
        hostname: "client".into(),
        tenant: "default".into(),
        addresses: vec!["10.128.0.77".parse().unwrap()],
        limits: NetLimits::default(),
    };
    let client_pod = Namespace::new(config, Arc::new(OneService(server)));
    let client = client_pod.connect(address("10.96.0.20:80")).await.unwrap();
    assert_eq!(client.peer_addr(), address("10.96.0.20:80"));
    let (inner, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip(), "10.128.0.77".parse::<IpAddr>().unwrap());
    assert_eq!(inner.local_addr(), SocketAddr::new(POD, 8080));
    assert_eq!(client_pod.sockets(), 1);
    // No route for a family that the pod has no address of, nor to many at once.
    assert_eq!(client_pod.connect(address("[2001:db8::1]:80")).await.unwrap_err(), NetError::HostUnreachable);
    assert_eq!(client_pod.connect(address("224.0.0.1:80")).await.unwrap_err(), NetError::HostUnreachable);
}
