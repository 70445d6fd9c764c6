//! Node ports: services on the node's real address.

use crate::door::{self, Arrival, Door};
use crate::egress;
use crate::fabric::Inner;
use crate::tables::{Service, Tables};
use coracle_wasi_host::descriptors::{Descriptors, Owner, Purpose};
use coracle_wasi_host::net::Conn;
use coracle_wasi_host::serving::{Bounds, InFlight, Place};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Connections of one node port that are open at once, and of one source: half, so that no one can take all. One on
/// which nobody has said anything yet makes room for others.
const BOUNDS: Bounds = Bounds {
    connections_max: 8192,
    connections_per_source_max: 4096,
    requests_max: 8192,
    requests_per_source_max: 4096,
};

/// How long a service has to accept and to speak where its client has ended its side without a word: that one may want to
/// read only, or be gone.
const ENDED_TIMEOUT: Duration = Duration::from_secs(5);

/// The node ports that are served now.
pub(crate) struct NodePorts {
    address: IpAddr,
    serving: Mutex<BTreeMap<u16, Serving>>,
    descriptors: Descriptors,
    stopped: CancellationToken,
}

enum Serving {
    Listening {
        stop: CancellationToken,
        /// Whose service has the port now.
        owner: Owner,
    },
    /// The port could not be taken; it is tried again at every change, and told once.
    Failed,
}

impl NodePorts {
    pub(crate) fn new(address: IpAddr, descriptors: Descriptors, stopped: CancellationToken) -> Self {
        Self { address, serving: Mutex::default(), descriptors, stopped }
    }

    /// Ports that are served, or were to be.
    pub(crate) fn held(&self) -> usize {
        self.serving.lock().len()
    }

    /// Listens on those of these ports that the tables name and on no others, and tries again those that could not be had.
    /// Needs a tokio runtime in context.
    pub(crate) fn update(&self, inner: &Arc<Inner>, tables: &Tables, mut ports: BTreeSet<u16>) {
        let mut serving = self.serving.lock();
        let failed = serving.iter().filter(|(_, serving)| matches!(serving, Serving::Failed));
        ports.extend(failed.map(|(port, _)| *port));
        for port in ports {
            let former = serving.remove(&port);
            if let Some((service, _)) = tables.node_port(port) {
                serving.insert(port, self.serve(inner, port, service, former));
            } else if let Some(Serving::Listening { stop, .. }) = former {
                stop.cancel();
            }
        }
    }

    /// What becomes of a port that a service has now.
    fn serve(&self, inner: &Arc<Inner>, port: u16, service: &Service, former: Option<Serving>) -> Serving {
        let namespace = service.namespace.clone();
        if let Some(Serving::Listening { stop, owner }) = former {
            owner.set(namespace);
            return Serving::Listening { stop, owner };
        }
        match door::listen(SocketAddr::new(self.address, port)) {
            Ok(listener) => {
                let (stop, owner) = (self.stopped.child_token(), Owner::default());
                owner.set(namespace);
                let descriptors = self.descriptors.clone();
                let door = Door::of(owner.clone(), listener, BOUNDS, descriptors, Purpose::Clients);
                let door = door.noting(inner.refusals().clone());
                tokio::spawn(serve(door, port, Arc::downgrade(inner), stop.clone()));
                Serving::Listening { stop, owner }
            }
            Err(error) => {
                if former.is_none() {
                    tracing::warn!(port, service = service.full_name(), %error, "node port not served");
                }
                Serving::Failed
            }
        }
    }
}

async fn serve(mut door: Door, port: u16, fabric: Weak<Inner>, stop: CancellationToken) {
    loop {
        let arrival = tokio::select! {
            arrival = door.next() => arrival,
            () = stop.cancelled() => return,
        };
        let Some(inner) = fabric.upgrade() else { return };
        tokio::spawn(async move { carry(&inner, port, arrival).await });
    }
}

/// Joins a real connection with one to the service that has the port now. Until something is carried it goes as soon as
/// another needs its place or the client is gone, however long the service takes to accept.
async fn carry(inner: &Arc<Inner>, port: u16, arrival: Arrival) {
    let Arrival { stream, client, place, descriptor } = arrival;
    let opened = tokio::select! {
        opened = open(inner, port, &stream, client, &place) => opened,
        () = place.lost() => None,
        () = gone(&stream) => None,
    };
    match opened {
        Some((conn, _in_flight)) => egress::join(stream, conn).await,
        None => {
            // Refused behind the port is told as a reset: the connection itself stands already.
            let _ = stream.set_zero_linger();
            drop(stream);
        }
    }
    drop(descriptor);
}

/// A connection to the service, and something to carry over it.
async fn open(
    inner: &Arc<Inner>,
    port: u16,
    stream: &TcpStream,
    client: SocketAddr,
    place: &Place,
) -> Option<(Conn, InFlight)> {
    let (service, index) = inner.tables().node_port(port).cloned()?;
    let conn = inner.dial_service(client, stream.local_addr().ok()?, &service, index).await.ok()?;
    if somebody_speaks(stream, &conn).await { Some((conn, place.begin().ok()?)) } else { None }
}

/// Resolves where the client has broken off, or has ended without a word and nothing came of it.
async fn gone(stream: &TcpStream) {
    let ended = async {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1..) => std::future::pending().await,
            Ok(0) | Err(_) => tokio::time::sleep(ENDED_TIMEOUT).await,
        }
    };
    tokio::select! {
        _ = stream.ready(Interest::ERROR) => {}
        () = ended => {}
    }
}

/// Waits until there is something to carry. False where there never will be: the service has closed the connection. That the
/// client has ended without a word is told to the service, which may have something to say.
async fn somebody_speaks(stream: &TcpStream, conn: &Conn) -> bool {
    let spoken = async {
        let mut first = [0];
        if !matches!(stream.peek(&mut first).await, Ok(1..)) {
            conn.shutdown(Shutdown::Write);
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = spoken => true,
        () = poll_fn(|cx| conn.poll_readable(cx)) => !conn.is_peer_gone() || conn.has_unread(),
    }
}
