//! The process and its disk, as Prometheus' client libraries name them.

use std::{fs, path::Path};

use rustix::{
    fs::statvfs,
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

use super::text::Text;

/// In what Linux counts the times of `/proc`, a second.
const TICKS: f64 = 100.0;

/// What is free and what there is in the file system of a directory, in bytes. None where it cannot be told.
fn disk_bytes(dir: &Path) -> Option<(u64, u64)> {
    let found = statvfs(dir).ok()?;
    Some((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize))
}

/// What cannot be read here is left out.
pub fn write(text: &mut Text, data_dir: &Path) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    text.counter("process_cpu_seconds_total", "CPU time of the process, user and system.").is(cpu);
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let tasks = runtime.metrics().num_alive_tasks();
        text.gauge("coracle_process_tasks", "Tasks of the process that have not ended.").is(tasks);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    if let Some(kib) = field("VmRSS:") {
        text.gauge("process_resident_memory_bytes", "Resident memory of the process.").is(kib * 1024);
    }
    if let Some(kib) = field("VmSize:") {
        text.gauge("process_virtual_memory_bytes", "Virtual memory of the process.").is(kib * 1024);
    }
    if let Some(threads) = field("Threads:") {
        text.gauge("process_threads", "Threads of the process.").is(threads);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        text.gauge("process_open_fds", "Open file descriptors.").is(open.count());
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        text.gauge("process_max_fds", "File descriptors that may be open.").is(limit);
    }
    if let Some(seconds) = start_time() {
        text.gauge("process_start_time_seconds", "When the process started, since the epoch.").is(seconds);
    }
    if let Some((free, all)) = disk_bytes(data_dir) {
        text.gauge("coracle_disk_free_bytes", "Free in the data directory's file system.").is(free);
        text.gauge("coracle_disk_size_bytes", "Size of the data directory's file system.").is(all);
    }
}

fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the process, in parentheses, may hold anything; field 22 counts from the one behind it, which is 3.
    let after_boot: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?.parse().ok()?;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + after_boot / TICKS)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_process_started_a_moment_ago() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let started = start_time().unwrap();
        assert!(started <= now + 2.0 && started > now - 3600.0, "{started} at {now}");
        let (free, all) = disk_bytes(Path::new("/")).unwrap();
        assert!(free <= all && all > 0);
    }
}
