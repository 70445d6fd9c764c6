//! TCP sockets of 0.2.

use super::no_wait;
use super::streams::{Incoming, Outgoing};
use crate::net::NetError;
use crate::sockets::SocketCtxView;
use crate::sockets::tcp::{TcpSocket, nonzero, poll_accept};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::Poll;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::bindings::sockets::{tcp, tcp_create_socket};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, Pollable, SocketResult};

/// The handle type that the generated traits speak of; only its number is ours.
type Handle = Resource<wasmtime_wasi::p2::TcpSocket>;

/// A socket and the operation that was started and not finished.
pub(super) struct Socket {
    tcp: TcpSocket,
    started: Option<Started>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Started {
    Bind,
    Connect,
    Listen,
}

impl Socket {
    fn new(tcp: TcpSocket) -> Self {
        Self { tcp, started: None }
    }

    fn check_idle(&self) -> Result<(), ErrorCode> {
        if self.started.is_some() { Err(ErrorCode::ConcurrencyConflict) } else { Ok(()) }
    }

    fn finish(&mut self, operation: Started) -> Result<(), ErrorCode> {
        if self.started != Some(operation) {
            return Err(ErrorCode::NotInProgress);
        }
        self.started = None;
        Ok(())
    }
}

fn borrowed(handle: &Handle) -> Resource<Socket> {
    Resource::new_borrow(handle.rep())
}

impl SocketCtxView<'_> {
    fn tcp(&mut self, handle: &Handle) -> SocketResult<&mut Socket> {
        Ok(self.table.get_mut(&borrowed(handle))?)
    }

    fn push_streams(
        &mut self,
        socket: &Resource<Socket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let conn = self.table.get(socket)?.tcp.conn()?.clone();
        let input: DynInputStream = Box::new(Incoming::new(Arc::clone(&conn)));
        let output: DynOutputStream = Box::new(Outgoing::new(conn));
        Ok((self.table.push_child(input, socket)?, self.table.push_child(output, socket)?))
    }
}

impl tcp_create_socket::Host for SocketCtxView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Handle> {
        let socket = self.table.push(Socket::new(TcpSocket::new(family.into())))?;
        Ok(Resource::new_own(socket.rep()))
    }
}

impl tcp::Host for SocketCtxView<'_> {}

impl tcp::HostTcpSocket for SocketCtxView<'_> {
    async fn start_bind(
        &mut self,
        this: Handle,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check_network(network)?;
        let namespace = self.namespace;
        let socket = self.tcp(&this)?;
        socket.check_idle()?;
        socket.tcp.bind(namespace, address.into())?;
        socket.started = Some(Started::Bind);
        Ok(())
    }

    fn finish_bind(&mut self, this: Handle) -> SocketResult<()> {
        Ok(self.tcp(&this)?.finish(Started::Bind)?)
    }

    fn start_connect(
        &mut self,
        this: Handle,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check_network(network)?;
        let namespace = self.namespace;
        let socket = self.tcp(&this)?;
        socket.check_idle()?;
        socket.tcp.start_connect(namespace, address.into())?;
        socket.started = Some(Started::Connect);
        Ok(())
    }

    fn finish_connect(
        &mut self,
        this: Handle,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let socket = self.tcp(&this)?;
        if socket.started != Some(Started::Connect) {
            return Err(ErrorCode::NotInProgress.into());
        }
        let Poll::Ready(result) = socket.tcp.poll_connect(&mut no_wait()) else {
            return Err(ErrorCode::WouldBlock.into());
        };
        socket.started = None;
        result?;
        self.push_streams(&borrowed(&this))
    }

    async fn start_listen(&mut self, this: Handle) -> SocketResult<()> {
        let namespace = self.namespace;
        let socket = self.tcp(&this)?;
        socket.check_idle()?;
        // 0.2 asks for a bind before; 0.3 does not.
        if !socket.tcp.is_bound() {
            return Err(ErrorCode::InvalidState.into());
        }
        socket.tcp.listen(namespace)?;
        socket.started = Some(Started::Listen);
        Ok(())
    }

    fn finish_listen(&mut self, this: Handle) -> SocketResult<()> {
        Ok(self.tcp(&this)?.finish(Started::Listen)?)
    }

    fn accept(
        &mut self,
        this: Handle,
    ) -> SocketResult<(Handle, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let socket = self.tcp(&this)?;
        let listener = socket.tcp.listener()?;
        let Poll::Ready(accepted) = poll_accept(&listener, &socket.tcp.options, &mut no_wait()) else {
            return Err(ErrorCode::WouldBlock.into());
        };
        let accepted = self.table.push(Socket::new(accepted?))?;
        let (input, output) = self.push_streams(&accepted)?;
        Ok((Resource::new_own(accepted.rep()), input, output))
    }

    fn local_address(&mut self, this: Handle) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp(&this)?.tcp.local_address()?.into())
    }

    fn remote_address(&mut self, this: Handle) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp(&this)?.tcp.remote_address()?.into())
    }

    fn is_listening(&mut self, this: Handle) -> wasmtime::Result<bool> {
        Ok(self.table.get(&borrowed(&this))?.tcp.is_listening())
    }

    fn address_family(&mut self, this: Handle) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&borrowed(&this))?.tcp.family().into())
    }

    fn set_listen_backlog_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        Ok(self.tcp(&this)?.tcp.set_backlog(value)?)
    }

    fn keep_alive_enabled(&mut self, this: Handle) -> SocketResult<bool> {
        Ok(self.tcp(&this)?.tcp.options.keep_alive)
    }

    fn set_keep_alive_enabled(&mut self, this: Handle, value: bool) -> SocketResult<()> {
        self.tcp(&this)?.tcp.options.keep_alive = value;
        Ok(())
    }

    fn keep_alive_idle_time(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.tcp(&this)?.tcp.options.keep_alive_idle_ns)
    }

    fn set_keep_alive_idle_time(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&this)?.tcp.options.keep_alive_idle_ns = nonzero(value)?;
        Ok(())
    }

    fn keep_alive_interval(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.tcp(&this)?.tcp.options.keep_alive_interval_ns)
    }

    fn set_keep_alive_interval(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&this)?.tcp.options.keep_alive_interval_ns = nonzero(value)?;
        Ok(())
    }

    fn keep_alive_count(&mut self, this: Handle) -> SocketResult<u32> {
        Ok(self.tcp(&this)?.tcp.options.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, this: Handle, value: u32) -> SocketResult<()> {
        self.tcp(&this)?.tcp.options.keep_alive_count = nonzero(value)?;
        Ok(())
    }

    fn hop_limit(&mut self, this: Handle) -> SocketResult<u8> {
        Ok(self.tcp(&this)?.tcp.options.hop_limit)
    }

    fn set_hop_limit(&mut self, this: Handle, value: u8) -> SocketResult<()> {
        self.tcp(&this)?.tcp.options.hop_limit = nonzero(value)?;
        Ok(())
    }

    fn receive_buffer_size(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.tcp(&this)?.tcp.options.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&this)?.tcp.options.receive_buffer = nonzero(value)?;
        Ok(())
    }

    fn send_buffer_size(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.tcp(&this)?.tcp.options.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        self.tcp(&this)?.tcp.options.send_buffer = nonzero(value)?;
        Ok(())
    }

    fn subscribe(&mut self, this: Handle) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, borrowed(&this))
    }

    fn shutdown(&mut self, this: Handle, how: tcp::ShutdownType) -> SocketResult<()> {
        let socket = self.tcp(&this)?;
        socket.tcp.conn().map_err(|_| NetError::InvalidState)?.shutdown(match how {
            tcp::ShutdownType::Receive => Shutdown::Read,
            tcp::ShutdownType::Send => Shutdown::Write,
            tcp::ShutdownType::Both => Shutdown::Both,
        });
        Ok(())
    }

    fn drop(&mut self, this: Handle) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Socket {
    async fn ready(&mut self) {
        if self.started == Some(Started::Connect) {
            let _ = std::future::poll_fn(|cx| self.tcp.poll_connect(cx)).await;
        } else if let Ok(listener) = self.tcp.listener() {
            std::future::poll_fn(|cx| listener.poll_acceptable(cx)).await;
        }
    }
}
