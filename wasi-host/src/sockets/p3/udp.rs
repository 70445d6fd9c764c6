//! UDP sockets of 0.3.

use crate::net::NetError;
use crate::sockets::udp::{UdpSocket, send};
use crate::sockets::{PodSockets, SocketCtxView};
use std::net::SocketAddr;
use wasmtime::component::{Accessor, Resource};
use wasmtime_wasi::p3::bindings::sockets::types::{
    self, HostUdpSocket, HostUdpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use wasmtime_wasi::p3::sockets::{SocketError, SocketResult};

type Handle = Resource<types::UdpSocket>;

/// A type of its own, so that a handle of another kind is told from it.
struct Socket(UdpSocket);

impl SocketCtxView<'_> {
    fn udp3(&mut self, handle: &Handle) -> SocketResult<&mut UdpSocket> {
        let socket = self.table.get_mut(&Resource::<Socket>::new_borrow(handle.rep()));
        Ok(&mut socket.map_err(SocketError::trap)?.0)
    }
}

impl<T> HostUdpSocketWithStore<T> for PodSockets {
    async fn send(
        store: &Accessor<T, Self>,
        socket: Handle,
        data: Vec<u8>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<()> {
        store.with(|mut store| {
            let mut view = store.get();
            let namespace = view.namespace;
            let bound = view.udp3(&socket)?.bind_if_needed(namespace)?;
            send(bound, data, remote.map(SocketAddr::from)).map_err(SocketError::from)
        })
    }

    async fn receive(store: &Accessor<T, Self>, socket: Handle) -> SocketResult<(Vec<u8>, IpSocketAddress)> {
        let bound =
            store.with(|mut store| -> SocketResult<_> { Ok(store.get().udp3(&socket)?.bound()?.clone()) })?;
        let (payload, from) = bound.recv().await?;
        Ok((payload.into(), from.into()))
    }
}

impl HostUdpSocket for SocketCtxView<'_> {
    async fn create(&mut self, family: IpAddressFamily) -> SocketResult<Handle> {
        let socket = self.table.push(Socket(UdpSocket::new(family.into()))).map_err(SocketError::trap)?;
        Ok(Resource::new_own(socket.rep()))
    }

    async fn bind(&mut self, this: Handle, address: IpSocketAddress) -> SocketResult<()> {
        let namespace = self.namespace;
        Ok(self.udp3(&this)?.bind(namespace, address.into())?)
    }

    async fn connect(&mut self, this: Handle, remote: IpSocketAddress) -> SocketResult<()> {
        let namespace = self.namespace;
        let socket = self.udp3(&this)?;
        let remote = SocketAddr::from(remote);
        socket.family().check_remote(remote)?;
        socket.bind_if_needed(namespace)?;
        Ok(socket.connect(remote)?)
    }

    fn disconnect(&mut self, this: Handle) -> SocketResult<()> {
        Ok(self.udp3(&this)?.disconnect()?)
    }

    fn get_local_address(&mut self, this: Handle) -> SocketResult<IpSocketAddress> {
        Ok(self.udp3(&this)?.local_address()?.into())
    }

    fn get_remote_address(&mut self, this: Handle) -> SocketResult<IpSocketAddress> {
        Ok(self.udp3(&this)?.remote_address().map_err(|_| NetError::InvalidState)?.into())
    }

    fn get_address_family(&mut self, this: Handle) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.udp3(&this)?.family().into())
    }

    fn get_unicast_hop_limit(&mut self, this: Handle) -> SocketResult<u8> {
        Ok(self.udp3(&this)?.hop_limit())
    }

    fn set_unicast_hop_limit(&mut self, this: Handle, value: u8) -> SocketResult<()> {
        Ok(self.udp3(&this)?.set_hop_limit(value)?)
    }

    fn get_receive_buffer_size(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.udp3(&this)?.receive_buffer())
    }

    fn set_receive_buffer_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        Ok(self.udp3(&this)?.set_receive_buffer(value)?)
    }

    fn get_send_buffer_size(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.udp3(&this)?.send_buffer())
    }

    fn set_send_buffer_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        Ok(self.udp3(&this)?.set_send_buffer(value)?)
    }

    fn drop(&mut self, this: Handle) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}
