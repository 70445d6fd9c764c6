//! The fabric as one pod sees it.

use crate::caller::Caller;
use crate::fabric::Inner;
use crate::resolver::{Family, PodLookups};
use bytes::Bytes;
use coracle_wasi_host::net::{Conn, NetError, Uplink};
use coracle_wasi_host::shares::Holder;
use futures::future::BoxFuture;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What one pod of a Kubernetes namespace has beyond itself. It sends from the addresses that its network namespace is
/// attached with, and from no other.
pub(crate) struct PodUplink {
    inner: Arc<Inner>,
    namespace: Arc<str>,
    lookups: PodLookups,
}

impl PodUplink {
    pub(crate) fn new(inner: Arc<Inner>, namespace: &str) -> Self {
        let lookups = PodLookups::new(inner.refusals().clone());
        Self { inner, namespace: namespace.into(), lookups }
    }

    /// The pod, if `from` is its own.
    fn caller(&self, from: IpAddr) -> Result<Caller, NetError> {
        Ok(Caller::pod(from, self.inner.policy().pod_source(self, from)?))
    }
}

impl Uplink for PodUplink {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>> {
        let (inner, caller) = (self.inner.clone(), self.caller(from.ip()));
        Box::pin(async move { inner.dial(&caller?, from, to).await })
    }

    fn resolve(&self, from: IpAddr, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> {
        let holder = Holder { namespace: self.namespace.clone(), pod: Some(from) };
        let (inner, lookups, name) = (self.inner.clone(), self.lookups.clone(), name.to_owned());
        Box::pin(async move { inner.resolve(&holder, &lookups, &name, Family::of(from)).await })
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) -> Result<(), NetError> {
        self.inner.send(&self.caller(from.ip())?, from, to, payload)
    }

    fn namespace_of(&self, ip: IpAddr) -> Option<Arc<str>> {
        self.inner.policy().peer(&self.inner.tables(), ip).of_pods()
    }
}
