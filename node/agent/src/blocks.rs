//! Pod addresses: taken from /24 blocks that this node holds, more of which it claims through the link.
//!
//! A released address is reused last, so that what still remembers it meets nobody before it meets a stranger.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
};

/// Addresses of a /24 that pods get: not the network's, not the node's own (.1), not the broadcast address.
const HOST_PARTS: std::ops::RangeInclusive<u8> = 2..=254;
/// The host part of the node's own address in a block: where probes come from.
const NODE_PART: u8 = 1;

/// The addresses of this node.
#[derive(Debug, Default)]
pub struct Blocks {
    /// The first three bytes of each block.
    blocks: BTreeSet<[u8; 3]>,
    /// In the order in which they are to be given out.
    free: VecDeque<Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
}

impl Blocks {
    /// Takes a block that this node holds, `10.128.3.0/24`. False where it is no such block; known ones are fine.
    pub fn add(&mut self, cidr: &str) -> bool {
        let Some(prefix) = parse(cidr) else { return false };
        if self.blocks.insert(prefix) {
            let [a, b, c] = prefix;
            self.free.extend(HOST_PARTS.map(|d| Ipv4Addr::new(a, b, c, d)));
        }
        true
    }

    /// An address, the preferred one if it is free. `None` where another block is needed.
    pub fn take(&mut self, preferred: Option<IpAddr>) -> Option<Ipv4Addr> {
        let wanted = preferred.and_then(|ip| match ip {
            IpAddr::V4(ip) => self.free.iter().position(|free| *free == ip),
            IpAddr::V6(_) => None,
        });
        let address = match wanted {
            Some(at) => self.free.remove(at),
            None => self.free.pop_front(),
        }?;
        self.used.insert(address);
        Some(address)
    }

    pub fn release(&mut self, address: Ipv4Addr) {
        if self.used.remove(&address) {
            self.free.push_back(address);
        }
    }

    /// The node's own address in the pod network, once it holds a block.
    pub fn node_address(&self) -> Option<Ipv4Addr> {
        self.blocks.first().map(|[a, b, c]| Ipv4Addr::new(*a, *b, *c, NODE_PART))
    }
}

fn parse(cidr: &str) -> Option<[u8; 3]> {
    let address: Ipv4Addr = cidr.strip_suffix("/24")?.parse().ok()?;
    let [a, b, c, d] = address.octets();
    (d == 0).then_some([a, b, c])
}

/// Pods that wait for an address, and the claim that is under way for them.
#[derive(Debug)]
pub struct Waiting<T> {
    queue: BTreeMap<u64, T>,
    next: u64,
    claim: Option<u64>,
    claims: u64,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { queue: BTreeMap::new(), next: 0, claim: None, claims: 0 }
    }
}

impl<T> Waiting<T> {
    /// Puts one in the queue; a claim to send where none is under way.
    pub fn push(&mut self, waiting: T) -> Option<u64> {
        self.queue.insert(self.next, waiting);
        self.next += 1;
        if self.claim.is_some() {
            return None;
        }
        self.claims += 1;
        self.claim = Some(self.claims);
        self.claim
    }

    /// The claim was answered. False where it is not the one under way.
    pub fn answered(&mut self, request: u64) -> bool {
        let ours = self.claim == Some(request);
        if ours {
            self.claim = None;
        }
        ours
    }

    /// All that wait, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.queue).into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_reused_last_and_kept_where_possible() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.take(None), None);
        assert!(blocks.add("10.128.3.0/24") && blocks.add("10.128.3.0/24"));
        assert!(!blocks.add("10.128.3.0/16") && !blocks.add("nonsense"));
        let first = blocks.take(None).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 128, 3, 2));
        blocks.release(first);
        let rest: Vec<_> = std::iter::from_fn(|| blocks.take(None)).collect();
        assert_eq!(rest.len(), 253);
        assert_eq!(*rest.last().unwrap(), first);
        blocks.release(rest[7]);
        blocks.release(rest[9]);
        assert_eq!(blocks.take(Some(IpAddr::V4(rest[9]))), Some(rest[9]));
        assert_eq!(blocks.take(Some(IpAddr::V4(rest[9]))), Some(rest[7]));
        assert_eq!(blocks.node_address(), Some(Ipv4Addr::new(10, 128, 3, 1)));
    }

    #[test]
    fn one_claim_is_under_way_at_a_time() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.push("a"), Some(1));
        assert_eq!(waiting.push("b"), None);
        assert!(!waiting.answered(7) && waiting.answered(1));
        assert_eq!(waiting.drain().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(waiting.push("c"), Some(2));
    }
}
