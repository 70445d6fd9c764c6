//! Lookups against a name server of the test's own.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The address of every name that the server answers for.
const FOUND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// A name server that says nothing of names that begin with `silent`, and answers others; those that begin with `large`
/// by TCP only.
struct NameServer {
    address: SocketAddr,
    /// Questions by UDP that came in.
    asked: Arc<AtomicUsize>,
}

impl NameServer {
    async fn start() -> Self {
        // The same number has to be free for both.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = tokio::net::TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let (address, asked) = (udp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let question = &buffer[..length];
                // One that is not asked for comes first, as of somebody who guesses.
                let mut forged = answer(question, false);
                forged[1] ^= 1;
                udp.send_to(&forged, from).await.unwrap();
                if !question[13..].starts_with(b"silent") {
                    let reply = answer(question, question[13..].starts_with(b"large"));
                    udp.send_to(&reply, from).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut question = vec![0; length.into()];
                stream.read_exact(&mut question).await.unwrap();
                let reply = answer(&question, false);
                stream.write_u16(reply.len() as u16).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        Self { address, asked }
    }

    fn resolver(&self) -> Resolver {
        by(vec![self.address])
    }
}

fn by(servers: Vec<SocketAddr>) -> Resolver {
    let mut system = System::parse("192.0.2.1 fixed.example", "");
    system.servers = servers;
    Resolver::given(system)
}

fn answer(question: &[u8], truncated: bool) -> Vec<u8> {
    let mut reply = question[..question.len() - 11].to_vec();
    reply[2] = if truncated { 0x82 } else { 0x80 };
    reply[10..12].copy_from_slice(&[0, 0]);
    if !truncated {
        reply[7] = 1;
        reply.extend([192, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 7]);
    }
    reply
}

fn holder(namespace: &str, pod: u16) -> Holder {
    let [high, low] = pod.to_be_bytes();
    Holder { namespace: namespace.into(), pod: Some([10, 128, high, low].into()) }
}

async fn look_up(resolver: &Resolver, name: &str) -> Result<Vec<IpAddr>, NetError> {
    let (runtime, pod) = (Handle::current(), PodLookups::new(Refusals::default()));
    resolver.resolve(&runtime, &pod, &holder("modest", 1), name, Family::V4).await
}

#[tokio::test]
async fn names_are_found_by_both_ways_and_remembered() {
    let server = NameServer::start().await;
    let resolver = server.resolver();
    assert_eq!(look_up(&resolver, "fixed.example").await, Ok(vec![IpAddr::from([192, 0, 2, 1])]));
    assert_eq!(server.asked.load(Ordering::SeqCst), 0, "hosts are asked of nobody");
    for _ in 0..3 {
        assert_eq!(look_up(&resolver, "www.example").await, Ok(vec![FOUND]));
        assert_eq!(look_up(&resolver, "large.example").await, Ok(vec![FOUND]));
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 2);
    assert_eq!(look_up(&resolver, "no..name").await, Err(NetError::NameUnknown));
}

#[tokio::test]
async fn a_dead_server_is_passed_over() {
    let server = NameServer::start().await;
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = by(vec![dead.local_addr().unwrap(), server.address]);
    drop(dead);
    assert_eq!(look_up(&resolver, "www.example").await, Ok(vec![FOUND]));
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_passed_over_and_many_end_in_time() {
    let server = NameServer::start().await;
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<_> = silent.iter().map(|socket| socket.local_addr().unwrap()).collect();
    assert_eq!(look_up(&by(vec![addresses[0], server.address]), "www.example").await, Ok(vec![FOUND]));
    let begun = tokio::time::Instant::now();
    let none = tokio::time::timeout(2 * LOOKUP_TIMEOUT, look_up(&by(addresses), "www.example")).await;
    assert_eq!(none.expect("it ends"), Err(NetError::NameTemporarilyUnknown));
    assert_eq!(begun.elapsed().as_secs(), LOOKUP_TIMEOUT.as_secs());
}

#[tokio::test]
async fn a_silent_zone_stops_nobody_else() {
    let server = NameServer::start().await;
    let resolver = Arc::new(server.resolver());
    let mut silent = JoinSet::new();
    for pod in 0..200 {
        let lookups = PodLookups::new(Refusals::default());
        for number in 0..POD_LOOKUPS_MAX {
            let (resolver, lookups) = (resolver.clone(), lookups.clone());
            silent.spawn(async move {
                let (runtime, holder) = (Handle::current(), holder("greedy", 2 + pod));
                let name = format!("silent-{pod}-{number}.example");
                resolver.resolve(&runtime, &lookups, &holder, &name, Family::V4).await
            });
        }
    }
    // As many as the namespace may have under way.
    while server.asked.load(Ordering::SeqCst) < LOOKUPS_MAX / 2 {
        tokio::task::yield_now().await;
    }
    for number in 0..3 {
        assert_eq!(look_up(&resolver, &format!("www-{number}.example")).await, Ok(vec![FOUND]));
    }
    assert!(resolver.lookups.held() >= LOOKUPS_MAX / 2, "the silent ones wait still");
    while let Some(ended) = silent.join_next().await {
        assert_eq!(ended.unwrap(), Err(NetError::NameTemporarilyUnknown));
    }
    assert_eq!(resolver.lookups.held(), 0);
}

#[tokio::test]
async fn a_lookup_ends_with_who_asked() {
    let server = NameServer::start().await;
    let resolver = Arc::new(server.resolver());
    let (runtime, pod) = (Handle::current(), PodLookups::new(Refusals::default()));
    for round in 1..4 {
        server.asked.store(0, Ordering::SeqCst);
        let ask = |number: usize| {
            let (resolver, runtime, pod) = (resolver.clone(), runtime.clone(), pod.clone());
            tokio::spawn(async move {
                let name = format!("silent-{round}-{number}.example");
                resolver.resolve(&runtime, &pod, &holder("a", 1), &name, Family::V4).await
            })
        };
        let asked: Vec<_> = (0..2 * POD_LOOKUPS_MAX).map(ask).collect();
        while server.asked.load(Ordering::SeqCst) < POD_LOOKUPS_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(pod.places.available_permits(), 0, "the others wait for their turn");
        asked.iter().for_each(|one| one.abort());
        for one in asked {
            assert!(one.await.is_err());
        }
        assert_eq!((pod.places.available_permits(), resolver.lookups.held()), (POD_LOOKUPS_MAX, 0));
    }
}
