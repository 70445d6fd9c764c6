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

pub(crate) use p2::Incoming;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::{p2 as wasi2, p3 as wasi3};

use crate::capability::{Capability, ContainerParts};
use crate::ledger::Charge;
use crate::linker::{self, Parts};
use crate::net::{Namespace, NetError};
use crate::sandbox::StartError;

/// The capability, and the name of [`SocketCtxView`] as the data that the generated functions work on.
pub(crate) struct PodSockets;

impl HasData for PodSockets {
    type Data<'a> = SocketCtxView<'a>;
}

impl Capability for PodSockets {
    const NAME: &'static str = "wasi:sockets";

    /// The pod's network, by the container's own handle.
    type Grant = Namespace;
    type State = Namespace;

    fn add_p2_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
        use wasi2::bindings::sockets as wasi;
        let options = wasi::network::LinkOptions::default();
        wasi::network::add_to_linker::<_, PodSockets>(linker, &options, view)?;
        wasi::instance_network::add_to_linker::<_, PodSockets>(linker, view)?;
        wasi::tcp_create_socket::add_to_linker::<_, PodSockets>(linker, view)?;
        wasi::tcp::add_to_linker::<_, PodSockets>(linker, view)?;
        wasi::udp_create_socket::add_to_linker::<_, PodSockets>(linker, view)?;
        wasi::udp::add_to_linker::<_, PodSockets>(linker, view)?;
        wasi::ip_name_lookup::add_to_linker::<_, PodSockets>(linker, view)
    }

    fn add_p3_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
        use wasi3::bindings::sockets as wasi;
        wasi::types::add_to_linker::<_, PodSockets>(linker, view)?;
        wasi::ip_name_lookup::add_to_linker::<_, PodSockets>(linker, view)
    }

    fn grant(container: &ContainerParts<'_>) -> Result<Namespace, StartError> {
        Ok(container.namespace.clone())
    }

    fn state(namespace: &Namespace) -> Namespace {
        namespace.clone()
    }
}

/// What the socket functions need of a store: its resource table and its pod's network.
pub(crate) struct SocketCtxView<'a> {
    /// Where the guest's handles live.
    pub(crate) table: &'a mut ResourceTable,
    /// The pod's network.
    pub(crate) namespace: &'a Namespace,
}

fn view(state: &mut linker::State) -> SocketCtxView<'_> {
    let Parts { states, table, .. } = state.parts();
    SocketCtxView { table, namespace: &states.sockets }
}

/// The addresses of a name, and the charge for the room that they take: one that is refused is a failure that may pass.
async fn resolve(namespace: &Namespace, name: &str) -> Result<(Vec<IpAddr>, Option<Charge>), NetError> {
    let addresses = namespace.resolve(name).await?;
    let charge = namespace.hold(std::mem::size_of_val(addresses.as_slice()) as u64);
    Ok((addresses, charge.map_err(|_| NetError::NameTemporarilyUnknown)?))
}
