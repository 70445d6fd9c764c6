//! Control nodes as their users meet them: over TLS on loopback, with a real Kubernetes client.

mod bench;

mod joining;
mod metrics;
mod membership;
mod nodes;
mod registry;
mod replication;
mod single;
mod store;
mod tokens;
mod versions;
