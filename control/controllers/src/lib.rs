//! What to create, change or delete to bring the cluster from where it is to where its objects say it should be.
//!
//! A pure crate. [`Controllers`] is fed with events and asked for a [`Plan`]: transactions, each with the preconditions
//! under which it was thought of, and records of events. The server proposes them; what came of it returns as events.
//! No clock, randomness, I/O or logging: the time and fresh uids are arguments.
//!
//! One file a controller ([`controller::Controller`]): it marks the few objects that an observed event concerns, and plans
//! what is to be done about one object and what belongs to it. Nothing is ever searched through for changes.

mod controller;
mod controllers;

mod deployment;
mod endpoint_slice;
mod endpoint_slice_mirroring;
mod garbage_collector;
mod ingress;
mod namespace;
mod node_lifecycle;
mod pod_gc;
mod replica_set;
mod service_account;

mod backoff;
mod chains;
mod definitions;
mod deletion;
mod draft;
mod event_record;
mod flights;
mod function;
mod index;
mod model;
mod names;
mod ownership;
mod planner;
mod pods;
mod queue;
mod report;
mod selectors;
mod state;
mod task;
mod timers;

pub use backoff::Outcome;
pub use controllers::{Config, Controllers, Origin, Plan, PlannedEvent, Situation};
pub use event_record::{EventRecord, EventType};
pub use function::FunctionDemand;
pub use ingress::GATEWAY_ANNOTATION;
pub use model::reads;
pub use replica_set::pod_of_set;
