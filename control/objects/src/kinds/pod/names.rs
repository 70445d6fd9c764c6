//! What the parts of a pod's spec call each other by.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fields::{list, text};

pub(super) struct Names<'a> {
    pub volumes: BTreeSet<&'a str>,
    /// Init containers among them.
    pub containers: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn of(spec: &'a Value) -> Self {
        let names = |path: &str| list(spec, path).iter().map(|part| text(part, "/name"));
        Self {
            volumes: names("/volumes").collect(),
            containers: names("/containers").chain(names("/initContainers")).collect(),
        }
    }
}
