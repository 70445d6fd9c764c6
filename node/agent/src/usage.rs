//! Metered use of all containers, for the metrics that the cluster serves.

use coracle_core::PodUid;
use coracle_proto::node::{ContainerUsage, Usage};
use coracle_wasi_host::Container;

/// Between two reports.
pub const USAGE_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// One report over the containers that run now.
pub fn report<'a>(containers: impl Iterator<Item = (&'a PodUid, &'a str, &'a Container)>) -> Usage {
    let containers = containers
        .map(|(uid, name, container)| {
            let used = container.usage();
            ContainerUsage {
                pod_uid: uid.to_string(),
                container: name.to_owned(),
                cpu_nanoseconds: used.cpu_ns,
                memory_bytes: used.memory_bytes,
            }
        })
        .collect();
    Usage { containers }
}
