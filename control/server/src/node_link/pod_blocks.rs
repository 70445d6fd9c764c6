//! Blocks of the pod pool, 10.128.0.0/9 in /24s: claimed by nodes as they need them.

use std::{collections::BTreeSet, net::Ipv4Addr};

use coracle_api::Storage;
use coracle_objects::{ObjectKey, Transaction, View};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::node_object;
use crate::drafts::{self, WriteError, new_draft};

const PODBLOCKS: &str = "podblocks.coracle.dev";

/// The first address of the pool and the number of blocks in it.
const POOL: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const BLOCKS: u32 = 1 << 15;
const BLOCK_BITS: u32 = 8;

#[derive(Deserialize)]
struct PodBlock {
    spec: PodBlockSpec,
}

#[derive(Deserialize)]
struct PodBlockSpec {
    cidr: String,
}

/// Claims the lowest free block for a node; answers its CIDR, or why there is none in words for the node.
pub async fn claim<S: Storage>(storage: &S, node: &str) -> Result<String, String> {
    let mut claimed = None;
    let written = drafts::write(storage, |view| {
        claimed = free_block(view);
        let cidr = claimed.as_deref()?;
        let key = ObjectKey::new(PODBLOCKS, "", &cidr.replace('/', "-"));
        // The block goes when its node goes.
        let uid = view.get(&node_object::key(node)).map(|object| object.meta.uid.clone()).unwrap_or_default();
        let body = json!({
            "metadata": { "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": uid }] },
            "spec": { "cidr": cidr, "nodeName": node },
        });
        let draft = new_draft("coracle.dev/v1", "PodBlock", &key, body, Timestamp::now());
        Some(Transaction::create(key, draft))
    })
    .await;
    match (written, claimed) {
        (Ok(Some(_)), Some(cidr)) => Ok(cidr),
        (Ok(_), _) => {
            Err("all blocks of the pod pool are claimed: remove nodes that are no longer used".into())
        }
        (Err(WriteError::Contended), _) => {
            Err("too many nodes claim blocks at the same time: try again".into())
        }
        (Err(error), _) => Err(error.to_string()),
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

    #[test]
    fn the_lowest_free_block_is_taken() {
        let mut view = View::default();
        assert_eq!(free_block(&view).unwrap(), "10.128.0.0/24");
        for cidr in ["10.128.0.0/24", "10.128.2.0/24"] {
            let key = ObjectKey::new(PODBLOCKS, "", &cidr.replace('/', "-"));
            let draft = new_draft(
                "coracle.dev/v1",
                "PodBlock",
                &key,
                json!({"spec": {"cidr": cidr}}),
                Timestamp::MIN,
            );
            let object = Object::from_draft(key.clone(), &draft, 1).unwrap();
            view.tables.entry(key.resource).or_default().insert(key.name, object.into());
        }
        assert_eq!(free_block(&view).unwrap(), "10.128.1.0/24");
    }
}
