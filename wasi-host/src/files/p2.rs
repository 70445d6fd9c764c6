//! `wasi:filesystem` 0.2.

mod streams;

use std::future::poll_fn;

use wasmtime::component::Resource;
use wasmtime_wasi::filesystem::{WasiFilesystemCtx, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::{preopens, types};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsError, FsResult};

use super::listing::Listing;
use super::transfer::Place;
use super::{FilesCtxView, Handle, OpenDescriptor};
use streams::{Reading, Writing};
use types::{Advice, ErrorCode, NewTimestamp};

/// The handle type that the generated traits speak of; only its number is ours.
type Entries = Resource<types::DirectoryEntryStream>;

impl preopens::Host for FilesCtxView<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Handle, String)>> {
        FilesCtxView::get_directories(self)
    }
}

impl types::Host for FilesCtxView<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn filesystem_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        let mut ctx = WasiFilesystemCtx::default();
        types::Host::filesystem_error_code(
            &mut WasiFilesystemCtxView { ctx: &mut ctx, table: self.table },
            error,
        )
    }
}

impl FilesCtxView<'_> {
    /// What the handle stands for. One that stands for nothing of ours is a trap.
    fn at(&self, fd: &Handle) -> FsResult<OpenDescriptor> {
        self.opened(fd).map_err(FsError::trap)
    }

    fn writing(&mut self, fd: &Handle, place: Place) -> FsResult<Resource<DynOutputStream>> {
        let opened = self.at(fd)?;
        opened.writable()?;
        let stream: DynOutputStream = Box::new(Writing::new(&self.files.account, opened, place));
        Ok(self.table.push(stream)?)
    }
}

impl types::HostDescriptor for FilesCtxView<'_> {
    fn read_via_stream(&mut self, fd: Handle, offset: u64) -> FsResult<Resource<DynInputStream>> {
        let opened = self.at(&fd)?;
        opened.readable()?;
        let stream: DynInputStream = Box::new(Reading::new(&self.files.account, opened, offset));
        Ok(self.table.push(stream)?)
    }

    fn write_via_stream(&mut self, fd: Handle, offset: u64) -> FsResult<Resource<DynOutputStream>> {
        self.writing(&fd, Place::At(offset))
    }

    fn append_via_stream(&mut self, fd: Handle) -> FsResult<Resource<DynOutputStream>> {
        self.writing(&fd, Place::End)
    }

    async fn advise(&mut self, fd: Handle, offset: u64, len: u64, advice: Advice) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.advise(opened, offset, len, advice).await
    }

    async fn sync_data(&mut self, fd: Handle) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.sync_data(opened).await
    }

    async fn get_flags(&mut self, fd: Handle) -> FsResult<types::DescriptorFlags> {
        let opened = self.at(&fd)?;
        self.files.get_flags(&opened)
    }

    async fn get_type(&mut self, fd: Handle) -> FsResult<types::DescriptorType> {
        let opened = self.at(&fd)?;
        self.files.get_type(opened).await
    }

    async fn set_size(&mut self, fd: Handle, size: u64) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.set_size(opened, size).await
    }

    async fn set_times(&mut self, fd: Handle, atim: NewTimestamp, mtim: NewTimestamp) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.set_times(opened, atim, mtim).await
    }

    async fn read(&mut self, fd: Handle, len: u64, offset: u64) -> FsResult<(Vec<u8>, bool)> {
        let opened = self.at(&fd)?;
        self.files.read(opened, len, offset).await
    }

    async fn write(&mut self, fd: Handle, bytes: Vec<u8>, offset: u64) -> FsResult<u64> {
        let opened = self.at(&fd)?;
        self.files.write(opened, bytes, offset).await
    }

    async fn read_directory(&mut self, fd: Handle) -> FsResult<Entries> {
        let opened = self.at(&fd)?;
        let listing = Listing::open(self.files.account.clone(), opened).await?;
        Ok(Resource::new_own(self.table.push(listing)?.rep()))
    }

    async fn sync(&mut self, fd: Handle) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.sync(opened).await
    }

    async fn create_directory_at(&mut self, fd: Handle, path: String) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.create_directory_at(opened, path).await
    }

    async fn stat(&mut self, fd: Handle) -> FsResult<types::DescriptorStat> {
        let opened = self.at(&fd)?;
        self.files.stat(opened).await
    }

    async fn stat_at(
        &mut self,
        fd: Handle,
        flags: types::PathFlags,
        path: String,
    ) -> FsResult<types::DescriptorStat> {
        let opened = self.at(&fd)?;
        self.files.stat_at(opened, flags, path).await
    }

    async fn set_times_at(
        &mut self,
        fd: Handle,
        flags: types::PathFlags,
        path: String,
        atim: NewTimestamp,
        mtim: NewTimestamp,
    ) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.set_times_at(opened, flags, path, (atim, mtim)).await
    }

    async fn link_at(
        &mut self,
        fd: Handle,
        flags: types::PathFlags,
        path: String,
        other: Handle,
        to_path: String,
    ) -> FsResult<()> {
        let opened = self.at(&fd)?;
        let other = self.at(&other)?;
        self.files.link_at(opened, flags, path, (other, to_path)).await
    }

    async fn open_at(
        &mut self,
        fd: Handle,
        path_flags: types::PathFlags,
        path: String,
        open_flags: types::OpenFlags,
        flags: types::DescriptorFlags,
    ) -> FsResult<Handle> {
        let opened = self.at(&fd)?;
        let found = self.files.open_at(opened, path_flags, path, (open_flags, flags)).await?;
        self.push(found).map_err(FsError::trap)
    }

    async fn readlink_at(&mut self, fd: Handle, path: String) -> FsResult<String> {
        let opened = self.at(&fd)?;
        self.files.readlink_at(opened, path).await
    }

    async fn remove_directory_at(&mut self, fd: Handle, path: String) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.remove_directory_at(opened, path).await
    }

    async fn rename_at(&mut self, fd: Handle, path: String, other: Handle, to_path: String) -> FsResult<()> {
        let opened = self.at(&fd)?;
        let other = self.at(&other)?;
        self.files.rename_at(opened, path, (other, to_path)).await
    }

    async fn symlink_at(&mut self, fd: Handle, path: String, link: String) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.symlink_at(opened, path, link).await
    }

    async fn unlink_file_at(&mut self, fd: Handle, path: String) -> FsResult<()> {
        let opened = self.at(&fd)?;
        self.files.unlink_file_at(opened, path).await
    }

    async fn is_same_object(&mut self, fd: Handle, other: Handle) -> wasmtime::Result<bool> {
        let (opened, other) = (self.opened(&fd)?, self.opened(&other)?);
        self.files.is_same_object(opened, other).await
    }

    async fn metadata_hash(&mut self, fd: Handle) -> FsResult<types::MetadataHashValue> {
        let opened = self.at(&fd)?;
        self.files.metadata_hash(opened).await
    }

    async fn metadata_hash_at(
        &mut self,
        fd: Handle,
        flags: types::PathFlags,
        path: String,
    ) -> FsResult<types::MetadataHashValue> {
        let opened = self.at(&fd)?;
        self.files.metadata_hash_at(opened, flags, path).await
    }

    fn drop(&mut self, fd: Handle) -> wasmtime::Result<()> {
        self.close(&fd)
    }
}

impl types::HostDirectoryEntryStream for FilesCtxView<'_> {
    async fn read_directory_entry(&mut self, stream: Entries) -> FsResult<Option<types::DirectoryEntry>> {
        let listing = self.table.get_mut(&Resource::<Listing>::new_borrow(stream.rep()))?;
        Ok(poll_fn(|cx| listing.poll_next(cx)).await.transpose()?)
    }

    fn drop(&mut self, stream: Entries) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Listing>::new_own(stream.rep()))?;
        Ok(())
    }
}
