//! `wasi:filesystem` as a capability: the directories that a container mounts, and nothing above or beside them.

use std::sync::Arc;

use wasmtime::component::{HasData, Linker};
use wasmtime_wasi::{p2 as wasi2, p3 as wasi3};

use super::mounts::PinnedMount;
use super::{Account, Files, FilesCtxView};
use crate::capability::{Capability, ContainerParts};
use crate::ledger::{Charge, Refused};
use crate::linker::{self, Parts};
use crate::sandbox::StartError;

/// The capability, and the name of [`FilesCtxView`] as the data that the generated functions work on.
pub(crate) struct PodFiles;

/// A container's whole file system.
pub(crate) struct FilesGrant {
    files: Arc<Files>,
    /// Directories that it has open.
    dirs: usize,
}

impl HasData for PodFiles {
    type Data<'a> = FilesCtxView<'a>;
}

impl Capability for PodFiles {
    const NAME: &'static str = "wasi:filesystem";

    type Grant = FilesGrant;
    type State = Arc<Files>;

    fn add_p2_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
        use wasi2::bindings::filesystem as wasi;
        wasi::types::add_to_linker::<_, PodFiles>(linker, view)?;
        wasi::preopens::add_to_linker::<_, PodFiles>(linker, view)
    }

    fn add_p3_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
        use wasi3::bindings::filesystem as wasi;
        wasi::types::add_to_linker::<_, PodFiles>(linker, view)?;
        wasi::preopens::add_to_linker::<_, PodFiles>(linker, view)
    }

    fn grant(container: &ContainerParts<'_>) -> Result<FilesGrant, StartError> {
        let (mounts, dirs) = PinnedMount::all(&container.spec.mounts)?;
        let holder = container.namespace.holder().clone();
        let (pools, reserve) = (container.host.files.clone(), Arc::clone(&container.host.reserve));
        let mut files = Files::new(Account::new(pools, holder, Arc::clone(container.account), reserve));
        mounts.into_iter().for_each(|mount| mount.mount(&mut files, |volume| container.disk.usage(volume)));
        Ok(FilesGrant { files: Arc::new(files), dirs })
    }

    fn charge(grant: &FilesGrant) -> Result<Option<Charge>, Refused> {
        grant.files.charge_dirs(grant.dirs).map(Some)
    }

    fn state(grant: &FilesGrant) -> Arc<Files> {
        Arc::clone(&grant.files)
    }
}

fn view(state: &mut linker::State) -> FilesCtxView<'_> {
    let Parts { states, table, .. } = state.parts();
    FilesCtxView { table, files: &states.files }
}
