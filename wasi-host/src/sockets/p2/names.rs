//! Name lookup of 0.2.

use super::no_wait;
use crate::ledger::Charge;
use crate::net::NetError;
use crate::sockets::{SocketCtxView, resolve};
use futures::future::BoxFuture;
use std::net::IpAddr;
use std::task::{Context, Poll};
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{
    Host, HostResolveAddressStream, ResolveAddressStream,
};
use wasmtime_wasi::p2::bindings::sockets::network::{IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketResult};

/// A lookup, then its addresses one by one.
pub(super) enum Lookup {
    Running(BoxFuture<'static, Result<Answer, NetError>>),
    Done(Result<Answer, NetError>),
}

/// The addresses that are left, and what they take of the host.
pub(super) struct Answer {
    addresses: std::vec::IntoIter<IpAddr>,
    _charge: Option<Charge>,
}

impl Lookup {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<&mut Result<Answer, NetError>> {
        if let Lookup::Running(lookup) = self {
            let result = std::task::ready!(lookup.as_mut().poll(cx));
            *self = Lookup::Done(result);
        }
        match self {
            Lookup::Done(result) => Poll::Ready(result),
            Lookup::Running(_) => Poll::Pending,
        }
    }
}

impl Host for SocketCtxView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> SocketResult<Resource<ResolveAddressStream>> {
        self.check_network(network)?;
        let namespace = self.namespace.clone();
        let mut lookup = Lookup::Running(Box::pin(async move {
            let (addresses, charge) = resolve(&namespace, &name).await?;
            Ok(Answer { addresses: addresses.into_iter(), _charge: charge })
        }));
        if let Poll::Ready(Err(error)) = lookup.poll(&mut no_wait()) {
            return Err((*error).into());
        }
        Ok(Resource::new_own(self.table.push(lookup)?.rep()))
    }
}

impl HostResolveAddressStream for SocketCtxView<'_> {
    fn resolve_next_address(
        &mut self,
        this: Resource<ResolveAddressStream>,
    ) -> SocketResult<Option<IpAddress>> {
        let lookup = self.table.get_mut(&Resource::<Lookup>::new_borrow(this.rep()))?;
        match lookup.poll(&mut no_wait()) {
            Poll::Pending => Err(NetError::WouldBlock.into()),
            Poll::Ready(Ok(answer)) => Ok(answer.addresses.next().map(IpAddress::from)),
            Poll::Ready(Err(error)) => Err((*error).into()),
        }
    }

    fn subscribe(&mut self, this: Resource<ResolveAddressStream>) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, Resource::<Lookup>::new_borrow(this.rep()))
    }

    fn drop(&mut self, this: Resource<ResolveAddressStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Lookup>::new_own(this.rep()))?;
        Ok(())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx).map(|_| ())).await;
    }
}
