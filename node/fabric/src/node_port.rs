//! Node ports: services on the node's real address.

use crate::egress;
use crate::fabric::Inner;
use crate::tables::Tables;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Connections of one node port that are open at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 8192;

/// Connections that wait for an accept.
const BACKLOG: u32 = 1024;

/// The pause after an accept that failed, which is for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The node ports that are served now.
pub(crate) struct NodePorts {
    address: IpAddr,
    serving: Mutex<BTreeMap<u16, Serving>>,
    stopped: CancellationToken,
}

enum Serving {
    Listening(CancellationToken),
    /// The port could not be taken; it is tried again at every update, and told once.
    Failed,
}

impl NodePorts {
    pub(crate) fn new(address: IpAddr, stopped: CancellationToken) -> Self {
        Self { address, serving: Mutex::default(), stopped }
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
            let state = match bind(SocketAddr::new(self.address, *port)) {
                Ok(listener) => {
                    let stop = self.stopped.child_token();
                    tokio::spawn(serve(listener, *port, Arc::downgrade(inner), stop.clone()));
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

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn serve(listener: TcpListener, port: u16, fabric: Weak<Inner>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Some(inner) = fabric.upgrade() else { return };
        match accepted {
            Ok((stream, client)) => {
                tokio::spawn(async move {
                    carry(&inner, port, stream, client).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(port, %error, "node port connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Joins a real connection with one to the service that has the port now.
async fn carry(inner: &Arc<Inner>, port: u16, stream: TcpStream, client: SocketAddr) {
    // Waiting for more to send would cost latency; failing to say so costs nothing else.
    let _ = stream.set_nodelay(true);
    let target = inner.tables().node_ports.get(&port).cloned();
    let local = stream.local_addr();
    let dialed = match (target, local) {
        (Some((service, index)), Ok(local)) => inner.dial_service(client, local, &service, index).await.ok(),
        _ => None,
    };
    match dialed {
        Some(conn) => egress::join(stream, conn).await,
        // Refused behind the port is told as a reset: the connection itself stands already.
        None => drop(stream.set_zero_linger()),
    }
}
