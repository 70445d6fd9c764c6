//! What the leader of the control plane makes of what nodes say and fail to say, and of what planners plan.
//!
//! A pure crate: no clock, randomness, I/O or logging. Moments are arguments, as are fresh uids; what is worth a line in a
//! log is given back. `coracle_node_link` and `coracle_server` bring the links, the log and the time; the simulator brings
//! its own.
//!
//! Moments without a date are [`std::time::Duration`]s since any beginning that stays the same.

pub mod node_events;
pub mod node_object;
pub mod pod_status;
pub mod references;
pub mod router;
pub mod routes;
pub mod untaken;
pub mod validation;
pub mod woken;

pub mod hearing;
pub mod monitor;
pub mod presence;
pub mod silence;

pub mod events;
pub mod plans;

pub use coracle_controllers::FunctionDemand;
