//! `wasi:filesystem` 0.3.

mod streams;

use std::sync::Arc;

use wasmtime::component::{Access, Accessor, FutureReader, StreamReader};
use wasmtime_wasi::p3::bindings::filesystem::{preopens, types};
use wasmtime_wasi::p3::filesystem::{FilesystemError, FilesystemResult};

use super::convert::{self, error, path_flags, timestamp};
use super::transfer::Place;
use super::{Files, FilesCtxView, Handle, OpenDescriptor, PodFiles};
use streams::{Entries, Reading, Writing};
use types::{Advice, DescriptorFlags, DirectoryEntry, ErrorCode, NewTimestamp, OpenFlags, PathFlags};

/// The end of a stream, as the guest is told.
type End = FutureReader<Result<(), ErrorCode>>;

impl preopens::Host for FilesCtxView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Handle, String)>> {
        FilesCtxView::get_directories(self)
    }
}

impl types::Host for FilesCtxView<'_> {
    fn convert_error_code(&mut self, error: FilesystemError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

impl types::HostDescriptor for FilesCtxView<'_> {
    fn drop(&mut self, fd: Handle) -> wasmtime::Result<()> {
        self.close(&fd)
    }
}

/// What the handle stands for, and where its calls are done. One that stands for nothing of ours is a trap.
fn at<T>(store: &Accessor<T, PodFiles>, fd: &Handle) -> FilesystemResult<(Arc<Files>, OpenDescriptor)> {
    store.with(|mut store| {
        let view = store.get();
        Ok((Arc::clone(view.files), view.opened(fd).map_err(FilesystemError::trap)?))
    })
}

/// As [`at`], for two handles.
fn both<T>(
    store: &Accessor<T, PodFiles>,
    fd: &Handle,
    other: &Handle,
) -> FilesystemResult<(Arc<Files>, OpenDescriptor, OpenDescriptor)> {
    let (files, opened) = at(store, fd)?;
    Ok((files, opened, at(store, other)?.1))
}

fn write<T: 'static>(
    mut store: Access<'_, T, PodFiles>,
    fd: &Handle,
    mut data: StreamReader<u8>,
    place: Place,
) -> wasmtime::Result<End> {
    let view = store.get();
    let opened = view.opened(fd)?;
    let account = Arc::clone(&view.files.account);
    match opened.writable() {
        Ok(()) => {
            let (writing, end) = Writing::new(account, opened, place);
            data.pipe(&mut store, writing)?;
            FutureReader::new(&mut store, end)
        }
        Err(code) => {
            data.close(&mut store)?;
            FutureReader::new(&mut store, async move { wasmtime::error::Ok(Err(convert::code(code))) })
        }
    }
}

impl<T: 'static> types::HostDescriptorWithStore<T> for PodFiles {
    fn read_via_stream(
        mut store: Access<'_, T, Self>,
        fd: Handle,
        offset: u64,
    ) -> wasmtime::Result<(StreamReader<u8>, End)> {
        let view = store.get();
        let opened = view.opened(&fd)?;
        let account = Arc::clone(&view.files.account);
        match opened.readable() {
            Ok(()) => {
                let (reading, end) = Reading::new(account, opened, offset);
                Ok((StreamReader::new(&mut store, reading)?, FutureReader::new(&mut store, end)?))
            }
            Err(code) => {
                let stream = StreamReader::new(&mut store, std::iter::empty())?;
                let end = async move { wasmtime::error::Ok(Err(convert::code(code))) };
                Ok((stream, FutureReader::new(&mut store, end)?))
            }
        }
    }

    fn write_via_stream(
        store: Access<'_, T, Self>,
        fd: Handle,
        data: StreamReader<u8>,
        offset: u64,
    ) -> wasmtime::Result<End> {
        write(store, &fd, data, Place::At(offset))
    }

    fn append_via_stream(
        store: Access<'_, T, Self>,
        fd: Handle,
        data: StreamReader<u8>,
    ) -> wasmtime::Result<End> {
        write(store, &fd, data, Place::End)
    }

    fn read_directory(
        mut store: Access<'_, T, Self>,
        fd: Handle,
    ) -> wasmtime::Result<(StreamReader<DirectoryEntry>, End)> {
        let view = store.get();
        let (entries, end) = Entries::new(Arc::clone(&view.files.account), view.opened(&fd)?);
        Ok((StreamReader::new(&mut store, entries)?, FutureReader::new(&mut store, end)?))
    }

    async fn advise(
        store: &Accessor<T, Self>,
        fd: Handle,
        offset: u64,
        length: u64,
        advice: Advice,
    ) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.advise(on, offset, length, convert::advice(advice)).await.map_err(error)
    }

    async fn sync_data(store: &Accessor<T, Self>, fd: Handle) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.sync_data(on).await.map_err(error)
    }

    async fn get_flags(store: &Accessor<T, Self>, fd: Handle) -> FilesystemResult<DescriptorFlags> {
        let (files, on) = at(store, &fd)?;
        files.get_flags(&on).map(convert::flags).map_err(error)
    }

    async fn get_type(store: &Accessor<T, Self>, fd: Handle) -> FilesystemResult<types::DescriptorType> {
        let (files, on) = at(store, &fd)?;
        files.get_type(on).await.map(convert::kind).map_err(error)
    }

    async fn set_size(store: &Accessor<T, Self>, fd: Handle, size: u64) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.set_size(on, size).await.map_err(error)
    }

    async fn set_times(
        store: &Accessor<T, Self>,
        fd: Handle,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.set_times(on, timestamp(accessed)?, timestamp(modified)?).await.map_err(error)
    }

    async fn sync(store: &Accessor<T, Self>, fd: Handle) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.sync(on).await.map_err(error)
    }

    async fn create_directory_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        path: String,
    ) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.create_directory_at(on, path).await.map_err(error)
    }

    async fn stat(store: &Accessor<T, Self>, fd: Handle) -> FilesystemResult<types::DescriptorStat> {
        let (files, on) = at(store, &fd)?;
        files.stat(on).await.map(convert::stat).map_err(error)
    }

    async fn stat_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        flags: PathFlags,
        path: String,
    ) -> FilesystemResult<types::DescriptorStat> {
        let (files, on) = at(store, &fd)?;
        files.stat_at(on, path_flags(flags), path).await.map(convert::stat).map_err(error)
    }

    async fn set_times_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        flags: PathFlags,
        path: String,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        let times = (timestamp(accessed)?, timestamp(modified)?);
        files.set_times_at(on, path_flags(flags), path, times).await.map_err(error)
    }

    async fn link_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        flags: PathFlags,
        path: String,
        other: Handle,
        to_path: String,
    ) -> FilesystemResult<()> {
        let (files, on, other) = both(store, &fd, &other)?;
        files.link_at(on, path_flags(flags), path, (other, to_path)).await.map_err(error)
    }

    async fn open_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        path_flags: PathFlags,
        path: String,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FilesystemResult<Handle> {
        let (files, on) = at(store, &fd)?;
        let how = (convert::open_flags(open_flags), convert::wanted(flags));
        let opened = files.open_at(on, convert::path_flags(path_flags), path, how).await.map_err(error)?;
        store.with(|mut store| store.get().push(opened)).map_err(FilesystemError::trap)
    }

    async fn readlink_at(store: &Accessor<T, Self>, fd: Handle, path: String) -> FilesystemResult<String> {
        let (files, on) = at(store, &fd)?;
        files.readlink_at(on, path).await.map_err(error)
    }

    async fn remove_directory_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        path: String,
    ) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.remove_directory_at(on, path).await.map_err(error)
    }

    async fn rename_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        path: String,
        other: Handle,
        to_path: String,
    ) -> FilesystemResult<()> {
        let (files, on, other) = both(store, &fd, &other)?;
        files.rename_at(on, path, (other, to_path)).await.map_err(error)
    }

    async fn symlink_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        path: String,
        link: String,
    ) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.symlink_at(on, path, link).await.map_err(error)
    }

    async fn unlink_file_at(store: &Accessor<T, Self>, fd: Handle, path: String) -> FilesystemResult<()> {
        let (files, on) = at(store, &fd)?;
        files.unlink_file_at(on, path).await.map_err(error)
    }

    async fn is_same_object(store: &Accessor<T, Self>, fd: Handle, other: Handle) -> wasmtime::Result<bool> {
        let (files, on, other) = both(store, &fd, &other)?;
        files.is_same_object(on, other).await
    }

    async fn metadata_hash(
        store: &Accessor<T, Self>,
        fd: Handle,
    ) -> FilesystemResult<types::MetadataHashValue> {
        let (files, on) = at(store, &fd)?;
        files.metadata_hash(on).await.map(convert::hash).map_err(error)
    }

    async fn metadata_hash_at(
        store: &Accessor<T, Self>,
        fd: Handle,
        flags: PathFlags,
        path: String,
    ) -> FilesystemResult<types::MetadataHashValue> {
        let (files, on) = at(store, &fd)?;
        files.metadata_hash_at(on, path_flags(flags), path).await.map(convert::hash).map_err(error)
    }
}
