//! Node ports: services on the node's real address.

use crate::door::{self, Arrival, Door};
use crate::egress;
use crate::fabric::Inner;
use crate::tables::Tables;
use coracle_wasi_host::descriptors::{Descriptors, Purpose};
use coracle_wasi_host::net::Conn;
use coracle_wasi_host::serving::{Bounds, Place};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
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

/// The node ports that are served now.
pub(crate) struct NodePorts {
    address: IpAddr,
    serving: Mutex<BTreeMap<u16, Serving>>,
    descriptors: Descriptors,
    stopped: CancellationToken,
}

enum Serving {
    Listening(CancellationToken),
    /// The port could not be taken; it is tried again at every update, and told once.
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

    /// Listens on the ports that the tables name and on no others. Needs a tokio runtime in context.
    pub(crate) fn update(&self, inner: &Arc<Inner>, tables: &Tables) {
        let mut serving = self.serving.lock();
        serving.retain(|port, listener| {
            let wanted = tables.node_ports.contains_key(port);
            if let (false, Serving::Listening(stop)) = (wanted, &*listener) {
                stop.cancel();
            }
            wanted
        });
        for (port, (service, _)) in &tables.node_ports {
            if matches!(serving.get(port), Some(Serving::Listening(_))) {
                continue;
            }
            let state = match door::listen(SocketAddr::new(self.address, *port)) {
                Ok(listener) => {
                    let stop = self.stopped.child_token();
                    let door = Door::new(listener, BOUNDS, self.descriptors.clone(), Purpose::Clients);
                    tokio::spawn(serve(door, *port, Arc::downgrade(inner), stop.clone()));
                    Serving::Listening(stop)
                }
                Err(error) => {
                    if !serving.contains_key(port) {
                        tracing::warn!(port, service = service.full_name(), %error, "node port not served");
                    }
                    Serving::Failed
                }
            };
            serving.insert(*port, state);
        }
    }
}

async fn serve(door: Door, port: u16, fabric: Weak<Inner>, stop: CancellationToken) {
    loop {
        let arrival = tokio::select! {
            arrival = door.next() => arrival,
            () = stop.cancelled() => return,
        };
        let Some(inner) = fabric.upgrade() else { return };
        tokio::spawn(async move { carry(&inner, port, arrival).await });
    }
}

/// Joins a real connection with one to the service that has the port now.
async fn carry(inner: &Arc<Inner>, port: u16, arrival: Arrival) {
    let Arrival { stream, client, place, descriptor } = arrival;
    let target = inner.tables().node_ports.get(&port).cloned();
    let local = stream.local_addr();
    let dialed = match (target, local) {
        (Some((service, index)), Ok(local)) => inner.dial_service(client, local, &service, index).await.ok(),
        _ => None,
    };
    let begun = match &dialed {
        Some(conn) if somebody_speaks(&stream, conn, &place).await => place.begin().ok(),
        _ => None,
    };
    match dialed.zip(begun) {
        Some((conn, _in_flight)) => egress::join(stream, conn).await,
        // Refused behind the port is told as a reset: the connection itself stands already.
        None => drop(stream.set_zero_linger()),
    }
    drop(descriptor);
}

/// Waits until there is something to carry. False where there never will be: the service has closed the connection, or
/// another needs its place.
async fn somebody_speaks(stream: &TcpStream, conn: &Conn, place: &Place) -> bool {
    let mut first = [0];
    tokio::select! {
        biased;
        // The end and an error show when they are read again.
        _ = stream.peek(&mut first) => true,
        () = poll_fn(|cx| conn.poll_readable(cx)) => !conn.is_peer_gone() || conn.has_unread(),
        () = place.lost() => false,
    }
}
