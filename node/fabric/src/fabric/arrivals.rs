//! What comes in from other nodes, judged by what it says it comes from.

use super::{Fabric, Inner};
use crate::caller::Attached;
use crate::model::Protocol;
use crate::peer::Peer;
use crate::policy::NodeSource;
use crate::tunnel::{Arrivals, Arrived, Datagram, Opening};
use coracle_wasi_host::net::NetError;
use futures::future::BoxFuture;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// How long a connection waits until its block of addresses is known here: the news of a new block may be slower than its
/// first pod.
const NEW_BLOCK_TIMEOUT: Duration = Duration::from_secs(2);

impl Arrivals for Fabric {
    fn arrive(&self, node: &Arc<str>, opening: Opening) -> BoxFuture<'static, Result<Arrived, NetError>> {
        let (inner, node) = (self.inner.clone(), node.clone());
        let Opening { from, to, client } = opening;
        Box::pin(async move {
            let source = inner.source(&node, from.ip(), client).await?;
            let Attached { network, gone, .. } = inner.admit(&source, to, Protocol::Tcp)?;
            let conn = match source.as_client() {
                Some(client) => network.deliver_for(client, from, to).await?,
                None => network.deliver_when_room(from, to).await?,
            };
            // What is not read is the caller's part of the pod's, as what waits in the pipes is.
            let buffers = conn.buffers().unwrap_or_else(|| network.buffers());
            Ok(Arrived { conn, buffers, pod: gone })
        })
    }

    fn arrive_datagram(&self, node: &Arc<str>, datagram: Datagram) {
        let inner = &self.inner;
        let Datagram { from, to, payload } = datagram;
        let claim = inner.policy.node_source(&inner.tables.load(), node, from.ip(), None);
        let NodeSource::Proven(source) = claim else { return };
        if let Ok(pod) = inner.admit(&source, to, Protocol::Udp) {
            // Whether a socket takes it is not told across nodes.
            let _ = inner.deliver_datagram(&pod.network, &source, from, to, payload);
        }
    }
}

impl Inner {
    /// Whom another node sends for. Waits for the news of a block that is not known yet.
    async fn source(&self, node: &Arc<str>, from: IpAddr, client: Option<IpAddr>) -> Result<Peer, NetError> {
        let mut changes = self.changes.subscribe();
        let known = async {
            loop {
                match self.policy.node_source(&self.tables.load(), node, from, client) {
                    NodeSource::Proven(source) => return Ok(source),
                    NodeSource::Forged => return Err(NetError::AccessDenied),
                    // The sender lives as long as this.
                    NodeSource::Unheard => drop(changes.changed().await),
                }
            }
        };
        tokio::time::timeout(NEW_BLOCK_TIMEOUT, known).await.unwrap_or(Err(NetError::AccessDenied))
    }

    /// The pod of this node that a source from elsewhere may reach at an address.
    fn admit(&self, source: &Peer, to: SocketAddr, protocol: Protocol) -> Result<Attached, NetError> {
        let attached = self.policy.pod(to.ip()).ok_or(NetError::HostUnreachable)?;
        let pod = Peer::here(to.ip(), attached.pod.clone());
        self.policy.decide(&self.tables.load(), source, &pod, to.port(), protocol).ok()?;
        Ok(attached)
    }
}
