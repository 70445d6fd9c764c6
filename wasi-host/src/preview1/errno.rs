//! Errors of preview 1, by the numbers that its programs know.

use wasmtime_wasi::p2::FsError;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

use crate::net::NetError;

/// An `errno` of `wasi_snapshot_preview1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Errno(pub(super) u16);

impl Errno {
    pub(super) const BADF: Errno = Errno(8);
    pub(super) const FAULT: Errno = Errno(21);
    pub(super) const ILSEQ: Errno = Errno(25);
    pub(super) const INVAL: Errno = Errno(28);
    pub(super) const ISDIR: Errno = Errno(31);
    pub(super) const NAMETOOLONG: Errno = Errno(37);
    pub(super) const NFILE: Errno = Errno(41);
    pub(super) const NOMEM: Errno = Errno(48);
    pub(super) const NOTDIR: Errno = Errno(54);
    pub(super) const NOTSOCK: Errno = Errno(57);
    pub(super) const NOTCONN: Errno = Errno(53);
    pub(super) const NOTSUP: Errno = Errno(58);
    pub(super) const OVERFLOW: Errno = Errno(61);
    pub(super) const SPIPE: Errno = Errno(70);
}

/// What ends a call: what the guest is told, or what ends the guest.
#[derive(Debug)]
pub(super) enum Failure {
    Told(Errno),
    Trap(wasmtime::Error),
}

/// What comes of a call.
pub(super) type Done<T = ()> = Result<T, Failure>;

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Told(errno)
    }
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        match error.downcast() {
            Ok(code) => Failure::Told(code.into()),
            Err(trap) => Failure::Trap(trap),
        }
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        Failure::Told(error.into())
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Failure::Told(code.into())
    }
}

impl From<ErrorCode> for Errno {
    fn from(code: ErrorCode) -> Self {
        Errno(match code {
            ErrorCode::Access => 2,
            ErrorCode::WouldBlock => 6,
            ErrorCode::Already => 7,
            ErrorCode::BadDescriptor => 8,
            ErrorCode::Busy => 10,
            ErrorCode::Deadlock => 16,
            ErrorCode::Quota => 19,
            ErrorCode::Exist => 20,
            ErrorCode::FileTooLarge => 22,
            ErrorCode::IllegalByteSequence => 25,
            ErrorCode::InProgress => 26,
            ErrorCode::Interrupted => 27,
            ErrorCode::Invalid => 28,
            ErrorCode::Io => 29,
            ErrorCode::IsDirectory => 31,
            ErrorCode::Loop => 32,
            ErrorCode::TooManyLinks => 34,
            ErrorCode::MessageSize => 35,
            ErrorCode::NameTooLong => 37,
            ErrorCode::NoDevice => 43,
            ErrorCode::NoEntry => 44,
            ErrorCode::NoLock => 46,
            ErrorCode::InsufficientMemory => 48,
            ErrorCode::InsufficientSpace => 51,
            ErrorCode::NotDirectory => 54,
            ErrorCode::NotEmpty => 55,
            ErrorCode::NotRecoverable => 56,
            ErrorCode::Unsupported => 58,
            ErrorCode::NoTty => 59,
            ErrorCode::NoSuchDevice => 60,
            ErrorCode::Overflow => 61,
            ErrorCode::NotPermitted => 63,
            ErrorCode::Pipe => 64,
            ErrorCode::ReadOnly => 69,
            ErrorCode::InvalidSeek => 70,
            ErrorCode::TextFileBusy => 74,
            ErrorCode::CrossDevice => 75,
        })
    }
}

impl From<NetError> for Errno {
    fn from(error: NetError) -> Self {
        Errno(match error {
            NetError::AccessDenied => 2,
            NetError::AddressInUse => 3,
            NetError::AddressNotAvailable => 4,
            NetError::WouldBlock | NetError::NameTemporarilyUnknown => 6,
            NetError::ConnectionAborted => 13,
            NetError::ConnectionRefused => 14,
            NetError::ConnectionReset => 15,
            NetError::HostUnreachable | NetError::NameUnknown => 23,
            NetError::InvalidInput | NetError::InvalidState => 28,
            NetError::TooManySockets => 33,
            NetError::MessageTooLarge => 35,
            NetError::NetworkDown => 38,
            NetError::NoBuffers => 42,
            NetError::NotConnected => 53,
            NetError::NotSupported => 58,
            NetError::BrokenPipe => 64,
            NetError::TimedOut => 73,
        })
    }
}
