//! Which Ingresses nodes are sent: those that gateways serve. Classes are not sent, so that a node could not tell.

use std::collections::BTreeSet;

use coracle_objects::{
    Event, EventKind, Object, ObjectKey, ObjectName, Revision, View,
    kinds::{INGRESSES, ingress_class, is_for_gateways, is_gateway_class},
};
use serde_json::Value;

use super::{Change, Routed, To};

/// Linear in the number of Ingresses where they are made, or a class of gateways comes or goes.
pub struct Ingresses {
    /// Those of other controllers.
    foreign: BTreeSet<ObjectName>,
}

impl Ingresses {
    pub fn of(view: &View) -> Self {
        let foreign = view.list(INGRESSES, None).filter(|ingress| !is_for_gateways(view, &read(ingress)));
        Self { foreign: foreign.map(|ingress| ingress.key.name.clone()).collect() }
    }

    /// Whether an object is no Ingress that is left to another controller.
    pub fn takes(&self, key: &ObjectKey) -> bool {
        key.resource.as_str() != INGRESSES || !self.foreign.contains(&key.name)
    }

    /// What has become of an Ingress, to nodes.
    pub fn observe(&mut self, event: &Event, view: &View) -> Option<Routed> {
        let ingress = &event.object;
        if event.kind == EventKind::Deleted {
            let was_sent = !self.foreign.remove(&ingress.key.name);
            return was_sent.then(|| routed(ingress, Change::Deleted(ingress.revision)));
        }
        self.judge(ingress, &read(ingress), ingress.revision, view)
    }

    /// What a class that has come or gone changes.
    pub fn observe_class(&mut self, event: &Event, view: &View) -> Vec<Routed> {
        let is_ours = event.kind != EventKind::Deleted && is_gateway_class(&event.object);
        if is_ours == event.previous.as_ref().is_some_and(|previous| is_gateway_class(previous)) {
            return vec![];
        }
        let ingresses = view.list(INGRESSES, None).map(|ingress| (ingress, read(ingress)));
        let of_class = ingresses.filter(|(_, value)| ingress_class(value) == Some(event.object.name()));
        of_class
            .filter_map(|(ingress, value)| self.judge(ingress, &value, event.object.revision, view))
            .collect()
    }

    /// An Ingress as it is now: nodes have it, or, by this revision, no more.
    fn judge(&mut self, ingress: &Object, value: &Value, revision: Revision, view: &View) -> Option<Routed> {
        if is_for_gateways(view, value) {
            self.foreign.remove(&ingress.key.name);
            return Some(routed(ingress, Change::Put));
        }
        let is_news = self.foreign.insert(ingress.key.name.clone());
        is_news.then(|| routed(ingress, Change::Deleted(revision)))
    }
}

fn routed(ingress: &Object, change: Change) -> Routed {
    Routed { to: To::All, key: ingress.key.clone(), change }
}

/// One that cannot be read names no class.
fn read(ingress: &Object) -> Value {
    ingress.parse().unwrap_or_default()
}
