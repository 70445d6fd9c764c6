//! Instances of functions: this node's gateway goes by those of its own pods at once, before the cluster knows of them.

use std::net::SocketAddr;

use coracle_core::{Pod, PodUid};
use coracle_fabric::Name;
use serde_json::Value;

use super::Executor;

impl Executor {
    /// A pod's status is so now: as an instance it serves from the moment at which it is ready.
    pub(super) fn note_serving(&mut self, pod: &Pod, status: &Value) {
        let Some((namespace, revision)) = self.revision_of(pod) else { return };
        let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
        if !is_ready {
            self.end_serving(pod.uid());
            return;
        }
        let (Some(sandbox), Some(container)) = (self.sandboxes.get(pod.uid()), pod.spec.containers.first())
        else {
            return;
        };
        let at = SocketAddr::new(sandbox.address.into(), container.http_port());
        let revision = Name::new(&namespace, &revision);
        if self.serving.get(pod.uid()) != Some(&(revision.clone(), at)) {
            self.end_serving(pod.uid());
            self.context.network.serve(revision.clone(), at, true);
            self.serving.insert(pod.uid().clone(), (revision, at));
        }
    }

    /// A pod ends, or is not ready: it gets no more requests.
    pub(super) fn end_serving(&mut self, uid: &PodUid) {
        if let Some((revision, at)) = self.serving.remove(uid) {
            self.context.network.serve(revision, at, false);
        }
    }
}
