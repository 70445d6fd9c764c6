//! The composition root of a control node: joins storage, API, scheduler and controllers into one process, and serves
//! members, nodes and clients on one TLS port.
//!
//! Reading order: [`app`] starts everything; `coracle_storage` is the one door for changes of state; [`leader`] is
//! what only the leader does, with `coracle_node_link`.

mod accounts;
mod app;
mod authentication;
mod authority_files;
mod authorization;
mod certificates;
mod claims;
mod config;
mod data_dir;
mod enter;
mod error;
mod identity;
mod kubeconfig;

mod forwarding;

mod backup;
mod newborn;
mod recover;

mod bootstrap;
mod events;
mod leader;
mod membership;
mod planner_thread;
mod planning;
mod plans;
mod rendezvous;
mod whereabouts;

mod cluster_service;
mod join;
mod leader_service;
mod security_service;
mod store_service;
mod tokens;

mod blobs_service;

mod access;
mod checks;
mod inflow;
mod lingering;
mod listener;
mod newcomers;
mod open_files;
mod service;
mod standing;
mod telemetry;

pub use app::{Control, start};
pub use backup::{Inspection, KindCount, Restoration, RestoreOptions, inspect, keep, partial, restore};
pub use config::{ControlConfig, Mode};
pub use data_dir::{holds_member, private_dir};
pub use error::ServerError;
pub use recover::{LogEnd, Recovery, force_new_cluster, log_end};
