//! What must hold of the objects, while things happen and at rest.

use std::collections::BTreeMap;

use coracle_objects::{EventKind, Object};
use serde_json::Value;

use super::{Broken, World, guarded};
use crate::workloads::{
    link::{has_ended, node_of},
    readers,
};

/// So many more pods than a replica set ever wanted may be there at a time: those that it adopts.
const ADOPTED_MAX: i64 = 24;

impl World {
    /// Every object that was written since the last time is one that everybody reads.
    pub(super) fn check_objects(&mut self) -> Result<(), Broken> {
        let events = self.storage.events_after(self.seen.checks);
        self.seen.checks += events.len();
        let mut pods_changed = false;
        for event in &events {
            self.check_absence(event)?;
        }
        for event in events.iter().filter(|event| event.kind != EventKind::Deleted) {
            let object = &event.object;
            let complaints = guarded("a reader", || readers::complaints(object))?;
            if let Some(first) = complaints.first() {
                let reader = first.split(" cannot ").next().unwrap_or_default();
                let class = format!("unreadable {} to {reader}", object.key.resource);
                let json: String = String::from_utf8_lossy(&object.json).chars().take(2_000).collect();
                return Err(Broken::new(class, format!("{}\n    {json}", complaints.join("\n    "))));
            }
            match object.key.resource.as_str() {
                "replicasets.apps" => {
                    let wanted = replicas(object);
                    let most = self.wanted.entry(object.meta.uid.clone()).or_insert(0);
                    *most = (*most).max(wanted);
                }
                "pods" => pods_changed |= event.kind == EventKind::Added,
                _ => {}
            }
        }
        if pods_changed { self.check_pods(ADOPTED_MAX) } else { Ok(()) }
    }

    /// No replica set has more pods than it wants, and some.
    fn check_pods(&self, some: i64) -> Result<(), Broken> {
        let mut active: BTreeMap<String, i64> = BTreeMap::new();
        let view = self.view();
        for pod in view.list("pods", None) {
            if let Some(owner) = pod.controller()
                && pod.meta.deletion_timestamp.is_none()
                && !has_ended(pod)
            {
                *active.entry(owner.uid.clone()).or_default() += 1;
            }
        }
        for set in view.list("replicasets.apps", None) {
            let (has, most) = (
                active.get(&set.meta.uid).copied().unwrap_or(0),
                self.wanted.get(&set.meta.uid).copied().unwrap_or(0),
            );
            if has > most + some {
                let what = format!("{} has {has} pods and never wanted more than {most}", set.key);
                return Err(Broken::new("pods", what));
            }
        }
        Ok(())
    }

    /// What holds only when nothing is under way any more.
    pub(super) fn check_at_rest(&mut self) -> Result<(), Broken> {
        let view = self.view();
        let door = &self.door;
        let read = guarded("the API", || readers::through_the_api(door, &view))?;
        read.map_err(|what| Broken::new("unreadable to the API", what))?;
        for object in view.tables.values().flat_map(|table| table.values()) {
            let patched = guarded("the API", || readers::patches(door, object))?;
            patched.map_err(|what| Broken::new("unpatchable", what))?;
        }
        for set in view.list("replicasets.apps", None) {
            let pods = view.list("pods", Some(set.namespace()));
            let active = pods.filter(|pod| {
                pod.controller().is_some_and(|owner| owner.uid == set.meta.uid)
                    && pod.meta.deletion_timestamp.is_none()
                    && !has_ended(pod)
            });
            let (has, wants) = (active.count() as i64, replicas(set));
            if set.meta.deletion_timestamp.is_none() && has > wants {
                let what = format!("at rest {} has {has} pods and wants {wants}", set.key);
                return Err(Broken::new("pods at rest", what));
            }
        }
        for node in self.nodes.iter().filter(|node| node.alive) {
            for pod in view.list("pods", None) {
                let here = node_of(pod).as_deref() == Some(node.name);
                if here && !node.knows(&pod.meta.uid) {
                    let what = format!("{} is on node {}, which does not know it", pod.key, node.name);
                    return Err(Broken::new("unknown to its node", what));
                }
            }
        }
        Ok(())
    }
}

fn replicas(set: &Object) -> i64 {
    let value: Value = set.parse().unwrap_or_default();
    value["spec"]["replicas"].as_f64().map_or(1, |number| number as i64)
}
