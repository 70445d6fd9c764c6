//! Name lookup of 0.3.

use crate::sockets::{PodSockets, SocketCtxView};
use wasmtime::component::Accessor;
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::{ErrorCode, Host, HostWithStore};
use wasmtime_wasi::p3::bindings::sockets::types::IpAddress;

impl<T> HostWithStore<T> for PodSockets {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, ErrorCode>> {
        let namespace = store.with(|mut view| view.get().namespace.clone());
        let resolved = namespace.resolve(&name).await;
        Ok(resolved
            .map(|addresses| addresses.into_iter().map(IpAddress::from).collect())
            .map_err(ErrorCode::from))
    }
}

impl Host for SocketCtxView<'_> {}
