//! Functions at rest: a request waits at this node's gateway, and this node can run the instance. It starts it at once, as a
//! pod that the cluster does not know yet, and has the leader make that pod of the cluster's; what the leader refuses ends.

use std::sync::Arc;

use coracle_core::{Pod, PodUid, spec::PullPolicy};
use coracle_fabric::Name;
use coracle_objects::kinds::{REVISION_LABEL, function_names_others, function_template};
use coracle_proto::node::PodWoken;
use serde_json::{Value, json};

use super::App;
use crate::decode::Key;

/// Letters with which names of pods are told apart, and how many of them: as upstream.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;

/// What instances of a revision are made of.
#[derive(Debug)]
pub struct Template {
    /// A pod without name and uid.
    pod: Pod,
    /// All that it needs is in it, or on the node.
    needs_nothing: bool,
}

impl Template {
    /// Of a FunctionRevision.
    pub fn of(revision: &Value) -> Result<Self, coracle_core::CoreError> {
        let spec = &revision["spec"];
        let mut pod = function_template(spec);
        let meta = &revision["metadata"];
        // Name and uid are those of each instance.
        pod["metadata"] =
            json!({ "namespace": meta["namespace"], "labels": meta["labels"], "name": "of", "uid": "of" });
        let pod = Pod::parse(pod.to_string().as_bytes())?;
        let always =
            pod.spec.containers.iter().any(|container| container.pull_policy() == PullPolicy::Always);
        Ok(Self { pod, needs_nothing: !always && !function_names_others(spec) })
    }
}

impl App {
    /// A request waits for an instance of each of these: those that this node starts itself nobody else need make.
    pub(super) fn instances_wanted(&mut self, revisions: &[Name]) {
        let mut others = false;
        for revision in revisions {
            others |= !self.start_instance(revision);
        }
        if others {
            self.executor.context().link.tell_demand();
        }
    }

    /// Starts an instance where this node can, and says whether one is on its way.
    fn start_instance(&mut self, revision: &Name) -> bool {
        let is_of = |pod: &Pod| {
            let labelled = pod.metadata.labels.get(REVISION_LABEL).is_some_and(|of| **of == *revision.name);
            labelled && pod.metadata.namespace == *revision.namespace
        };
        if self.woken.iter().any(|uid| self.desired.pods.get(uid).is_some_and(|pod| is_of(pod))) {
            return true;
        }
        let Some(template) = self.templates.get(&(revision.namespace.to_string(), revision.name.to_string()))
        else {
            return false;
        };
        let namespace: Key = ("namespaces".to_owned(), String::new(), revision.namespace.to_string());
        let may_run = self.synced && !self.takes_no_pods && self.known.contains(&namespace);
        let has_room = (self.desired.pods.len() as u64) < self.pods_max;
        if !template.needs_nothing || !may_run || !has_room || !self.executor.keeps_image_of(revision) {
            return false;
        }
        let mut pod = template.pod.clone();
        let name = format!("{}-{}", revision.name, suffix());
        let uid = uuid();
        tracing::debug!(pod = name, "an instance is started for a request that waits");
        pod.metadata.name.clone_from(&name);
        pod.metadata.uid = PodUid::from(uid.as_str());
        self.woken.insert(pod.uid().clone());
        self.put_pod(Arc::new(pod));
        let (namespace, revision) = (revision.namespace.to_string(), revision.name.to_string());
        let woken = PodWoken { namespace, revision, name, uid };
        self.executor.context().link.post(|outbox| outbox.woken(woken));
        true
    }

    /// The cluster knows a pod that was started here before it did.
    pub(super) fn instance_is_known(&mut self, uid: &PodUid) {
        if self.woken.remove(uid) {
            self.executor.context().link.post(|outbox| {
                outbox.woken_answered(uid.as_str());
                outbox.status_again(uid.as_str());
            });
        }
    }

    /// The leader makes no pod of the cluster's of one that was started here: it ends.
    pub(super) fn instance_refused(&mut self, uid: &str, reason: &str) {
        let uid = PodUid::from(uid);
        if !self.woken.remove(&uid) {
            return;
        }
        self.executor.context().link.post(|outbox| outbox.woken_answered(uid.as_str()));
        if let Some(pod) = self.desired.pods.remove(&uid) {
            tracing::info!(pod = %pod.full_name(), reason, "an instance that was started for a request ends");
            self.names.remove(&(pod.metadata.namespace.clone(), pod.metadata.name.clone()));
            self.dirty.insert(uid);
        }
    }
}

fn suffix() -> String {
    let letter = |_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]);
    (0..SUFFIX_LENGTH).map(letter).collect()
}

/// A random one, RFC 9562 version 4.
fn uuid() -> String {
    let mut bytes = rand::random::<[u8; 16]>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_other_objects_waits_for_the_control_plane() {
        let revision = |spec: Value| {
            let mut whole = json!({"image": "hello:1", "port": 81});
            coracle_objects::patch::merge(&mut whole, &spec);
            json!({"metadata": {"name": "hello-1", "namespace": "d", "labels": {REVISION_LABEL: "hello-1"}}, "spec": whole})
        };
        let needs_nothing = |spec: Value| Template::of(&revision(spec)).unwrap().needs_nothing;
        let field = json!({"fieldRef": {"fieldPath": "metadata.name"}});
        for spec in [
            json!({}),
            json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": field}]}),
            json!({"volumes": [{"name": "v", "emptyDir": {}}], "serviceAccountName": "default"}),
        ] {
            assert!(needs_nothing(spec.clone()), "{spec}");
        }
        let of_map = json!({"configMapKeyRef": {"name": "m", "key": "k"}});
        for spec in [
            json!({"env": [{"name": "A", "valueFrom": of_map}]}),
            json!({"envFrom": [{"secretRef": {"name": "s"}}]}),
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            json!({"serviceAccountName": "other"}),
            json!({"image": "hello:latest"}),
            json!({"imagePullPolicy": "Always"}),
        ] {
            assert!(!needs_nothing(spec.clone()), "{spec}");
        }
        let template = Template::of(&revision(json!({}))).unwrap();
        assert_eq!(template.pod.spec.containers[0].http_port(), 81);
        assert_eq!(template.pod.metadata.labels[REVISION_LABEL], "hello-1");
    }

    #[test]
    fn names_and_uids_are_those_of_pods() {
        assert!(suffix().bytes().all(|letter| ALPHABET.contains(&letter)) && suffix().len() == 5);
        let uid = uuid();
        assert!(uid.len() == 36 && uid.as_bytes()[14] == b'4' && uid != uuid(), "{uid}");
    }
}
