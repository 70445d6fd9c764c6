//! What guests ask of files and directories, each done by wasmtime-wasi's function on a thread that may block.
//!
//! The function is given a resource table of its own, which holds what the call concerns: the guest's table stays with
//! the guest.

use std::sync::Arc;

use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtx, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, DescriptorFlags, DescriptorStat, DescriptorType, HostDescriptor as _, MetadataHashValue,
    NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{FsError, FsResult};

use super::{ENTRY_BYTES, Files, OpenDescriptor, Opened, fitting, not_done, now};

/// What wasmtime-wasi's functions are called with.
struct Blocking {
    ctx: WasiFilesystemCtx,
    table: ResourceTable,
}

impl Blocking {
    fn of(files: &Files) -> Self {
        Self { ctx: files.blocking.clone(), table: ResourceTable::new() }
    }

    fn handle(&mut self, opened: &OpenDescriptor) -> FsResult<Resource<Descriptor>> {
        Ok(self.table.push(opened.descriptor()?.clone())?)
    }

    fn view(&mut self) -> WasiFilesystemCtxView<'_> {
        WasiFilesystemCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}

impl Files {
    /// A call that takes so much of the disk.
    async fn grow<R: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&mut Blocking) -> FsResult<R> + Send + 'static,
    ) -> FsResult<R> {
        let reserve = Arc::clone(&self.account.reserve);
        self.call(move |to| {
            reserve.admit(bytes)?;
            work(to)
        })
        .await
    }

    async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Blocking) -> FsResult<R> + Send + 'static,
    ) -> FsResult<R> {
        let mut blocking = Blocking::of(self);
        let done = self.account.call(move || work(&mut blocking)).await;
        done.unwrap_or_else(|error| Err(not_done(error).into()))
    }

    async fn synced(
        &self,
        work: impl FnOnce(&mut Blocking) -> FsResult<()> + Send + 'static,
    ) -> FsResult<()> {
        let mut blocking = Blocking::of(self);
        let done = self.account.sync(move || work(&mut blocking)).await;
        done.unwrap_or_else(|error| Err(not_done(error).into()))
    }

    pub(super) async fn advise(
        &self,
        on: OpenDescriptor,
        offset: u64,
        len: u64,
        advice: Advice,
    ) -> FsResult<()> {
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().advise(on, offset, len, advice))
        })
        .await
    }

    pub(super) async fn sync_data(&self, on: OpenDescriptor) -> FsResult<()> {
        self.synced(move |to| {
            let on = to.handle(&on)?;
            now(to.view().sync_data(on))
        })
        .await
    }

    pub(super) async fn sync(&self, on: OpenDescriptor) -> FsResult<()> {
        self.synced(move |to| {
            let on = to.handle(&on)?;
            now(to.view().sync(on))
        })
        .await
    }

    /// Asks the kernel's table of open files and no disk: it is done at once.
    pub(super) fn get_flags(&self, on: &OpenDescriptor) -> FsResult<DescriptorFlags> {
        let mut to = Blocking::of(self);
        let on = to.handle(on)?;
        now(to.view().get_flags(on))
    }

    pub(super) async fn get_type(&self, on: OpenDescriptor) -> FsResult<DescriptorType> {
        if matches!(on.descriptor()?, Descriptor::Dir(_)) {
            return Ok(DescriptorType::Directory);
        }
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().get_type(on))
        })
        .await
    }

    pub(super) async fn set_size(&self, on: OpenDescriptor, size: u64) -> FsResult<()> {
        self.grow(ENTRY_BYTES, move |to| {
            let on = to.handle(&on)?;
            now(to.view().set_size(on, size))
        })
        .await
    }

    pub(super) async fn set_times(
        &self,
        on: OpenDescriptor,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FsResult<()> {
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().set_times(on, accessed, modified))
        })
        .await
    }

    pub(super) async fn set_times_at(
        &self,
        on: OpenDescriptor,
        flags: PathFlags,
        path: String,
        (accessed, modified): (NewTimestamp, NewTimestamp),
    ) -> FsResult<()> {
        let path = fitting(path)?;
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().set_times_at(on, flags, path, accessed, modified))
        })
        .await
    }

    pub(super) async fn read(&self, on: OpenDescriptor, len: u64, offset: u64) -> FsResult<(Vec<u8>, bool)> {
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().read(on, len, offset))
        })
        .await
    }

    pub(super) async fn write(&self, on: OpenDescriptor, bytes: Vec<u8>, offset: u64) -> FsResult<u64> {
        let charge = self.account.hold(bytes.len())?;
        self.grow(bytes.len(), move |to| {
            let _charge = charge;
            let on = to.handle(&on)?;
            now(to.view().write(on, bytes, offset))
        })
        .await
    }

    pub(super) async fn create_directory_at(&self, on: OpenDescriptor, path: String) -> FsResult<()> {
        let path = fitting(path)?;
        self.grow(ENTRY_BYTES, move |to| {
            let on = to.handle(&on)?;
            now(to.view().create_directory_at(on, path))
        })
        .await
    }

    pub(super) async fn stat(&self, on: OpenDescriptor) -> FsResult<DescriptorStat> {
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().stat(on))
        })
        .await
    }

    pub(super) async fn stat_at(
        &self,
        on: OpenDescriptor,
        flags: PathFlags,
        path: String,
    ) -> FsResult<DescriptorStat> {
        let path = fitting(path)?;
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().stat_at(on, flags, path))
        })
        .await
    }

    pub(super) async fn link_at(
        &self,
        on: OpenDescriptor,
        flags: PathFlags,
        path: String,
        (other, to_path): (OpenDescriptor, String),
    ) -> FsResult<()> {
        let (path, to_path) = (fitting(path)?, fitting(to_path)?);
        self.grow(ENTRY_BYTES, move |to| {
            let (on, other) = (to.handle(&on)?, to.handle(&other)?);
            now(to.view().link_at(on, flags, path, other, to_path))
        })
        .await
    }

    pub(super) async fn rename_at(
        &self,
        on: OpenDescriptor,
        path: String,
        (other, to_path): (OpenDescriptor, String),
    ) -> FsResult<()> {
        let (path, to_path) = (fitting(path)?, fitting(to_path)?);
        self.call(move |to| {
            let (on, other) = (to.handle(&on)?, to.handle(&other)?);
            now(to.view().rename_at(on, path, other, to_path))
        })
        .await
    }

    pub(super) async fn open_at(
        &self,
        on: OpenDescriptor,
        path_flags: PathFlags,
        path: String,
        (open_flags, flags): (OpenFlags, DescriptorFlags),
    ) -> FsResult<OpenDescriptor> {
        let path = fitting(path)?;
        let account = Arc::clone(&self.account);
        let charge = account.one_more()?;
        self.call(move |to| {
            if open_flags.contains(OpenFlags::CREATE) {
                account.reserve.admit(ENTRY_BYTES)?;
            }
            let on = to.handle(&on)?;
            let opened = now(to.view().open_at(on, path_flags, path, open_flags, flags))?;
            Ok(Arc::new(Opened::new(to.table.delete(opened)?, &account, Some(charge))))
        })
        .await
    }

    pub(super) async fn readlink_at(&self, on: OpenDescriptor, path: String) -> FsResult<String> {
        let path = fitting(path)?;
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().readlink_at(on, path))
        })
        .await
    }

    pub(super) async fn remove_directory_at(&self, on: OpenDescriptor, path: String) -> FsResult<()> {
        let path = fitting(path)?;
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().remove_directory_at(on, path))
        })
        .await
    }

    pub(super) async fn symlink_at(&self, on: OpenDescriptor, path: String, link: String) -> FsResult<()> {
        let path = fitting(path)?;
        let link = fitting(link)?;
        self.grow(ENTRY_BYTES, move |to| {
            let on = to.handle(&on)?;
            now(to.view().symlink_at(on, path, link))
        })
        .await
    }

    pub(super) async fn unlink_file_at(&self, on: OpenDescriptor, path: String) -> FsResult<()> {
        let path = fitting(path)?;
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().unlink_file_at(on, path))
        })
        .await
    }

    pub(super) async fn is_same_object(
        &self,
        on: OpenDescriptor,
        other: OpenDescriptor,
    ) -> wasmtime::Result<bool> {
        let same = self.call(move |to| {
            let (on, other) = (to.handle(&on)?, to.handle(&other)?);
            // It fails only where the kernel cannot say what a file is.
            now(async { to.view().is_same_object(on, other).await.map_err(FsError::trap) })
        });
        Ok(same.await?)
    }

    pub(super) async fn metadata_hash(&self, on: OpenDescriptor) -> FsResult<MetadataHashValue> {
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().metadata_hash(on))
        })
        .await
    }

    pub(super) async fn metadata_hash_at(
        &self,
        on: OpenDescriptor,
        flags: PathFlags,
        path: String,
    ) -> FsResult<MetadataHashValue> {
        let path = fitting(path)?;
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().metadata_hash_at(on, flags, path))
        })
        .await
    }
}
