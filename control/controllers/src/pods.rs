//! Pods by their nodes and labels, for all controllers that look for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{LabelSelector, Object, ObjectName, selector::Operator};

use crate::{
    index::Index,
    model::{Models, Pod, in_namespace},
    selectors::unlink,
};

/// Pods by name, found by something that they have.
type By<K> = BTreeMap<K, BTreeSet<ObjectName>>;

/// See the module. Bounded by the pods.
#[derive(Debug, Default)]
pub struct PodIndex {
    by_node: By<String>,
    by_label: By<(Arc<str>, String, String)>,
    /// Those without a controller, by namespace.
    orphans: By<Arc<str>>,
}

impl Index for PodIndex {
    fn insert(&mut self, object: &Arc<Object>, models: &Models) {
        let name = &object.key.name;
        let Some(pod) = models.pod(object) else { return };
        if !pod.node.is_empty() {
            self.by_node.entry(pod.node.clone()).or_default().insert(name.clone());
        }
        for label in labels(object) {
            self.by_label.entry(label).or_default().insert(name.clone());
        }
        if object.controller().is_none() {
            self.orphans.entry(name.namespace.clone()).or_default().insert(name.clone());
        }
    }

    fn remove(&mut self, object: &Arc<Object>, models: &Models) {
        let name = &object.key.name;
        let Some(pod) = models.pod(object) else { return };
        unlink(&mut self.by_node, &pod.node, name);
        for label in labels(object) {
            unlink(&mut self.by_label, &label, name);
        }
        unlink(&mut self.orphans, &name.namespace, name);
    }
}

impl PodIndex {
    pub fn on<'a>(&'a self, node: &str, models: &'a Models) -> impl Iterator<Item = &'a Pod> + use<'a> {
        self.by_node.get(node).into_iter().flatten().filter_map(|name| models.pods.get(name))
    }

    pub fn orphans<'a>(
        &'a self,
        namespace: &str,
        models: &'a Models,
    ) -> impl Iterator<Item = &'a Pod> + use<'a> {
        self.orphans.get(namespace).into_iter().flatten().filter_map(|name| models.pods.get(name))
    }

    /// The pods of a namespace that match, in order. Looks only at those that have the rarest of the labels asked for.
    pub fn select<'a>(
        &'a self,
        namespace: &str,
        selector: &'a LabelSelector,
        models: &'a Models,
    ) -> Vec<&'a Pod> {
        static NONE: BTreeSet<ObjectName> = BTreeSet::new();
        let namespace: Arc<str> = namespace.into();
        let labelled = selector
            .requirements
            .iter()
            .filter(|requirement| requirement.operator == Operator::Equals)
            .filter_map(|requirement| Some((requirement.key.clone(), requirement.values.first()?.clone())))
            .map(|(key, value)| self.by_label.get(&(namespace.clone(), key, value)).unwrap_or(&NONE))
            .min_by_key(|names| names.len());
        let matches = |pod: &&Pod| selector.matches(&pod.object.meta.labels);
        match labelled {
            Some(names) => names.iter().filter_map(|name| models.pods.get(name)).filter(matches).collect(),
            None => in_namespace(&models.pods, &namespace).map(|(_, pod)| pod).filter(matches).collect(),
        }
    }
}

fn labels(object: &Object) -> impl Iterator<Item = (Arc<str>, String, String)> + use<'_> {
    let namespace = &object.key.name.namespace;
    object.meta.labels.iter().map(move |(key, value)| (namespace.clone(), key.clone(), value.clone()))
}
