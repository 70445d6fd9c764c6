//! Which addresses this member uses for the others: those of their objects, and for those that have moved since, where they
//! were met.
//!
//! Where many members have moved at once there may be no quorum that could write the new addresses down. What was learned
//! of a member counts until its object says something new.

use std::{collections::BTreeMap, sync::Arc};

use coracle_raft::GrpcTransport;
use coracle_storage::peers::Peers;
use parking_lot::Mutex;

/// An address as it was met, and the one that the member had by its object at the time.
struct Met {
    address: String,
    instead_of: Option<String>,
}

/// See the module. Raft's transport has the same addresses.
pub struct Whereabouts {
    peers: Arc<Peers>,
    transport: GrpcTransport,
    /// Held while addresses are set, so that none of two that set them at once is lost.
    met: Mutex<BTreeMap<u64, Met>>,
}

impl Whereabouts {
    pub fn new(peers: Arc<Peers>, transport: GrpcTransport) -> Self {
        Self { peers, transport, met: Mutex::default() }
    }

    /// Uses these addresses, but for members that were met elsewhere since theirs were written down.
    pub fn follow(&self, mut written: BTreeMap<u64, String>) {
        let mut met = self.met.lock();
        overlay(&mut met, &mut written);
        self.set(written);
    }

    /// Puts where members were met in the place of what was written of them before. Who is not written of is no member.
    pub fn overlay(&self, written: &mut BTreeMap<u64, String>) {
        overlay(&mut self.met.lock(), written);
    }

    /// Takes note of members that were met, or heard of, at these addresses. Whether that was news.
    pub fn learn(&self, found: impl IntoIterator<Item = (u64, String)>) -> bool {
        let mut met = self.met.lock();
        let mut addresses = self.peers.addresses();
        let before = addresses.clone();
        for (id, address) in found.into_iter().filter(|(_, address)| !address.is_empty()) {
            let old = addresses.insert(id, address.clone());
            if old.as_ref() != Some(&address) {
                let instead_of = met.remove(&id).map_or(old, |earlier| earlier.instead_of);
                met.insert(id, Met { address, instead_of });
            }
        }
        let news = addresses != before;
        if news {
            self.set(addresses);
        }
        news
    }

    fn set(&self, addresses: BTreeMap<u64, String>) {
        self.peers.set(&addresses);
        self.transport.set_peers(addresses);
    }
}

fn overlay(met: &mut BTreeMap<u64, Met>, written: &mut BTreeMap<u64, String>) {
    met.retain(|id, met| written.contains_key(id) && written.get(id) == met.instead_of.as_ref());
    written.extend(met.iter().map(|(id, met)| (*id, met.address.clone())));
}
