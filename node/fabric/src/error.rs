//! Why a fabric cannot run.

use std::io;
use std::net::SocketAddr;

/// Errors of starting a fabric; what goes wrong with one connection is a `NetError`.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// A listener's address cannot be taken.
    #[error("cannot listen on {address} for {purpose}; choose another address or stop what holds it")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the listener is for.
        purpose: &'static str,
        #[source]
        source: io::Error,
    },
}
