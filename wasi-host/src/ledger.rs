//! What guests have the host hold for them: one tree of accounts, node, Kubernetes namespace, pod, container.
//!
//! Whoever keeps something on behalf of a guest charges the container's or pod's [`Account`] for it before it is there,
//! and gives it back by dropping the [`Charge`]. What is bounded:
//!
//! - linear memory and tables: by the limits of container and pod, all pods together by most of the machine's memory;
//! - host heap ([`Holding::Heap`]): bodies, header fields, handles, pipes, datagrams, copies of the environment. Kubernetes
//!   counts a kernel's memory against the limit of the pod that caused it. Here it has a bound of its own beside that
//!   limit, as large ([`heap_max`]): users size a limit by what their program holds, and a program that holds all of it
//!   still has to be able to answer a request and to write its last line;
//! - open files: of the process' part for guests;
//! - bytes of the disk: what volumes take, by the limits of volume and pod, all pods together by what is free of the disk
//!   beyond the part that is left to the node.
//!
//! Heap, files and disk of the whole node are shared out as `shares.rs` does it: a namespace holds at most as much as is free, a
//! pod half of that. A little of each is every pod's for certain ([`HEAP_GUARANTEED`], [`FILES_GUARANTEED_MAX`]) whatever
//! others hold, so that a greedy neighbour stops no request and no log line.
//!
//! What is refused is a [`Refused`]; the account notes it ([`Account::note`]), so that the pod's owner is told.
//!
//! A charge is a few additions to atomics, without a lock or an allocation. What a pod holds of the node's part is rounded up
//! to blocks, so that most charges touch the container's and the pod's numbers alone.

mod account;
mod charge;
mod shared;

use std::sync::Arc;

pub(crate) use crate::refusals::{Bound, Refused};
use crate::refusals::{Refusals, What};
pub(crate) use account::{Account, HeldBytes};
pub(crate) use charge::Charge;
use shared::Shared;

/// The part of this machine's memory that the host may hold on behalf of all guests, beside their own memory.
const HEAP_PART: u64 = 16;

/// Bytes of it where the machine does not say how much memory it has.
const HEAP_UNKNOWN: u64 = 256 << 20;

/// Bytes of host heap that a container or pod may cause, however small its limit of memory, and however large.
const HEAP_MIN: u64 = 32 << 20;
const HEAP_MAX: u64 = 256 << 20;

/// Bytes of host heap that a pod has whatever others hold: some requests, a connection, its log lines.
pub(crate) const HEAP_GUARANTEED: u64 = 512 << 10;

/// The part of what a pod may hold that those who come to it from elsewhere leave to the pod and its own namespace, and how
/// much of what it has for certain.
const OTHERS_LEAVE_PART: u64 = 8;
const OTHERS_LEAVE: u64 = HEAP_GUARANTEED / 2;

/// Bytes of heap in which a pod takes from what all share.
const HEAP_BLOCK: u64 = 256 << 10;

/// Bytes of the disk that a pod has whatever others hold, as far as there are any, and in which it takes more.
const DISK_GUARANTEED: u64 = 1 << 20;
const DISK_BLOCK: u64 = 256 << 10;

/// The part of the process' open files that guests share.
const FILES_PART: u64 = 32;

/// Open files that a pod has whatever others hold, where the process has so many for each instance.
const FILES_GUARANTEED_MAX: u64 = 16;

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holding {
    /// Bytes of linear memories and tables.
    Memory,
    /// Bytes of the host's own memory.
    Heap,
    /// Open files, directories included.
    Files,
    /// Bytes of the disk, in volumes.
    Disk,
}

/// Number of [`Holding`]s.
const HOLDINGS: usize = 4;

impl From<Holding> for What {
    fn from(holding: Holding) -> What {
        match holding {
            Holding::Memory => What::Memory,
            Holding::Heap => What::Heap,
            Holding::Files => What::Files,
            Holding::Disk => What::Disk,
        }
    }
}

/// What all pods of a node may hold together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeBounds {
    /// Bytes of linear memories and tables; `None` where nobody knows what the machine has.
    pub(crate) memory: Option<u64>,
    /// Bytes of host heap, beside what each pod has for certain.
    pub(crate) heap: u64,
    /// Open files, beside what each pod has for certain.
    pub(crate) files: u64,
    /// Open files that each pod has for certain.
    pub(crate) files_guaranteed: u64,
}

impl NodeBounds {
    /// Those of a machine with so much memory, of which guests may have a part as their own, of a process with so many open
    /// files, and of a host for so many instances.
    pub(crate) fn of(
        machine: Option<u64>,
        guests: Option<u64>,
        open_files: Option<u64>,
        instances: u32,
    ) -> NodeBounds {
        let files = open_files.map_or(u64::from(u32::MAX), |files| (files / FILES_PART).max(1));
        let files_guaranteed = (files / u64::from(instances.max(1))).clamp(1, FILES_GUARANTEED_MAX);
        let heap = machine.map_or(HEAP_UNKNOWN, |bytes| bytes / HEAP_PART);
        NodeBounds { memory: guests, heap, files, files_guaranteed }
    }
}

/// What one pod may hold, and what is kept for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PodBounds {
    /// Bytes of linear memories and tables.
    pub(crate) memory: Option<u64>,
    /// How many of them are kept for it.
    pub(crate) memory_requested: u64,
    /// Bytes of disk.
    pub(crate) disk: Option<u64>,
}

/// Bytes of host heap that a container or pod with this limit of memory may cause: as much again as the limit.
pub(crate) fn heap_max(memory_limit: Option<u64>) -> u64 {
    memory_limit.map_or(HEAP_MAX, |bytes| bytes.clamp(HEAP_MIN, HEAP_MAX))
}

/// The accounts of one node. Clones are the same.
#[derive(Clone)]
pub(crate) struct Ledger {
    shared: Arc<Shared>,
}

impl Ledger {
    pub(crate) fn new(bounds: NodeBounds) -> Ledger {
        Ledger { shared: Shared::new(bounds) }
    }

    /// The account of a new pod of the Kubernetes namespace `tenant`, which may have so much memory.
    pub(crate) fn pod(&self, tenant: &Arc<str>, memory: Option<u64>) -> Arc<Account> {
        self.bounded_pod(tenant, PodBounds { memory, ..PodBounds::default() })
    }

    /// The same of one with bounds of its own for more than memory.
    pub(crate) fn bounded_pod(&self, tenant: &Arc<str>, bounds: PodBounds) -> Arc<Account> {
        Account::pod(self.shared.tenant(tenant), bounds)
    }

    /// Where it is noted what is refused, of this and of all else that is bounded on account of pods.
    pub(crate) fn refusals(&self) -> &Refusals {
        self.shared.refusals()
    }

    /// So many bytes of the disk are free for guests now, beyond what they hold.
    pub(crate) fn set_disk_free(&self, bytes: u64) {
        self.shared.set_disk_free(bytes);
    }

    /// All that guests may have; none where there is no bound.
    pub(crate) fn memory_max(&self) -> Option<u64> {
        self.shared.memory_max()
    }

    /// Kubernetes namespaces of which there are pods.
    pub(crate) fn tenants(&self) -> usize {
        self.shared.tenants()
    }

    /// What all pods hold, beside what each has for certain.
    pub(crate) fn held(&self, holding: Holding) -> u64 {
        self.shared.held(holding)
    }
}

#[cfg(test)]
mod tests;
