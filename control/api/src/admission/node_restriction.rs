//! Nodes write about themselves and their own pods. Source: the admission plugin NodeRestriction.

use coracle_objects::fields;
use futures::future::{self, BoxFuture, FutureExt};
use serde_json::{Map, Value};

use super::{Plugin, Write};
use crate::error::ApiError;

/// Where nodes' leases are.
const LEASES: &str = "kube-node-lease";

/// See the module.
pub struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        write.user.as_node().is_some()
    }

    fn validate<'a>(
        &'a self,
        write: &'a Write<'a>,
        object: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        let refused = |reason| ApiError::forbidden(write.kind, &write.key.name.name, reason);
        future::ready(fault(write, object).map_or(Ok(()), |reason| Err(refused(reason)))).boxed()
    }
}

fn fault(write: &Write<'_>, object: Option<&Value>) -> Option<String> {
    let node = write.user.as_node()?;
    let name = &*write.key.name.name;
    if write.is_of("", "Pod") {
        let Some(old) = write.old else { return Some(format!("node {node:?} cannot make pods")) };
        let bound = fields::text(old, "/spec/nodeName");
        if bound != node {
            return Some(format!(
                "node {node:?} can only write to pods that are bound to it, not to {bound:?}"
            ));
        }
        let changed = object.is_some_and(|new| !same_but_for_status(old, new));
        return changed.then(|| format!("node {node:?} can only write the status of its pods"));
    }
    let own = if write.is_of("", "Node") {
        name == node
    } else if write.is_of("coordination.k8s.io", "Lease") {
        name == node && &*write.key.name.namespace == LEASES
    } else if write.is_of("coracle.dev", "PodBlock") {
        let mut blocks = object.into_iter().chain(write.old);
        blocks.all(|block| fields::text(block, "/spec/nodeName") == node)
    } else {
        false
    };
    let what = write.kind.kind.to_lowercase();
    (!own || node.is_empty()).then(|| format!("node {node:?} is not allowed to write {what} {name:?}"))
}

/// What a pod's node writes beside its status is how long the pod has still.
const NODES_METADATA: [&str; 3] = ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"];

fn same_but_for_status(old: &Value, new: &Value) -> bool {
    let nothing = Map::new();
    let same = |old: &Value, new: &Value, besides: &[&str]| {
        let [old, new] = [old, new].map(|value| value.as_object().unwrap_or(&nothing));
        let mut names = old.keys().chain(new.keys());
        names.all(|name| besides.contains(&name.as_str()) || old.get(name) == new.get(name))
    };
    same(old, new, &["metadata", "status"]) && same(&old["metadata"], &new["metadata"], &NODES_METADATA)
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Kind, ObjectKey, View, by_resource};
    use serde_json::json;

    use super::{super::Operation, *};
    use crate::{auth::UserInfo, config::ApiConfig};

    fn said(
        operation: Operation,
        resource: &str,
        (namespace, name): (&str, &str),
        (old, new): (Option<Value>, Option<Value>),
    ) -> Option<String> {
        let user = UserInfo::node("n");
        let (config, view) = (ApiConfig::new("", ""), View::default());
        let kind: &Kind = by_resource(resource).unwrap();
        let key = ObjectKey::new(resource, namespace, name);
        let (config, user, key) = (&config, &user, &key);
        let write = Write { operation, kind, key, view: &view, config, user, old: old.as_ref() };
        assert!(NodeRestriction.handles(&write));
        fault(&write, new.as_ref())
    }

    #[test]
    fn a_node_writes_the_status_of_its_own_pods() {
        let pod = |node: &str, image: &str, phase: &str| json!({ "spec": { "nodeName": node, "image": image }, "status": { "phase": phase } });
        let at = ("d", "p");
        let update = |old, new| said(Operation::Update, "pods", at, (Some(old), Some(new)));
        assert_eq!(update(pod("n", "a", "Pending"), pod("n", "a", "Running")), None);
        assert_eq!(said(Operation::Delete, "pods", at, (Some(pod("n", "a", "")), None)), None);
        let words = |refused: Option<String>| refused.unwrap();
        assert!(words(update(pod("n", "a", ""), pod("n", "b", ""))).contains("only write the status"));
        assert!(words(update(pod("m", "a", ""), pod("m", "a", "x"))).contains("not to \"m\""));
        let mut labelled = pod("n", "a", "Running");
        labelled["metadata"] = json!({ "labels": { "app": "web" } });
        assert!(words(update(pod("n", "a", ""), labelled)).contains("only write the status"));
        let mut shortened = pod("n", "a", "Running");
        shortened["metadata"] = json!({ "deletionGracePeriodSeconds": 0, "resourceVersion": "5" });
        assert_eq!(update(pod("n", "a", ""), shortened), None);
        assert!(
            words(said(Operation::Create, "pods", at, (None, Some(pod("n", "a", ""))))).contains("make pods")
        );
        assert!(
            words(said(Operation::Delete, "pods", at, (Some(pod("", "a", "")), None)))
                .contains("bound to it")
        );
    }

    #[test]
    fn a_node_writes_of_itself_alone() {
        let own = |resource, at| {
            let new = json!({ "spec": { "nodeName": "n" } });
            said(Operation::Create, resource, at, (None, Some(new))).is_none()
        };
        assert!(own("nodes", ("", "n")) && !own("nodes", ("", "m")));
        let leases = "leases.coordination.k8s.io";
        assert!(own(leases, ("kube-node-lease", "n")) && !own(leases, ("kube-system", "n")));
        assert!(!own(leases, ("kube-node-lease", "m")));
        assert!(own("podblocks.coracle.dev", ("", "b")) && !own("events", ("d", "e")));
        assert!(!own("secrets", ("d", "s")) && !own("configmaps", ("d", "c")));
        let anothers = json!({ "spec": { "nodeName": "m" } });
        let mine = json!({ "spec": { "nodeName": "n" } });
        let taken = (Some(anothers.clone()), Some(mine));
        assert!(said(Operation::Update, "podblocks.coracle.dev", ("", "b"), taken).is_some());
        let refused = said(Operation::Create, "podblocks.coracle.dev", ("", "b"), (None, Some(anothers)));
        assert_eq!(refused.unwrap(), "node \"n\" is not allowed to write podblock \"b\"");
    }
}
