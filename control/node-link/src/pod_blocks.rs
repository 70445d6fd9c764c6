//! Blocks of the pod pool, 10.128.0.0/9 in /24s: claimed by nodes as they need them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use coracle_api::{Storage, WriteError, new_draft, write};
use coracle_leader::node_object;
use coracle_objects::{Expect, ObjectKey, Transaction, View};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

const PODBLOCKS: &str = "podblocks.coracle.dev";

/// The first address of the pool and the number of blocks in it.
const POOL: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const BLOCKS: u32 = 1 << 15;
const BLOCK_BITS: u32 = 8;

/// Blocks of one node: addresses for more pods than a node runs, and far from all that there are.
const BLOCKS_PER_NODE_MAX: usize = 64;

/// A block is free again when its node's object has been absent, and the node not linked, for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct PodBlock {
    spec: PodBlockSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodBlockSpec {
    cidr: String,
    node_name: String,
}

/// Claims the lowest free block for a node; answers its CIDR, or why there is none in words for the node.
pub async fn claim<S: Storage>(storage: &S, node: &str) -> Result<String, String> {
    let mut claimed = Err(String::new());
    let written = write(storage, |view| {
        claimed = block_for(view, node);
        let cidr = claimed.as_deref().ok()?;
        let key = ObjectKey::new(PODBLOCKS, "", &cidr.replace('/', "-"));
        let body = json!({ "spec": { "cidr": cidr, "nodeName": node } });
        let draft = new_draft("coracle.dev/v1", "PodBlock", &key, body, Timestamp::now());
        Some(Transaction::create(key, draft).expecting(node_object::key(node), Expect::Exists))
    })
    .await;
    match written {
        Ok(_) => claimed,
        Err(WriteError::Contended) => Err("too many nodes claim blocks at the same time: try again".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn block_for(view: &View, node: &str) -> Result<String, String> {
    if view.get(&node_object::key(node)).is_none() {
        return Err(format!("there is no node {node}: it must link anew to be registered"));
    }
    let blocks = view.list(PODBLOCKS, None).filter_map(|object| object.parse::<PodBlock>().ok());
    if blocks.filter(|block| block.spec.node_name == node).count() >= BLOCKS_PER_NODE_MAX {
        return Err(format!(
            "node {node} has {BLOCKS_PER_NODE_MAX} blocks already, which is the most of one node"
        ));
    }
    free_block(view)
        .ok_or_else(|| "all blocks of the pod pool are claimed: remove nodes that are no longer used".into())
}

/// Finds blocks whose node is gone for good. A node that joins again soon under its name keeps its blocks.
#[derive(Default)]
pub struct Abandoned {
    /// Node -> since when it has been neither an object nor linked.
    since: BTreeMap<String, Instant>,
}

impl Abandoned {
    /// The deletions that are due. `linked` tells whether a node is linked now.
    pub fn due(&mut self, view: &View, linked: impl Fn(&str) -> bool, now: Instant) -> Vec<Transaction> {
        let exists = |node: &str| view.get(&node_object::key(node)).is_some();
        let mut since = BTreeMap::new();
        let mut deletions = vec![];
        for object in view.list(PODBLOCKS, None) {
            let Ok(PodBlock { spec }) = object.parse::<PodBlock>() else { continue };
            if exists(&spec.node_name) || linked(&spec.node_name) {
                continue;
            }
            let first = self.since.get(&spec.node_name).copied().unwrap_or(now);
            if now.duration_since(first) >= ABANDONED_AFTER {
                let deletion = Transaction::delete(object.key.clone(), object.revision);
                deletions.push(deletion.expecting(node_object::key(&spec.node_name), Expect::Absent));
            }
            since.insert(spec.node_name, first);
        }
        self.since = since;
        deletions
    }
}

fn free_block(view: &View) -> Option<String> {
    let taken: BTreeSet<String> = view
        .list(PODBLOCKS, None)
        .filter_map(|object| object.parse::<PodBlock>().ok())
        .map(|block| block.spec.cidr)
        .collect();
    let block = |number: u32| format!("{}/24", Ipv4Addr::from(u32::from(POOL) + (number << BLOCK_BITS)));
    (0..BLOCKS).map(block).find(|cidr| !taken.contains(cidr))
}

#[cfg(test)]
mod tests {
    use coracle_objects::Object;

    use super::*;

    fn put(view: &mut View, key: ObjectKey, body: serde_json::Value) {
        let draft = new_draft("v1", "Any", &key, body, Timestamp::MIN);
        let object = Object::from_draft(key.clone(), &draft, 1).unwrap();
        view.tables.entry(key.resource).or_default().insert(key.name, object.into());
    }

    fn put_block(view: &mut View, cidr: &str, node: &str) {
        let key = ObjectKey::new(PODBLOCKS, "", &cidr.replace('/', "-"));
        put(view, key, json!({ "spec": { "cidr": cidr, "nodeName": node } }));
    }

    #[test]
    fn the_lowest_free_block_is_taken_for_a_node_that_exists() {
        let mut view = View::default();
        assert!(block_for(&view, "n1").is_err());
        put(&mut view, node_object::key("n1"), json!({}));
        assert_eq!(block_for(&view, "n1").unwrap(), "10.128.0.0/24");
        put_block(&mut view, "10.128.0.0/24", "n1");
        put_block(&mut view, "10.128.2.0/24", "n1");
        assert_eq!(block_for(&view, "n1").unwrap(), "10.128.1.0/24");
        put(&mut view, node_object::key("n2"), json!({}));
        for number in 0..BLOCKS_PER_NODE_MAX {
            put_block(&mut view, &format!("10.129.{number}.0/24"), "n2");
        }
        assert!(block_for(&view, "n2").unwrap_err().contains("the most of one node"));
        block_for(&view, "n1").unwrap();
    }

    #[test]
    fn only_blocks_of_nodes_long_gone_are_freed() {
        let mut view = View::default();
        put(&mut view, node_object::key("here"), json!({}));
        for (number, node) in ["here", "linked", "gone"].iter().enumerate() {
            put_block(&mut view, &format!("10.128.{number}.0/24"), node);
        }
        let linked = |node: &str| node == "linked";
        let start = Instant::now();
        let mut abandoned = Abandoned::default();
        assert!(abandoned.due(&view, linked, start).is_empty());
        assert!(abandoned.due(&view, linked, start + ABANDONED_AFTER / 2).is_empty());
        let due = abandoned.due(&view, linked, start + ABANDONED_AFTER);
        assert_eq!(due.len(), 1);
        assert_eq!(&*due[0].writes[0].key().name.name, "10.128.2.0-24");
        assert_eq!(due[0].preconditions[1].expect, Expect::Absent);
        // It came back for a moment: its time begins anew.
        assert!(abandoned.due(&view, |_| true, start + ABANDONED_AFTER).is_empty());
        assert!(abandoned.due(&view, linked, start + ABANDONED_AFTER * 2).is_empty());
    }
}
