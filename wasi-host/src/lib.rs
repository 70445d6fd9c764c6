//! The sandbox of Coracle: pods of WebAssembly components, with their network, limits and executor.
//!
//! A [`Host`] prepares artifacts and makes pods; a [`Pod`] is a virtual network namespace with limits; a
//! [`Container`] is a component that runs in it. What lies beyond a pod is reached through one trait,
//! [`net::Uplink`]; this crate depends on no other of the project.
//!
//! What must hold here: a guest can fail, loop, allocate, flood or lie, and only its own pod pays. No behaviour of a
//! guest is an error of the host; guests never run on the I/O runtime; all that is granted is in `linker.rs` and the
//! list of `capability.rs`.

mod artifact;
mod capability;
mod command;
mod config;
pub mod descriptors;
pub mod digests;
mod disk;
mod engine;
mod executor;
mod exit;
mod files;
mod frames;
mod host;
mod http;
mod ledger;
mod limits;
mod linker;
pub mod logs;
mod meter;
pub mod net;
pub mod pool;
mod preview1;
pub mod refusals;
mod sandbox;
mod seats;
pub mod serving;
pub mod shares;
mod sockets;
mod stdin;
mod store;
mod tally;

pub use artifact::{
    Artifact, Compiles, Confinement, Entry, Examined, PrepareError, Scarce, compile_child_main, examine,
};
pub use disk::{Grown, PodDisk, Written};
pub use exit::Exit;
pub use files::{DiskPressure, Mount, Volume, disk_pressure};
pub use host::{Host, HostConfig, HostError, disable_library_backtraces};
pub use logs::LogSink;
pub use sandbox::{
    Container, ContainerLimits, ContainerSpec, HTTP_TIMEOUT_DEFAULT, Pod, PodLimits, StartError, Usage,
};
pub use seats::NoSeat;
pub use stdin::Stdin;
pub use tally::Totals;

#[cfg(test)]
mod tests;
