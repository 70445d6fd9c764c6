//! Control nodes as their users meet them: over TLS on loopback, with a real Kubernetes client.

mod bench;

mod backup;
mod certificates;
mod distribution;
mod divergence;
mod intruders;
mod joining;
mod membership;
mod metrics;
mod nodes;
mod registry;
mod replication;
mod restart;
mod secrets;
mod single;
mod store;
mod tokens;
mod unread;
mod versions;
