//! A start without a control plane: after a while the node runs what it ran last.

use std::time::Duration;

use coracle_proto::node::ObjectEvent;
use tokio::time::Instant;

use super::App;
use crate::decode::Decoded;

/// How long a node that has just started waits for a link before it runs what it ran last. A control plane that is
/// there answers sooner, and one that starts at the same time has led by then.
pub const LAST_RUN_AFTER: Duration = Duration::from_secs(10);

impl App {
    /// With what the cluster wanted last, which runs where no link has said for so long what is wanted now.
    pub fn with_last(mut self, last: Vec<ObjectEvent>, after: Duration) -> Self {
        (self.last, self.last_after) = (last, after);
        self.wait_for_a_link();
        self
    }

    /// There is no link, so that nobody may come to say what is wanted.
    pub(super) fn wait_for_a_link(&mut self) {
        if !self.synced && !self.last.is_empty() {
            self.last_due = Some(Instant::now() + self.last_after);
        }
    }

    /// There is one: it says so itself.
    pub(super) fn linked_again(&mut self) {
        self.last_due = None;
    }

    /// Runs what the cluster wanted last. What it wants no longer is found out when it has said everything.
    pub(super) fn run_last(&mut self) {
        self.last_due = None;
        let last = std::mem::take(&mut self.last);
        tracing::warn!(
            objects = last.len(),
            "no control plane answers: this node runs what it ran last, until one says otherwise"
        );
        for event in last {
            self.object(Decoded::from(event));
        }
        self.executor.context().network.hurry();
        self.synced = true;
        self.dirty.extend(self.desired.pods.keys().cloned());
    }
}
