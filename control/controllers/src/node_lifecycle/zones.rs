//! Which nodes are ready, counted by zone.

use std::{collections::BTreeMap, sync::Arc};

use coracle_objects::Object;

use crate::{
    index::Index,
    model::{Models, Node},
};

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Where so many nodes of a zone are not ready, and they are this part of it, the zone is disrupted: what makes them so
/// is rather the network, or this control plane, than the nodes. Upstream's default of `--unhealthy-zone-threshold`.
const DISRUPTED_PERCENT: usize = 55;
const DISRUPTED_MIN: usize = 3;

/// The name of a zone. Nodes without the label are one zone, nameless.
pub type Zone = Arc<str>;

/// How many nodes a zone has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub nodes: usize,
    pub ready: usize,
}

impl Count {
    pub fn unready(self) -> usize {
        self.nodes - self.ready
    }

    /// Whether most of its nodes are not ready, but some are. One without any ready node is not meant: beside others
    /// that are well it is taken for lost.
    pub fn partly_disrupted(self) -> bool {
        self.ready > 0
            && self.unready() >= DISRUPTED_MIN
            && self.unready() * 100 >= self.nodes * DISRUPTED_PERCENT
    }
}

/// All nodes, by zone.
#[derive(Debug, Default)]
pub struct Zones {
    nodes: BTreeMap<String, (Zone, bool)>,
    counts: BTreeMap<Zone, Count>,
    ready: usize,
    changes: u64,
}

impl Index for Zones {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        if object.key.resource.as_str() == "nodes" {
            self.put(object, models.node(object).is_some_and(Node::is_ready));
        }
    }

    fn remove(&mut self, object: &Arc<Object>, _: &Models) {
        if object.key.resource.as_str() == "nodes" {
            self.take(object.name());
        }
    }
}

impl Zones {
    pub fn any_ready(&self) -> bool {
        self.ready > 0
    }

    pub(super) fn put(&mut self, node: &Object, ready: bool) {
        let name = node.name();
        self.take(name);
        let label = |key: &str| node.meta.labels.get(key).map_or("", String::as_str);
        let zone: Zone = match label(REGION) {
            "" => label(ZONE).into(),
            region => format!("{region}/{}", label(ZONE)).into(),
        };
        let count = self.counts.entry(zone.clone()).or_default();
        count.nodes += 1;
        count.ready += usize::from(ready);
        self.ready += usize::from(ready);
        self.nodes.insert(name.to_owned(), (zone, ready));
        self.changes += 1;
    }

    fn take(&mut self, name: &str) {
        let Some((zone, ready)) = self.nodes.remove(name) else { return };
        self.changes += 1;
        self.ready -= usize::from(ready);
        let Some(count) = self.counts.get_mut(&zone) else { return };
        count.nodes -= 1;
        count.ready -= usize::from(ready);
        if count.nodes == 0 {
            self.counts.remove(&zone);
        }
    }

    pub fn zone_of(&self, name: &str) -> Option<&Zone> {
        self.nodes.get(name).map(|(zone, _)| zone)
    }

    pub fn is_ready(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|(_, ready)| *ready)
    }

    pub fn count(&self, zone: &Zone) -> Count {
        self.counts.get(zone).copied().unwrap_or_default()
    }

    pub fn counts(&self) -> impl Iterator<Item = (&Zone, Count)> {
        self.counts.iter().map(|(zone, count)| (zone, *count))
    }

    /// Whether there are nodes, and none is ready.
    pub fn all_down(&self) -> bool {
        self.ready == 0 && !self.nodes.is_empty()
    }

    /// Grows with every change: equal numbers, equal counts.
    pub fn changes(&self) -> u64 {
        self.changes
    }
}
