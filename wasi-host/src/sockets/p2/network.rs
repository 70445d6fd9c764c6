//! The network handle, and the meaning of stream errors.

use crate::net::NetError;
use crate::sockets::SocketCtxView;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::instance_network;
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, Network};

/// The handle that the 0.2 functions ask for. The pod has one network, so it holds nothing.
pub(super) struct PodNetwork;

impl SocketCtxView<'_> {
    /// Traps on a handle that is no network.
    pub(super) fn check_network(&mut self, network: Resource<Network>) -> Result<(), SocketError> {
        self.table.get(&Resource::<PodNetwork>::new_borrow(network.rep()))?;
        Ok(())
    }
}

impl instance_network::Host for SocketCtxView<'_> {
    fn instance_network(&mut self) -> wasmtime::Result<Resource<Network>> {
        let network = self.table.push(PodNetwork)?;
        Ok(Resource::new_own(network.rep()))
    }
}

impl network::Host for SocketCtxView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        let error = self.table.get(&error)?;
        Ok(error.downcast_ref::<NetError>().map(|error| ErrorCode::from(*error)))
    }
}

impl network::HostNetwork for SocketCtxView<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<PodNetwork>::new_own(network.rep()))?;
        Ok(())
    }
}
