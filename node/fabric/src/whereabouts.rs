//! Where nodes' fabrics are, by all the addresses that are known of them: pods may dial none.
//!
//! A node says where its fabric is as an address or as a name. A name is looked up as it is for dialing, again and again;
//! and what tunnels really go to and come from, once certificates were shown, is remembered.

use crate::fabric::Inner;
use crate::tables::Tables;
use arc_swap::ArcSwap;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often names are looked up that were looked up before.
const LOOKUP_EVERY: Duration = Duration::from_secs(30);

/// Lookups at once, and how long each may take.
const LOOKUPS_MAX: usize = 4;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one node that are remembered from tunnels.
const MET_MAX: usize = 8;

/// Where a node says that its fabric is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Address(IpAddr),
    Name(Arc<str>),
}

/// Takes a fabric's `host:port` apart.
pub(crate) fn host_and_port(fabric: &str) -> Option<(Host, u16)> {
    if let Ok(address) = fabric.parse::<SocketAddr>() {
        return Some((Host::Address(address.ip().to_canonical()), address.port()));
    }
    let (name, port) = fabric.rsplit_once(':')?;
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    Some((Host::Name(name.into()), port.parse().ok()?))
}

/// What is known beyond what nodes say.
#[derive(Default)]
pub(crate) struct Whereabouts {
    /// What names stand for; nothing where they stand for nothing.
    names: ArcSwap<BTreeMap<Arc<str>, Vec<IpAddr>>>,
    /// By node, the newest last.
    met: Mutex<HashMap<Arc<str>, VecDeque<IpAddr>>>,
}

impl Whereabouts {
    /// Whether an address is a node's fabric. One at the port of a fabric whose name has not been looked up yet counts as
    /// one: that takes a moment.
    pub(crate) fn is_fabric(&self, tables: &Tables, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let (names, met) = (self.names.load(), self.met.lock());
        tables.fabrics_at(address.port()).iter().any(|(node, host)| {
            let is_said = match host {
                Host::Address(said) => *said == ip,
                Host::Name(name) => names.get(name).is_none_or(|addresses| addresses.contains(&ip)),
            };
            is_said || met.get(node).is_some_and(|addresses| addresses.contains(&ip))
        })
    }

    /// A tunnel of a node goes to this address or comes from it.
    pub(crate) fn meet(&self, node: &Arc<str>, ip: IpAddr) {
        let ip = ip.to_canonical();
        let mut met = self.met.lock();
        let addresses = met.entry(node.clone()).or_default();
        if !addresses.contains(&ip) {
            addresses.push_back(ip);
            if addresses.len() > MET_MAX {
                addresses.pop_front();
            }
        }
    }

    /// Forgets nodes that are gone.
    pub(crate) fn retain(&self, known: impl Fn(&str) -> bool) {
        self.met.lock().retain(|node, _| known(node));
    }

    /// Nodes and names of which something is known.
    #[cfg(test)]
    fn held(&self) -> usize {
        self.met.lock().len() + self.names.load().len()
    }

    /// Looks up the names that are not known yet, or all; forgets those that nobody has any more. One that cannot be looked
    /// up now keeps what it stood for.
    async fn look_up(&self, wanted: BTreeSet<Arc<str>>, all: bool) {
        let known = self.names.load_full();
        let is_due = |name: &&Arc<str>| all || !known.contains_key(*name);
        let due: Vec<Arc<str>> = wanted.iter().filter(is_due).cloned().collect();
        let lookups = due.into_iter().map(|name| async move {
            let found = addresses_of(&name).await;
            (name, found)
        });
        let looked_up: Vec<_> = futures::stream::iter(lookups).buffer_unordered(LOOKUPS_MAX).collect().await;
        let mut names = BTreeMap::clone(&known);
        names.retain(|name, _| wanted.contains(name));
        for (name, found) in looked_up {
            let stood_for = names.entry(name).or_default();
            if let Some(addresses) = found {
                *stood_for = addresses;
            }
        }
        if names != *known {
            self.names.store(Arc::new(names));
        }
    }
}

async fn addresses_of(name: &str) -> Option<Vec<IpAddr>> {
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name, 0))).await.ok()?.ok()?;
    Some(found.map(|address| address.ip().to_canonical()).collect())
}

/// Looks the names up that the tables have, as long as there is a fabric.
pub(crate) async fn keep(fabric: Weak<Inner>, mut changes: watch::Receiver<u64>, stopped: CancellationToken) {
    let mut all_due = Instant::now();
    loop {
        changes.mark_unchanged();
        let Some((names, whereabouts)) =
            fabric.upgrade().map(|inner| (inner.tables().fabric_names(), inner.whereabouts().clone()))
        else {
            return;
        };
        let all = all_due <= Instant::now();
        if all {
            all_due = Instant::now() + LOOKUP_EVERY;
        }
        let until = tokio::select! {
            () = whereabouts.look_up(names, all) => all_due,
            () = stopped.cancelled() => return,
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(until) => {}
            () = stopped.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_names() {
        let host = |text| host_and_port(text);
        let address = |text: &str| Host::Address(text.parse().unwrap());
        assert_eq!(host("10.0.0.1:7443"), Some((address("10.0.0.1"), 7443)));
        assert_eq!(host("[::ffff:10.0.0.1]:7443"), Some((address("10.0.0.1"), 7443)));
        assert_eq!(host("Node.Example.:7443"), Some((Host::Name("node.example".into()), 7443)));
        assert_eq!((host("node.example"), host("node.example:x")), (None, None));
    }

    #[tokio::test]
    async fn a_name_is_what_it_stands_for_and_what_was_met() {
        let (whereabouts, state) = (
            Whereabouts::default(),
            crate::NetworkState {
                nodes: [("a", "localhost:7443"), ("b", "no.such.name.invalid:7444"), ("c", "192.0.2.7:7445")]
                    .map(|(name, at)| (name.to_owned(), at.to_owned()))
                    .into(),
                ..crate::NetworkState::default()
            },
        );
        let tables = Tables::build(state, &Default::default());
        let is_fabric = |text: &str| whereabouts.is_fabric(&tables, text.parse().unwrap());
        assert!(is_fabric("198.51.100.1:7443"), "nobody knows yet what the name stands for");
        whereabouts.look_up(tables.fabric_names(), true).await;
        assert!(is_fabric("127.0.0.1:7443") && is_fabric("[::ffff:127.0.0.1]:7443"));
        assert!(!is_fabric("198.51.100.1:7443") && !is_fabric("127.0.0.1:7444"));
        assert!(!is_fabric("198.51.100.1:7444"), "a name that stands for nothing closes nothing");
        for node in ["b", "c"] {
            whereabouts.meet(&node.into(), "198.51.100.1".parse().unwrap());
        }
        assert!(
            is_fabric("198.51.100.1:7444") && is_fabric("198.51.100.1:7445"),
            "another address of theirs"
        );
        assert!(is_fabric("192.0.2.7:7445") && !is_fabric("198.51.100.1:7446"));
        whereabouts.retain(|node| node == "b");
        assert!(is_fabric("198.51.100.1:7444") && !is_fabric("198.51.100.1:7445"));
        whereabouts.look_up(BTreeSet::new(), false).await;
        assert_eq!(whereabouts.held(), 1);
    }
}
