//! Who is at an end of a connection or datagram.

use crate::model::PodIdentity;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// One end of what is carried: an address, and who has it. [`crate::policy`] decides by the two ends and nothing else.
///
/// It is named as Kubernetes' NetworkPolicy names whom a rule speaks of (`NetworkPolicyPeer`). Cilium's two words for it are
/// taken here: an endpoint is one of a service's, an identity is what a node's certificate says. Those that are no pods are
/// the kinds that Cilium reserves identities for: `host` and `remote-node`, `ingress`, `kube-apiserver`, `world`. A service is
/// nobody: what is sent to one is decided with the endpoint that was chosen.
///
/// A source is proven before there is a peer of it: see [`crate::policy::Policy::pod_source`] and
/// [`crate::policy::Policy::node_source`]. The node's probes are no part of this; they come to a pod by
/// `Namespace::deliver_probe` alone, and no policy keeps a node from its own pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Of a client the one that it has in the outside, and not the node's, from which its connections come.
    pub(crate) address: IpAddr,
    pub(crate) who: Who,
}

/// What a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// A pod, or nobody yet: an address of the pods' pool that is no node's.
    Pod { at: At, known: Known },
    /// A node itself, by its own address among its pods'; without a name where it has no block to have one of.
    Node { name: Option<Arc<str>> },
    /// Somebody in the outside, for whom a node connects: a client of its gateway or of a node port.
    Client {
        at: At,
        /// The namespace of the service that it is a client of. Other nodes do not say it.
        service: Option<Arc<str>>,
    },
    /// The cluster's API, by its own service: its real address is nobody's to reach otherwise.
    ApiServer,
    /// Anybody else.
    Outside,
}

/// The node that a peer is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// This one.
    Here,
    Node(Arc<str>),
    /// None that is known. The news of a block may be slower than its first pod.
    Unheard,
}

/// What is known of a pod.
///
/// Of its own pods a node knows everything, from their start on. Of the pods of other nodes it knows what it is told by
/// [`crate::NetworkChange::Pod`], and the control plane tells a node of its own pods alone: they are [`Known::Nothing`] beyond
/// their address and node, without namespace and labels. Endpoint slices are not asked, though they name pods: whoever
/// may write one in his namespace could take any pod's address for his own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Known {
    /// Which it is, with its labels.
    Pod(Arc<PodIdentity>),
    /// Several pods of this namespace are told of with its address.
    Namespace(Arc<str>),
    Nothing,
}

impl Peer {
    /// A pod of this node.
    pub(crate) fn here(address: IpAddr, pod: Arc<PodIdentity>) -> Self {
        Self { address, who: Who::Pod { at: At::Here, known: Known::Pod(pod) } }
    }

    /// A client of this node's gateway or node ports, for a service of this namespace.
    pub(crate) fn client(address: IpAddr, service: Arc<str>) -> Self {
        let address = address.to_canonical();
        Self { address, who: Who::Client { at: At::Here, service: Some(service) } }
    }

    /// The client that a node connects for, where it is one.
    pub(crate) fn as_client(&self) -> Option<IpAddr> {
        matches!(self.who, Who::Client { .. }).then_some(self.address)
    }

    /// The namespace of a pod. All those that are not known are of one of their own, the empty one: who is told of late must
    /// not be nobody's for so long.
    pub(crate) fn of_pods(&self) -> Option<Arc<str>> {
        match &self.who {
            Who::Pod { known, .. } => Some(known.namespace().cloned().unwrap_or_default()),
            Who::Node { .. } | Who::Client { .. } | Who::ApiServer | Who::Outside => None,
        }
    }

    /// The namespace in whose name it sends: the pod's, or that of the service that the client wants.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match &self.who {
            Who::Pod { known, .. } => known.namespace().map(|namespace| &**namespace),
            Who::Client { service, .. } => service.as_deref(),
            Who::Node { .. } | Who::ApiServer | Who::Outside => None,
        }
    }
}

impl Known {
    /// None where it is not known.
    pub(crate) fn namespace(&self) -> Option<&Arc<str>> {
        match self {
            Self::Pod(pod) => Some(&pod.name.namespace),
            Self::Namespace(namespace) => Some(namespace),
            Self::Nothing => None,
        }
    }
}

/// For logs: what is known of it, and its address.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = match &self.who {
            Who::Pod { at, known } => {
                match known {
                    Known::Pod(pod) => write!(f, "pod {}/{}", pod.name.namespace, pod.name.name)?,
                    Known::Namespace(namespace) => write!(f, "a pod of {namespace}")?,
                    Known::Nothing => f.write_str("a pod")?,
                }
                at
            }
            Who::Client { at, .. } => {
                f.write_str("client")?;
                at
            }
            Who::Node { name } => {
                write!(f, "node {}", name.as_deref().unwrap_or("without pods"))?;
                &At::Here
            }
            Who::ApiServer => return write!(f, "the API server {}", self.address),
            Who::Outside => return write!(f, "{}", self.address),
        };
        write!(f, " {}", self.address)?;
        if let At::Node(name) = at { write!(f, " at node {name}") } else { Ok(()) }
    }
}
