//! 0.3's types from and to 0.2's, in which calls are done.

use wasmtime_wasi::p2::FsError;
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::types as wasi2;
use wasmtime_wasi::p3::bindings::clocks::system_clock::Instant;
use wasmtime_wasi::p3::bindings::filesystem::types as wasi3;
use wasmtime_wasi::p3::filesystem::FilesystemError;

pub(super) fn error(error: FsError) -> FilesystemError {
    match error.downcast() {
        Ok(found) => code(found).into(),
        Err(trap) => FilesystemError::trap(trap),
    }
}

pub(super) fn code(code: wasi2::ErrorCode) -> wasi3::ErrorCode {
    match code {
        wasi2::ErrorCode::Access => wasi3::ErrorCode::Access,
        wasi2::ErrorCode::WouldBlock => wasi3::ErrorCode::Busy,
        wasi2::ErrorCode::Already => wasi3::ErrorCode::Already,
        wasi2::ErrorCode::BadDescriptor => wasi3::ErrorCode::BadDescriptor,
        wasi2::ErrorCode::Busy => wasi3::ErrorCode::Busy,
        wasi2::ErrorCode::Deadlock => wasi3::ErrorCode::Deadlock,
        wasi2::ErrorCode::Quota => wasi3::ErrorCode::Quota,
        wasi2::ErrorCode::Exist => wasi3::ErrorCode::Exist,
        wasi2::ErrorCode::FileTooLarge => wasi3::ErrorCode::FileTooLarge,
        wasi2::ErrorCode::IllegalByteSequence => wasi3::ErrorCode::IllegalByteSequence,
        wasi2::ErrorCode::InProgress => wasi3::ErrorCode::InProgress,
        wasi2::ErrorCode::Interrupted => wasi3::ErrorCode::Interrupted,
        wasi2::ErrorCode::Invalid => wasi3::ErrorCode::Invalid,
        wasi2::ErrorCode::Io => wasi3::ErrorCode::Io,
        wasi2::ErrorCode::IsDirectory => wasi3::ErrorCode::IsDirectory,
        wasi2::ErrorCode::Loop => wasi3::ErrorCode::Loop,
        wasi2::ErrorCode::TooManyLinks => wasi3::ErrorCode::TooManyLinks,
        wasi2::ErrorCode::MessageSize => wasi3::ErrorCode::MessageSize,
        wasi2::ErrorCode::NameTooLong => wasi3::ErrorCode::NameTooLong,
        wasi2::ErrorCode::NoDevice => wasi3::ErrorCode::NoDevice,
        wasi2::ErrorCode::NoEntry => wasi3::ErrorCode::NoEntry,
        wasi2::ErrorCode::NoLock => wasi3::ErrorCode::NoLock,
        wasi2::ErrorCode::InsufficientMemory => wasi3::ErrorCode::InsufficientMemory,
        wasi2::ErrorCode::InsufficientSpace => wasi3::ErrorCode::InsufficientSpace,
        wasi2::ErrorCode::NotDirectory => wasi3::ErrorCode::NotDirectory,
        wasi2::ErrorCode::NotEmpty => wasi3::ErrorCode::NotEmpty,
        wasi2::ErrorCode::NotRecoverable => wasi3::ErrorCode::NotRecoverable,
        wasi2::ErrorCode::Unsupported => wasi3::ErrorCode::Unsupported,
        wasi2::ErrorCode::NoTty => wasi3::ErrorCode::NoTty,
        wasi2::ErrorCode::NoSuchDevice => wasi3::ErrorCode::NoSuchDevice,
        wasi2::ErrorCode::Overflow => wasi3::ErrorCode::Overflow,
        wasi2::ErrorCode::NotPermitted => wasi3::ErrorCode::NotPermitted,
        wasi2::ErrorCode::Pipe => wasi3::ErrorCode::Pipe,
        wasi2::ErrorCode::ReadOnly => wasi3::ErrorCode::ReadOnly,
        wasi2::ErrorCode::InvalidSeek => wasi3::ErrorCode::InvalidSeek,
        wasi2::ErrorCode::TextFileBusy => wasi3::ErrorCode::TextFileBusy,
        wasi2::ErrorCode::CrossDevice => wasi3::ErrorCode::CrossDevice,
    }
}

/// 0.2 has no time before 1970.
pub(super) fn timestamp(time: wasi3::NewTimestamp) -> Result<wasi2::NewTimestamp, wasi3::ErrorCode> {
    Ok(match time {
        wasi3::NewTimestamp::NoChange => wasi2::NewTimestamp::NoChange,
        wasi3::NewTimestamp::Now => wasi2::NewTimestamp::Now,
        wasi3::NewTimestamp::Timestamp(Instant { seconds, nanoseconds }) => {
            let seconds = seconds.try_into().map_err(|_| wasi3::ErrorCode::Overflow)?;
            wasi2::NewTimestamp::Timestamp(Datetime { seconds, nanoseconds })
        }
    })
}

fn instant(time: Datetime) -> Option<Instant> {
    Some(Instant { seconds: time.seconds.try_into().ok()?, nanoseconds: time.nanoseconds })
}

pub(super) fn stat(stat: wasi2::DescriptorStat) -> wasi3::DescriptorStat {
    wasi3::DescriptorStat {
        type_: kind(stat.type_),
        link_count: stat.link_count,
        size: stat.size,
        data_access_timestamp: stat.data_access_timestamp.and_then(instant),
        data_modification_timestamp: stat.data_modification_timestamp.and_then(instant),
        status_change_timestamp: stat.status_change_timestamp.and_then(instant),
    }
}

pub(super) fn kind(kind: wasi2::DescriptorType) -> wasi3::DescriptorType {
    match kind {
        wasi2::DescriptorType::Unknown => wasi3::DescriptorType::Other(None),
        wasi2::DescriptorType::BlockDevice => wasi3::DescriptorType::BlockDevice,
        wasi2::DescriptorType::CharacterDevice => wasi3::DescriptorType::CharacterDevice,
        wasi2::DescriptorType::Directory => wasi3::DescriptorType::Directory,
        wasi2::DescriptorType::Fifo => wasi3::DescriptorType::Fifo,
        wasi2::DescriptorType::SymbolicLink => wasi3::DescriptorType::SymbolicLink,
        wasi2::DescriptorType::RegularFile => wasi3::DescriptorType::RegularFile,
        wasi2::DescriptorType::Socket => wasi3::DescriptorType::Socket,
    }
}

pub(super) fn entry(entry: wasi2::DirectoryEntry) -> wasi3::DirectoryEntry {
    wasi3::DirectoryEntry { type_: kind(entry.type_), name: entry.name }
}

pub(super) fn hash(hash: wasi2::MetadataHashValue) -> wasi3::MetadataHashValue {
    wasi3::MetadataHashValue { lower: hash.lower, upper: hash.upper }
}

pub(super) fn advice(advice: wasi3::Advice) -> wasi2::Advice {
    match advice {
        wasi3::Advice::Normal => wasi2::Advice::Normal,
        wasi3::Advice::Sequential => wasi2::Advice::Sequential,
        wasi3::Advice::Random => wasi2::Advice::Random,
        wasi3::Advice::WillNeed => wasi2::Advice::WillNeed,
        wasi3::Advice::DontNeed => wasi2::Advice::DontNeed,
        wasi3::Advice::NoReuse => wasi2::Advice::NoReuse,
    }
}

pub(super) fn path_flags(flags: wasi3::PathFlags) -> wasi2::PathFlags {
    if flags.contains(wasi3::PathFlags::SYMLINK_FOLLOW) {
        wasi2::PathFlags::SYMLINK_FOLLOW
    } else {
        wasi2::PathFlags::empty()
    }
}

pub(super) fn open_flags(flags: wasi3::OpenFlags) -> wasi2::OpenFlags {
    let pairs = [
        (wasi3::OpenFlags::CREATE, wasi2::OpenFlags::CREATE),
        (wasi3::OpenFlags::DIRECTORY, wasi2::OpenFlags::DIRECTORY),
        (wasi3::OpenFlags::EXCLUSIVE, wasi2::OpenFlags::EXCLUSIVE),
        (wasi3::OpenFlags::TRUNCATE, wasi2::OpenFlags::TRUNCATE),
    ];
    pairs
        .into_iter()
        .filter(|(of, _)| flags.contains(*of))
        .fold(wasi2::OpenFlags::empty(), |all, (_, to)| all | to)
}

/// Each flag of a descriptor in both versions.
const FLAGS: [(wasi3::DescriptorFlags, wasi2::DescriptorFlags); 6] = [
    (wasi3::DescriptorFlags::READ, wasi2::DescriptorFlags::READ),
    (wasi3::DescriptorFlags::WRITE, wasi2::DescriptorFlags::WRITE),
    (wasi3::DescriptorFlags::FILE_INTEGRITY_SYNC, wasi2::DescriptorFlags::FILE_INTEGRITY_SYNC),
    (wasi3::DescriptorFlags::DATA_INTEGRITY_SYNC, wasi2::DescriptorFlags::DATA_INTEGRITY_SYNC),
    (wasi3::DescriptorFlags::REQUESTED_WRITE_SYNC, wasi2::DescriptorFlags::REQUESTED_WRITE_SYNC),
    (wasi3::DescriptorFlags::MUTATE_DIRECTORY, wasi2::DescriptorFlags::MUTATE_DIRECTORY),
];

/// What a descriptor may do, as it is told.
pub(super) fn flags(flags: wasi2::DescriptorFlags) -> wasi3::DescriptorFlags {
    FLAGS
        .into_iter()
        .filter(|(_, of)| flags.contains(*of))
        .fold(wasi3::DescriptorFlags::empty(), |all, (to, _)| all | to)
}

/// What a descriptor is to do, as it is asked for.
pub(super) fn wanted(flags: wasi3::DescriptorFlags) -> wasi2::DescriptorFlags {
    FLAGS
        .into_iter()
        .filter(|(of, _)| flags.contains(*of))
        .fold(wasi2::DescriptorFlags::empty(), |all, (_, to)| all | to)
}
