//! Scripted scenarios against a store and nodes in small. Goldens are rewritten with `UPDATE_EXPECT=1`.

mod harness;

mod burdens;
mod convergence;
mod definitions;
mod deployments;
mod functions;
mod garbage;
mod ingresses;
mod large;
mod namespaces;
mod nodes;
mod replica_sets;
mod services;
mod troubles;
