//! WASI preview 1: what core modules import.
//!
//! Arguments, environment, clocks and random numbers are wasmtime-wasi's own. Whatever has to do with descriptors is here:
//! wasmtime-wasi's would block threads that are everybody's, read whole directories at once, and know no sockets, nor any
//! account. Files are those of [`crate::files`], output goes to the container's log, and a place in the table of descriptors
//! is charged as a component's handle is.
//!
//! A program cannot open sockets: preview 1 has no function for that. It can listen on those that it finds open, from
//! descriptor 3 on, for each port that its container declares; how many they are the variable `LISTEN_FDS` says. Directories
//! follow them.

#![allow(clippy::too_many_arguments, reason = "as many as the interface's functions have")]

mod call;
mod descriptors;
mod directories;
mod errno;
mod events;
mod paths;
mod sockets;
mod stat;
mod streams;

use wasmtime::{Caller, Linker};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::{self, WasiP1Ctx};

use crate::linker::State;
use call::{Call, told};
pub(crate) use descriptors::Stdio;
use descriptors::{Descriptors, Fd};

/// The module that programs import from.
pub(crate) const MODULE: &str = "wasi_snapshot_preview1";

/// Where the number of listening sockets is told, as systemd does. The first is descriptor 3.
pub(crate) const LISTEN_FDS: &str = "LISTEN_FDS";

/// The part of a store that a core module needs.
pub(crate) struct Preview1 {
    wasi: WasiP1Ctx,
    descriptors: Descriptors,
}

impl Preview1 {
    pub(crate) fn new(wasi: WasiP1Ctx, stdio: Stdio) -> Preview1 {
        Preview1 { wasi, descriptors: Descriptors::new(stdio) }
    }
}

macro_rules! functions {
    ($linker:ident: $($name:literal => $function:path: ($($argument:ident: $type:ty),*),)*) => {$(
        $linker.func_wrap_async(MODULE, $name, |caller: Caller<'_, State>, ($($argument,)*): ($($type,)*)| {
            Box::new(async move {
                let mut call = Call::new(caller)?;
                told($function(&mut call, $($argument),*).await)
            })
        })?;
    )*};
}

/// All that a module may import.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    p1::add_to_linker_async(linker, |state: &mut State| &mut state.preview1().wasi)?;
    linker.allow_shadowing(true);
    linker.func_wrap(MODULE, "proc_exit", |_: Caller<'_, State>, code: u32| -> wasmtime::Result<()> {
        // As much of it as a process's parent is told.
        Err(I32Exit((code & 0xff).cast_signed()).into())
    })?;
    functions! { linker:
        "fd_advise" => stat::fd_advise: (fd: Fd, offset: u64, len: u64, advice: u32),
        "fd_allocate" => stat::fd_allocate: (fd: Fd, offset: u64, len: u64),
        "fd_close" => descriptors::fd_close: (fd: Fd),
        "fd_datasync" => stat::fd_datasync: (fd: Fd),
        "fd_fdstat_get" => descriptors::fd_fdstat_get: (fd: Fd, out: u32),
        "fd_fdstat_set_flags" => descriptors::fd_fdstat_set_flags: (fd: Fd, flags: u32),
        "fd_fdstat_set_rights" => descriptors::fd_fdstat_set_rights: (fd: Fd, base: u64, inheriting: u64),
        "fd_filestat_get" => stat::fd_filestat_get: (fd: Fd, out: u32),
        "fd_filestat_set_size" => stat::fd_filestat_set_size: (fd: Fd, size: u64),
        "fd_filestat_set_times" => stat::fd_filestat_set_times: (fd: Fd, accessed: u64, modified: u64, which: u32),
        "fd_pread" => streams::fd_pread: (fd: Fd, vectors: u32, count: u32, offset: u64, out: u32),
        "fd_prestat_dir_name" => descriptors::fd_prestat_dir_name: (fd: Fd, path: u32, len: u32),
        "fd_prestat_get" => descriptors::fd_prestat_get: (fd: Fd, out: u32),
        "fd_pwrite" => streams::fd_pwrite: (fd: Fd, vectors: u32, count: u32, offset: u64, out: u32),
        "fd_read" => streams::fd_read: (fd: Fd, vectors: u32, count: u32, out: u32),
        "fd_readdir" => directories::fd_readdir: (fd: Fd, buffer: u32, len: u32, cookie: u64, out: u32),
        "fd_renumber" => descriptors::fd_renumber: (from: Fd, to: Fd),
        "fd_seek" => streams::fd_seek: (fd: Fd, offset: i64, whence: u32, out: u32),
        "fd_sync" => stat::fd_sync: (fd: Fd),
        "fd_tell" => streams::fd_tell: (fd: Fd, out: u32),
        "fd_write" => streams::fd_write: (fd: Fd, vectors: u32, count: u32, out: u32),
        "path_create_directory" => paths::path_create_directory: (fd: Fd, path: u32, len: u32),
        "path_filestat_get" => stat::path_filestat_get: (fd: Fd, flags: u32, path: u32, len: u32, out: u32),
        "path_filestat_set_times" => stat::path_filestat_set_times:
            (fd: Fd, flags: u32, path: u32, len: u32, accessed: u64, modified: u64, which: u32),
        "path_link" => paths::path_link:
            (fd: Fd, flags: u32, path: u32, len: u32, to_fd: Fd, to_path: u32, to_len: u32),
        "path_open" => paths::path_open:
            (fd: Fd, lookup: u32, path: u32, len: u32, open: u32, base: u64, inheriting: u64, flags: u32, out: u32),
        "path_readlink" => paths::path_readlink: (fd: Fd, path: u32, len: u32, buffer: u32, room: u32, out: u32),
        "path_remove_directory" => paths::path_remove_directory: (fd: Fd, path: u32, len: u32),
        "path_rename" => paths::path_rename: (fd: Fd, path: u32, len: u32, to_fd: Fd, to_path: u32, to_len: u32),
        "path_symlink" => paths::path_symlink: (path: u32, len: u32, fd: Fd, to_path: u32, to_len: u32),
        "path_unlink_file" => paths::path_unlink_file: (fd: Fd, path: u32, len: u32),
        "poll_oneoff" => events::poll_oneoff: (subscriptions: u32, events: u32, count: u32, out: u32),
        "sock_accept" => sockets::sock_accept: (fd: Fd, flags: u32, out: u32),
        "sock_recv" => sockets::sock_recv:
            (fd: Fd, vectors: u32, count: u32, flags: u32, out: u32, out_flags: u32),
        "sock_send" => sockets::sock_send: (fd: Fd, vectors: u32, count: u32, flags: u32, out: u32),
        "sock_shutdown" => sockets::sock_shutdown: (fd: Fd, how: u32),
    }
    linker.allow_shadowing(false);
    Ok(())
}
