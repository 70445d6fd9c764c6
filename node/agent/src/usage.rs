//! Metered use of all containers, for the metrics that the cluster serves.

use coracle_proto::node::{ContainerUsage, Usage};

use crate::runtime::{self, ContainerId};

/// Between two reports.
pub const USAGE_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// One report over the containers that run now.
pub fn report(used: Vec<(ContainerId, runtime::Usage)>) -> Usage {
    let containers = used.into_iter().map(|(id, used)| ContainerUsage {
        pod_uid: id.sandbox.pod.to_string(),
        container: id.name,
        cpu_nanoseconds: used.cpu_ns,
        memory_bytes: used.memory_bytes,
    });
    Usage { containers: containers.collect() }
}
