//! What those who open connections to a pod leave to others, and to the pod itself.

use super::super::{Conn, Known, Namespace, NamespaceConfig, NetError, NetLimits, UdpSocket, Unread};
use super::{POD, address};
use crate::ledger::{Account, HEAP_GUARANTEED, Holding, Ledger, NodeBounds};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::io::AsyncReadExt;

/// The namespace of the pod, as [`Known`] has it.
const OWN: u8 = 0;
const PORT: u16 = 80;

fn pod(limits: NetLimits) -> Namespace {
    let config = NamespaceConfig {
        hostname: "web-0".into(),
        tenant: OWN.to_string().into(),
        addresses: vec![POD],
        limits,
    };
    Namespace::new(config, Arc::new(Known))
}

/// On the account of a pod as small as any, which may have the host hold 32 MiB.
fn small_pod() -> (Namespace, Arc<Account>) {
    let bounds = NodeBounds { memory: None, heap: 1 << 30, files: 0, files_guaranteed: 0 };
    let account = Ledger::new(bounds).pod(&OWN.to_string().into(), Some(1));
    let pod = pod(NetLimits::default());
    pod.charge_to(&account);
    (pod, account)
}

fn of(namespace: u8, pod: u8) -> IpAddr {
    [10, 128, namespace, pod].into()
}

fn call(pod: &Namespace, from: IpAddr) -> Result<Conn, NetError> {
    pod.deliver(SocketAddr::new(from, 4000), SocketAddr::new(POD, PORT))
}

/// All connections that a caller gets.
fn fill(pod: &Namespace, from: IpAddr) -> Vec<Conn> {
    std::iter::from_fn(|| call(pod, from).ok()).collect()
}

/// Sends until nothing more is taken, or so much.
fn send(conn: &Conn, bytes: usize) -> usize {
    let piece = [b'x'; 16 << 10];
    let mut sent = 0;
    while sent < bytes {
        match conn.try_write(&piece[..piece.len().min(bytes - sent)]) {
            Ok(written) => sent += written,
            Err(_) => break,
        }
    }
    sent
}

#[tokio::test]
async fn pods_of_another_namespace_leave_sockets_to_others_and_to_the_pod() {
    let pod = pod(NetLimits { sockets_max: 65, ..NetLimits::default() });
    let listener = pod.listen(SocketAddr::new(POD, PORT)).unwrap();
    let greedy: Vec<Conn> = (1..10).flat_map(|from| fill(&pod, of(9, from))).collect();
    let second: Vec<Conn> = (1..10).flat_map(|from| fill(&pod, of(8, from))).collect();
    assert_eq!((greedy.len(), second.len()), (25, 12), "half of three quarters, and half of the rest");
    let others: Vec<Conn> = (10..200).flat_map(|namespace| fill(&pod, of(namespace, 1))).collect();
    assert!(others.len() >= 11);
    assert_eq!(call(&pod, of(1, 1)).err(), Some(NetError::ConnectionRefused));
    // A quarter is left: for its own sockets and its own namespace.
    let kin = call(&pod, of(OWN, 77)).unwrap();
    let sockets: Vec<_> = std::iter::from_fn(|| pod.bind_udp(address("0.0.0.0:0")).ok()).collect();
    assert_eq!(sockets.len(), 14);
    drop((greedy, second, others, kin, sockets, listener));
    assert_eq!(pod.sockets(), 0);
    assert!(!pod.has_callers());
}

#[tokio::test]
async fn one_source_leaves_sockets_to_others() {
    for (first, second) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:1::1")] {
        let pod = pod(NetLimits { sockets_max: 65, ..NetLimits::default() });
        let _listener = pod.listen(SocketAddr::new(POD, PORT)).unwrap();
        let one = fill(&pod, first.parse().unwrap());
        assert_eq!(one.len(), 25, "{first}");
        let other = fill(&pod, second.parse().unwrap());
        assert_eq!(other.len(), 12, "{second}");
    }
    let pod = pod(NetLimits { sockets_max: 65, ..NetLimits::default() });
    let _listener = pod.listen(SocketAddr::new(POD, PORT)).unwrap();
    let near = [fill(&pod, "2001:db8::1".parse().unwrap()), fill(&pod, "2001:db8::2".parse().unwrap())];
    assert_eq!(near.map(|conns| conns.len()), [25, 0], "a /64 is one source");
    // Of its own namespace a pod may have half of what there is.
    let kin = fill(&pod, of(OWN, 77));
    assert_eq!(kin.len(), 20);
    assert!(call(&pod, of(OWN, 78)).is_ok());
}

#[tokio::test]
async fn what_one_sends_that_nobody_reads_squeezes_nobody_else() {
    let (pod, account) = small_pod();
    let listener = pod.bind_tcp(SocketAddr::new(POD, PORT)).unwrap().listen(4096).unwrap();
    let stuck: Vec<Conn> = (0..130).map(|_| call(&pod, of(9, 1)).unwrap()).collect();
    stuck.iter().for_each(|conn| assert!(send(conn, 300 << 10) > 0));
    let (held, limit) = (account.held(Holding::Heap), account.limit(Holding::Heap));
    assert!(held <= limit / 3, "{held} of {limit}");
    let newcomers = [of(OWN, 77), of(8, 1), "192.0.2.1".parse().unwrap()];
    let asked = newcomers.map(|from| call(&pod, from).unwrap());
    for conn in &asked {
        assert_eq!(send(conn, 100 << 10), 100 << 10);
    }
    drop((stuck, asked, listener));
    assert_eq!(pod.buffered_bytes(), 0);
}

#[tokio::test]
async fn callers_of_all_kinds_together_do_not_fill_the_pods_account() {
    let (pod, account) = small_pod();
    let listener = pod.bind_tcp(SocketAddr::new(POD, PORT)).unwrap().listen(4096).unwrap();
    let mut stuck = Vec::new();
    for namespace in 1..40 {
        for from in 1..4 {
            for outer in fill(&pod, of(namespace, from)) {
                stuck.push((listener.accept().await.unwrap().0, outer));
            }
        }
    }
    assert!(stuck.len() > 3000, "{}", stuck.len());
    for (inner, outer) in &stuck {
        send(outer, 300 << 10);
        send(inner, 300 << 10);
    }
    let (held, limit) = (account.held(Holding::Heap), account.limit(Holding::Heap));
    assert!(account.charge(Holding::Heap, limit / 16).is_ok(), "{held} of {limit}");
    // One of its own namespace is taken in, and can ask something.
    let kin = call(&pod, of(OWN, 77)).unwrap();
    assert!(send(&kin, 1 << 10) == 1 << 10);
    assert!(pod.bind_udp(address("0.0.0.0:0")).is_ok());
    drop((stuck, kin, listener));
    assert_eq!((pod.buffered_bytes(), pod.sockets()), (0, 0));
    assert_eq!(account.held(Holding::Heap), 0);
}

#[tokio::test]
async fn who_does_not_read_what_was_written_has_his_connection_still() {
    let pod = pod(NetLimits::default());
    let listener = pod.listen(SocketAddr::new(POD, PORT)).unwrap();
    for disorder in [false, true] {
        let mut outer = call(&pod, of(9, 1)).unwrap();
        let (inner, _) = listener.accept().await.unwrap();
        send(&inner, 1000);
        if disorder {
            send(&outer, 10);
        }
        drop(inner);
        assert_eq!(pod.sockets(), 2, "the listener, and what waits");
        outer.read_exact(&mut [0; 999]).await.unwrap();
        assert_eq!(pod.sockets(), 2);
        outer.read_exact(&mut [0; 1]).await.unwrap();
        assert_eq!(pod.sockets(), 1);
        assert!(!pod.has_callers());
    }
    // Nor longer than he is there.
    let outer = call(&pod, of(9, 1)).unwrap();
    let (inner, _) = listener.accept().await.unwrap();
    send(&inner, 1000);
    drop(inner);
    assert_eq!(pod.sockets(), 2);
    drop(outer);
    assert_eq!((pod.sockets(), pod.buffered_bytes()), (1, 0));
}

#[tokio::test]
async fn where_the_node_has_no_memory_left_what_is_certain_is_not_for_others_alone() {
    let bounds = NodeBounds { memory: None, heap: 0, files: 0, files_guaranteed: 0 };
    let account = Ledger::new(bounds).pod(&OWN.to_string().into(), None);
    let pod = pod(NetLimits::default());
    pod.charge_to(&account);
    let _listener = pod.bind_tcp(SocketAddr::new(POD, PORT)).unwrap().listen(4096).unwrap();
    let others: Vec<Conn> = (1..40).flat_map(|namespace| fill(&pod, of(namespace, 1))).collect();
    assert!(others.len() > 100, "{}", others.len());
    assert!(account.held(Holding::Heap) <= HEAP_GUARANTEED / 2);
    assert!(call(&pod, of(OWN, 77)).is_ok());
}

#[test]
fn datagrams_that_nobody_takes_leave_half_to_connections() {
    let pod = pod(NetLimits { buffered_bytes_max: 512 << 10, ..NetLimits::default() });
    let sockets: Vec<_> = (0..20).map(|_| pod.bind_udp(address("0.0.0.0:0")).unwrap()).collect();
    for socket in &sockets {
        for _ in 0..300 {
            let to = SocketAddr::new(POD, socket.local_addr().port());
            pod.deliver_datagram(SocketAddr::new(of(9, 1), 5), to, vec![0; 1000].into()).unwrap();
        }
    }
    assert!(pod.buffered_bytes() <= (256 + 4 * 20 + 2) << 10, "{}", pod.buffered_bytes());
    assert!(sockets.iter().all(|socket| socket.try_recv().is_ok()));
}

#[test]
fn a_large_datagram_finds_an_empty_socket_while_others_have_half() {
    let pod = pod(NetLimits { buffered_bytes_max: 256 << 10, ..NetLimits::default() });
    let full = pod.bind_udp(address("0.0.0.0:0")).unwrap();
    let empty = [0, 0].map(|_| pod.bind_udp(address("0.0.0.0:0")).unwrap());
    let deliver = |socket: &UdpSocket, bytes: usize| {
        let to = SocketAddr::new(POD, socket.local_addr().port());
        pod.deliver_datagram(SocketAddr::new(of(9, 1), 5), to, vec![0; bytes].into()).unwrap();
    };
    for _ in 0..300 {
        deliver(&full, 1000);
    }
    for socket in &empty {
        deliver(socket, 60_000);
        assert_eq!(socket.try_recv().unwrap().0.len(), 60_000);
        deliver(socket, 60_000);
        deliver(socket, 60_000);
        assert!(socket.try_recv().is_ok());
        assert!(socket.try_recv().is_err(), "one at a time");
    }
}

#[tokio::test]
async fn what_a_caller_on_another_node_sent_unread_is_his_part() {
    let (pod, account) = small_pod();
    let listener = pod.listen(SocketAddr::new(POD, PORT)).unwrap();
    let outer = call(&pod, of(9, 1)).unwrap();
    let buffers = outer.buffers().unwrap();
    let mut unread: Vec<_> = (0..64).map(|_| buffers.unread()).collect();
    let lost = |unread: &[Unread]| unread.iter().filter(|one| one.lost().is_cancelled()).count();
    for at in 0..unread.len() {
        unread[at].set(256 << 10);
        if lost(&unread) > 0 {
            break;
        }
    }
    assert_eq!(lost(&unread), 1);
    let (held, limit) = (account.held(Holding::Heap), account.limit(Holding::Heap));
    assert!(held < limit / 3, "{held} of {limit}: a quarter, as alone he may have in pipes");
    // The pod's own pipes hold what they do.
    let own = pod.buffers().connection(address("10.0.0.1:1"), address("10.0.0.2:2"));
    assert_eq!(send(&own.0, 128 << 10), 128 << 10);
    drop((unread, own, outer, listener));
    assert_eq!(account.held(Holding::Heap), 0);
}

#[test]
fn who_floods_a_socket_keeps_nobody_from_it_and_waits_for_himself() {
    let pod = pod(NetLimits::default());
    let server = pod.bind_udp(SocketAddr::new(POD, PORT)).unwrap();
    let deliver = |from: IpAddr, payload: &'static [u8]| {
        let (from, to) = (SocketAddr::new(from, 5), SocketAddr::new(POD, PORT));
        pod.deliver_datagram(from, to, payload.into()).unwrap();
    };
    // Two pods of one other namespace, and one of another.
    for _ in 0..10_000 {
        deliver(of(9, 1), b"flood");
        deliver(of(9, 2), b"flood");
    }
    deliver(of(8, 1), b"asks");
    deliver(of(8, 1), b"asks again");
    let taken: Vec<_> = (0..4).map(|_| server.try_recv().unwrap().0).collect();
    assert_eq!(taken, [&b"flood"[..], b"asks", b"flood", b"asks again"]);
    let mut left = 0;
    while server.try_recv().is_ok() {
        left += 1;
    }
    assert!((1500..2000).contains(&left), "{left}: the namespace has one line");
    assert_eq!(pod.buffered_bytes(), 0);
}

#[tokio::test]
async fn who_fills_a_backlog_keeps_nobody_from_it_and_waits_for_himself() {
    let pod = pod(NetLimits::default());
    let listener = pod.bind_tcp(SocketAddr::new(POD, PORT)).unwrap().listen(2).unwrap();
    let mut held: Vec<_> = [1, 2].map(|pod_of| call(&pod, of(9, pod_of)).unwrap()).into();
    assert_eq!(call(&pod, of(9, 3)).unwrap_err(), NetError::WouldBlock);
    let (from, to) = (SocketAddr::new(of(9, 3), 4000), SocketAddr::new(POD, PORT));
    let mut waits = Box::pin(pod.deliver_when_room(from, to));
    assert!(futures::poll!(waits.as_mut()).is_pending());
    held.push(call(&pod, of(8, 1)).unwrap());
    let mut accepted: Vec<_> = (0..2).map(|_| listener.try_accept().unwrap().1.ip()).collect();
    assert_eq!(accepted, [of(9, 1), of(8, 1)]);
    held.push(waits.await.unwrap());
    accepted.extend((0..2).map(|_| listener.try_accept().unwrap().1.ip()));
    assert_eq!(accepted[2..], [of(9, 2), of(9, 3)]);
    assert!(listener.try_accept().is_err());
}
