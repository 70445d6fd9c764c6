//! Whether this machine has what a node wants.

use super::Finding::{self, Better, Fine};

/// Mappings that ten thousand live instances and the process itself take.
const MAP_COUNT_WANTED: u64 = 262_144;
/// Mappings for each live instance that a node admits, see `wasi-host/src/engine.rs`.
const MAPS_PER_INSTANCE: u64 = 14;
/// Open files for a node with many connections.
const OPEN_FILES_WANTED: u64 = 8_192;

pub fn findings() -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut findings = vec![Fine(format!("{cores} cores"))];
    match std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
    {
        Some(count) if count >= MAP_COUNT_WANTED => {
            findings.push(Fine(format!("vm.max_map_count is {count}")))
        }
        Some(count) => findings.push(Better(format!(
            "vm.max_map_count is {count}: enough for about {} live instances; for more, run \
             `sysctl -w vm.max_map_count={MAP_COUNT_WANTED}`",
            count.saturating_sub(3_000) / MAPS_PER_INSTANCE
        ))),
        None => findings.push(Better("vm.max_map_count cannot be read".into())),
    }
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match files {
        Some(files) if files < OPEN_FILES_WANTED => findings.push(Better(format!(
            "this shell allows {files} open files: raise it with `ulimit -n {OPEN_FILES_WANTED}` for many connections"
        ))),
        _ => findings.push(Fine("enough open files are allowed".into())),
    }
    let confinement = coracle_wasi_host::Confinement::of_this_kernel();
    findings.push(if confinement.is_whole() {
        Fine(format!("components are compiled in a process confined by {confinement}"))
    } else {
        Better(format!(
            "this kernel confines the process that compiles components with {confinement}: limits of memory and time hold, \
             but on a node with strangers' pods use a kernel of 5.13 or newer that has both"
        ))
    });
    findings
}
