//! Deletion of an object: at once, or first marked while finalizers, a grace period or a namespace's contents hold it.
//!
//! The API server, controllers and what nodes report all go by this. Source: the generic registry's `BeforeDelete`,
//! `deletionFinalizersForGarbageCollection` and the pod strategy's `CheckGracefulDelete`.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{
    draft::{child, later, next_generation, set_meta, timestamp},
    fields,
};

/// The finalizer that holds an object back until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that holds an object back until its dependents have been disowned.
pub const ORPHAN: &str = "orphan";

/// Seconds that a pod has to end, where it says nothing.
const POD_GRACE_S: i64 = 30;

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// How an object is to be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// None leaves what an earlier wish has said.
    pub propagation: Option<Propagation>,
    /// Seconds that a pod on a node has to end; none is its own.
    pub grace_s: Option<i64>,
}

/// Notes in an object of this resource that it is to be deleted. Of two wishes the shorter grace period holds, and the later
/// word on dependents. Whether it may go at once is [`is_complete`].
pub fn wish(resource: &str, value: &mut Value, wish: Wish, now: Timestamp) {
    if let Some(propagation) = wish.propagation {
        propagate(value, propagation);
    }
    let grace_s = grace_s(resource, value, wish.grace_s);
    if is_deleting(value) {
        shorten(value, grace_s);
        return;
    }
    set_meta(value, "deletionTimestamp", timestamp(later(now, SignedDuration::from_secs(grace_s))));
    set_meta(value, "deletionGracePeriodSeconds", grace_s);
    if fields::integer(value, "/metadata/generation").is_some_and(|generation| generation > 0) {
        next_generation(value);
    }
    if resource == "namespaces" {
        child(value, "status").insert("phase".to_owned(), "Terminating".into());
    }
}

/// Brings the end of an object that is being deleted forward, so that it has so many seconds from the wish on. A longer
/// period changes nothing.
pub fn shorten(value: &mut Value, grace_s: i64) {
    let left = fields::integer(value, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
    if grace_s >= left {
        return;
    }
    let end: Option<Timestamp> = fields::text(value, "/metadata/deletionTimestamp").parse().ok();
    let sooner = end.and_then(|end| end.checked_sub(SignedDuration::from_secs(left - grace_s)).ok());
    if let Some(sooner) = sooner {
        set_meta(value, "deletionTimestamp", timestamp(sooner));
    }
    set_meta(value, "deletionGracePeriodSeconds", grace_s);
}

/// Whether nothing holds an object back any more whose deletion was asked for. A namespace has finalizers of its own, as long
/// as there is anything in it.
pub fn is_complete(resource: &str, value: &Value) -> bool {
    is_deleting(value)
        && fields::list(value, "/metadata/finalizers").is_empty()
        && fields::integer(value, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
        && (resource != "namespaces" || fields::list(value, "/spec/finalizers").is_empty())
}

/// Takes a finalizer off.
pub fn drop_finalizer(value: &mut Value, finalizer: &str) {
    let left = fields::list(value, "/metadata/finalizers").iter();
    set_finalizers(value, left.filter(|name| *name != finalizer).cloned().collect());
}

fn is_deleting(value: &Value) -> bool {
    fields::present(value, "/metadata/deletionTimestamp")
}

/// The finalizers with which a deletion goes on: the policy's own, and those of others.
fn propagate(value: &mut Value, propagation: Propagation) {
    let others = fields::list(value, "/metadata/finalizers").iter();
    let mut kept: Vec<Value> =
        others.filter(|name| *name != FOREGROUND && *name != ORPHAN).cloned().collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => kept.push(FOREGROUND.into()),
        Propagation::Orphan => kept.push(ORPHAN.into()),
    }
    set_finalizers(value, kept);
}

/// None are left out of the JSON.
fn set_finalizers(value: &mut Value, finalizers: Vec<Value>) {
    let metadata = child(value, "metadata");
    if finalizers.is_empty() {
        metadata.shift_remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
}

/// How long the object's node has to end it. Only pods on a node that have not ended have any.
fn grace_s(resource: &str, value: &Value, asked: Option<i64>) -> i64 {
    let on_node = !fields::text(value, "/spec/nodeName").is_empty();
    let ended = matches!(fields::text(value, "/status/phase"), "Succeeded" | "Failed");
    if resource != "pods" || !on_node || ended {
        return 0;
    }
    let seconds =
        asked.or(fields::integer(value, "/spec/terminationGracePeriodSeconds")).unwrap_or(POD_GRACE_S);
    // A negative period means one second.
    if seconds < 0 { 1 } else { seconds }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wished(resource: &str, value: &Value, wish: Wish) -> Value {
        let mut value = value.clone();
        super::wish(resource, &mut value, wish, "2026-01-01T00:00:00Z".parse().unwrap());
        value
    }

    fn grace(grace_s: i64) -> Wish {
        Wish { grace_s: Some(grace_s), ..Wish::default() }
    }

    #[test]
    fn pods_on_a_node_get_time_to_end() {
        let running = json!({ "metadata": { "generation": 1 }, "spec": { "nodeName": "n" } });
        let marked = wished("pods", &running, Wish::default());
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(marked["metadata"]["generation"], 2);
        assert!(!is_complete("pods", &marked));
        // A second wish with less grace shortens it; one with more changes nothing.
        let again = wished("pods", &marked, grace(10));
        assert_eq!(again["metadata"]["deletionTimestamp"], "2026-01-01T00:00:10Z");
        assert_eq!(again["metadata"]["generation"], 2);
        assert_eq!(wished("pods", &marked, grace(60)), marked);
        let now = wished("pods", &marked, grace(0));
        assert_eq!(now["metadata"]["deletionTimestamp"], "2026-01-01T00:00:00Z");
        assert!(is_complete("pods", &now));
        assert_eq!(wished("pods", &running, grace(-5))["metadata"]["deletionGracePeriodSeconds"], 1);
        for idle in [
            json!({ "metadata": {}, "spec": {} }),
            json!({ "metadata": {}, "spec": { "nodeName": "n" }, "status": { "phase": "Failed" } }),
        ] {
            assert!(is_complete("pods", &wished("pods", &idle, Wish::default())), "{idle}");
        }
    }

    #[test]
    fn what_becomes_of_dependents_is_a_finalizer() {
        let policy = |propagation| Wish { propagation: Some(propagation), ..Wish::default() };
        let object = json!({ "metadata": { "finalizers": ["a.b/c"] } });
        let marked = wished("configmaps", &object, policy(Propagation::Foreground));
        assert_eq!(marked["metadata"]["finalizers"], json!(["a.b/c", FOREGROUND]));
        let mut marked = wished("configmaps", &marked, policy(Propagation::Orphan));
        assert_eq!(marked["metadata"]["finalizers"], json!(["a.b/c", ORPHAN]));
        assert_eq!(wished("configmaps", &marked, Wish::default()), marked);
        drop_finalizer(&mut marked, "a.b/c");
        assert!(!is_complete("configmaps", &marked));
        drop_finalizer(&mut marked, ORPHAN);
        assert!(is_complete("configmaps", &marked) && marked["metadata"].get("finalizers").is_none());
        let background = wished("configmaps", &json!({ "metadata": {} }), policy(Propagation::Background));
        assert!(is_complete("configmaps", &background));
    }

    #[test]
    fn a_namespace_waits_for_its_own_finalizers() {
        let namespace = json!({ "metadata": {}, "spec": { "finalizers": ["kubernetes"] } });
        let mut marked = wished("namespaces", &namespace, Wish::default());
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert!(!is_complete("namespaces", &marked));
        marked["spec"] = json!({});
        assert!(is_complete("namespaces", &marked));
    }
}
