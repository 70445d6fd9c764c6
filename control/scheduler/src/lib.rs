//! Which node a pod goes to, and why not the others.
//!
//! A pure crate: it sees the cluster through [`Scheduler::observe`] and answers with [`Decisions`], which are data. The
//! server proposes their transactions; whether they took place comes back as events. No clock, randomness, I/O or
//! logging.
//!
//! Speed comes from one observation: pods of one template differ in nothing that matters here. Pods that wait are
//! grouped by [`model::Shape`]; a group looks at the nodes once, keeps the feasible ones in a heap by score, and a
//! placement costs one pop and one push.

mod scheduler;

mod schedule;

mod filter;
mod score;

mod fault;

mod model;
mod nodes;
mod placement;
mod queue;
mod quota;

pub use fault::Fault;
pub use model::reads;
pub use placement::{BINDING_COMPONENT, Decisions, Placement, Unplaced};
pub use scheduler::{Scheduler, Situation};
