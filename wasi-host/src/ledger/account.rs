//! The account of a pod or of one of its containers.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::shared::Tenant;
use super::{
    Bound, Charge, DISK_BLOCK, DISK_GUARANTEED, HEAP_BLOCK, HEAP_GUARANTEED, HOLDINGS, Holding, OTHERS_LEAVE,
    OTHERS_LEAVE_PART, PodBounds, Refused, What, heap_max,
};
use crate::refusals::Refusals;
use crate::shares::Holder;

/// Bytes that are not counted one by one: they are part of what holds them.
const BYTES_FREE: usize = 2 << 10;

/// What a pod or container holds, and how much it may.
#[derive(Debug)]
pub(crate) struct Account {
    gauges: [Gauge; HOLDINGS],
    /// Memory that is a pod's for certain.
    memory_kept: u64,
    parent: Parent,
    /// A guest asked for more memory than there is for it, of its own or of the host's.
    exceeded: AtomicBool,
    /// Why a guest was last given no more, for the message that tells of it.
    refusal: Mutex<Option<Refused>>,
    /// The first address of the pod, by which it is known who is refused something.
    address: Mutex<Option<IpAddr>>,
}

#[derive(Debug)]
enum Parent {
    /// Of a container.
    Pod(Arc<Account>),
    /// Of a pod.
    Tenant(Arc<Tenant>),
}

#[derive(Debug)]
struct Gauge {
    held: AtomicU64,
    limit: u64,
}

impl Gauge {
    fn new(limit: u64) -> Gauge {
        Gauge { held: AtomicU64::new(0), limit }
    }
}

impl Account {
    /// A pod's.
    pub(super) fn pod(tenant: Arc<Tenant>, bounds: PodBounds) -> Arc<Account> {
        let PodBounds { memory, memory_requested, disk } = bounds;
        let kept = tenant.keep_memory(memory_requested.min(memory.unwrap_or(u64::MAX)));
        Account::new(memory, disk, kept, Parent::Tenant(tenant))
    }

    /// The account of a container of this pod.
    pub(crate) fn container(self: &Arc<Account>, memory_limit: Option<u64>) -> Arc<Account> {
        Account::new(memory_limit, None, 0, Parent::Pod(Arc::clone(self)))
    }

    fn new(memory: Option<u64>, disk: Option<u64>, memory_kept: u64, parent: Parent) -> Arc<Account> {
        let limits = [memory.unwrap_or(u64::MAX), heap_max(memory), u64::MAX, disk.unwrap_or(u64::MAX)];
        Arc::new(Account {
            gauges: limits.map(Gauge::new),
            memory_kept,
            parent,
            exceeded: AtomicBool::new(false),
            refusal: Mutex::default(),
            address: Mutex::default(),
        })
    }

    /// Holds so much more until the charge is dropped, or is told whose bound forbids it.
    pub(crate) fn charge(self: &Arc<Account>, holding: Holding, amount: u64) -> Result<Charge, Refused> {
        let mut charge = Charge::nothing(self, holding);
        charge.grow(amount)?;
        Ok(charge)
    }

    /// The same for one who does without where it is refused: nobody is told of that.
    pub(crate) fn try_charge(self: &Arc<Account>, holding: Holding, amount: u64) -> Result<Charge, Refused> {
        let mut charge = Charge::nothing(self, holding);
        charge.try_grow(amount)?;
        Ok(charge)
    }

    /// The same for somebody from elsewhere, who must not take the last: a part is left to the pod and its namespace.
    pub(crate) fn charge_for_other(
        self: &Arc<Account>,
        holding: Holding,
        amount: u64,
    ) -> Result<Charge, Refused> {
        if !self.leaves_some(holding, amount) {
            let (held, all) = (self.held(holding), self.limit(holding));
            let limit = all - all / OTHERS_LEAVE_PART;
            let refused =
                Refused { what: holding.into(), bound: Bound::Caller, held, asked: amount, limit, all };
            self.note(refused);
            return Err(refused);
        }
        self.charge(holding, amount)
    }

    fn leaves_some(&self, holding: Holding, amount: u64) -> bool {
        let limit = self.limit(holding);
        let held = self.held(holding).saturating_add(amount);
        held <= limit - limit / OTHERS_LEAVE_PART
            && match &self.parent {
                Parent::Pod(pod) => pod.leaves_some(holding, amount),
                Parent::Tenant(tenant) => {
                    let shared = self.shared_part(holding, held.saturating_add(OTHERS_LEAVE), tenant);
                    shared == 0 || !tenant.is_pressed(holding, shared)
                }
            }
    }

    /// What is held now.
    pub(crate) fn held(&self, holding: Holding) -> u64 {
        self.gauge(holding).held.load(Ordering::Relaxed)
    }

    /// How much may be held, whatever others hold.
    pub(crate) fn limit(&self, holding: Holding) -> u64 {
        self.gauge(holding).limit
    }

    /// True where a charge would be refused, or where more is held than may be. Whoever buffers for a guest makes do with
    /// little then.
    pub(crate) fn is_pressed(&self, holding: Holding) -> bool {
        let gauge = self.gauge(holding);
        let held = gauge.held.load(Ordering::Relaxed);
        held >= gauge.limit
            || match &self.parent {
                Parent::Pod(pod) => pod.is_pressed(holding),
                Parent::Tenant(tenant) => {
                    let shared = self.shared_part(holding, held, tenant);
                    shared > 0 && tenant.is_pressed(holding, shared)
                }
            }
    }

    /// Whether its namespace holds more of what all share than an equal part.
    pub(crate) fn namespace_has_its_part(&self, holding: Holding) -> bool {
        match &self.parent {
            Parent::Pod(pod) => pod.namespace_has_its_part(holding),
            Parent::Tenant(tenant) => tenant.has_its_part(holding),
        }
    }

    /// A guest is to be ended because it asked for more memory than there is for it.
    pub(crate) fn exceed(&self) {
        self.exceeded.store(true, Ordering::Relaxed);
    }

    /// True once [`Account::exceed`] was called.
    pub(crate) fn exceeded(&self) -> bool {
        self.exceeded.load(Ordering::Relaxed)
    }

    /// Notes why a guest gets no more, where no error can tell it.
    pub(crate) fn remember(&self, refused: Refused) {
        *self.refusal.lock() = Some(refused);
    }

    /// What was noted last.
    pub(crate) fn refusal(&self) -> Option<Refused> {
        *self.refusal.lock()
    }

    /// The account is that of the pod with this address, or of one of its containers.
    pub(crate) fn set_address(&self, address: Option<IpAddr>) {
        *self.address.lock() = address;
    }

    /// Has the pod's owner told that something was refused, of this account's or of what else is the pod's.
    #[cold]
    pub(crate) fn note(&self, refused: Refused) {
        let (refusals, holder) = self.teller();
        // A container that goes over its own limit of memory ends for it, which its status says.
        if refused.what != What::Memory || refused.is_of_all() {
            refusals.note(&holder, refused);
        }
    }

    fn teller(&self) -> (&Refusals, Holder) {
        match &self.parent {
            Parent::Pod(pod) => pod.teller(),
            Parent::Tenant(tenant) => {
                let holder = Holder { namespace: Arc::clone(tenant.name()), pod: *self.address.lock() };
                (tenant.refusals(), holder)
            }
        }
    }

    /// The same bytes, held on this account until the last part of them is dropped, wherever they are by then. Few bytes are
    /// not worth it.
    pub(crate) fn hold_bytes(self: &Arc<Account>, bytes: Bytes) -> Bytes {
        if bytes.len() <= BYTES_FREE {
            return bytes;
        }
        let mut charge = Charge::nothing(self, Holding::Heap);
        charge.set_held(bytes.len() as u64);
        HeldBytes::new(bytes, charge).into()
    }

    pub(super) fn take(&self, holding: Holding, amount: u64) -> Result<(), Refused> {
        let gauge = self.gauge(holding);
        let (limit, bound) = (gauge.limit, self.bound());
        let admitted = gauge.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(amount).filter(|held| *held <= limit)
        });
        let refused = |held| Refused { what: holding.into(), bound, held, asked: amount, limit, all: limit };
        let before = admitted.map_err(refused)?;
        match &self.parent {
            Parent::Pod(pod) => pod.take(holding, amount).inspect_err(|_| {
                gauge.held.fetch_sub(amount, Ordering::Relaxed);
            }),
            Parent::Tenant(tenant) => {
                let of_pod = self.shared_part(holding, before, tenant);
                let more = self.shared_part(holding, before + amount, tenant) - of_pod;
                if more == 0 {
                    return Ok(());
                }
                tenant.take(holding, more, of_pod).inspect_err(|_| {
                    let less = self.step_back(tenant, holding, amount);
                    tenant.correct(holding, more, less);
                })
            }
        }
    }

    /// Holds so much more, whether it may or not: it is there already.
    pub(crate) fn burden(&self, holding: Holding, amount: u64) {
        let before = self.gauge(holding).held.fetch_add(amount, Ordering::Relaxed);
        match &self.parent {
            Parent::Pod(pod) => pod.burden(holding, amount),
            Parent::Tenant(tenant) => {
                let of_pod = self.shared_part(holding, before, tenant);
                let more =
                    self.shared_part(holding, before.saturating_add(amount), tenant).saturating_sub(of_pod);
                tenant.add(holding, more);
            }
        }
    }

    pub(crate) fn give_back(&self, holding: Holding, amount: u64) {
        match &self.parent {
            Parent::Pod(pod) => {
                self.gauge(holding).held.fetch_sub(amount, Ordering::Relaxed);
                pod.give_back(holding, amount);
            }
            Parent::Tenant(tenant) => {
                let less = self.step_back(tenant, holding, amount);
                tenant.give_back(holding, less);
            }
        }
    }

    /// What a pod holds less of the node's part when it holds so much less.
    fn step_back(&self, tenant: &Tenant, holding: Holding, amount: u64) -> u64 {
        let before = self.gauge(holding).held.fetch_sub(amount, Ordering::Relaxed);
        self.shared_part(holding, before, tenant) - self.shared_part(holding, before - amount, tenant)
    }

    /// Open files that the pod has for certain.
    pub(crate) fn files_guaranteed(&self) -> u64 {
        match &self.parent {
            Parent::Pod(pod) => pod.files_guaranteed(),
            Parent::Tenant(tenant) => tenant.files_guaranteed(),
        }
    }

    /// What a pod that holds so much has of what all share: what is beyond its own for certain.
    fn shared_part(&self, holding: Holding, held: u64, tenant: &Tenant) -> u64 {
        match holding {
            Holding::Memory => held.saturating_sub(self.memory_kept),
            Holding::Heap => in_blocks(held.saturating_sub(HEAP_GUARANTEED), HEAP_BLOCK),
            Holding::Files => held.saturating_sub(tenant.files_guaranteed()),
            Holding::Disk => in_blocks(held.saturating_sub(DISK_GUARANTEED), DISK_BLOCK),
        }
    }

    fn gauge(&self, holding: Holding) -> &Gauge {
        &self.gauges[holding as usize]
    }

    fn bound(&self) -> Bound {
        match &self.parent {
            Parent::Pod(_) => Bound::Container,
            Parent::Tenant(_) => Bound::Pod,
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Parent::Tenant(tenant) = &self.parent {
            tenant.keep_memory_no_more(self.memory_kept);
        }
    }
}

/// Rounded up to blocks. A number that is more than anything can be stays what it is.
fn in_blocks(amount: u64, block: u64) -> u64 {
    amount.checked_next_multiple_of(block).unwrap_or(u64::MAX)
}

/// Bytes with the charge for them.
pub(crate) struct HeldBytes {
    bytes: Bytes,
    _charge: Charge,
}

impl HeldBytes {
    /// Bytes that a charge was taken for.
    pub(crate) fn new(bytes: Bytes, charge: Charge) -> HeldBytes {
        HeldBytes { bytes, _charge: charge }
    }
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<HeldBytes> for Bytes {
    fn from(held: HeldBytes) -> Bytes {
        Bytes::from_owner(held)
    }
}
