//! Name lookup of 0.3.

use crate::sockets::{PodSockets, SocketCtxView, resolve};
use wasmtime::component::Accessor;
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::{ErrorCode, Host, HostWithStore};
use wasmtime_wasi::p3::bindings::sockets::types::IpAddress;

impl<T> HostWithStore<T> for PodSockets {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, ErrorCode>> {
        let namespace = store.with(|mut view| view.get().namespace.clone());
        // The charge lasts until the guest has them.
        let resolved = resolve(&namespace, &name).await;
        Ok(resolved
            .map(|(addresses, _charge)| addresses.into_iter().map(IpAddress::from).collect())
            .map_err(ErrorCode::from))
    }
}

impl Host for SocketCtxView<'_> {}
