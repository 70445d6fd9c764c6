//! The gRPC protocols between Coracle's own processes: raft transport, node link, cluster administration. Beside them what
//! control nodes and nodes do alike: joining, TLS, counting.
//!
//! Compiled by protox and tonic-prost-build: no `protoc` is needed on the building machine.

pub mod join;
pub mod metrics;
pub mod tls;

/// Raft messages between control members, byte-identical to raft-rs' `eraftpb`.
pub mod raft {
    tonic::include_proto!("coracle.raft.v1");
}

/// Joining, tokens, members, and what control nodes ask of the leader.
pub mod cluster {
    tonic::include_proto!("coracle.cluster.v1");
}

/// The node link.
#[allow(clippy::large_enum_variant, reason = "generated; the large variant is sent once a connection")]
pub mod node {
    tonic::include_proto!("coracle.node.v1");
}

/// The store itself, for control nodes and administrators.
pub mod store {
    tonic::include_proto!("coracle.store.v1");
}

/// Keys for Secrets, certificates and certificate authorities.
pub mod security {
    tonic::include_proto!("coracle.security.v1");
}

/// The lowest and highest version of these protocols that this build speaks.
pub const PROTOCOL_RANGE: std::ops::RangeInclusive<u32> = 1..=1;

/// The largest gRPC message that is sent or accepted, in bytes. Objects end at 1.5 MiB; a raft message at 1 MiB of
/// entries plus one entry.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
