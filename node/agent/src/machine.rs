//! What the machine is and has: v1.NodeSystemInfo, capacity, pressure.

use std::{collections::HashMap, fs, path::Path};

use coracle_wasi_host::disk_pressure;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::config::Capacity;

/// Free memory below this share of all is pressure. Source: kubelet's `memory.available` is 100 MiB; a share fits
/// small machines too.
const MEMORY_PRESSURE_SHARE: u64 = 20;

/// The part of the open files that logs of pods may take, one each: connections are given seven eighths
/// ([`coracle_wasi_host::descriptors`]), and a quarter of the rest is the node's own and for volumes.
const FILES_PART: (u64, u64) = (3, 32);
/// Memory that the smallest of pods takes, with what the host keeps for it.
const MEMORY_PER_POD: u64 = 256 << 10;

/// The capacity with what was left open filled in from the machine, and no more pods than it surely holds: the scheduler
/// believes it. `in_sandbox` is how many that has seats for, after `vm.max_map_count`.
pub fn capacity(wanted: Capacity, in_sandbox: u32) -> Capacity {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get) as u64;
    let memory_bytes = match wanted.memory_bytes {
        0 => meminfo("MemTotal").unwrap_or(0),
        wanted => wanted,
    };
    let open_files = getrlimit(Resource::Nofile).current;
    Capacity {
        cpu_milli: if wanted.cpu_milli == 0 { cores * 1000 } else { wanted.cpu_milli },
        memory_bytes,
        pods: pods(wanted.pods, in_sandbox, open_files, memory_bytes),
    }
}

fn pods(wanted: u32, in_sandbox: u32, open_files: Option<u64>, memory_bytes: u64) -> u32 {
    let files = open_files.map_or(u64::MAX, |files| files.saturating_mul(FILES_PART.0) / FILES_PART.1);
    let memory = if memory_bytes == 0 { u64::MAX } else { memory_bytes / MEMORY_PER_POD };
    let bounds = [
        ("the instances that the sandbox runs", u64::from(in_sandbox)),
        ("the open files that this process may have", files),
        ("memory", memory),
    ];
    let least = bounds.into_iter().min_by_key(|(_, pods)| *pods);
    let (bound, most) = least.map_or(("nothing", u32::MAX), |(bound, pods)| {
        (bound, u32::try_from(pods).unwrap_or(u32::MAX).max(1))
    });
    if wanted > most {
        tracing::warn!(wanted, pods = most, bound, "the node offers as many pods as it can hold");
    } else if wanted == 0 {
        tracing::info!(pods = most, bound, "the node offers as many pods as it can hold");
    }
    if wanted == 0 { most } else { wanted.min(most) }
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

/// What has come of what there was `before`. Of the disk it is that guests find little of it, see `disk_pressure` in
/// `wasi-host/src/files/reserve.rs`.
pub fn pressure(data_dir: &Path, before: Pressure) -> Pressure {
    let memory = meminfo("MemAvailable").zip(meminfo("MemTotal"));
    Pressure {
        memory: memory.is_some_and(|(free, all)| free < all / MEMORY_PRESSURE_SHARE),
        disk: disk_pressure(data_dir, before.disk).is_some(),
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
        let own = capacity(Capacity::default(), 20);
        assert!(own.cpu_milli >= 1000 && own.memory_bytes > 1 << 20 && own.pods == 20);
        let set = capacity(Capacity { cpu_milli: 1500, memory_bytes: 1 << 30, pods: 5 }, 20);
        let quantities = quantities(set, Path::new("/"));
        assert_eq!(quantities["cpu"], "1500m");
        assert_eq!(quantities["memory"], "1048576Ki");
        assert_eq!(quantities["pods"], "5");
    }

    #[test]
    fn a_node_offers_no_more_pods_than_it_can_hold() {
        let (files, memory) = (Some(1 << 20), 8 << 30);
        assert_eq!(pods(0, 2_625, files, memory), 2_625);
        assert_eq!(pods(10_000, 2_625, files, memory), 2_625);
        assert_eq!(pods(100, 2_625, files, memory), 100);
        assert_eq!(pods(0, 2_625, Some(4_096), memory), 384);
        assert_eq!(pods(0, 2_625, None, 64 << 20), 256);
        assert_eq!(pods(0, 2_625, None, 0), 2_625);
    }
}
