//! What guests ask of files and directories, each done by wasmtime-wasi's function on a thread that may block.
//!
//! The function is given a resource table of its own, which holds what the call concerns: the guest's table stays with
//! the guest.

use std::sync::Arc;

use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtx, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, DescriptorFlags, DescriptorStat, DescriptorType, ErrorCode, HostDescriptor as _,
    MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{FsError, FsResult};

use super::listing::Listing;
use super::transfer::{self, Place};
use super::usage::{ENTRY_BYTES, FileId, Named, OpenFile, Usage};
use super::{Files, OpenDescriptor, Opened, fitting, not_done, now};

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

    /// What a path of a volume stands for, if for anything.
    fn named(&mut self, on: &OpenDescriptor, flags: PathFlags, path: &str) -> Option<Named> {
        let (at, again) = (self.handle(on).ok()?, self.handle(on).ok()?);
        let stat = now(self.view().stat_at(at, flags, path.to_owned())).ok()?;
        let id = now(self.view().metadata_hash_at(again, flags, path.to_owned())).ok()?;
        let bytes = (stat.type_ == DescriptorType::RegularFile).then_some(stat.size);
        Some(Named { id: file_id(&id), bytes, is_last_name: stat.link_count == 1 })
    }

    /// Does what takes a name away, or has it stand for something else than before: for `instead`, where there is that.
    fn replace_name<R>(
        &mut self,
        on: &OpenDescriptor,
        path: &str,
        instead: impl FnOnce(&mut Self) -> Option<FileId>,
        work: impl FnOnce(&mut Self) -> FsResult<R>,
    ) -> FsResult<R> {
        let Some(volume) = &on.volume else { return work(self) };
        let names = volume.change_names();
        let named = self.named(on, PathFlags::empty(), path);
        let instead = instead(self);
        let done = work(self)?;
        // Of two names of one file the kernel takes none away.
        if let Some(named) = named.filter(|named| instead != Some(named.id)) {
            names.removed(named);
        }
        Ok(done)
    }

    /// Opens what a path of a volume stands for, and counts what that makes, cuts off and has open.
    fn open(
        &mut self,
        volume: &Arc<Usage>,
        (on, path_flags, path): (&OpenDescriptor, PathFlags, &str),
        (open_flags, flags): (OpenFlags, DescriptorFlags),
    ) -> FsResult<(Descriptor, Option<OpenFile>)> {
        let open = |to: &mut Self| to.open_uncounted((on, path_flags, path), (open_flags, flags));
        if !open_flags.intersects(OpenFlags::CREATE | OpenFlags::TRUNCATE) {
            let _names = volume.keep_names();
            let descriptor = open(self)?;
            let counted = self.counted(volume, &descriptor)?;
            return Ok((descriptor, counted));
        }
        let names = volume.change_names();
        let descriptor = match self.named(on, path_flags, path) {
            None if open_flags.contains(OpenFlags::CREATE) => names.add(|| open(self))?,
            None => open(self)?,
            Some(Named { id, .. }) if open_flags.contains(OpenFlags::TRUNCATE) => {
                let length = |to: &mut Self| to.named(on, path_flags, path)?.bytes;
                names.truncate(id, self, length, open)?
            }
            Some(_) => open(self)?,
        };
        let counted = self.counted(volume, &descriptor)?;
        Ok((descriptor, counted))
    }

    fn open_uncounted(
        &mut self,
        (on, path_flags, path): (&OpenDescriptor, PathFlags, &str),
        (open_flags, flags): (OpenFlags, DescriptorFlags),
    ) -> FsResult<Descriptor> {
        let on = self.handle(on)?;
        let opened = now(self.view().open_at(on, path_flags, path.to_owned(), open_flags, flags))?;
        Ok(self.table.delete(opened)?)
    }

    fn counted(&mut self, volume: &Arc<Usage>, opened: &Descriptor) -> FsResult<Option<OpenFile>> {
        let Descriptor::File(file) = opened else { return Ok(None) };
        let of = self.table.push(opened.clone())?;
        let id = now(self.view().metadata_hash(of))?;
        Ok(Some(volume.opened(file_id(&id), Arc::clone(&file.file))))
    }
}

fn file_id(hash: &MetadataHashValue) -> FileId {
    (hash.lower, hash.upper)
}

impl Files {
    /// A call that takes so much of the disk.
    async fn grow<R: Send + 'static>(
        &self,
        bytes: u64,
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

    pub(crate) async fn advise(
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

    pub(crate) async fn sync_data(&self, on: OpenDescriptor) -> FsResult<()> {
        self.synced(move |to| {
            let on = to.handle(&on)?;
            now(to.view().sync_data(on))
        })
        .await
    }

    pub(crate) async fn sync(&self, on: OpenDescriptor) -> FsResult<()> {
        self.synced(move |to| {
            let on = to.handle(&on)?;
            now(to.view().sync(on))
        })
        .await
    }

    /// Asks the kernel's table of open files and no disk: it is done at once.
    pub(crate) fn get_flags(&self, on: &OpenDescriptor) -> FsResult<DescriptorFlags> {
        let mut to = Blocking::of(self);
        let on = to.handle(on)?;
        now(to.view().get_flags(on))
    }

    pub(crate) async fn get_type(&self, on: OpenDescriptor) -> FsResult<DescriptorType> {
        if matches!(on.descriptor()?, Descriptor::Dir(_)) {
            return Ok(DescriptorType::Directory);
        }
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().get_type(on))
        })
        .await
    }

    pub(crate) async fn set_size(&self, on: OpenDescriptor, size: u64) -> FsResult<()> {
        self.grow(ENTRY_BYTES, move |to| {
            let at = to.handle(&on)?;
            on.resize(|_| size, || now(to.view().set_size(at, size)))?
        })
        .await
    }

    pub(crate) async fn set_times(
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

    pub(crate) async fn set_times_at(
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

    pub(crate) async fn read(&self, on: OpenDescriptor, len: u64, offset: u64) -> FsResult<(Vec<u8>, bool)> {
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().read(on, len, offset))
        })
        .await
    }

    pub(crate) async fn write(&self, on: OpenDescriptor, bytes: Vec<u8>, offset: u64) -> FsResult<u64> {
        let charge = self.account.hold(bytes.len())?;
        let len = bytes.len() as u64;
        self.grow(len, move |to| {
            let _charge = charge;
            let at = to.handle(&on)?;
            let after = Place::At(offset);
            on.resize(|before| after.length(before, len), || now(to.view().write(at, bytes, offset)))?
        })
        .await
    }

    /// Writes at the end, wherever that is by then.
    pub(crate) async fn append(&self, on: OpenDescriptor, bytes: Vec<u8>) -> FsResult<u64> {
        on.writable()?;
        let charge = self.account.hold(bytes.len())?;
        self.call(move |_| {
            let (_charge, len) = (charge, bytes.len() as u64);
            transfer::write(&on, bytes.into(), Place::End).map_err(ErrorCode::from)?;
            Ok(len)
        })
        .await
    }

    /// Begins to list a directory.
    pub(crate) async fn list(&self, on: OpenDescriptor) -> FsResult<Listing> {
        Listing::open(Arc::clone(&self.account), on).await
    }

    pub(crate) async fn create_directory_at(&self, on: OpenDescriptor, path: String) -> FsResult<()> {
        let path = fitting(path)?;
        self.grow(ENTRY_BYTES, move |to| {
            let at = to.handle(&on)?;
            on.add_name(|| now(to.view().create_directory_at(at, path)))
        })
        .await
    }

    pub(crate) async fn stat(&self, on: OpenDescriptor) -> FsResult<DescriptorStat> {
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().stat(on))
        })
        .await
    }

    pub(crate) async fn stat_at(
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

    pub(crate) async fn link_at(
        &self,
        on: OpenDescriptor,
        flags: PathFlags,
        path: String,
        (other, to_path): (OpenDescriptor, String),
    ) -> FsResult<()> {
        let (path, to_path) = (fitting(path)?, fitting(to_path)?);
        self.grow(ENTRY_BYTES, move |to| {
            on.is_of_one_volume(&other)?;
            let (from, at) = (to.handle(&on)?, to.handle(&other)?);
            other.add_name(|| now(to.view().link_at(from, flags, path, at, to_path)))
        })
        .await
    }

    pub(crate) async fn rename_at(
        &self,
        on: OpenDescriptor,
        path: String,
        (other, to_path): (OpenDescriptor, String),
    ) -> FsResult<()> {
        let (path, to_path) = (fitting(path)?, fitting(to_path)?);
        self.call(move |to| {
            on.is_of_one_volume(&other)?;
            let (from, at) = (to.handle(&on)?, to.handle(&other)?);
            let what = |to: &mut Blocking| Some(to.named(&on, PathFlags::empty(), &path)?.id);
            to.replace_name(&other, &to_path, what, |to| {
                now(to.view().rename_at(from, path.clone(), at, to_path.clone()))
            })
        })
        .await
    }

    pub(crate) async fn open_at(
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
            let (what, how) = ((&on, path_flags, path.as_str()), (open_flags, flags));
            let (opened, counted) = match &on.volume {
                Some(volume) => to.open(volume, what, how)?,
                None => (to.open_uncounted(what, how)?, None),
            };
            let mut opened = Opened::new(opened, &account, Some(charge));
            (opened.volume, opened.counted) = (on.volume.clone(), counted);
            Ok(Arc::new(opened))
        })
        .await
    }

    pub(crate) async fn readlink_at(&self, on: OpenDescriptor, path: String) -> FsResult<String> {
        let path = fitting(path)?;
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().readlink_at(on, path))
        })
        .await
    }

    pub(crate) async fn remove_directory_at(&self, on: OpenDescriptor, path: String) -> FsResult<()> {
        let path = fitting(path)?;
        self.call(move |to| {
            let at = to.handle(&on)?;
            to.replace_name(&on, &path, |_| None, |to| now(to.view().remove_directory_at(at, path.clone())))
        })
        .await
    }

    pub(crate) async fn symlink_at(&self, on: OpenDescriptor, path: String, link: String) -> FsResult<()> {
        let path = fitting(path)?;
        let link = fitting(link)?;
        self.grow(ENTRY_BYTES, move |to| {
            let at = to.handle(&on)?;
            on.add_name(|| now(to.view().symlink_at(at, path, link)))
        })
        .await
    }

    pub(crate) async fn unlink_file_at(&self, on: OpenDescriptor, path: String) -> FsResult<()> {
        let path = fitting(path)?;
        self.call(move |to| {
            let at = to.handle(&on)?;
            to.replace_name(&on, &path, |_| None, |to| now(to.view().unlink_file_at(at, path.clone())))
        })
        .await
    }

    pub(crate) async fn is_same_object(
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

    pub(crate) async fn metadata_hash(&self, on: OpenDescriptor) -> FsResult<MetadataHashValue> {
        self.call(move |to| {
            let on = to.handle(&on)?;
            now(to.view().metadata_hash(on))
        })
        .await
    }

    pub(crate) async fn metadata_hash_at(
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
