//! UDP sockets of 0.2.

use crate::net::{NetError, TRANSFER_BYTES_MAX, UdpSocket as PodUdpSocket};
use crate::sockets::SocketCtxView;
use crate::sockets::udp::{UdpSocket, send};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::bindings::sockets::{udp, udp_create_socket};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketError, SocketResult};

/// Datagrams that one call moves at most.
const DATAGRAMS_MAX: usize = 16;

type Handle = Resource<wasmtime_wasi::p2::UdpSocket>;
type IncomingHandle = Resource<udp::IncomingDatagramStream>;
type OutgoingHandle = Resource<udp::OutgoingDatagramStream>;

/// A socket and whether a bind was started and not finished.
pub(super) struct Socket {
    udp: UdpSocket,
    binding: bool,
}

pub(super) struct Incoming(Arc<PodUdpSocket>);

pub(super) struct Outgoing {
    socket: Arc<PodUdpSocket>,
    permit: usize,
}

fn borrowed(handle: &Handle) -> Resource<Socket> {
    Resource::new_borrow(handle.rep())
}

impl SocketCtxView<'_> {
    fn udp(&mut self, handle: &Handle) -> SocketResult<&mut Socket> {
        Ok(self.table.get_mut(&borrowed(handle))?)
    }
}

impl udp_create_socket::Host for SocketCtxView<'_> {
    async fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Handle> {
        let socket = Socket { udp: UdpSocket::new(family.into()), binding: false };
        Ok(Resource::new_own(self.table.push(socket)?.rep()))
    }
}

impl udp::Host for SocketCtxView<'_> {}

impl udp::HostUdpSocket for SocketCtxView<'_> {
    async fn start_bind(
        &mut self,
        this: Handle,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check_network(network)?;
        let namespace = self.namespace;
        let socket = self.udp(&this)?;
        if socket.binding {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        socket.udp.bind(namespace, address.into())?;
        socket.binding = true;
        Ok(())
    }

    fn finish_bind(&mut self, this: Handle) -> SocketResult<()> {
        let socket = self.udp(&this)?;
        if !std::mem::take(&mut socket.binding) {
            return Err(ErrorCode::NotInProgress.into());
        }
        Ok(())
    }

    async fn stream(
        &mut self,
        this: Handle,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(IncomingHandle, OutgoingHandle)> {
        let socket = self.udp(&this)?;
        let bound = socket.udp.bound()?.clone();
        // The socket's own reference and this one; the streams of an earlier call hold more.
        if Arc::strong_count(&bound) > 2 {
            return Err(SocketError::trap(wasmtime::format_err!(
                "the socket's streams must be dropped before new ones"
            )));
        }
        match remote {
            Some(remote) => socket.udp.connect(remote.into())?,
            None => bound.connect(None)?,
        }
        let incoming = self.table.push_child(Incoming(bound.clone()), &borrowed(&this))?;
        let outgoing = self.table.push_child(Outgoing { socket: bound, permit: 0 }, &borrowed(&this))?;
        Ok((Resource::new_own(incoming.rep()), Resource::new_own(outgoing.rep())))
    }

    fn local_address(&mut self, this: Handle) -> SocketResult<IpSocketAddress> {
        Ok(self.udp(&this)?.udp.local_address()?.into())
    }

    fn remote_address(&mut self, this: Handle) -> SocketResult<IpSocketAddress> {
        Ok(self.udp(&this)?.udp.remote_address()?.into())
    }

    fn address_family(&mut self, this: Handle) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&borrowed(&this))?.udp.family().into())
    }

    fn unicast_hop_limit(&mut self, this: Handle) -> SocketResult<u8> {
        Ok(self.udp(&this)?.udp.hop_limit())
    }

    fn set_unicast_hop_limit(&mut self, this: Handle, value: u8) -> SocketResult<()> {
        Ok(self.udp(&this)?.udp.set_hop_limit(value)?)
    }

    fn receive_buffer_size(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.udp(&this)?.udp.receive_buffer())
    }

    fn set_receive_buffer_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        Ok(self.udp(&this)?.udp.set_receive_buffer(value)?)
    }

    fn send_buffer_size(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.udp(&this)?.udp.send_buffer())
    }

    fn set_send_buffer_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        Ok(self.udp(&this)?.udp.set_send_buffer(value)?)
    }

    fn subscribe(&mut self, this: Handle) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, borrowed(&this))
    }

    fn drop(&mut self, this: Handle) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Socket {
    /// Nothing at the socket itself ever waits.
    async fn ready(&mut self) {}
}

impl udp::HostIncomingDatagramStream for SocketCtxView<'_> {
    fn receive(
        &mut self,
        this: IncomingHandle,
        results_max: u64,
    ) -> SocketResult<Vec<udp::IncomingDatagram>> {
        let socket = &self.table.get(&Resource::<Incoming>::new_borrow(this.rep()))?.0;
        let results_max = usize::try_from(results_max).unwrap_or(usize::MAX).min(DATAGRAMS_MAX);
        let mut datagrams = Vec::new();
        let mut bytes = 0;
        while datagrams.len() < results_max && bytes < TRANSFER_BYTES_MAX {
            match socket.try_recv() {
                Ok((payload, from)) => {
                    bytes += payload.len() + 1;
                    datagrams
                        .push(udp::IncomingDatagram { data: payload.into(), remote_address: from.into() });
                }
                Err(NetError::WouldBlock) => break,
                // A refusal that comes between two datagrams is no more than a hint, and yields to them.
                Err(_) if !datagrams.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(datagrams)
    }

    fn subscribe(&mut self, this: IncomingHandle) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, Resource::<Incoming>::new_borrow(this.rep()))
    }

    fn drop(&mut self, this: IncomingHandle) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Incoming>::new_own(this.rep()))?;
        Ok(())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        poll_fn(|cx| self.0.poll_receivable(cx)).await;
    }
}

impl udp::HostOutgoingDatagramStream for SocketCtxView<'_> {
    fn check_send(&mut self, this: OutgoingHandle) -> SocketResult<u64> {
        let stream = self.table.get_mut(&Resource::<Outgoing>::new_borrow(this.rep()))?;
        stream.permit = DATAGRAMS_MAX;
        Ok(DATAGRAMS_MAX as u64)
    }

    fn send(&mut self, this: OutgoingHandle, datagrams: Vec<udp::OutgoingDatagram>) -> SocketResult<u64> {
        let stream = self.table.get_mut(&Resource::<Outgoing>::new_borrow(this.rep()))?;
        if datagrams.len() > stream.permit {
            return Err(SocketError::trap(wasmtime::format_err!(
                "more datagrams sent than check-send permitted"
            )));
        }
        if datagrams.is_empty() {
            return Ok(0);
        }
        stream.permit = 0;
        let mut sent = 0;
        for datagram in datagrams {
            match send(&stream.socket, datagram.data, datagram.remote_address.map(SocketAddr::from)) {
                Ok(()) => sent += 1,
                // What was sent is said first; the rest is tried again by the guest.
                Err(_) if sent > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, this: OutgoingHandle) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, Resource::<Outgoing>::new_borrow(this.rep()))
    }

    async fn drop(&mut self, this: OutgoingHandle) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Outgoing>::new_own(this.rep()))?;
        Ok(())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Outgoing {
    /// A datagram is sent or lost, never waited for.
    async fn ready(&mut self) {}
}
