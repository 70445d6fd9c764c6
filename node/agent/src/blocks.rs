//! Pod addresses: taken from /24 blocks that this node holds, more of which it claims through the link.
//!
//! A released address is reused last, so that what still remembers it meets nobody before it meets a stranger.
//!
//! The cluster may take a block back from a node that it has not seen for long, and give it to another. So a new link
//! makes every block doubtful until the cluster names it again, and addresses come from blocks without doubt only.

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
    /// The first three bytes of each block, and whether the present link has named it.
    blocks: BTreeMap<[u8; 3], bool>,
    /// In the order in which they are to be given out.
    free: VecDeque<Ipv4Addr>,
    used: BTreeSet<Ipv4Addr>,
}

impl Blocks {
    /// Takes a block that this node holds, `10.128.3.0/24`. False where it is no such block; known ones are fine.
    pub fn add(&mut self, cidr: &str) -> bool {
        let Some(prefix) = parse(cidr) else { return false };
        if self.blocks.insert(prefix, true).is_none() {
            let [a, b, c] = prefix;
            let all = HOST_PARTS.map(|d| Ipv4Addr::new(a, b, c, d));
            // What pods of an earlier time have still is not free.
            self.free.extend(all.filter(|address| !self.used.contains(address)));
        }
        true
    }

    /// A new link: the blocks are this node's only where it says so.
    pub fn doubt(&mut self) {
        self.blocks.values_mut().for_each(|sure| *sure = false);
    }

    /// The new link has named all blocks of this node. Forgets the others, and gives the addresses that pods have of
    /// them.
    pub fn forget_doubtful(&mut self) -> Vec<Ipv4Addr> {
        let doubtful: Vec<_> = self.blocks.iter().filter(|(_, sure)| !**sure).map(|(of, _)| *of).collect();
        doubtful.into_iter().flat_map(|prefix| self.forget(prefix)).collect()
    }

    /// A block is this node's no longer. Gives the addresses that pods have of it.
    pub fn remove(&mut self, cidr: &str) -> Vec<Ipv4Addr> {
        parse(cidr).map(|prefix| self.forget(prefix)).unwrap_or_default()
    }

    fn forget(&mut self, prefix: [u8; 3]) -> Vec<Ipv4Addr> {
        if self.blocks.remove(&prefix).is_none() {
            return Vec::new();
        }
        self.free.retain(|address| block_of(*address) != prefix);
        self.used.iter().filter(|address| block_of(**address) == prefix).copied().collect()
    }

    fn is_sure(&self, address: Ipv4Addr) -> bool {
        self.blocks.get(&block_of(address)) == Some(&true)
    }

    /// An address, the preferred one if it is free. `None` where another block is needed.
    pub fn take(&mut self, preferred: Option<IpAddr>) -> Option<Ipv4Addr> {
        let mut free = self.free.iter();
        let at = match preferred {
            Some(IpAddr::V4(ip)) if self.is_sure(ip) => free.position(|free| *free == ip),
            _ => None,
        };
        let at = at.or_else(|| self.free.iter().position(|free| self.is_sure(*free)))?;
        let address = self.free.remove(at)?;
        self.used.insert(address);
        Some(address)
    }

    pub fn release(&mut self, address: Ipv4Addr) {
        if self.used.remove(&address) && self.blocks.contains_key(&block_of(address)) {
            self.free.push_back(address);
        }
    }

    /// Addresses that pods have.
    pub fn held(&self) -> usize {
        self.used.len()
    }

    /// The node's own address in the pod network, once it holds a block.
    pub fn node_address(&self) -> Option<Ipv4Addr> {
        self.blocks.keys().next().map(|[a, b, c]| Ipv4Addr::new(*a, *b, *c, NODE_PART))
    }
}

fn block_of(address: Ipv4Addr) -> [u8; 3] {
    let [a, b, c, _] = address.octets();
    [a, b, c]
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
    /// Puts one in the queue.
    pub fn push(&mut self, waiting: T) {
        self.queue.insert(self.next, waiting);
        self.next += 1;
    }

    pub fn held(&self) -> usize {
        self.queue.len()
    }

    /// A claim to send, where any wait and none is under way.
    pub fn claim(&mut self) -> Option<u64> {
        if self.queue.is_empty() || self.claim.is_some() {
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
    fn a_block_that_was_taken_back_gives_no_address_any_more() {
        let mut blocks = Blocks::default();
        let (kept, lost) = ("10.128.3.0/24", "10.128.2.0/24");
        assert!(blocks.add(lost) && blocks.add(kept));
        let of = |address: Ipv4Addr| address.octets()[2];
        let pods = [blocks.take(None).unwrap(), blocks.take(None).unwrap()];
        assert!(pods.iter().all(|address| of(*address) == 2));
        blocks.doubt();
        assert_eq!(blocks.take(Some(pods[0].into())), None, "nothing is sure yet");
        assert!(blocks.add(kept));
        let preferred = Ipv4Addr::new(10, 128, 2, 9);
        assert_eq!(of(blocks.take(Some(preferred.into())).unwrap()), 3);
        assert_eq!(blocks.forget_doubtful(), pods);
        blocks.release(pods[0]);
        let rest: Vec<_> = std::iter::from_fn(|| blocks.take(None)).collect();
        assert!(rest.len() == 252 && rest.iter().all(|address| of(*address) == 3));
        // It comes back: what a pod still has of it stays the pod's.
        assert!(blocks.add(lost));
        let again: Vec<_> = std::iter::from_fn(|| blocks.take(None)).collect();
        assert!(again.len() == 252 && !again.contains(&pods[1]));
        assert_eq!(blocks.remove(kept).len(), 253);
        assert!(blocks.remove("10.9.9.0/24").is_empty());
    }

    #[test]
    fn one_claim_is_under_way_at_a_time() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.claim(), None);
        waiting.push("a");
        assert_eq!(waiting.claim(), Some(1));
        waiting.push("b");
        assert_eq!(waiting.claim(), None);
        assert!(!waiting.answered(7) && waiting.answered(1));
        assert_eq!(waiting.drain().collect::<Vec<_>>(), ["a", "b"]);
        waiting.push("c");
        assert_eq!(waiting.claim(), Some(2));
    }
}
