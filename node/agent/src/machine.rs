//! What the machine is and has: v1.NodeSystemInfo, capacity, pressure.

use std::{collections::HashMap, fs, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::config::Capacity;

/// Free memory below this share of all is pressure. Source: kubelet's `memory.available` is 100 MiB; a share fits
/// small machines too.
const MEMORY_PRESSURE_SHARE: u64 = 20;
/// Free disk below this share of all is pressure. Source: kubelet `nodefs.available<10%`, halved: artifacts are small.
const DISK_PRESSURE_SHARE: u64 = 20;

/// The capacity with what was left open filled in from the machine.
pub fn capacity(wanted: Capacity) -> Capacity {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get) as u64;
    Capacity {
        cpu_milli: if wanted.cpu_milli == 0 { cores * 1000 } else { wanted.cpu_milli },
        memory_bytes: if wanted.memory_bytes == 0 {
            meminfo("MemTotal").unwrap_or(0)
        } else {
            wanted.memory_bytes
        },
        pods: wanted.pods,
    }
}

/// As Kubernetes quantities by resource.
pub fn quantities(capacity: Capacity, data_dir: &Path) -> HashMap<String, String> {
    let cpu = match capacity.cpu_milli % 1000 {
        0 => (capacity.cpu_milli / 1000).to_string(),
        _ => format!("{}m", capacity.cpu_milli),
    };
    let disk = rustix::fs::statvfs(data_dir).map_or(0, |stat| stat.f_blocks * stat.f_frsize);
    HashMap::from([
        ("cpu".to_owned(), cpu),
        ("memory".to_owned(), format!("{}Ki", capacity.memory_bytes / 1024)),
        ("pods".to_owned(), capacity.pods.to_string()),
        ("ephemeral-storage".to_owned(), format!("{}Ki", disk / 1024)),
    ])
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// What presses on the node now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
}

pub fn pressure(data_dir: &Path) -> Pressure {
    let memory = meminfo("MemAvailable").zip(meminfo("MemTotal"));
    let disk = rustix::fs::statvfs(data_dir).ok();
    Pressure {
        memory: memory.is_some_and(|(free, all)| free < all / MEMORY_PRESSURE_SHARE),
        disk: disk.is_some_and(|stat| stat.f_bavail < stat.f_blocks / DISK_PRESSURE_SHARE),
    }
}

/// JSON of v1.NodeSystemInfo.
pub fn node_info(boot_id: &str) -> Value {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let release = read("/etc/os-release");
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    json!({
        "machineID": read("/etc/machine-id"),
        "systemUUID": read("/etc/machine-id"),
        "bootID": boot_id,
        "kernelVersion": read("/proc/sys/kernel/osrelease"),
        "osImage": pretty.unwrap_or("Linux").trim_matches('"'),
        "containerRuntimeVersion": concat!("coracle://", env!("CARGO_PKG_VERSION")),
        "kubeletVersion": concat!("v1.33.0-coracle.", env!("CARGO_PKG_VERSION")),
        "kubeProxyVersion": concat!("v1.33.0-coracle.", env!("CARGO_PKG_VERSION")),
        "operatingSystem": "linux",
        "architecture": architecture(),
    })
}

/// As Go names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The machine's host name as a DNS label; `node` where it has none that can be one.
pub fn host_name() -> String {
    let raw = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let short = raw.trim().split('.').next().unwrap_or_default().to_lowercase();
    let label: String = short.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let label = label.trim_matches('-');
    if label.is_empty() { "node".to_owned() } else { label.chars().take(63).collect() }
}

/// Lets this process open as many files as it may: connections, logs and mounts each hold some.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_fills_in_what_is_left_open() {
        let own = capacity(Capacity::default());
        assert!(own.cpu_milli >= 1000 && own.memory_bytes > 1 << 20 && own.pods == 10_000);
        let set = capacity(Capacity { cpu_milli: 1500, memory_bytes: 1 << 30, pods: 5 });
        let quantities = quantities(set, Path::new("/"));
        assert_eq!(quantities["cpu"], "1500m");
        assert_eq!(quantities["memory"], "1048576Ki");
        assert_eq!(quantities["pods"], "5");
    }
}
