//! The node: joins a cluster, keeps the link to its leader, and makes what the cluster wants of it true.
//!
//! One event loop ([`app`]) takes in what happened, asks `coracle_core` what it means, and executes the answer.
//! Pods keep running while the link is lost, and run again from the cluster's wishes after a restart of the node.

mod app;
mod artifacts;
mod blocks;
mod clock;
mod config;
mod decode;
mod disk;
mod events;
mod execute;
mod held;
mod identity;
mod last_word;
mod line;
mod link;
mod log_streams;
mod logs;
mod machine;
mod metrics;
mod network;
mod node;
mod private;
mod probes;
mod removal;
mod renewal;
mod runtime;
mod scrapers;
mod usage;
mod volumes;
mod wishes;

pub use artifacts::ARTIFACT_BYTES_MAX;
pub use config::{Capacity, JoinWith, NodeConfig, STOP_GRACE_DEFAULT};
pub use coracle_fabric::{AccessLog, Cidr};
pub use identity::{IdentityError, has_joined};
pub use node::{Node, NodeError, start};
pub use removal::remove_dir;

#[cfg(test)]
mod tests;
