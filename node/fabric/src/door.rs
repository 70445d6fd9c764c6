//! The one way in which this node takes real connections: the gateway, node ports, the fabric's port.
//!
//! A connection has a descriptor of the process and a place among those of its listener. Without either it is closed at
//! once; where places are short the connections that do nothing make room first. Who waits for that keeps nobody from being
//! accepted.

use coracle_wasi_host::descriptors::{Claim, Descriptor, Descriptors, Owner, Purpose};
use coracle_wasi_host::refusals::{Refusals, Refused};
use coracle_wasi_host::serving::{Bounds, HELD_BACK_BYTES, Place, Places};
use coracle_wasi_host::shares::Holder;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::model::Cidr;

/// The pause after an accept that failed, which is for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that wait to be accepted: what the kernel admits (net.core.somaxconn) unless it is told otherwise. One beyond
/// it is tried again by its client after a second.
const BACKLOG: u32 = 4096;

/// A peer that was silent for so long is asked whether it is there, so often, and so many times.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 3;

/// How long a peer may take nothing, or acknowledge nothing, until it is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a connection that the kernel takes ahead of what it may send: a peer that takes little by little has no more of
/// the machine's memory for sockets, which all share. It bounds nothing that is on its way, so that long lines stay full.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Makes a real connection notice a peer that has vanished, send without waiting for more, and keep little for a peer that
/// takes little.
pub(crate) fn attend(stream: &TcpStream) {
    // A socket that refuses any of this works all the same.
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
}

/// Listens with room for a burst of connections. Needs a tokio runtime in context.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A listener with its bounds.
pub(crate) struct Door {
    listener: TcpListener,
    entry: Arc<Entry>,
    /// Those for whom others make room. The descriptors bound how many they are.
    waiting: FuturesUnordered<BoxFuture<'static, Option<Arrival>>>,
}

/// Who may come in.
#[derive(Clone)]
struct Entry {
    places: Places,
    descriptors: Descriptors,
    purpose: Purpose,
    owner: Owner,
    /// Who speaks for many others: proxies before the gateway.
    for_many: Arc<[Cidr]>,
    refusals: Refusals,
}

/// A connection that came in.
pub(crate) struct Arrival {
    pub(crate) stream: TcpStream,
    pub(crate) client: SocketAddr,
    pub(crate) place: Place,
    /// To be kept as long as the socket is.
    pub(crate) descriptor: Descriptor,
}

impl Door {
    pub(crate) fn new(
        listener: TcpListener,
        bounds: Bounds,
        descriptors: Descriptors,
        purpose: Purpose,
    ) -> Self {
        Self::of(Owner::default(), listener, bounds, descriptors, purpose)
    }

    /// The door to a service, which shares what there is with those to others.
    pub(crate) fn of(
        owner: Owner,
        listener: TcpListener,
        bounds: Bounds,
        descriptors: Descriptors,
        purpose: Purpose,
    ) -> Self {
        let places = Places::new(bounds.within(descriptors.size(purpose)));
        descriptors.join(purpose, &places, &owner);
        let refusals = Refusals::default();
        let entry = Entry { places, descriptors, purpose, owner, for_many: Arc::new([]), refusals };
        let entry = Arc::new(entry);
        Self { listener, entry, waiting: FuturesUnordered::new() }
    }

    #[must_use]
    pub(crate) fn for_many(mut self, proxies: Arc<[Cidr]>) -> Self {
        self.entry = Arc::new(Entry { for_many: proxies, ..Entry::clone(&self.entry) });
        self
    }

    /// Has it told whose bound refuses connections.
    #[must_use]
    pub(crate) fn noting(mut self, refusals: Refusals) -> Self {
        self.entry = Arc::new(Entry { refusals, ..Entry::clone(&self.entry) });
        self
    }

    /// The next connection that finds room.
    pub(crate) async fn next(&mut self) -> Arrival {
        loop {
            let accepted = tokio::select! {
                Some(admitted) = self.waiting.next() => match admitted {
                    Some(arrival) => return arrival,
                    None => continue,
                },
                accepted = self.listener.accept() => accepted,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            attend(&stream);
            let mut admission = self.entry.clone().admit(stream, client).boxed();
            match (&mut admission).now_or_never() {
                Some(Some(arrival)) => return arrival,
                Some(None) => {}
                None => self.waiting.push(admission),
            }
        }
    }
}

impl Entry {
    fn note(&self, claim: &Claim, refused: Refused) {
        let namespace = claim.namespace.clone().unwrap_or_default();
        self.refusals.note(&Holder { namespace, pod: None }, refused);
    }

    async fn admit(self: Arc<Self>, stream: TcpStream, client: SocketAddr) -> Option<Arrival> {
        let ip = client.ip().to_canonical();
        let for_many = self.for_many.iter().any(|proxies| proxies.contains(ip));
        let source = (self.purpose == Purpose::Clients && !for_many).then_some(ip);
        let claim = Claim { source, namespace: self.owner.namespace() };
        let descriptor = self.descriptors.take_for_client(self.purpose, &claim).await;
        let descriptor = descriptor.map_err(|refused| self.note(&claim, refused)).ok();
        let place = descriptor
            .as_ref()
            .and_then(|_| if for_many { self.places.enter_for_many(ip) } else { self.places.enter(ip) });
        let Some((descriptor, place)) = descriptor.zip(place) else {
            tracing::debug!(%client, "connection refused: there is no room");
            // Told as a reset, so that the port is not left waiting.
            let _ = stream.set_zero_linger();
            return None;
        };
        if place.is_held_back() {
            // What it sends until it is read. A socket that refuses works all the same.
            let _ = SockRef::from(&stream).set_recv_buffer_size(HELD_BACK_BYTES);
        }
        Some(Arrival { stream, client, place, descriptor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn the_kernel_takes_little_for_a_peer_that_takes_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&listener).set_recv_buffer_size(HELD_BACK_BYTES).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        attend(&stream);
        let _peer = listener.accept().await.unwrap();
        let (piece, mut taken) = (vec![0; 64 << 10], 0);
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(200), stream.writable()).await {
            taken += stream.try_write(&piece).unwrap_or(0);
        }
        assert!(taken < 512 << 10, "{taken} bytes");
    }

    /// Room for so many connections, and for one of each source.
    async fn door(connections: usize) -> (Door, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounds = Bounds {
            connections_max: connections,
            connections_per_source_max: 1,
            requests_max: 8,
            requests_per_source_max: 8,
        };
        (Door::new(listener, bounds, Descriptors::within(Some(64)), Purpose::Clients), address)
    }

    #[tokio::test]
    async fn a_connection_without_room_is_reset() {
        let (mut door, address) = door(4).await;
        let _first = TcpStream::connect(address).await.unwrap();
        let arrival = door.next().await;
        let _at_work = arrival.place.begin().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        let read = tokio::select! {
            _ = door.next() => panic!("there is no room"),
            read = second.read(&mut byte) => read,
        };
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn who_speaks_for_many_has_the_room_of_all() {
        let (door, address) = door(4).await;
        let mut door = door.for_many(Arc::new(["127.0.0.0/8".parse().unwrap()]));
        let mut kept = Vec::new();
        for _ in 0..3 {
            let client = TcpStream::connect(address).await.unwrap();
            let arrival = tokio::time::timeout(Duration::from_secs(60), door.next()).await.expect("room");
            let at_work = arrival.place.begin().unwrap();
            kept.push((client, arrival, at_work));
        }
    }

    #[tokio::test]
    async fn peers_that_take_nothing_are_given_up() {
        let (mut door, address) = door(4).await;
        let _client = TcpStream::connect(address).await.unwrap();
        let arrival = door.next().await;
        let socket = SockRef::from(&arrival.stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert!(socket.keepalive().unwrap());
    }
}
