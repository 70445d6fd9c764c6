//! What files are, and what can be changed about them.

use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, DescriptorStat, DescriptorType, MetadataHashValue, NewTimestamp, PathFlags,
};

use super::call::Call;
use super::descriptors::{DIRECTORY, Entry, Fd, REGULAR, UNKNOWN};
use super::errno::{Done, Errno};

/// Which times are to be set, and to what.
const ACCESSED: u32 = 1;
const ACCESSED_NOW: u32 = 1 << 1;
const MODIFIED: u32 = 1 << 2;
const MODIFIED_NOW: u32 = 1 << 3;

const NS_PER_SECOND: u64 = 1_000_000_000;

pub(super) async fn fd_advise(call: &mut Call<'_>, fd: Fd, offset: u64, len: u64, advice: u32) -> Done {
    let advice = match advice {
        0 => Advice::Normal,
        1 => Advice::Sequential,
        2 => Advice::Random,
        3 => Advice::WillNeed,
        4 => Advice::DontNeed,
        5 => Advice::NoReuse,
        _ => return Err(Errno::INVAL.into()),
    };
    let opened = call.opened(fd)?;
    Ok(call.files().advise(opened, offset, len, advice).await?)
}

pub(super) async fn fd_allocate(call: &mut Call<'_>, fd: Fd, _offset: u64, _len: u64) -> Done {
    call.opened(fd)?;
    Err(Errno::NOTSUP.into())
}

pub(super) async fn fd_sync(call: &mut Call<'_>, fd: Fd) -> Done {
    let opened = call.opened(fd)?;
    Ok(call.files().sync(opened).await?)
}

pub(super) async fn fd_datasync(call: &mut Call<'_>, fd: Fd) -> Done {
    let opened = call.opened(fd)?;
    Ok(call.files().sync_data(opened).await?)
}

pub(super) async fn fd_filestat_get(call: &mut Call<'_>, fd: Fd, out: u32) -> Done {
    let stat = match call.entry(fd)? {
        Entry::File { .. } | Entry::Dir { .. } => {
            let (opened, files) = (call.opened(fd)?, call.files());
            let stat = files.stat(opened.clone()).await?;
            filestat(&stat, &files.metadata_hash(opened).await?)
        }
        _ => [0; 64],
    };
    Ok(call.write(out, &stat)?)
}

pub(super) async fn path_filestat_get(
    call: &mut Call<'_>,
    fd: Fd,
    flags: u32,
    path: u32,
    len: u32,
    out: u32,
) -> Done {
    let (dir, path) = call.at(fd, path, len)?;
    let (files, flags) = (call.files(), path_flags(flags));
    let stat = files.stat_at(dir.clone(), flags, path.clone()).await?;
    let stat = filestat(&stat, &files.metadata_hash_at(dir, flags, path).await?);
    Ok(call.write(out, &stat)?)
}

pub(super) async fn fd_filestat_set_size(call: &mut Call<'_>, fd: Fd, size: u64) -> Done {
    let opened = call.opened(fd)?;
    Ok(call.files().set_size(opened, size).await?)
}

pub(super) async fn fd_filestat_set_times(
    call: &mut Call<'_>,
    fd: Fd,
    accessed: u64,
    modified: u64,
    which: u32,
) -> Done {
    let (accessed, modified) = times(accessed, modified, which)?;
    let opened = call.opened(fd)?;
    Ok(call.files().set_times(opened, accessed, modified).await?)
}

pub(super) async fn path_filestat_set_times(
    call: &mut Call<'_>,
    fd: Fd,
    flags: u32,
    path: u32,
    len: u32,
    accessed: u64,
    modified: u64,
    which: u32,
) -> Done {
    let times = times(accessed, modified, which)?;
    let (dir, path) = call.at(fd, path, len)?;
    Ok(call.files().set_times_at(dir, path_flags(flags), path, times).await?)
}

pub(super) fn path_flags(flags: u32) -> PathFlags {
    if flags & 1 == 0 { PathFlags::empty() } else { PathFlags::SYMLINK_FOLLOW }
}

fn times(accessed: u64, modified: u64, which: u32) -> Result<(NewTimestamp, NewTimestamp), Errno> {
    let time = |at: u64, is_set: bool, is_now: bool| match (is_set, is_now) {
        (true, true) => Err(Errno::INVAL),
        (false, false) => Ok(NewTimestamp::NoChange),
        (false, true) => Ok(NewTimestamp::Now),
        (true, false) => Ok(NewTimestamp::Timestamp(Datetime {
            seconds: at / NS_PER_SECOND,
            nanoseconds: (at % NS_PER_SECOND) as u32,
        })),
    };
    let accessed = time(accessed, which & ACCESSED != 0, which & ACCESSED_NOW != 0)?;
    Ok((accessed, time(modified, which & MODIFIED != 0, which & MODIFIED_NOW != 0)?))
}

/// As it lies in the program's memory.
fn filestat(stat: &DescriptorStat, hash: &MetadataHashValue) -> [u8; 64] {
    let time = |time: Option<Datetime>| {
        time.map_or(0, |time| {
            time.seconds.saturating_mul(NS_PER_SECOND).saturating_add(time.nanoseconds.into())
        })
    };
    let mut bytes = [0; 64];
    let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, 1);
    put(8, hash.lower);
    put(16, kind(stat.type_).into());
    put(24, stat.link_count);
    put(32, stat.size);
    put(40, time(stat.data_access_timestamp));
    put(48, time(stat.data_modification_timestamp));
    put(56, time(stat.status_change_timestamp));
    bytes
}

pub(super) fn kind(kind: DescriptorType) -> u8 {
    match kind {
        DescriptorType::Unknown | DescriptorType::Fifo => UNKNOWN,
        DescriptorType::BlockDevice => 1,
        DescriptorType::CharacterDevice => 2,
        DescriptorType::Directory => DIRECTORY,
        DescriptorType::RegularFile => REGULAR,
        DescriptorType::Socket => 6,
        DescriptorType::SymbolicLink => 7,
    }
}
