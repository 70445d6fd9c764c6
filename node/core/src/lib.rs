//! The node's logic without its machinery: what a pod's desired state, what is observed of it and the time of day
//! say should be done next.
//!
//! The shell (`coracle_agent`) keeps one [`Observed`] and runs this circle for every pod that something happened to:
//!
//! ```text
//! Observation -> Observed::apply -> reconcile -> Action -> Observed::begin -> execute -> Observation
//! ```
//!
//! Deliberately absent: clocks, randomness, threads, files, sockets, logging.

pub mod spec;

pub mod sources;

pub mod resources;

pub mod fields;

pub mod env;

pub mod volumes;

pub mod message;

pub mod planning;

pub mod restart;

pub mod probe;

pub mod pod;

pub mod observe;

pub mod seats;

pub mod status;

pub mod action;

pub mod eviction;

pub mod reconcile;

pub mod race;

pub use action::{Action, EventRecord, StartPlan};
pub use observe::Observation;
pub use pod::{Desired, NodeFacts, Observed, PodState};
pub use reconcile::{next_wake, reconcile, reconcile_pod};
pub use sources::Sources;
pub use spec::{Pod, PodUid};

/// Why bytes that came over the node link cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    #[error("the {what} is not the JSON that was expected")]
    Json {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the {what} lacks {field}")]
    Missing { what: &'static str, field: &'static str },
    #[error("{name:?} cannot be the uid of a pod or the name of one of its containers or volumes")]
    Name { name: String },
}
