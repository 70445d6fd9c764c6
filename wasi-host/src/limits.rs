//! Memory and handles: what a guest may hold, counted for its container and its pod together.

use std::path::Path;
use std::sync::Arc;

use wasmtime::{ResourceLimiter, StoreContextMut};

use crate::artifact::Entry;
use crate::ledger::{Account, Charge, Holding};

/// Bytes that one call from a guest may have the host copy, e.g. the strings of one `list<string>`.
///
/// A call may keep them for as long as it takes, and the more guests wait in calls the more there are: what a program
/// writes to a file at once, and 16 datagrams, have to fit.
const HOSTCALL_FUEL: usize = 4 << 20;

/// Component handles (resources, streams, futures) of one store. What stands behind them is charged as it is made: see
/// `meter.rs`.
const COMPONENT_HANDLES_MAX: usize = 10_000;

/// The same of one of the many instances that serve a component of WASI 0.3, each for few requests at a time.
const SERVING_HANDLES_MAX: usize = 2_048;

/// Entries of the host's resource table of one store.
pub(crate) const RESOURCES_MAX: usize = 10_000;

/// Bytes of one `get-random-bytes`. They are on the host until the guest has found room for them, which takes no waiting.
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

/// One store's limiter. Dropping it gives the memory back to the account.
#[derive(Debug)]
pub(crate) struct StoreLimiter {
    held: Charge,
    /// The growth that was admitted last, given back where the allocator then fails.
    pending: u64,
}

impl StoreLimiter {
    pub(crate) fn new(account: &Arc<Account>) -> StoreLimiter {
        StoreLimiter { held: Charge::nothing(account, Holding::Memory), pending: 0 }
    }

    /// `first` is what the guest cannot begin without.
    fn grow(&mut self, bytes: usize, first: bool) -> wasmtime::Result<bool> {
        let bytes = bytes as u64;
        self.pending = 0;
        if let Err(refused) = self.held.grow(bytes) {
            if !first && refused.is_of_all() {
                // It has done nothing wrong: it may go on with what it has, as where a machine is out of memory.
                self.held.account().remember(refused);
                return Ok(false);
            }
            self.held.account().exceed();
            return Err(LimitExceeded { resource: MEMORY }.into());
        }
        self.pending = bytes;
        Ok(true)
    }

    fn undo(&mut self) {
        self.held.shrink(std::mem::take(&mut self.pending));
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
        self.grow(desired.saturating_sub(current), current == 0)
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
        self.grow(desired.saturating_sub(current).saturating_mul(TABLE_ELEMENT_BYTES), current == 0)
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
/// of memory before this process is.
pub(crate) fn guests_memory(machine: u64) -> u64 {
    machine - machine / HOST_PART
}

/// Bytes of memory that this process has: the machine's, or its control group's. `None` where the machine does not say.
pub(crate) fn machine_memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    let total = info.totalram.checked_mul(u64::from(info.mem_unit))?;
    let total = cgroup_memory().map_or(total, |limit| limit.min(total));
    (total > 0).then_some(total)
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
pub(crate) fn bound_store<T>(mut store: StoreContextMut<'_, T>, entry: Entry) {
    store.set_hostcall_fuel(HOSTCALL_FUEL);
    store.set_max_component_handles(match entry {
        Entry::HttpP3 => SERVING_HANDLES_MAX,
        Entry::Command | Entry::HttpP2 => COMPONENT_HANDLES_MAX,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, NodeBounds};

    fn pod(node: Option<u64>, limit: Option<u64>) -> Arc<Account> {
        let bounds = NodeBounds { memory: node, heap: 0, files: 0, files_guaranteed: 0 };
        Ledger::new(bounds).pod(&"default".into(), limit)
    }

    #[test]
    fn the_host_bounds_pods_that_have_no_limit() {
        assert!(machine_memory().is_some_and(|bytes| guests_memory(bytes) > 1 << 20));
        let pod = pod(Some(100), None);
        let container = pod.container(None);
        let mut limiter = StoreLimiter::new(&container);
        assert!(limiter.memory_growing(0, 101, None).is_err());
        assert!(container.exceeded());
        assert_eq!((container.held(Holding::Memory), pod.held(Holding::Memory)), (0, 0));
    }

    #[test]
    fn who_is_within_his_limits_goes_on_where_others_have_the_memory() {
        let container = pod(Some(100), None).container(None);
        let mut limiter = StoreLimiter::new(&container);
        assert!(limiter.memory_growing(0, 40, None).expect("there is room"));
        assert!(!limiter.memory_growing(40, 80, None).expect("told to the guest"));
        limiter.memory_grow_failed(wasmtime::Error::msg("refused")).expect("only counted");
        assert!(!container.exceeded() && container.refusal().is_some_and(|refused| refused.is_of_all()));
        assert_eq!(container.held(Holding::Memory), 40);
    }

    #[test]
    fn tables_count_as_memory_and_have_an_end() {
        let pod = pod(None, Some(1_000));
        let mut limiter = StoreLimiter::new(&pod.container(None));
        assert!(limiter.table_growing(0, 100, None).expect("within the limit"));
        assert_eq!(pod.held(Holding::Memory), 100 * TABLE_ELEMENT_BYTES as u64);
        assert!(!limiter.table_growing(100, TABLE_ELEMENTS_MAX + 1, None).expect("told to the guest"));
        let refused = limiter.table_growing(100, 200, None).expect_err("beyond the limit");
        assert_eq!(refused.downcast_ref(), Some(&LimitExceeded { resource: MEMORY }));
    }

    #[test]
    fn a_pod_limits_the_sum_of_its_containers_and_gets_memory_back() {
        let pod = pod(None, Some(100));
        let (first, second) = (pod.container(None), pod.container(Some(80)));
        let mut limiter = StoreLimiter::new(&first);
        assert!(limiter.memory_growing(0, 60, None).expect("within the limits"));
        let mut other = StoreLimiter::new(&second);
        let refused = other.memory_growing(0, 50, None).expect_err("the pod has 40 left");
        assert_eq!(refused.downcast_ref(), Some(&LimitExceeded { resource: MEMORY }));
        assert!(second.exceeded() && !first.exceeded());
        assert_eq!(second.held(Holding::Memory), 0);
        drop(limiter);
        assert_eq!(pod.held(Holding::Memory), 0);
        assert!(other.memory_growing(0, 80, None).expect("within the limits"));
        other.memory_grow_failed(wasmtime::Error::msg("no slot")).expect("only counted");
        assert_eq!(pod.held(Holding::Memory), 0);
    }
}
