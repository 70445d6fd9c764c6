//! The few objects that everything is about, by number.

use std::collections::BTreeMap;

use coracle_objects::{ObjectKey, ResourceName};

/// Names one object.
pub type KeyId = usize;

const RESOURCES: [&str; 2] = ["configmaps", "leases.coordination.k8s.io"];
const NAMESPACES: [&str; 2] = ["a", "b"];

#[derive(Debug)]
pub struct Keys {
    by_id: Vec<ObjectKey>,
    ids: BTreeMap<ObjectKey, KeyId>,
    resources: Vec<ResourceName>,
}

impl Keys {
    /// So many objects, of two resources in turn.
    pub fn new(count: usize) -> Keys {
        let by_id: Vec<ObjectKey> = (0..count)
            .map(|id| ObjectKey::new(RESOURCES[id % 2], NAMESPACES[id / 2 % 2], &format!("o{id}")))
            .collect();
        let ids = by_id.iter().cloned().zip(0..).collect();
        Keys { by_id, ids, resources: RESOURCES.iter().map(|name| ResourceName::from(*name)).collect() }
    }

    pub fn key(&self, id: KeyId) -> &ObjectKey {
        &self.by_id[id]
    }

    pub fn id(&self, key: &ObjectKey) -> Option<KeyId> {
        self.ids.get(key).copied()
    }

    pub fn count(&self) -> usize {
        self.by_id.len()
    }

    pub fn resources(&self) -> usize {
        self.resources.len()
    }

    pub fn resource(&self, number: usize) -> &ResourceName {
        &self.resources[number]
    }

    /// The number of an object's resource.
    pub fn resource_of(&self, id: KeyId) -> usize {
        id % 2
    }
}
