//! The one place of all grants: what a guest is linked to, and what its store holds.
//!
//! Nothing is inherited from the process. A guest has the clocks and random numbers, its own arguments, environment,
//! output, directories and network namespace, and nothing that is not named here.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use wasmtime::Engine;
use wasmtime::component::Linker;
use wasmtime_wasi::{FsPerms, ResourceTable, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::engine::WasiVersion;
use crate::http::OutgoingHttp;
use crate::limits::{MemoryAccount, RANDOM_BYTES_MAX, RESOURCES_MAX, StoreLimiter};
use crate::logs::{LogSink, LogStream};
use crate::net::Namespace;
use crate::sockets::{self, SocketCtxView, SocketView};
use crate::stdin::OpenStdin;

/// Bytes of one set of HTTP headers.
const FIELDS_BYTES_MAX: usize = 128 << 10;

/// A directory of the host that a guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The directory on the host.
    pub host: PathBuf,
    /// Its absolute path in the guest.
    pub guest: String,
    /// Nothing under it can be changed by the guest.
    pub read_only: bool,
}

/// What one container's instances are given.
pub(crate) struct Grants {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) stdout: Arc<dyn LogSink>,
    pub(crate) stderr: Arc<dyn LogSink>,
    /// Standard input waits until this is cancelled and ends then; without it, it is at its end from the start.
    pub(crate) stdin_until: Option<CancellationToken>,
    pub(crate) namespace: Namespace,
    pub(crate) memory: Arc<MemoryAccount>,
    /// Outgoing HTTP requests of the container that may be under way.
    pub(crate) outgoing: Arc<Semaphore>,
}

impl Grants {
    /// The data of a new store. Fails where a mounted directory cannot be opened.
    pub(crate) fn state(&self, seat: OwnedSemaphorePermit) -> wasmtime::Result<State> {
        let mut builder = WasiCtx::builder();
        builder
            .args(&self.args)
            .envs(&self.env)
            .stdout(LogStream::new(Arc::clone(&self.stdout)))
            .stderr(LogStream::new(Arc::clone(&self.stderr)))
            .max_random_size(RANDOM_BYTES_MAX);
        if let Some(until) = &self.stdin_until {
            builder.stdin(OpenStdin::new(until.clone()));
        }
        for mount in &self.mounts {
            let permissions = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            builder.preopened_dir(&mount.host, &mount.guest, permissions)?;
        }
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES_MAX);
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Ok(State {
            table,
            wasi: builder.build(),
            http,
            outgoing: OutgoingHttp::new(self.namespace.clone(), Arc::clone(&self.outgoing)),
            namespace: self.namespace.clone(),
            limiter: StoreLimiter::new(Arc::clone(&self.memory)),
            _seat: seat,
        })
    }
}

/// The data of every store.
///
/// The table is first: what it holds is dropped before what that refers to.
pub(crate) struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: OutgoingHttp,
    namespace: Namespace,
    pub(crate) limiter: StoreLimiter,
    /// One of the live instances that the host admits.
    _seat: OwnedSemaphorePermit,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.outgoing }
    }
}

impl SocketView for State {
    fn sockets(&mut self) -> SocketCtxView<'_> {
        SocketCtxView { table: &mut self.table, namespace: &self.namespace }
    }
}

/// All that a component may import. What is not here cannot be imported.
pub(crate) fn linker(engine: &Engine, version: WasiVersion) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if version == WasiVersion::P3 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    // The sockets above are the host's own and deny everything; the pod's take their place.
    sockets::add_p2_to_linker(&mut linker)?;
    if version == WasiVersion::P3 {
        sockets::add_p3_to_linker(&mut linker)?;
    }
    Ok(linker)
}
