//! On whose behalf something is dialed or sent.

use crate::tables::Service;
use coracle_wasi_host::net::{Conn, Namespace, PIPE_CAPACITY};
use coracle_wasi_host::shares::Holder;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use tokio_util::sync::CancellationToken;

/// A pod of this node, while it is on the network.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) namespace: Namespace,
    /// Cancelled when the pod is taken off the network.
    pub(crate) gone: CancellationToken,
}

impl Attached {
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self { namespace, gone: CancellationToken::new() }
    }
}

/// Who asks.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Whose share it comes out of.
    pub(crate) holder: Holder,
    /// None for the gateway and node ports, which ask on behalf of a service.
    pub(crate) pod: Option<Attached>,
}

impl Caller {
    /// A pod of this node, by the address that it sends from.
    pub(crate) fn pod(namespace: &std::sync::Arc<str>, address: IpAddr, pod: Attached) -> Self {
        Self { holder: Holder { namespace: namespace.clone(), pod: Some(address) }, pod: Some(pod) }
    }

    /// The gateway or a node port, for a client of this service.
    pub(crate) fn outside(service: &Service) -> Self {
        let namespace = service.entry.namespace.as_str().into();
        Self { holder: Holder { namespace, pod: None }, pod: None }
    }

    /// Cancelled when the pod that asked is gone.
    pub(crate) fn gone(&self) -> &CancellationToken {
        static NEVER: LazyLock<CancellationToken> = LazyLock::new(CancellationToken::new);
        self.pod.as_ref().map_or(&NEVER, |pod| &pod.gone)
    }

    /// The two ends of a new connection, the caller's first. What they hold counts as the pod's.
    pub(crate) fn connection(&self, from: SocketAddr, to: SocketAddr) -> (Conn, Conn) {
        match &self.pod {
            Some(pod) => pod.namespace.connection(from, to),
            None => Conn::pair(from, to, PIPE_CAPACITY),
        }
    }
}
