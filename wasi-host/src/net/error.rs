//! Why the network did not do what was asked, in the words of errno(3).

use std::io;

/// An error of the virtual network. Each variant means what the errno named beside it means on Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NetError {
    /// ECONNREFUSED: nobody listens there, or no endpoint of the service is ready.
    #[error("connection refused")]
    ConnectionRefused,
    /// ECONNRESET: the peer went away with data unread, or its node did.
    #[error("connection reset by peer")]
    ConnectionReset,
    /// ECONNABORTED: this end's pod was taken down.
    #[error("connection aborted")]
    ConnectionAborted,
    /// EPIPE: the peer closed before this write, or this end shut its own writing down.
    #[error("broken pipe")]
    BrokenPipe,
    /// EADDRINUSE: the port is taken, or no ephemeral port is free.
    #[error("address already in use")]
    AddressInUse,
    /// EADDRNOTAVAIL: the address is none of the pod's.
    #[error("address not available in this pod")]
    AddressNotAvailable,
    /// EHOSTUNREACH: no node or route holds the address.
    #[error("no route to host")]
    HostUnreachable,
    /// ETIMEDOUT: no answer in time.
    #[error("connection timed out")]
    TimedOut,
    /// EAI_NONAME: the name does not exist.
    #[error("name does not resolve")]
    NameUnknown,
    /// EAI_AGAIN: the resolver beyond the cluster did not answer.
    #[error("temporary failure in name resolution")]
    NameTemporarilyUnknown,
    /// EACCES: policy forbids it.
    #[error("access denied by network policy")]
    AccessDenied,
    /// EMFILE: the pod has all the sockets that it may have.
    #[error("too many open sockets in this pod")]
    TooManySockets,
    /// ENOBUFS: the pod buffers all that it may.
    #[error("no buffer space in this pod")]
    NoBuffers,
    /// EINVAL: the address or argument cannot be meant.
    #[error("invalid argument")]
    InvalidInput,
    /// EISCONN, EALREADY and their like: the socket is not in the state that this needs.
    #[error("invalid in the socket's state")]
    InvalidState,
    /// EAGAIN: nothing to do now; poll and try again.
    #[error("operation would block")]
    WouldBlock,
    /// ENOTCONN: the socket has no peer.
    #[error("socket is not connected")]
    NotConnected,
    /// EMSGSIZE: the datagram is larger than UDP carries.
    #[error("datagram too large")]
    MessageTooLarge,
    /// EOPNOTSUPP: this network has no such thing.
    #[error("operation not supported")]
    NotSupported,
    /// ENETDOWN: the pod's network has been taken down.
    #[error("network is down")]
    NetworkDown,
}

impl From<NetError> for io::Error {
    fn from(error: NetError) -> Self {
        let kind = match error {
            NetError::ConnectionRefused => io::ErrorKind::ConnectionRefused,
            NetError::ConnectionReset => io::ErrorKind::ConnectionReset,
            NetError::ConnectionAborted => io::ErrorKind::ConnectionAborted,
            NetError::BrokenPipe => io::ErrorKind::BrokenPipe,
            NetError::AddressInUse => io::ErrorKind::AddrInUse,
            NetError::AddressNotAvailable => io::ErrorKind::AddrNotAvailable,
            NetError::HostUnreachable => io::ErrorKind::HostUnreachable,
            NetError::TimedOut => io::ErrorKind::TimedOut,
            NetError::NameUnknown | NetError::NameTemporarilyUnknown => io::ErrorKind::NotFound,
            NetError::AccessDenied => io::ErrorKind::PermissionDenied,
            NetError::TooManySockets => io::ErrorKind::QuotaExceeded,
            NetError::NoBuffers => io::ErrorKind::OutOfMemory,
            NetError::InvalidInput | NetError::InvalidState => io::ErrorKind::InvalidInput,
            NetError::WouldBlock => io::ErrorKind::WouldBlock,
            NetError::NotConnected => io::ErrorKind::NotConnected,
            NetError::MessageTooLarge => io::ErrorKind::InvalidInput,
            NetError::NotSupported => io::ErrorKind::Unsupported,
            NetError::NetworkDown => io::ErrorKind::NetworkDown,
        };
        io::Error::new(kind, error)
    }
}

impl From<&io::Error> for NetError {
    /// The nearest meaning of an error that a real socket gave.
    fn from(error: &io::Error) -> Self {
        if let Some(own) = error.get_ref().and_then(|inner| inner.downcast_ref::<NetError>()) {
            return *own;
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => NetError::ConnectionRefused,
            io::ErrorKind::ConnectionReset => NetError::ConnectionReset,
            io::ErrorKind::ConnectionAborted => NetError::ConnectionAborted,
            io::ErrorKind::BrokenPipe => NetError::BrokenPipe,
            io::ErrorKind::AddrInUse => NetError::AddressInUse,
            io::ErrorKind::AddrNotAvailable => NetError::AddressNotAvailable,
            io::ErrorKind::TimedOut => NetError::TimedOut,
            io::ErrorKind::PermissionDenied => NetError::AccessDenied,
            io::ErrorKind::InvalidInput => NetError::InvalidInput,
            io::ErrorKind::WouldBlock => NetError::WouldBlock,
            io::ErrorKind::NotConnected => NetError::NotConnected,
            io::ErrorKind::UnexpectedEof => NetError::ConnectionReset,
            _ => NetError::HostUnreachable,
        }
    }
}
