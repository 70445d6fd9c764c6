//! On whose account a connection's way through the host holds bytes.
//!
//! What is in a pipe is counted as it comes and goes, and a full account leaves room for little. What another node has sent
//! before it could know of that is here already, and cannot be refused: it is counted too, and where it is too much the
//! connection that has stood still for the longest makes room.

use super::seat::Budget;
use super::{Conn, NetLimits};
use crate::ledger::{Ledger, NodeBounds};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use tokio_util::sync::CancellationToken;

/// Unread bytes that an account keeps however full it is, so that who reads slowly is not taken for one who never does.
const UNREAD_SPARED: usize = 512 * 1024;

/// On whose account: a pod's, or that of what comes to the services of one Kubernetes namespace from outside.
#[derive(Debug, Clone)]
pub struct Buffers {
    budget: Arc<Budget>,
    pipe_bytes: usize,
}

impl Buffers {
    pub(super) fn new(budget: Arc<Budget>, pipe_bytes: usize) -> Self {
        Self { budget, pipe_bytes }
    }

    /// Two ends of a connection, the one with the address `local` first. What they hold is on this account.
    pub fn connection(&self, local: SocketAddr, peer: SocketAddr) -> (Conn, Conn) {
        Conn::pair_within(local, peer, self.pipe_bytes, Some(&self.budget))
    }

    /// Bytes that are on it now.
    pub fn held(&self) -> usize {
        self.budget.used()
    }

    /// The same bytes, on this account until the last part of them is dropped.
    pub fn carried(&self, bytes: Bytes) -> Bytes {
        self.budget.add(bytes.len());
        Bytes::from_owner(Carried { bytes, budget: self.budget.clone() })
    }

    /// For what one carrier has and cannot put into its pipe.
    pub fn unread(&self) -> Unread {
        let lost = CancellationToken::new();
        Unread { budget: self.budget.clone(), bytes: 0, standing: None, lost }
    }
}

/// Bytes that are on their way from a pod.
struct Carried {
    bytes: Bytes,
    budget: Arc<Budget>,
}

impl AsRef<[u8]> for Carried {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.budget.remove(self.bytes.len());
    }
}

/// Bytes that have come for one connection and that nobody has taken, until it is dropped.
#[derive(Debug)]
pub struct Unread {
    budget: Arc<Budget>,
    bytes: usize,
    /// Its key among those that stand still.
    standing: Option<u64>,
    lost: CancellationToken,
}

/// Those on one account whose bytes nobody takes.
#[derive(Debug, Default)]
pub(super) struct Standing {
    bytes: usize,
    last: u64,
    /// By how long they stand still.
    by_age: BTreeMap<u64, CancellationToken>,
    /// Those that have been told to make room and still have theirs: one at a time, so that no more go than have to.
    leaving: usize,
}

impl Standing {
    fn enter(&mut self, lost: &CancellationToken) -> u64 {
        self.last += 1;
        self.by_age.insert(self.last, lost.clone());
        self.last
    }

    /// Where there is no more room, who has stood still for the longest makes some.
    fn make_room(&mut self, budget: &Budget) {
        if self.bytes <= UNREAD_SPARED || self.leaving > 0 || !budget.has_its_share() {
            return;
        }
        if let Some((_, oldest)) = self.by_age.pop_first() {
            self.leaving += 1;
            oldest.cancel();
        }
    }
}

impl Unread {
    /// How many there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many from now on. Fewer means that somebody takes them.
    pub fn set(&mut self, bytes: usize) {
        let mut standing = self.budget.standing.lock();
        standing.bytes = standing.bytes - self.bytes + bytes;
        if bytes < self.bytes {
            self.budget.remove(self.bytes - bytes);
            if let Some(key) = self.standing.take() {
                standing.by_age.remove(&key);
            }
        } else {
            self.budget.add(bytes - self.bytes);
        }
        self.bytes = bytes;
        if bytes > 0 && self.standing.is_none() && !self.lost.is_cancelled() {
            self.standing = Some(standing.enter(&self.lost));
        }
        standing.make_room(&self.budget);
    }

    /// Cancelled when all of it has to make room for others.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.set(0);
        if self.lost.is_cancelled() {
            let mut standing = self.budget.standing.lock();
            standing.leaving -= 1;
            standing.make_room(&self.budget);
        }
    }
}

/// The [`Buffers`] of what comes to each Kubernetes namespace's services from outside and is carried on from here: a
/// namespace may hold as much for it as for one of its pods.
pub struct TenantBuffers {
    ledger: Ledger,
    tenants: Mutex<HashMap<Arc<str>, Weak<Budget>>>,
}

impl TenantBuffers {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self { ledger, tenants: Mutex::default() }
    }

    /// Those of a namespace.
    pub fn of(&self, namespace: &Arc<str>) -> Buffers {
        let limits = NetLimits::default();
        let mut tenants = self.tenants.lock();
        if let Some(budget) = tenants.get(namespace).and_then(Weak::upgrade) {
            return Buffers::new(budget, limits.pipe_bytes);
        }
        // Others whose last connection is gone are not kept.
        tenants.retain(|_, budget| budget.strong_count() > 0);
        let budget = Arc::new(Budget::new(limits.buffered_bytes_max));
        budget.charge_to(&self.ledger.pod(namespace, None));
        tenants.insert(namespace.clone(), Arc::downgrade(&budget));
        Buffers::new(budget, limits.pipe_bytes)
    }

    /// Those of a node without guests, as tests start them: for all namespaces within so many bytes beside the little that
    /// each has for certain.
    pub fn within(bytes: u64) -> Self {
        Self::new(Ledger::new(NodeBounds { memory: None, heap: bytes, files: 0, files_guaranteed: 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{HEAP_GUARANTEED, Holding};
    use crate::net::{Isolated, Namespace, NamespaceConfig, NetError};

    const MIB: u64 = 1 << 20;
    #[test]
    fn what_nobody_takes_is_charged_and_the_oldest_of_it_makes_room() {
        let ledger = Ledger::new(NodeBounds { memory: None, heap: 1 << 30, files: 0, files_guaranteed: 0 });
        let account = ledger.pod(&"default".into(), Some(1));
        let config = NamespaceConfig {
            hostname: "pod".into(),
            tenant: "default".into(),
            addresses: vec![],
            limits: NetLimits::default(),
        };
        let namespace = Namespace::new(config, Arc::new(Isolated));
        namespace.charge_to(&account);
        let buffers = namespace.buffers();
        let fill = |unread: &mut Unread| unread.set(unread.bytes() + MIB as usize);
        let mut all: Vec<Unread> = (0..31).map(|_| buffers.unread()).collect();
        all.iter_mut().for_each(fill);
        assert_eq!(account.held(Holding::Heap), 31 * MIB, "the smallest pod may cause 32 MiB");
        assert!(all.iter().all(|unread| !unread.lost().is_cancelled()));
        // The first goes on a little, so it is the youngest of them.
        all[0].set(MIB as usize / 2);
        let mut more: Vec<Unread> = (0..3).map(|_| buffers.unread()).collect();
        more.iter_mut().for_each(fill);
        let lost = |all: &[Unread]| {
            let lost = all.iter().enumerate().filter(|(_, unread)| unread.lost().is_cancelled());
            lost.map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(lost(&all), [1], "one at a time");
        drop(all.remove(1));
        fill(&mut more[0]);
        assert_eq!(lost(&all), [1], "the next");
        assert!(more.iter().all(|unread| !unread.lost().is_cancelled()));
        drop(all);
        assert_eq!(account.held(Holding::Heap), 4 * MIB);
        drop(more);
        assert_eq!(account.held(Holding::Heap), 0);
        let standing = buffers.budget.standing.lock();
        assert!(standing.by_age.is_empty() && (standing.bytes, standing.leaving) == (0, 0));
    }

    #[test]
    fn what_comes_from_outside_is_on_its_namespaces_account() {
        let tenants = TenantBuffers::within(2 * MIB);
        let at = |port| SocketAddr::new([10, 0, 0, 1].into(), port);
        let fill = |namespace: &str| {
            let mut filled = Vec::new();
            let mut bytes = 0;
            for port in 0..100 {
                let (near, far) = tenants.of(&namespace.into()).connection(at(port), at(80));
                loop {
                    match near.try_write(&[7; 4096]) {
                        Ok(written) => bytes += written as u64,
                        Err(error) => break assert_eq!(error, NetError::WouldBlock),
                    }
                }
                filled.push((near, far));
            }
            (bytes, filled)
        };
        let (bytes, filled) = fill("greedy");
        assert!(bytes < 3 * MIB, "{bytes} bytes in pipes of 25 MiB");
        let (others, _) = fill("modest");
        assert!(others > HEAP_GUARANTEED, "{others}");
        assert!(tenants.tenants.lock().len() == 2);
        drop(filled);
        let (again, _) = fill("greedy");
        assert!(again > MIB, "{again}");
        drop(tenants.of(&"last".into()));
        assert_eq!(tenants.tenants.lock().len(), 1);
    }
}
