//! `wasi:sockets` 0.2 and 0.3 over the pod's virtual network.
//!
//! wasmtime-wasi's own sockets hold sockets of the kernel, and nothing else can be put under them. Its generated
//! traits are implemented here on types of ours; a handle is converted by its number in the resource table.
//! All cleanup happens when the types here are dropped, so that dropping a store frees its sockets.

mod convert;
mod p2;
mod p3;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

use crate::ledger::Charge;
use crate::net::{Namespace, NetError};
use std::net::IpAddr;
use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::{p2 as wasi2, p3 as wasi3};

/// What the socket functions need of a store: its resource table and its pod's network.
pub struct SocketCtxView<'a> {
    /// Where the guest's handles live.
    pub table: &'a mut ResourceTable,
    /// The pod's network.
    pub namespace: &'a Namespace,
}

/// A store whose guest has sockets.
pub trait SocketView: Send {
    /// The parts that the socket functions need.
    fn sockets(&mut self) -> SocketCtxView<'_>;
}

/// Names [`SocketCtxView`] as the data that the generated functions work on.
pub(crate) struct PodSockets;

impl HasData for PodSockets {
    type Data<'a> = SocketCtxView<'a>;
}

/// The addresses of a name, and the charge for the room that they take: one that is refused is a failure that may pass.
async fn resolve(namespace: &Namespace, name: &str) -> Result<(Vec<IpAddr>, Option<Charge>), NetError> {
    let addresses = namespace.resolve(name).await?;
    let charge = namespace.hold(std::mem::size_of_val(addresses.as_slice()) as u64);
    Ok((addresses, charge.map_err(|_| NetError::NameTemporarilyUnknown)?))
}

/// Puts the pod's sockets in the place of wasmtime-wasi's 0.2 sockets. Call it after wasmtime-wasi's
/// `add_to_linker_async`; shadowing is off again when it returns.
pub fn add_p2_to_linker<T: SocketView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    use wasi2::bindings::sockets as wasi;
    linker.allow_shadowing(true);
    let options = wasi::network::LinkOptions::default();
    wasi::network::add_to_linker::<T, PodSockets>(linker, &options, T::sockets)?;
    wasi::instance_network::add_to_linker::<T, PodSockets>(linker, T::sockets)?;
    wasi::tcp_create_socket::add_to_linker::<T, PodSockets>(linker, T::sockets)?;
    wasi::tcp::add_to_linker::<T, PodSockets>(linker, T::sockets)?;
    wasi::udp_create_socket::add_to_linker::<T, PodSockets>(linker, T::sockets)?;
    wasi::udp::add_to_linker::<T, PodSockets>(linker, T::sockets)?;
    wasi::ip_name_lookup::add_to_linker::<T, PodSockets>(linker, T::sockets)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Puts the pod's sockets in the place of wasmtime-wasi's 0.3 sockets. Call it after wasmtime-wasi's
/// `p3::add_to_linker`, on an engine with concurrency support.
pub fn add_p3_to_linker<T: SocketView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    use wasi3::bindings::sockets as wasi;
    linker.allow_shadowing(true);
    wasi::types::add_to_linker::<T, PodSockets>(linker, T::sockets)?;
    wasi::ip_name_lookup::add_to_linker::<T, PodSockets>(linker, T::sockets)?;
    linker.allow_shadowing(false);
    Ok(())
}
