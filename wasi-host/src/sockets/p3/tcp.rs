//! TCP sockets of 0.3.

use super::streams::{Accepted, Half, Received, Sent};
use crate::sockets::tcp::{TcpSocket, nonzero};
use crate::sockets::{PodSockets, SocketCtxView};
use std::future::poll_fn;
use std::net::Shutdown;
use std::task::Poll;
use wasmtime::component::{Access, Accessor, FutureReader, Resource, StreamReader};
use wasmtime_wasi::p3::bindings::sockets::types::{
    self, Duration, ErrorCode, HostTcpSocket, HostTcpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use wasmtime_wasi::p3::sockets::{SocketError, SocketResult};

/// The handle type that the generated traits speak of; only its number is ours.
type Handle = Resource<types::TcpSocket>;

/// A type of its own, so that a handle of another kind is told from it.
pub(super) struct Socket(TcpSocket);

impl Socket {
    pub(super) fn new(tcp: TcpSocket) -> Self {
        Self(tcp)
    }
}

impl SocketCtxView<'_> {
    fn tcp3(&mut self, handle: &Handle) -> SocketResult<&mut TcpSocket> {
        let socket = self.table.get_mut(&Resource::<Socket>::new_borrow(handle.rep()));
        Ok(&mut socket.map_err(SocketError::trap)?.0)
    }
}

impl<T: Send + 'static> HostTcpSocketWithStore<T> for PodSockets {
    async fn connect(store: &Accessor<T, Self>, socket: Handle, remote: IpSocketAddress) -> SocketResult<()> {
        store.with(|mut store| {
            let mut view = store.get();
            let namespace = view.namespace;
            view.tcp3(&socket)?.start_connect(namespace, remote.into()).map_err(SocketError::from)
        })?;
        poll_fn(|cx| {
            store.with(|mut store| -> Poll<SocketResult<()>> {
                store.get().tcp3(&socket)?.poll_connect(cx).map_err(SocketError::from)
            })
        })
        .await
    }

    async fn listen(mut store: Access<'_, T, Self>, socket: Handle) -> SocketResult<StreamReader<Handle>> {
        let getter = store.getter();
        let mut view = store.get();
        let namespace = view.namespace;
        let socket = view.tcp3(&socket)?;
        socket.listen(namespace)?;
        let accepted = Accepted { listener: socket.listener()?, options: socket.options.clone(), getter };
        StreamReader::new(&mut store, accepted).map_err(SocketError::trap)
    }

    fn send(
        mut store: Access<'_, T, Self>,
        socket: Handle,
        mut data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<Result<(), ErrorCode>>> {
        match store.get().tcp3(&socket)?.take_sender() {
            Ok(conn) => {
                let (half, end) = Half::new(conn, Shutdown::Write);
                data.pipe(&mut store, Sent(half))?;
                FutureReader::new(&mut store, end)
            }
            Err(error) => {
                data.close(&mut store)?;
                FutureReader::new(&mut store, async move { wasmtime::error::Ok(Err(ErrorCode::from(error))) })
            }
        }
    }

    fn receive(
        mut store: Access<'_, T, Self>,
        socket: Handle,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<Result<(), ErrorCode>>)> {
        match store.get().tcp3(&socket)?.take_receiver() {
            Ok(conn) => {
                let (half, end) = Half::new(conn, Shutdown::Read);
                let stream = StreamReader::new(&mut store, Received(half))?;
                Ok((stream, FutureReader::new(&mut store, end)?))
            }
            Err(error) => {
                let stream = StreamReader::new(&mut store, std::iter::empty())?;
                let end = async move { wasmtime::error::Ok(Err(ErrorCode::from(error))) };
                Ok((stream, FutureReader::new(&mut store, end)?))
            }
        }
    }
}

impl HostTcpSocket for SocketCtxView<'_> {
    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Handle> {
        let socket = self.table.push(Socket(TcpSocket::new(family.into()))).map_err(SocketError::trap)?;
        Ok(Resource::new_own(socket.rep()))
    }

    async fn bind(&mut self, this: Handle, address: IpSocketAddress) -> SocketResult<()> {
        let namespace = self.namespace;
        Ok(self.tcp3(&this)?.bind(namespace, address.into())?)
    }

    fn get_local_address(&mut self, this: Handle) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp3(&this)?.local_address()?.into())
    }

    fn get_remote_address(&mut self, this: Handle) -> SocketResult<IpSocketAddress> {
        Ok(self.tcp3(&this)?.remote_address()?.into())
    }

    fn get_is_listening(&mut self, this: Handle) -> wasmtime::Result<bool> {
        Ok(self.tcp3(&this)?.is_listening())
    }

    fn get_address_family(&mut self, this: Handle) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.tcp3(&this)?.family().into())
    }

    fn set_listen_backlog_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        Ok(self.tcp3(&this)?.set_backlog(value)?)
    }

    fn get_keep_alive_enabled(&mut self, this: Handle) -> SocketResult<bool> {
        Ok(self.tcp3(&this)?.options.keep_alive)
    }

    fn set_keep_alive_enabled(&mut self, this: Handle, value: bool) -> SocketResult<()> {
        self.tcp3(&this)?.options.keep_alive = value;
        Ok(())
    }

    fn get_keep_alive_idle_time(&mut self, this: Handle) -> SocketResult<Duration> {
        Ok(self.tcp3(&this)?.options.keep_alive_idle_ns)
    }

    fn set_keep_alive_idle_time(&mut self, this: Handle, value: Duration) -> SocketResult<()> {
        self.tcp3(&this)?.options.keep_alive_idle_ns = nonzero(value)?;
        Ok(())
    }

    fn get_keep_alive_interval(&mut self, this: Handle) -> SocketResult<Duration> {
        Ok(self.tcp3(&this)?.options.keep_alive_interval_ns)
    }

    fn set_keep_alive_interval(&mut self, this: Handle, value: Duration) -> SocketResult<()> {
        self.tcp3(&this)?.options.keep_alive_interval_ns = nonzero(value)?;
        Ok(())
    }

    fn get_keep_alive_count(&mut self, this: Handle) -> SocketResult<u32> {
        Ok(self.tcp3(&this)?.options.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, this: Handle, value: u32) -> SocketResult<()> {
        self.tcp3(&this)?.options.keep_alive_count = nonzero(value)?;
        Ok(())
    }

    fn get_hop_limit(&mut self, this: Handle) -> SocketResult<u8> {
        Ok(self.tcp3(&this)?.options.hop_limit)
    }

    fn set_hop_limit(&mut self, this: Handle, value: u8) -> SocketResult<()> {
        self.tcp3(&this)?.options.hop_limit = nonzero(value)?;
        Ok(())
    }

    fn get_receive_buffer_size(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.tcp3(&this)?.options.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        self.tcp3(&this)?.options.receive_buffer = nonzero(value)?;
        Ok(())
    }

    fn get_send_buffer_size(&mut self, this: Handle) -> SocketResult<u64> {
        Ok(self.tcp3(&this)?.options.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Handle, value: u64) -> SocketResult<()> {
        self.tcp3(&this)?.options.send_buffer = nonzero(value)?;
        Ok(())
    }

    fn drop(&mut self, this: Handle) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}
