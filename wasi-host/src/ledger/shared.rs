//! What all pods of a node share, and what each Kubernetes namespace holds of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Bound, HOLDINGS, Holding, NodeBounds, Refused};
use crate::refusals::Refusals;
use crate::shares::parts;

/// Bytes of what all share that no namespace is blamed for, however many there are.
const LITTLE_BYTES: u64 = 1 << 20;

/// More than anything that can be held, and yet a signed number.
const LIMIT_MAX: u64 = i64::MAX.cast_unsigned();

/// The node's.
///
/// What is held may be below zero for a moment: of two who step over the same edge of a block, the one who gives back may
/// be told here before the one who took.
#[derive(Debug)]
pub(super) struct Shared {
    /// That of the disk follows what is free of it.
    limits: [AtomicU64; HOLDINGS],
    files_guaranteed: u64,
    held: [AtomicI64; HOLDINGS],
    /// Memory that is kept for pods, whether they hold it or not; it is part of what is held.
    memory_kept: Mutex<u64>,
    /// Looked at when a pod is made, and at no charge.
    tenants: Mutex<HashMap<Arc<str>, Weak<Tenant>>>,
    refusals: Refusals,
}

impl Shared {
    pub(super) fn new(bounds: NodeBounds) -> Arc<Shared> {
        let limits = [bounds.memory.unwrap_or(LIMIT_MAX), bounds.heap, bounds.files, LIMIT_MAX];
        let limits = limits.map(|limit| AtomicU64::new(limit.min(LIMIT_MAX)));
        let (files_guaranteed, held) = (bounds.files_guaranteed, Default::default());
        let (memory_kept, tenants, refusals) = Default::default();
        Arc::new(Shared { limits, files_guaranteed, held, memory_kept, tenants, refusals })
    }

    /// The account of a Kubernetes namespace, which lasts as long as its pods.
    pub(super) fn tenant(self: &Arc<Shared>, name: &Arc<str>) -> Arc<Tenant> {
        let mut tenants = self.tenants.lock();
        if let Some(tenant) = tenants.get(name).and_then(Weak::upgrade) {
            return tenant;
        }
        let tenant = Tenant { name: Arc::clone(name), shared: Arc::clone(self), held: Default::default() };
        let tenant = Arc::new(tenant);
        tenants.insert(Arc::clone(name), Arc::downgrade(&tenant));
        tenant
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    pub(super) fn held(&self, holding: Holding) -> u64 {
        present(&self.held[holding as usize])
    }

    pub(super) fn memory_max(&self) -> Option<u64> {
        Some(self.limit(Holding::Memory)).filter(|limit| *limit < LIMIT_MAX)
    }

    /// So many bytes of the disk are free beyond what is held.
    pub(super) fn set_disk_free(&self, bytes: u64) {
        let limit = self.held(Holding::Disk).saturating_add(bytes).min(LIMIT_MAX);
        self.limits[Holding::Disk as usize].store(limit, Ordering::Relaxed);
    }

    /// How many namespaces have pods.
    pub(super) fn tenants(&self) -> usize {
        self.tenants.lock().len()
    }

    fn limit(&self, holding: Holding) -> u64 {
        self.limits[holding as usize].load(Ordering::Relaxed)
    }
}

/// A Kubernetes namespace's.
#[derive(Debug)]
pub(super) struct Tenant {
    name: Arc<str>,
    shared: Arc<Shared>,
    held: [AtomicI64; HOLDINGS],
}

impl Tenant {
    /// Takes so much more of the node's part for a pod that holds `of_pod` of it.
    pub(super) fn take(&self, holding: Holding, amount: u64, of_pod: u64) -> Result<(), Refused> {
        let all = self.shared.limit(holding);
        let held = self.shared.held(holding);
        let mut refused =
            Refused { what: holding.into(), bound: Bound::Node, held, asked: amount, limit: all, all };
        if amount > all {
            return Err(refused);
        }
        // Of what is refused only the namespace that asks for it notices anything.
        let of_namespace = self.own(holding).fetch_add(amount.cast_signed(), Ordering::Relaxed);
        let of_namespace = of_namespace.max(0).cast_unsigned();
        let taken = self.node(holding).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let of_all = held.max(0).cast_unsigned();
            let free = all.saturating_sub(of_all);
            let (namespace, pod) = parts(free);
            (refused.bound, refused.held, refused.limit) = match () {
                () if amount > free => (Bound::Node, of_all, all),
                () if of_namespace.saturating_add(amount) > namespace => {
                    (Bound::Namespace, of_namespace, namespace)
                }
                () if of_pod.saturating_add(amount) > pod => (Bound::PodShare, of_pod, pod),
                () => return held.checked_add_unsigned(amount),
            };
            None
        });
        if taken.is_err() {
            self.own(holding).fetch_sub(amount.cast_signed(), Ordering::Relaxed);
            return Err(refused);
        }
        Ok(())
    }

    /// True where nothing more would be taken for a pod that holds `of_pod`.
    pub(super) fn is_pressed(&self, holding: Holding, of_pod: u64) -> bool {
        let limit = self.shared.limit(holding);
        let free = limit.saturating_sub(self.shared.held(holding));
        let (namespace, pod) = parts(free);
        free == 0 || present(self.own(holding)) > namespace || of_pod > pod
    }

    /// True where it holds more than each would if all namespaces with pods held the same, and more than a little: where it is
    /// refused more, that is for what it has itself.
    pub(super) fn has_its_part(&self, holding: Holding) -> bool {
        let parts = u64::try_from(self.shared.tenants().max(1)).unwrap_or(u64::MAX);
        present(self.own(holding)) > (self.shared.limit(holding) / parts).max(LITTLE_BYTES)
    }

    /// Keeps so much of the node's memory for one pod, whether it holds it or not: it is in nobody's share. Nothing where
    /// that is more than can be kept beside all others', which no scheduler has placed here: what was kept.
    pub(super) fn keep_memory(&self, amount: u64) -> u64 {
        let mut kept = self.shared.memory_kept.lock();
        if amount > self.shared.limit(Holding::Memory).saturating_sub(*kept) {
            return 0;
        }
        *kept += amount;
        self.node(Holding::Memory).fetch_add(amount.cast_signed(), Ordering::Relaxed);
        amount
    }

    pub(super) fn keep_memory_no_more(&self, amount: u64) {
        *self.shared.memory_kept.lock() -= amount;
        self.node(Holding::Memory).fetch_sub(amount.cast_signed(), Ordering::Relaxed);
    }

    /// Adds what is held already.
    pub(super) fn add(&self, holding: Holding, amount: u64) {
        if amount > 0 {
            self.node(holding).fetch_add(amount.cast_signed(), Ordering::Relaxed);
            self.own(holding).fetch_add(amount.cast_signed(), Ordering::Relaxed);
        }
    }

    /// What a refused charge changed beside itself: others of the pod may have taken or given back since, so that what its
    /// step back changes need not be what was refused.
    pub(super) fn correct(&self, holding: Holding, more: u64, less: u64) {
        match more.checked_sub(less) {
            Some(more) => self.add(holding, more),
            None => self.give_back(holding, less - more),
        }
    }

    pub(super) fn give_back(&self, holding: Holding, amount: u64) {
        if amount > 0 {
            self.own(holding).fetch_sub(amount.cast_signed(), Ordering::Relaxed);
            self.node(holding).fetch_sub(amount.cast_signed(), Ordering::Relaxed);
        }
    }

    pub(super) fn files_guaranteed(&self) -> u64 {
        self.shared.files_guaranteed
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.shared.refusals
    }

    fn node(&self, holding: Holding) -> &AtomicI64 {
        &self.shared.held[holding as usize]
    }

    fn own(&self, holding: Holding) -> &AtomicI64 {
        &self.held[holding as usize]
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let mut tenants = self.shared.tenants.lock();
        // Another may have taken its place already.
        if tenants.get(&self.name).is_some_and(|tenant| tenant.strong_count() == 0) {
            tenants.remove(&self.name);
        }
    }
}

fn present(held: &AtomicI64) -> u64 {
    held.load(Ordering::Relaxed).max(0).cast_unsigned()
}
