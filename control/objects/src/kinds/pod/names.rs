//! What the parts of a pod's spec call each other by.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fields::{list, present, text};

const OF_NODES: [&str; 4] = ["/configMap", "/downwardAPI", "/projected", "/secret"];

pub(super) struct Names<'a> {
    pub volumes: BTreeSet<&'a str>,
    /// Those of the volumes that nodes write, and containers only read.
    pub read_only: BTreeSet<&'a str>,
    /// Init containers among them.
    pub containers: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn of(spec: &'a Value) -> Self {
        let names = |path: &str| list(spec, path).iter().map(|part| text(part, "/name"));
        let is_read_only = |volume: &&Value| OF_NODES.iter().any(|kind| present(volume, kind));
        let read_only = list(spec, "/volumes").iter().filter(is_read_only);
        Self {
            volumes: names("/volumes").collect(),
            read_only: read_only.map(|volume| text(volume, "/name")).collect(),
            containers: names("/containers").chain(names("/initContainers")).collect(),
        }
    }
}
