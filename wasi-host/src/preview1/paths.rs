//! What paths stand for.

use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::{DescriptorFlags, OpenFlags};

use super::call::Call;
use super::descriptors::{APPEND, DSYNC, Entry, FD_READ, FD_WRITE, Fd, NONBLOCK, RSYNC, SYNC};
use super::errno::Done;
use super::stat::path_flags;

pub(super) async fn path_open(
    call: &mut Call<'_>,
    fd: Fd,
    lookup: u32,
    path: u32,
    len: u32,
    open: u32,
    base: u64,
    _inheriting: u64,
    flags: u32,
    out: u32,
) -> Done {
    let (dir, path) = call.at(fd, path, len)?;
    let how = (open_flags(open), descriptor_flags(base, flags));
    let opened = call.files().open_at(dir, path_flags(lookup), path, how).await?;
    let entry = match opened.descriptor()? {
        Descriptor::File(_) => Entry::File { opened, position: 0, flags: flags & (APPEND | NONBLOCK) },
        Descriptor::Dir(_) => Entry::Dir { opened, preopened: None, reading: None },
    };
    let fd = call.open(entry)?;
    Ok(call.write(out, &fd.to_le_bytes())?)
}

fn open_flags(open: u32) -> OpenFlags {
    let all = [OpenFlags::CREATE, OpenFlags::DIRECTORY, OpenFlags::EXCLUSIVE, OpenFlags::TRUNCATE];
    let asked = all.into_iter().enumerate().filter(|(bit, _)| open >> bit & 1 == 1);
    asked.fold(OpenFlags::empty(), |flags, (_, flag)| flags | flag)
}

fn descriptor_flags(rights: u64, flags: u32) -> DescriptorFlags {
    let all = [
        (rights & FD_READ != 0, DescriptorFlags::READ),
        (rights & FD_WRITE != 0, DescriptorFlags::WRITE),
        (flags & SYNC != 0, DescriptorFlags::FILE_INTEGRITY_SYNC),
        (flags & DSYNC != 0, DescriptorFlags::DATA_INTEGRITY_SYNC),
        (flags & RSYNC != 0, DescriptorFlags::REQUESTED_WRITE_SYNC),
    ];
    let asked = all.into_iter().filter(|(is_asked, _)| *is_asked);
    asked.fold(DescriptorFlags::empty(), |flags, (_, flag)| flags | flag)
}

pub(super) async fn path_create_directory(call: &mut Call<'_>, fd: Fd, path: u32, len: u32) -> Done {
    let (dir, path) = call.at(fd, path, len)?;
    Ok(call.files().create_directory_at(dir, path).await?)
}

pub(super) async fn path_remove_directory(call: &mut Call<'_>, fd: Fd, path: u32, len: u32) -> Done {
    let (dir, path) = call.at(fd, path, len)?;
    Ok(call.files().remove_directory_at(dir, path).await?)
}

pub(super) async fn path_unlink_file(call: &mut Call<'_>, fd: Fd, path: u32, len: u32) -> Done {
    let (dir, path) = call.at(fd, path, len)?;
    Ok(call.files().unlink_file_at(dir, path).await?)
}

pub(super) async fn path_link(
    call: &mut Call<'_>,
    fd: Fd,
    flags: u32,
    path: u32,
    len: u32,
    to_fd: Fd,
    to_path: u32,
    to_len: u32,
) -> Done {
    let (from, path) = call.at(fd, path, len)?;
    let to = call.at(to_fd, to_path, to_len)?;
    Ok(call.files().link_at(from, path_flags(flags), path, to).await?)
}

pub(super) async fn path_rename(
    call: &mut Call<'_>,
    fd: Fd,
    path: u32,
    len: u32,
    to_fd: Fd,
    to_path: u32,
    to_len: u32,
) -> Done {
    let (from, path) = call.at(fd, path, len)?;
    let to = call.at(to_fd, to_path, to_len)?;
    Ok(call.files().rename_at(from, path, to).await?)
}

pub(super) async fn path_symlink(
    call: &mut Call<'_>,
    path: u32,
    len: u32,
    fd: Fd,
    to_path: u32,
    to_len: u32,
) -> Done {
    let what = call.path(path, len)?;
    let (dir, path) = call.at(fd, to_path, to_len)?;
    Ok(call.files().symlink_at(dir, what, path).await?)
}

pub(super) async fn path_readlink(
    call: &mut Call<'_>,
    fd: Fd,
    path: u32,
    len: u32,
    buffer: u32,
    room: u32,
    out: u32,
) -> Done {
    let (dir, path) = call.at(fd, path, len)?;
    let target = call.files().readlink_at(dir, path).await?;
    let told = &target.as_bytes()[..target.len().min(room as usize)];
    call.write(buffer, told)?;
    Ok(call.write_size(out, told.len())?)
}
