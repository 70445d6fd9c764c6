//! On whose behalf something is dialed or sent.

use crate::model::PodIdentity;
use crate::peer::Peer;
use crate::tables::Service;
use coracle_wasi_host::net::{Buffers, Namespace, TenantBuffers};
use coracle_wasi_host::shares::Holder;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use tokio_util::sync::CancellationToken;

/// A pod of this node, while it is on the network.
#[derive(Clone)]
pub(crate) struct Attached {
    pub(crate) network: Namespace,
    pub(crate) pod: Arc<PodIdentity>,
    /// Cancelled when the pod is taken off the network.
    pub(crate) gone: CancellationToken,
}

impl Attached {
    pub(crate) fn new(network: Namespace, pod: Arc<PodIdentity>) -> Self {
        Self { network, pod, gone: CancellationToken::new() }
    }
}

/// Who asks: a pod of this node, or a client of its gateway or of a node port. What a client holds of a pod is its own
/// part, and not the node's.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) source: Peer,
    /// Whose share it comes out of.
    pub(crate) holder: Holder,
    /// Where what is carried for it is counted.
    pub(crate) buffers: Buffers,
    /// The end of a pod.
    gone: Option<CancellationToken>,
}

impl Caller {
    /// A pod of this node, by the address that it sends from.
    pub(crate) fn pod(address: IpAddr, pod: Attached) -> Self {
        let Attached { network, pod, gone } = pod;
        let holder = Holder { namespace: pod.name.namespace.clone(), pod: Some(address) };
        Self { source: Peer::here(address, pod), holder, buffers: network.buffers(), gone: Some(gone) }
    }

    /// The gateway or a node port, for a client of this service.
    pub(crate) fn outside(client: IpAddr, service: &Service, tenants: &TenantBuffers) -> Self {
        let namespace = service.namespace.clone();
        let buffers = tenants.of(&namespace);
        let source = Peer::client(client, namespace.clone());
        Self { source, holder: Holder { namespace, pod: None }, buffers, gone: None }
    }

    /// Cancelled when the pod that asked is gone.
    pub(crate) fn gone(&self) -> &CancellationToken {
        static NEVER: LazyLock<CancellationToken> = LazyLock::new(CancellationToken::new);
        self.gone.as_ref().unwrap_or(&NEVER)
    }
}
