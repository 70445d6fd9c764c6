//! What comes in from other nodes, judged by what it says it comes from.

use super::{Fabric, Inner};
use crate::policy::PeerSource;
use crate::tunnel::{Arrivals, Arrived, Datagram, Opening};
use coracle_wasi_host::net::NetError;
use futures::future::BoxFuture;
use std::net::IpAddr;
use std::time::Duration;

/// How long a connection waits until its block of addresses is known here: the news of a new block may be slower than its
/// first pod.
const NEW_BLOCK_TIMEOUT: Duration = Duration::from_secs(2);

impl Arrivals for Fabric {
    fn arrive(&self, peer: &str, opening: Opening) -> BoxFuture<'static, Result<Arrived, NetError>> {
        let (inner, peer) = (self.inner.clone(), peer.to_owned());
        let Opening { from, to, client } = opening;
        Box::pin(async move {
            inner.check_peer_source(&peer, from.ip()).await?;
            let pod = inner.policy.pod(to.ip()).ok_or(NetError::HostUnreachable)?;
            // A pod's connection is its own, whatever else is said of it.
            let client = client.filter(|_| inner.policy.is_node(&inner.tables.load(), &peer, from.ip()));
            let conn = match client {
                Some(client) => pod.namespace.deliver_for(client, from, to).await?,
                None => pod.namespace.deliver_when_room(from, to).await?,
            };
            // What is not read is the caller's part of the pod's, as what waits in the pipes is.
            let buffers = conn.buffers().unwrap_or_else(|| pod.namespace.buffers());
            Ok(Arrived { conn, buffers, pod: pod.gone })
        })
    }

    fn arrive_datagram(&self, peer: &str, datagram: Datagram) {
        let inner = &self.inner;
        let Datagram { from, to, payload } = datagram;
        if inner.policy.peer_source(&inner.tables.load(), peer, from.ip()) != PeerSource::Its {
            return;
        }
        if let Some(pod) = inner.policy.pod(to.ip()) {
            // Whether a socket takes it is not told across nodes.
            let _ = inner.deliver_datagram(&pod.namespace, from, to, payload);
        }
    }
}

impl Inner {
    /// Whether a peer may send from an address. Waits for the news of a block that is not known yet.
    async fn check_peer_source(&self, peer: &str, from: IpAddr) -> Result<(), NetError> {
        let mut changes = self.changes.subscribe();
        let known = async {
            loop {
                match self.policy.peer_source(&self.tables.load(), peer, from) {
                    PeerSource::Its => return Ok(()),
                    PeerSource::NotIts => return Err(NetError::AccessDenied),
                    // The sender lives as long as this.
                    PeerSource::Unknown => drop(changes.changed().await),
                }
            }
        };
        tokio::time::timeout(NEW_BLOCK_TIMEOUT, known).await.unwrap_or(Err(NetError::AccessDenied))
    }
}
