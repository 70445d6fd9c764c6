//! Errors, families and options between the network's words and those of the two WASI versions.

use crate::net::NetError;
use std::net::{IpAddr, SocketAddr};
use wasmtime_wasi::p2::bindings::sockets::network as wasi2;
use wasmtime_wasi::p3::bindings::sockets::{ip_name_lookup as names3, types as wasi3};

/// The address family that a socket was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The family of an address.
    pub(crate) fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Refuses an address of the other family, IPv4 in IPv6 clothes, and what is no single host.
    pub(crate) fn check_local(self, address: SocketAddr) -> Result<(), NetError> {
        let of_family = match (self, address.ip()) {
            (Family::V4, IpAddr::V4(ip)) => !ip.is_multicast() && !ip.is_broadcast(),
            (Family::V6, IpAddr::V6(ip)) => !ip.is_multicast() && ip.to_ipv4_mapped().is_none(),
            _ => false,
        };
        if of_family { Ok(()) } else { Err(NetError::InvalidInput) }
    }

    /// [`Family::check_local`], and refuses what cannot be a peer: any address, any port.
    pub(crate) fn check_remote(self, address: SocketAddr) -> Result<(), NetError> {
        self.check_local(address)?;
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(NetError::InvalidInput);
        }
        Ok(())
    }
}

impl From<wasi2::IpAddressFamily> for Family {
    fn from(family: wasi2::IpAddressFamily) -> Self {
        match family {
            wasi2::IpAddressFamily::Ipv4 => Family::V4,
            wasi2::IpAddressFamily::Ipv6 => Family::V6,
        }
    }
}

impl From<Family> for wasi2::IpAddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => wasi2::IpAddressFamily::Ipv4,
            Family::V6 => wasi2::IpAddressFamily::Ipv6,
        }
    }
}

impl From<wasi3::IpAddressFamily> for Family {
    fn from(family: wasi3::IpAddressFamily) -> Self {
        match family {
            wasi3::IpAddressFamily::Ipv4 => Family::V4,
            wasi3::IpAddressFamily::Ipv6 => Family::V6,
        }
    }
}

impl From<Family> for wasi3::IpAddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => wasi3::IpAddressFamily::Ipv4,
            Family::V6 => wasi3::IpAddressFamily::Ipv6,
        }
    }
}

impl From<NetError> for wasi2::ErrorCode {
    fn from(error: NetError) -> Self {
        match error {
            NetError::ConnectionRefused => Self::ConnectionRefused,
            NetError::ConnectionReset => Self::ConnectionReset,
            NetError::ConnectionAborted => Self::ConnectionAborted,
            // 0.2 says a broken pipe by a closed stream; the code has no word for it.
            NetError::BrokenPipe => Self::Unknown,
            NetError::AddressInUse => Self::AddressInUse,
            NetError::AddressNotAvailable => Self::AddressNotBindable,
            NetError::HostUnreachable | NetError::NetworkDown => Self::RemoteUnreachable,
            NetError::TimedOut => Self::Timeout,
            NetError::NameUnknown => Self::NameUnresolvable,
            NetError::NameTemporarilyUnknown => Self::TemporaryResolverFailure,
            NetError::AccessDenied => Self::AccessDenied,
            NetError::TooManySockets => Self::NewSocketLimit,
            NetError::NoBuffers => Self::OutOfMemory,
            NetError::InvalidInput => Self::InvalidArgument,
            NetError::InvalidState | NetError::NotConnected => Self::InvalidState,
            NetError::WouldBlock => Self::WouldBlock,
            NetError::MessageTooLarge => Self::DatagramTooLarge,
            NetError::NotSupported => Self::NotSupported,
        }
    }
}

impl From<NetError> for wasi3::ErrorCode {
    fn from(error: NetError) -> Self {
        match error {
            NetError::ConnectionRefused => Self::ConnectionRefused,
            NetError::ConnectionReset => Self::ConnectionReset,
            NetError::ConnectionAborted => Self::ConnectionAborted,
            NetError::BrokenPipe => Self::ConnectionBroken,
            NetError::AddressInUse => Self::AddressInUse,
            NetError::AddressNotAvailable => Self::AddressNotBindable,
            NetError::HostUnreachable | NetError::NetworkDown => Self::RemoteUnreachable,
            NetError::TimedOut => Self::Timeout,
            NetError::AccessDenied => Self::AccessDenied,
            NetError::InvalidInput => Self::InvalidArgument,
            NetError::InvalidState | NetError::NotConnected => Self::InvalidState,
            NetError::MessageTooLarge => Self::DatagramTooLarge,
            NetError::NotSupported => Self::NotSupported,
            NetError::NoBuffers => Self::OutOfMemory,
            NetError::TooManySockets
            | NetError::NameUnknown
            | NetError::NameTemporarilyUnknown
            | NetError::WouldBlock => Self::Other(Some(error.to_string())),
        }
    }
}

impl From<NetError> for names3::ErrorCode {
    fn from(error: NetError) -> Self {
        match error {
            NetError::NameUnknown => Self::NameUnresolvable,
            NetError::AccessDenied => Self::AccessDenied,
            NetError::InvalidInput => Self::InvalidArgument,
            NetError::NameTemporarilyUnknown | NetError::TimedOut => Self::TemporaryResolverFailure,
            other => Self::Other(Some(other.to_string())),
        }
    }
}

impl From<NetError> for wasmtime_wasi::p2::SocketError {
    fn from(error: NetError) -> Self {
        wasi2::ErrorCode::from(error).into()
    }
}

impl From<NetError> for wasmtime_wasi::p3::sockets::SocketError {
    fn from(error: NetError) -> Self {
        wasi3::ErrorCode::from(error).into()
    }
}
