//! `wasi:http` as a capability: requests out, over the pod's network, and the types of both ways.

use std::any::Any;
use std::sync::Arc;

use tokio::sync::Semaphore;
use wasmtime::component::Linker;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::outgoing::{OUTGOING_MAX, OutgoingHttp};
use super::{contents, growing};
use crate::capability::{Capability, ContainerParts};
use crate::ledger::{Account, Refused};
use crate::linker::{self, Parts};
use crate::net::Namespace;
use crate::sandbox::StartError;

/// Bytes of one set of HTTP headers, with some 70 for each field.
const FIELDS_BYTES_MAX: usize = 64 << 10;

/// The capability.
pub(crate) struct PodHttp;

/// What a container sends requests by.
pub(crate) struct HttpGrant {
    namespace: Namespace,
    /// Requests that may be under way.
    permits: Arc<Semaphore>,
    account: Arc<Account>,
}

/// One store's HTTP.
pub(crate) struct HttpState {
    ctx: WasiHttpCtx,
    outgoing: OutgoingHttp,
}

impl Capability for PodHttp {
    const NAME: &'static str = "wasi:http";

    type Grant = HttpGrant;
    type State = HttpState;

    fn add_p2_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
        growing::add_p2_to_linker(linker)
    }

    fn add_p3_to_linker(linker: &mut Linker<linker::State>) -> wasmtime::Result<()> {
        wasmtime_wasi_http::p3::add_to_linker(linker)?;
        growing::add_p3_to_linker(linker)
    }

    fn grant(container: &ContainerParts<'_>) -> Result<HttpGrant, StartError> {
        Ok(HttpGrant {
            namespace: container.namespace.clone(),
            permits: Arc::new(Semaphore::new(OUTGOING_MAX)),
            account: Arc::clone(container.account),
        })
    }

    fn state(grant: &HttpGrant) -> HttpState {
        let HttpGrant { namespace, permits, account } = grant;
        let mut ctx = WasiHttpCtx::new();
        ctx.set_field_size_limit(FIELDS_BYTES_MAX);
        let outgoing = OutgoingHttp::new(namespace.clone(), Arc::clone(permits), Arc::clone(account));
        HttpState { ctx, outgoing }
    }

    fn content_bytes(entry: &dyn Any) -> u64 {
        contents::content_bytes(entry)
    }
}

impl HttpState {
    /// The guest ends: so do the requests that it has not.
    pub(crate) fn cut_bodies(&self) {
        self.outgoing.cut_bodies();
    }
}

impl WasiHttpView for linker::State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let Parts { states, table, meter } = self.parts();
        let HttpState { ctx, outgoing } = &mut states.http;
        if outgoing.take_changed() || meter.is_over() {
            meter.count(table);
            outgoing.squeeze(meter.is_over());
        }
        WasiHttpCtxView { ctx, table, hooks: outgoing }
    }
}

impl linker::State {
    /// Whether the host may hold more for the guest than it does: more fields, larger ones, another request.
    pub(super) fn may_grow(&mut self) -> bool {
        self.http();
        !self.parts().meter.is_over()
    }

    /// Something of an outgoing request was set.
    pub(super) fn note_http_change(&mut self) {
        self.parts().states.http.outgoing.note_change();
    }

    /// The head of a request that the guest will have, for as long as the store lives.
    pub(super) fn hold_head(&mut self, bytes: u64) -> Result<(), Refused> {
        self.parts().meter.hold(bytes)
    }
}
