//! What the cluster wants, object by object.

use std::sync::Arc;

use coracle_core::{
    Pod,
    sources::{Kind, Source},
    spec::Metadata,
};
use coracle_objects::kinds::FUNCTION_REVISIONS;
use serde_json::Value;

use super::App;
use crate::{
    decode::{Content, Decoded, Key, is_network},
    volumes,
};

/// The reason with which the node lifecycle marks the pods of a node that was not heard.
const NODE_NOT_READY: &str = "NodeNotReady";
const POD_BLOCKS: &str = "podblocks.coracle.dev";

impl App {
    pub(super) fn object(&mut self, object: Decoded) {
        let Decoded { key, content, network } = object;
        if matches!(content, Content::Deleted) {
            self.known.remove(&key);
            self.seen.remove(&key);
            self.delete(&key);
            return;
        }
        self.seen.insert(key.clone());
        self.known.insert(key.clone());
        if let Content::Unreadable(error) = &content {
            tracing::warn!(object = ?key, error, "an object of the cluster cannot be read");
            return;
        }
        self.put(&key, content);
        if let Some(object) = network {
            self.put_network(key, object);
        }
    }

    fn put(&mut self, (_, namespace, name): &Key, content: Content) {
        let own = (namespace.clone(), name.clone());
        match content {
            Content::Pod(pod) => {
                self.instance_is_known(pod.uid());
                self.put_pod(pod);
            }
            Content::Template(template) => {
                self.executor.know_revision(&own, true);
                self.templates.insert(own, *template);
            }
            Content::WithheldPod(pod, why) => self.withhold_pod(*pod, &why),
            Content::Source(source) => self.put_source(own, source),
            Content::Other | Content::Deleted | Content::Unreadable(_) => {}
        }
    }

    fn put_network(&mut self, key: Key, object: Value) {
        let block = &object["spec"];
        if key.0 == POD_BLOCKS
            && let Some(cidr) = block["cidr"].as_str()
        {
            if block["nodeName"] == *self.identity.name {
                self.executor.add_block(cidr);
            } else {
                self.block_gone(cidr);
            }
        }
        if key.0 == "nodes" && key.2 == *self.identity.name {
            let spec = &object["spec"];
            let is_tainted = spec["taints"].as_array().is_some_and(|taints| !taints.is_empty());
            self.takes_no_pods = spec["unschedulable"] == true || is_tainted;
        }
        let is_namespace = key.0 == "namespaces";
        let network = &self.executor.context().network;
        network.change(key, Some(object));
        // What its pods may do is known before the first of them, which comes next, does it.
        if is_namespace && self.synced {
            network.hurry_clusters();
        }
    }

    /// A block of addresses is another node's, or nobody's.
    fn block_gone(&mut self, cidr: &str) {
        for observation in self.executor.remove_block(cidr) {
            self.observe(observation);
        }
    }

    /// A pod is there of which the node is sent no more than its deletion. One that it knows goes on as it was.
    fn withhold_pod(&mut self, pod: Pod, why: &str) {
        self.instance_is_known(pod.uid());
        let known = self.desired.pods.get(pod.uid()).cloned();
        if let Some(known) = known {
            if pod.is_deleting() {
                let mut known = Arc::unwrap_or_clone(known);
                known.metadata = Metadata {
                    deletion_timestamp: pod.metadata.deletion_timestamp,
                    deletion_grace_period_seconds: pod.metadata.deletion_grace_period_seconds,
                    ..known.metadata
                };
                self.put_pod(Arc::new(known));
            }
        } else if pod.is_deleting() {
            self.put_pod(Arc::new(pod));
        } else if self.take_name(&pod) {
            self.executor.tell_withheld(&pod, why);
        }
    }

    /// The name is this pod's now; false where it was before.
    fn take_name(&mut self, pod: &Pod) -> bool {
        let name = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        let old = self.names.insert(name, pod.uid().clone());
        if old.as_ref() == Some(pod.uid()) {
            return false;
        }
        if let Some(old) = old {
            self.desired.pods.remove(&old);
            self.dirty.insert(old);
        }
        true
    }

    pub(super) fn put_pod(&mut self, pod: Arc<Pod>) {
        self.take_name(&pod);
        self.observed.see(&pod);
        if was_given_up(&pod) {
            // The cluster had lost sight of this node for a moment: it is told again.
            self.executor.context().link.post(|outbox| outbox.status_again(pod.uid().as_str()));
        }
        self.dirty.insert(pod.uid().clone());
        self.desired.pods.insert(pod.uid().clone(), pod);
    }

    fn delete(&mut self, (resource, namespace, name): &Key) {
        let own = (namespace.clone(), name.clone());
        match resource.as_str() {
            "pods" => {
                if let Some(uid) = self.names.remove(&own) {
                    self.instance_is_known(&uid);
                    self.desired.pods.remove(&uid);
                    self.dirty.insert(uid);
                }
            }
            FUNCTION_REVISIONS => {
                self.templates.remove(&own);
                self.executor.know_revision(&own, false);
            }
            "configmaps" => self.remove_source(Kind::ConfigMap, &own),
            "secrets" => self.remove_source(Kind::Secret, &own),
            "services" => self.remove_source(Kind::Service, &own),
            _ => {}
        }
        if is_network(resource) {
            let key = (resource.clone(), namespace.clone(), name.clone());
            self.executor.context().network.change(key, None);
        }
        if resource == POD_BLOCKS {
            // The name is the block with another sign for its slash.
            self.block_gone(&name.replace('-', "/"));
        }
    }

    fn put_source(&mut self, own: (String, String), source: Source) {
        self.dirty.extend(self.observed.put_source(&mut self.desired.sources, own, source));
    }

    fn remove_source(&mut self, kind: Kind, own: &(String, String)) {
        self.dirty.extend(self.observed.remove_source(&mut self.desired.sources, kind, own));
    }

    /// Everything was sent: what was not is gone.
    pub(super) fn sync_done(&mut self) {
        let lost: Vec<Key> = self.known.difference(&self.seen).cloned().collect();
        for key in &lost {
            self.delete(key);
        }
        self.known = self.seen.clone();
        self.link_synced = true;
        for observation in self.executor.blocks_are_known() {
            self.observe(observation);
        }
        if !self.cleaned_up {
            self.cleaned_up = true;
            tracing::info!(pods = self.desired.pods.len(), "the cluster's wishes are known");
            self.clean_up();
        }
        self.synced = true;
        self.executor.context().network.hurry();
        self.last = Vec::new();
        let all = self.desired.pods.keys().chain(self.observed.pods.keys());
        self.dirty.extend(all.cloned().collect::<Vec<_>>());
    }

    /// Removes what pods of an earlier life left behind that are not wanted any more. What that is, is settled here; only
    /// the removal takes its time. Pods of this life that are ending have directories too, and remove them themselves.
    fn clean_up(&self) {
        let context = self.executor.context();
        let mut left = Vec::new();
        for root in [context.logs.root(), &*context.pods_dir] {
            match volumes::left_over(root, |uid| {
                self.desired.pods.contains_key(uid) || self.observed.pods.contains_key(uid)
            }) {
                Ok(found) => left.extend(found),
                Err(error) => {
                    tracing::warn!(path = %root.display(), %error, "what former pods left cannot be listed")
                }
            }
        }
        left.into_iter().for_each(|path| context.removals.push(path));
    }
}

/// The node lifecycle took the pod for not ready because its node was not heard.
fn was_given_up(pod: &Pod) -> bool {
    let conditions = pod.status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["reason"] == NODE_NOT_READY)
}
