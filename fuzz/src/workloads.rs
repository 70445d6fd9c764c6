//! Requests of raw bytes to the API, and what the rest of the cluster makes of what it admits.

/// What the API admits, every reader reads; and a minute later nothing is written any more. How the bytes become
/// requests: `coracle_sim::workloads::fuzz`.
pub fn admitted_workloads(data: &[u8]) {
    if let Err(broken) = coracle_sim::workloads::fuzz::play_bytes(data) {
        panic!("{broken}");
    }
}
