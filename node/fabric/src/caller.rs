//! On whose behalf something is dialed or sent.

use crate::tables::Service;
use coracle_wasi_host::net::{Buffers, Namespace, TenantBuffers};
use coracle_wasi_host::shares::Holder;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
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
    pub(crate) asker: Asker,
    /// Where what is carried for it is counted.
    pub(crate) buffers: Buffers,
}

/// Who wants the connection.
#[derive(Clone)]
pub(crate) enum Asker {
    /// A pod of this node.
    Pod(Attached),
    /// A client of the gateway or of a node port, which come from the node's address. What it holds of a pod is its own
    /// part, and not the node's.
    Client(IpAddr),
}

impl Caller {
    /// A pod of this node, by the address that it sends from.
    pub(crate) fn pod(namespace: &Arc<str>, address: IpAddr, pod: Attached) -> Self {
        let holder = Holder { namespace: namespace.clone(), pod: Some(address) };
        Self { holder, buffers: pod.namespace.buffers(), asker: Asker::Pod(pod) }
    }

    /// The gateway or a node port, for a client of this service.
    pub(crate) fn outside(client: IpAddr, service: &Service, tenants: &TenantBuffers) -> Self {
        let namespace = service.namespace.clone();
        let buffers = tenants.of(&namespace);
        let asker = Asker::Client(client.to_canonical());
        Self { holder: Holder { namespace, pod: None }, asker, buffers }
    }

    /// Cancelled when the pod that asked is gone.
    pub(crate) fn gone(&self) -> &CancellationToken {
        static NEVER: LazyLock<CancellationToken> = LazyLock::new(CancellationToken::new);
        match &self.asker {
            Asker::Pod(pod) => &pod.gone,
            Asker::Client(_) => &NEVER,
        }
    }
}
