//! A guest's TCP socket, whichever WASI version it speaks.

use super::convert::Family;
use crate::net::{Bound, Conn, Listener, Namespace, NetError, PIPE_CAPACITY};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// What Rust's std and most programs ask for.
const BACKLOG_DEFAULT: usize = 128;

/// A TCP socket and where it stands in its life.
pub(crate) struct TcpSocket {
    family: Family,
    backlog: usize,
    pub(crate) options: TcpOptions,
    state: State,
}

enum State {
    /// From here to Bound, Connecting or, with an implicit bind, Listening.
    Fresh,
    /// From here to Connecting or Listening.
    Bound(Bound),
    /// From here to Connected or Failed.
    Connecting(BoxFuture<'static, Result<Conn, NetError>>),
    /// For good.
    Listening(Arc<Listener>),
    /// For good.
    Connected { conn: Arc<Conn>, local: SocketAddr, peer: SocketAddr, receive_taken: bool, send_taken: bool },
    /// For good.
    Failed(NetError),
}

/// Options that programs set and read back. In a network without packets they change nothing.
#[derive(Debug, Clone)]
pub(crate) struct TcpOptions {
    pub(crate) keep_alive: bool,
    pub(crate) keep_alive_idle_ns: u64,
    pub(crate) keep_alive_interval_ns: u64,
    pub(crate) keep_alive_count: u32,
    pub(crate) hop_limit: u8,
    pub(crate) receive_buffer: u64,
    pub(crate) send_buffer: u64,
}

impl Default for TcpOptions {
    /// Linux' values of tcp(7) and ip(7), and our own buffer size.
    fn default() -> Self {
        const SECOND_NS: u64 = 1_000_000_000;
        Self {
            keep_alive: false,
            keep_alive_idle_ns: 7200 * SECOND_NS,
            keep_alive_interval_ns: 75 * SECOND_NS,
            keep_alive_count: 9,
            hop_limit: 64,
            receive_buffer: PIPE_CAPACITY as u64,
            send_buffer: PIPE_CAPACITY as u64,
        }
    }
}

/// A value of an option that must not be zero.
pub(crate) fn nonzero<T: PartialEq + Default>(value: T) -> Result<T, NetError> {
    if value == T::default() { Err(NetError::InvalidInput) } else { Ok(value) }
}

impl TcpSocket {
    pub(crate) fn new(family: Family) -> Self {
        Self { family, backlog: BACKLOG_DEFAULT, options: TcpOptions::default(), state: State::Fresh }
    }

    fn accepted(conn: Conn, options: TcpOptions) -> Self {
        let family = Family::of(conn.local_addr());
        Self { family, backlog: BACKLOG_DEFAULT, options, state: State::connected(conn) }
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    pub(crate) fn is_listening(&self) -> bool {
        matches!(self.state, State::Listening(_))
    }

    pub(crate) fn is_bound(&self) -> bool {
        !matches!(self.state, State::Fresh)
    }

    pub(crate) fn bind(&mut self, namespace: &Namespace, address: SocketAddr) -> Result<(), NetError> {
        self.family.check_local(address)?;
        let State::Fresh = self.state else { return Err(NetError::InvalidState) };
        self.state = State::Bound(namespace.bind_tcp(address)?);
        Ok(())
    }

    /// Begins to connect; [`TcpSocket::poll_connect`] says how it went.
    pub(crate) fn start_connect(&mut self, namespace: &Namespace, to: SocketAddr) -> Result<(), NetError> {
        if !matches!(self.state, State::Fresh | State::Bound(_)) {
            return Err(NetError::InvalidState);
        }
        self.family.check_remote(to)?;
        let bound = match std::mem::replace(&mut self.state, State::Fresh) {
            State::Bound(bound) => Some(bound),
            _ => None,
        };
        let namespace = namespace.clone();
        self.state = State::Connecting(Box::pin(async move {
            let from = bound.as_ref().map(Bound::local_addr);
            let mut conn = namespace.connect_from(from, to).await?;
            if let Some(bound) = bound {
                conn.hold(bound);
            }
            Ok(conn)
        }));
        // Most connects inside a node need no second look.
        let _ = self.poll_connect(&mut Context::from_waker(Waker::noop()));
        Ok(())
    }

    /// Ready once the connect has ended, and the same every time from then on.
    pub(crate) fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NetError>> {
        match &mut self.state {
            State::Connecting(attempt) => {
                let result = std::task::ready!(attempt.as_mut().poll(cx));
                self.state = match result {
                    Ok(conn) => State::connected(conn),
                    Err(error) => State::Failed(error),
                };
                Poll::Ready(result_of(&self.state))
            }
            state => Poll::Ready(result_of(state)),
        }
    }

    /// Begins to listen, on a free port where nothing was bound.
    pub(crate) fn listen(&mut self, namespace: &Namespace) -> Result<(), NetError> {
        let bound = match std::mem::replace(&mut self.state, State::Fresh) {
            State::Bound(bound) => bound,
            State::Fresh => {
                let any: std::net::IpAddr = match self.family {
                    Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
                    Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                namespace.bind_tcp(SocketAddr::new(any, 0))?
            }
            other => {
                self.state = other;
                return Err(NetError::InvalidState);
            }
        };
        self.state = State::Listening(Arc::new(bound.listen(self.backlog)?));
        Ok(())
    }

    pub(crate) fn listener(&self) -> Result<Arc<Listener>, NetError> {
        match &self.state {
            State::Listening(listener) => Ok(listener.clone()),
            _ => Err(NetError::InvalidState),
        }
    }

    pub(crate) fn set_backlog(&mut self, size: u64) -> Result<(), NetError> {
        let size = usize::try_from(nonzero(size)?).unwrap_or(usize::MAX);
        match &self.state {
            State::Fresh | State::Bound(_) => self.backlog = size,
            State::Listening(listener) => listener.set_backlog(size),
            State::Connecting(_) | State::Connected { .. } => return Err(NetError::InvalidState),
            State::Failed(error) => return Err(*error),
        }
        Ok(())
    }

    pub(crate) fn local_address(&self) -> Result<SocketAddr, NetError> {
        match &self.state {
            State::Bound(bound) => Ok(bound.local_addr()),
            State::Listening(listener) => Ok(listener.local_addr()),
            State::Connected { local, .. } => Ok(*local),
            State::Fresh | State::Connecting(_) => Err(NetError::InvalidState),
            State::Failed(error) => Err(*error),
        }
    }

    pub(crate) fn remote_address(&self) -> Result<SocketAddr, NetError> {
        match &self.state {
            State::Connected { peer, .. } => Ok(*peer),
            State::Failed(error) => Err(*error),
            _ => Err(NetError::InvalidState),
        }
    }

    /// The connection of a connected socket.
    pub(crate) fn conn(&self) -> Result<&Arc<Conn>, NetError> {
        match &self.state {
            State::Connected { conn, .. } => Ok(conn),
            State::Failed(error) => Err(*error),
            _ => Err(NetError::InvalidState),
        }
    }

    /// The connection, for the one that receives from it. Only one may.
    pub(crate) fn take_receiver(&mut self) -> Result<Arc<Conn>, NetError> {
        match &mut self.state {
            State::Connected { conn, receive_taken, .. } if !*receive_taken => {
                *receive_taken = true;
                Ok(conn.clone())
            }
            State::Failed(error) => Err(*error),
            _ => Err(NetError::InvalidState),
        }
    }

    /// The connection, for the one that sends on it. Only one may.
    pub(crate) fn take_sender(&mut self) -> Result<Arc<Conn>, NetError> {
        match &mut self.state {
            State::Connected { conn, send_taken, .. } if !*send_taken => {
                *send_taken = true;
                Ok(conn.clone())
            }
            State::Failed(error) => Err(*error),
            _ => Err(NetError::InvalidState),
        }
    }
}

/// The next connection of a listener as a socket that has the listener's options.
pub(crate) fn poll_accept(
    listener: &Listener,
    options: &TcpOptions,
    cx: &mut Context<'_>,
) -> Poll<Result<TcpSocket, NetError>> {
    let accepted = std::task::ready!(listener.poll_accept(cx));
    Poll::Ready(accepted.map(|(conn, _)| TcpSocket::accepted(conn, options.clone())))
}

impl State {
    fn connected(conn: Conn) -> Self {
        let (local, peer) = (conn.local_addr(), conn.peer_addr());
        State::Connected { conn: Arc::new(conn), local, peer, receive_taken: false, send_taken: false }
    }
}

fn result_of(state: &State) -> Result<(), NetError> {
    match state {
        State::Connected { .. } => Ok(()),
        State::Failed(error) => Err(*error),
        _ => Err(NetError::InvalidState),
    }
}
