//! What lies beyond a pod, as the pod sees it.

use super::{Conn, NetError};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The way out of a pod's namespace: service addresses, other pods, other nodes, the world, and their names.
/// The one decision whether and where a connection goes is made behind this trait.
pub trait Uplink: Send + Sync + 'static {
    /// Opens a connection from a pod's address to an address that is none of the pod's.
    /// The returned end has `from` as its local and `to` as its peer address.
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>>;

    /// Resolves a name as the pod with the address `from` would: search domains, then the world.
    /// Never gives an empty list.
    fn resolve(&self, from: IpAddr, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>>;

    /// Sends a datagram. `Ok` promises nothing; `ConnectionRefused` says that the port is known to be closed.
    fn send(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) -> Result<(), NetError>;

    /// The Kubernetes namespace of the pod that has an address, on whose account its requests are beside its own. None for
    /// who is no pod. Pods of which it is not known whose they are are all of one that nobody has: the empty name.
    fn namespace_of(&self, _ip: IpAddr) -> Option<Arc<str>> {
        None
    }
}

/// An uplink to nowhere: a pod that has loopback and its own addresses, and nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Isolated;

impl Uplink for Isolated {
    fn dial(&self, _from: SocketAddr, _to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>> {
        Box::pin(std::future::ready(Err(NetError::HostUnreachable)))
    }

    fn resolve(&self, _from: IpAddr, _name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> {
        Box::pin(std::future::ready(Err(NetError::NameUnknown)))
    }

    fn send(&self, _from: SocketAddr, _to: SocketAddr, _payload: Bytes) -> Result<(), NetError> {
        Err(NetError::HostUnreachable)
    }
}

/// One to nowhere that knows the namespaces of pods: those of 10.128.N.0/24 are of the namespace N.
#[cfg(test)]
pub(crate) struct Known;

#[cfg(test)]
impl Uplink for Known {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>> {
        Isolated.dial(from, to)
    }

    fn resolve(&self, from: IpAddr, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> {
        Isolated.resolve(from, name)
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) -> Result<(), NetError> {
        Isolated.send(from, to, payload)
    }

    fn namespace_of(&self, ip: IpAddr) -> Option<Arc<str>> {
        let IpAddr::V4(ip) = ip else { return None };
        let [10, 128, namespace, _] = ip.octets() else { return None };
        Some(namespace.to_string().into())
    }
}
