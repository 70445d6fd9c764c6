//! Instances of functions that a node has started by itself, for requests that waited: the pod that the cluster makes of one.
//!
//! The node says which revision and which names. What runs is the revision's own template, as its ReplicaSet makes pods of it,
//! bound to the node; there are never more than the function may have.

use coracle_controllers::pod_of_set;
use coracle_objects::{
    Expect, Object, ObjectKey, Transaction, View,
    draft::{editable, encode, next_generation, set_condition, timestamp},
    fields::integer,
    kinds::{FUNCTION_REVISIONS, FUNCTIONS, function_names_others},
    validate::syntax::label_faults,
};
use coracle_proto::node::PodWoken;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::node_object;

/// In whose name the pod is made.
pub const ACCOUNT: &str = "function-controller";

const SETS: &str = "replicasets.apps";

/// The transaction that makes the pod, `None` where it is there, or why there is to be none.
pub fn plan(
    view: &View,
    node: &str,
    woken: &PodWoken,
    now: Timestamp,
) -> Result<Option<Transaction>, String> {
    let PodWoken { namespace, revision, name, uid } = woken;
    let key = ObjectKey::new("pods", namespace, name);
    if let Some(known) = view.get(&key) {
        return if known.meta.uid == *uid { Ok(None) } else { Err("its name is another pod's".to_owned()) };
    }
    let is_named_after = name.strip_prefix(revision.as_str()).is_some_and(|rest| rest.starts_with('-'));
    if !is_named_after || !label_faults(name).is_empty() || !is_uid(uid) {
        return Err("its name or uid is none".to_owned());
    }
    match standing(view, node) {
        Standing::TakesPods => {}
        // It has just come back, and tells again.
        Standing::Returning => return Ok(None),
        Standing::TakesNone => return Err("the node is cordoned or has taints".to_owned()),
    }
    let set = set_of(view, namespace, revision).ok_or("there is no such revision, or it is going")?;
    // What a pod names its node is sent: which node that is, is for the scheduler to say.
    if names_others(view, set) {
        return Err("the revision names other objects".to_owned());
    }
    let function = function_of(view, set).ok_or("there is no such function, or it is going")?;
    let value = editable(set);
    let replicas = integer(&value, "/spec/replicas").unwrap_or(0);
    let is_own = |pod: &&std::sync::Arc<Object>| {
        let own = pod.controller().is_some_and(|own| own.uid == set.meta.uid);
        own && pod.meta.deletion_timestamp.is_none() && !has_ended(pod)
    };
    let there = view.list("pods", Some(namespace)).filter(is_own).count() as i64;
    let wanted = replicas.max(there + 1);
    let most = integer(&function, "/spec/scale/max").unwrap_or(i64::MAX);
    if wanted > most {
        return Err(format!("the function has as many instances as it may: {most}"));
    }
    let pod = pod_of_set(set, view, now, uid)?;
    let mut transaction = Transaction::create(key.clone(), encode(&bound(pod, name, node, now)));
    if wanted == replicas {
        transaction = transaction.expecting(set.key.clone(), Expect::Revision(set.revision));
    } else {
        let mut value = value;
        value["spec"]["replicas"] = wanted.into();
        next_generation(&mut value);
        transaction.join(Transaction::update(set.key.clone(), encode(&value), set.revision));
    }
    Ok(Some(transaction))
}

fn bound(mut pod: Value, name: &str, node: &str, now: Timestamp) -> Value {
    pod["metadata"]["name"] = name.into();
    pod["spec"]["nodeName"] = node.into();
    let placed = json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": timestamp(now) });
    set_condition(&mut pod["status"], placed);
    pod
}

/// The ReplicaSet of a revision.
fn set_of<'a>(view: &'a View, namespace: &str, revision: &str) -> Option<&'a Object> {
    let there = |resource| {
        let object = view.get(&ObjectKey::new(resource, namespace, revision))?;
        object.meta.deletion_timestamp.is_none().then_some(object)
    };
    let (revision, set) = (there(FUNCTION_REVISIONS)?, there(SETS)?);
    set.controller().filter(|own| own.uid == revision.meta.uid).map(|_| &**set)
}

/// The function whose revision has this ReplicaSet.
fn function_of(view: &View, set: &Object) -> Option<Value> {
    let revision = view.get(&ObjectKey::new(FUNCTION_REVISIONS, set.namespace(), set.name()))?;
    let owner = revision.controller()?;
    let function = view.get(&ObjectKey::new(FUNCTIONS, set.namespace(), &owner.name))?;
    let is_it = function.meta.uid == owner.uid && function.meta.deletion_timestamp.is_none();
    is_it.then(|| editable(function))
}

fn has_ended(pod: &Object) -> bool {
    matches!(editable(pod)["status"]["phase"].as_str(), Some("Failed" | "Succeeded"))
}

fn names_others(view: &View, set: &Object) -> bool {
    let revision = view.get(&ObjectKey::new(FUNCTION_REVISIONS, set.namespace(), set.name()));
    revision.is_none_or(|revision| function_names_others(&editable(revision)["spec"]))
}

/// Whether a node takes pods.
enum Standing {
    TakesPods,
    /// It was away, and the taints that say so are still there.
    Returning,
    TakesNone,
}

fn standing(view: &View, node: &str) -> Standing {
    let Some(node) = view.get(&node_object::key(node)) else { return Standing::TakesNone };
    let node = editable(node);
    let taints = node["spec"]["taints"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_of_absence = |taint: &Value| {
        let away = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];
        taint["key"].as_str().is_some_and(|key| away.contains(&key))
    };
    match taints {
        _ if node["spec"]["unschedulable"] == true => Standing::TakesNone,
        [] => Standing::TakesPods,
        all if all.iter().all(is_of_absence) => Standing::Returning,
        _ => Standing::TakesNone,
    }
}

/// RFC 9562, in its usual form.
fn is_uid(text: &str) -> bool {
    let is_digit = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
    };
    text.len() == 36 && text.bytes().enumerate().all(is_digit)
}

#[cfg(test)]
mod tests {
    use coracle_objects::fields::text;

    use super::*;

    const UID: &str = "11111111-2222-4333-8444-555555555555";

    fn put(view: &mut View, resource: &str, namespace: &str, value: Value) {
        let key = ObjectKey::new(resource, namespace, text(&value, "/metadata/name"));
        let object = Object::from_draft(key.clone(), &encode(&value), 5).unwrap();
        view.tables.entry(key.resource).or_default().insert(key.name, object.into());
    }

    fn owned(kind: &str, name: &str, uid: &str) -> Value {
        json!([{"apiVersion": "coracle.dev/v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
    }

    fn view(replicas: i64, max: i64) -> View {
        let mut view = View::default();
        put(&mut view, "namespaces", "", json!({"metadata": {"name": "d"}}));
        put(&mut view, "serviceaccounts", "d", json!({"metadata": {"name": "default", "namespace": "d"}}));
        put(&mut view, "nodes", "", json!({"metadata": {"name": "n"}, "spec": {}}));
        put(
            &mut view,
            FUNCTIONS,
            "d",
            json!({"metadata": {"name": "hello", "namespace": "d", "uid": "f"},
            "spec": {"scale": {"max": max}}}),
        );
        put(
            &mut view,
            FUNCTION_REVISIONS,
            "d",
            json!({"metadata": {"name": "hello-1", "namespace": "d", "uid": "r",
            "ownerReferences": owned("Function", "hello", "f")}, "spec": {}}),
        );
        let template = json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "function", "image": "hello:1"}]}});
        put(
            &mut view,
            SETS,
            "d",
            json!({"metadata": {"name": "hello-1", "namespace": "d", "uid": "s",
            "ownerReferences": owned("FunctionRevision", "hello-1", "r")},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}}, "template": template}}),
        );
        view
    }

    fn woken(name: &str) -> PodWoken {
        PodWoken { namespace: "d".into(), revision: "hello-1".into(), name: name.into(), uid: UID.into() }
    }

    fn pod_in(transaction: &Transaction) -> Value {
        let write = &transaction.writes[0];
        let coracle_objects::Write::Put { draft, .. } = write else { panic!("{write:?}") };
        serde_json::from_slice(draft).unwrap()
    }

    #[test]
    fn the_pod_is_the_revisions_own_and_the_set_knows_of_it() {
        let mut view = view(0, 2);
        let planned = plan(&view, "n", &woken("hello-1-abcde"), Timestamp::UNIX_EPOCH).unwrap().unwrap();
        let pod = pod_in(&planned);
        assert_eq!((text(&pod, "/metadata/name"), text(&pod, "/metadata/uid")), ("hello-1-abcde", UID));
        assert_eq!((text(&pod, "/spec/nodeName"), text(&pod, "/spec/containers/0/image")), ("n", "hello:1"));
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "s");
        assert_eq!(planned.writes.len(), 2, "and it has one replica more");
        put(&mut view, "pods", "d", pod);
        assert_eq!(plan(&view, "n", &woken("hello-1-abcde"), Timestamp::UNIX_EPOCH), Ok(None), "it is there");
        let mut other = woken("hello-1-abcde");
        other.uid = UID.replace('1', "7");
        assert!(plan(&view, "n", &other, Timestamp::UNIX_EPOCH).unwrap_err().contains("another pod's"));
    }

    #[test]
    fn there_are_no_more_than_the_function_may_have() {
        let now = Timestamp::UNIX_EPOCH;
        let refused = plan(&view(0, 0), "n", &woken("hello-1-a"), now).unwrap_err();
        assert!(refused.contains("as many instances as it may"), "{refused}");
        let planned = plan(&view(3, 3), "n", &woken("hello-1-a"), now).unwrap().unwrap();
        assert_eq!(planned.writes.len(), 1, "one of those that are wanted and not there");
    }

    #[test]
    fn a_node_makes_no_other_pods() {
        let now = Timestamp::UNIX_EPOCH;
        for wrong in ["hello-2-a", "hello-1", "hello-1-A_", "other"] {
            assert!(plan(&view(0, 2), "n", &woken(wrong), now).is_err(), "{wrong}");
        }
        let mut without = view(0, 2);
        put(&mut without, "nodes", "", json!({"metadata": {"name": "n"}, "spec": {"unschedulable": true}}));
        assert!(plan(&without, "n", &woken("hello-1-a"), now).unwrap_err().contains("cordoned"));
        let away = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]);
        put(&mut without, "nodes", "", json!({"metadata": {"name": "n"}, "spec": {"taints": away}}));
        assert_eq!(plan(&without, "n", &woken("hello-1-a"), now), Ok(None), "it has just come back");
        let mut naming = view(0, 2);
        put(
            &mut naming,
            FUNCTION_REVISIONS,
            "d",
            json!({"metadata": {"name": "hello-1", "namespace": "d", "uid": "r",
            "ownerReferences": owned("Function", "hello", "f")}, "spec": {"envFrom": [{"secretRef": {"name": "s"}}]}}),
        );
        assert!(plan(&naming, "n", &woken("hello-1-a"), now).unwrap_err().contains("names other objects"));
        let mut failed = view(0, 1);
        put(
            &mut failed,
            "pods",
            "d",
            json!({"metadata": {"name": "hello-1-z", "namespace": "d", "uid": "p",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "hello-1", "uid": "s",
                "controller": true}]}, "status": {"phase": "Failed"}}),
        );
        assert!(plan(&failed, "n", &woken("hello-1-a"), now).is_ok_and(|planned| planned.is_some()));
        let mut foreign = view(0, 2);
        put(
            &mut foreign,
            FUNCTION_REVISIONS,
            "d",
            json!({"metadata": {"name": "hello-1", "namespace": "d", "uid": "x",
            "ownerReferences": owned("Function", "hello", "f")}, "spec": {}}),
        );
        assert!(plan(&foreign, "n", &woken("hello-1-a"), now).unwrap_err().contains("no such revision"));
        for uid in ["", "u", "11111111-2222-4333-8444-55555555555G"] {
            assert!(
                plan(&view(0, 2), "n", &PodWoken { uid: uid.into(), ..woken("hello-1-a") }, now).is_err()
            );
        }
    }
}
