//! Memory and handles: what a guest may hold, counted for its container and its pod together.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wasmtime::{ResourceLimiter, StoreContextMut};

/// Bytes that one call from a guest may have the host copy, e.g. the strings of one `list<string>`.
const HOSTCALL_FUEL: usize = 16 << 20;

/// Component handles (resources, streams, futures) of one store.
const COMPONENT_HANDLES_MAX: usize = 10_000;

/// Entries of the host's resource table of one store.
pub(crate) const RESOURCES_MAX: usize = 10_000;

/// Bytes of one `get-random-bytes`.
pub(crate) const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// Core instances, tables and memories of one store. What one component may have is bounded by the pool as well.
const INSTANCES_MAX: usize = 200;
const TABLES_MAX: usize = 64;
const MEMORIES_MAX: usize = 32;

/// Elements of one table; the pool's slots are as large.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Bytes of a table's element on the host.
const TABLE_ELEMENT_BYTES: usize = 8;

/// The part of this machine's memory that is kept for the host itself and for what else runs beside it.
const HOST_PART: u64 = 8;

/// The name of the resource whose limit ends a container as `OOMKilled`.
pub(crate) const MEMORY: &str = "memory";

/// A guest went over one of its limits. It travels as the trap's cause to where exits are classified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limit of {resource} is exceeded")]
pub(crate) struct LimitExceeded {
    pub(crate) resource: &'static str,
}

/// Memory that a container or pod holds: the linear memories and tables of all its stores.
#[derive(Debug)]
pub(crate) struct MemoryAccount {
    limit: Option<u64>,
    used: AtomicU64,
    exceeded: AtomicBool,
    /// The pod's account, where this one is a container's; the host's, where it is a pod's.
    parent: Option<Arc<MemoryAccount>>,
}

impl MemoryAccount {
    pub(crate) fn new(limit: Option<u64>, parent: Option<Arc<MemoryAccount>>) -> Arc<MemoryAccount> {
        let (used, exceeded) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(MemoryAccount { limit, used, exceeded, parent })
    }

    /// Bytes held now.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// True once a guest asked for more than the limit.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let admitted = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let wanted = used.checked_add(bytes)?;
            self.limit.is_none_or(|limit| wanted <= limit).then_some(wanted)
        });
        let admitted = admitted.is_ok() && self.take_from_parent(bytes);
        if !admitted {
            self.exceeded.store(true, Ordering::Relaxed);
        }
        admitted
    }

    fn take_from_parent(&self, bytes: u64) -> bool {
        let Some(parent) = &self.parent else {
            return true;
        };
        let admitted = parent.take(bytes);
        if !admitted {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        admitted
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.give_back(bytes);
        }
    }
}

/// One store's limiter. Dropping it gives the memory back to the account.
#[derive(Debug)]
pub(crate) struct StoreLimiter {
    account: Arc<MemoryAccount>,
    held: u64,
    /// The growth that was admitted last, given back where the allocator then fails.
    pending: u64,
}

impl StoreLimiter {
    pub(crate) fn new(account: Arc<MemoryAccount>) -> StoreLimiter {
        StoreLimiter { account, held: 0, pending: 0 }
    }

    fn grow(&mut self, bytes: usize) -> wasmtime::Result<bool> {
        let bytes = bytes as u64;
        if !self.account.take(bytes) {
            return Err(LimitExceeded { resource: MEMORY }.into());
        }
        self.held += bytes;
        self.pending = bytes;
        Ok(true)
    }

    fn undo(&mut self) {
        let bytes = std::mem::take(&mut self.pending);
        self.held -= bytes;
        self.account.give_back(bytes);
    }
}

impl Drop for StoreLimiter {
    fn drop(&mut self) {
        self.account.give_back(self.held);
    }
}

impl ResourceLimiter for StoreLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            self.pending = 0;
            return Ok(false);
        }
        self.grow(desired.saturating_sub(current))
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS_MAX || maximum.is_some_and(|maximum| desired > maximum) {
            self.pending = 0;
            return Ok(false);
        }
        self.grow(desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT_BYTES))
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

/// Bytes that all guests of this process may hold: most of the memory that it has, so that a guest is ended for want
/// of memory before this process is. `None` where the machine does not say.
pub(crate) fn guests_memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    let total = info.totalram.checked_mul(u64::from(info.mem_unit))?;
    let total = cgroup_memory().map_or(total, |limit| limit.min(total));
    (total > 0).then(|| total - total / HOST_PART)
}

/// The least limit of memory of this process' control group (version 2) and those above it.
fn cgroup_memory() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    root.join(own).ancestors().take_while(|group| group.starts_with(root)).filter_map(limit_of).min()
}

fn limit_of(group: &Path) -> Option<u64> {
    // "max" is no limit and no number.
    std::fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()
}

/// Sets the bounds that every store has.
pub(crate) fn bound_store<T>(mut store: StoreContextMut<'_, T>) {
    store.set_hostcall_fuel(HOSTCALL_FUEL);
    store.set_max_component_handles(COMPONENT_HANDLES_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_bounds_pods_that_have_no_limit() {
        assert!(guests_memory().is_some_and(|bytes| bytes > 1 << 20));
        let host = MemoryAccount::new(Some(100), None);
        let pod = MemoryAccount::new(None, Some(Arc::clone(&host)));
        let container = MemoryAccount::new(None, Some(pod));
        let mut limiter = StoreLimiter::new(Arc::clone(&container));
        assert!(limiter.memory_growing(0, 101, None).is_err());
        assert!(container.exceeded());
        assert_eq!((container.used(), host.used()), (0, 0));
    }

    #[test]
    fn a_pod_limits_the_sum_of_its_containers_and_gets_memory_back() {
        let pod = MemoryAccount::new(Some(100), None);
        let first = MemoryAccount::new(None, Some(Arc::clone(&pod)));
        let second = MemoryAccount::new(Some(80), Some(Arc::clone(&pod)));
        let mut limiter = StoreLimiter::new(Arc::clone(&first));
        assert!(limiter.memory_growing(0, 60, None).expect("within the limits"));
        let mut other = StoreLimiter::new(Arc::clone(&second));
        let refused = other.memory_growing(0, 50, None).expect_err("the pod has 40 left");
        assert_eq!(refused.downcast_ref(), Some(&LimitExceeded { resource: MEMORY }));
        assert!(second.exceeded() && !first.exceeded());
        assert_eq!(second.used(), 0);
        drop(limiter);
        assert_eq!(pod.used(), 0);
        assert!(other.memory_growing(0, 80, None).expect("within the limits"));
        other.memory_grow_failed(wasmtime::Error::msg("no slot")).expect("only counted");
        assert_eq!(pod.used(), 0);
    }
}
