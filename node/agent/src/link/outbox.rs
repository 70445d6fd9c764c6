//! What is on its way up to the leader. It survives the loss of a link: what counts is sent again over the next one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use coracle_proto::node::{ClaimBlock, NodeEvent, NodeUp, PodGone, PodStatus, Usage, node_up::Body};
use tokio::time::Instant;

/// Events that wait for a link. The oldest are dropped first: they matter least.
const EVENTS_MAX: usize = 1024;
/// How long the status of a pod that is only coming up may wait for a better one.
const LAZY: Duration = Duration::from_millis(50);

/// Everything that is to be sent, at most once each; coalesced by pod.
#[derive(Default)]
pub struct Outbox {
    /// The newest status of every pod of this node.
    statuses: BTreeMap<String, PodStatus>,
    /// Pods whose status is to be sent, at once or once the wait is over.
    dirty: BTreeSet<String>,
    urgent: VecDeque<String>,
    lazy: VecDeque<(Instant, String)>,
    /// Pods that are over, until the cluster has forgotten them too.
    gone: BTreeMap<String, PodGone>,
    gone_dirty: BTreeSet<String>,
    events: VecDeque<NodeEvent>,
    claims: BTreeSet<u64>,
    claims_dirty: BTreeSet<u64>,
    usage: Option<Usage>,
}

impl Outbox {
    /// A pod's newest status. `lazy` ones may wait a moment for the next.
    pub fn status(&mut self, status: PodStatus, lazy: bool) {
        let uid = status.uid.clone();
        self.statuses.insert(uid.clone(), status);
        let fresh = self.dirty.insert(uid.clone());
        if !lazy {
            self.urgent.push_back(uid);
        } else if fresh {
            self.lazy.push_back((Instant::now() + LAZY, uid));
        }
    }

    /// The cluster forgot what it was told of a pod: it is told again.
    pub fn status_again(&mut self, uid: &str) {
        if self.statuses.contains_key(uid) && self.dirty.insert(uid.to_owned()) {
            self.urgent.push_back(uid.to_owned());
        }
    }

    /// A pod is over on this node. Its last status goes first.
    pub fn gone(&mut self, gone: PodGone) {
        if self.dirty.contains(&gone.uid) {
            self.urgent.push_back(gone.uid.clone());
        }
        self.gone_dirty.insert(gone.uid.clone());
        self.gone.insert(gone.uid.clone(), gone);
    }

    /// The cluster knows the pod no more.
    pub fn forget(&mut self, uid: &str) {
        self.statuses.remove(uid);
        self.dirty.remove(uid);
        self.gone.remove(uid);
        self.gone_dirty.remove(uid);
    }

    pub fn event(&mut self, event: NodeEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub fn claim(&mut self, request: u64) {
        self.claims.insert(request);
        self.claims_dirty.insert(request);
    }

    pub fn claim_answered(&mut self, request: u64) {
        self.claims.remove(&request);
        self.claims_dirty.remove(&request);
    }

    pub fn usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// A new link: everything that the leader may not have is sent again.
    pub fn resend(&mut self) {
        self.lazy.clear();
        self.urgent = self.statuses.keys().cloned().collect();
        self.dirty = self.statuses.keys().cloned().collect();
        self.gone_dirty = self.gone.keys().cloned().collect();
        self.claims_dirty = self.claims.clone();
    }

    /// The next message, in order of what waits for it most. It counts as sent.
    pub fn next(&mut self, now: Instant) -> Option<NodeUp> {
        let body = if let Some(request) = self.claims_dirty.pop_first() {
            Body::ClaimBlock(ClaimBlock { request })
        } else if let Some(status) = self.next_status(now) {
            Body::PodStatus(status)
        } else if let Some(uid) = self.gone_dirty.pop_first() {
            Body::PodGone(self.gone.get(&uid)?.clone())
        } else if let Some(event) = self.events.pop_front() {
            Body::Event(event)
        } else {
            Body::Usage(self.usage.take()?)
        };
        Some(NodeUp { body: Some(body) })
    }

    /// When the next status that waits is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.lazy.front().map(|(due, _)| *due)
    }

    fn next_status(&mut self, now: Instant) -> Option<PodStatus> {
        while let Some(uid) = self.urgent.pop_front() {
            if self.dirty.remove(&uid) {
                return self.statuses.get(&uid).cloned();
            }
        }
        while self.lazy.front().is_some_and(|(due, _)| *due <= now) {
            let (_, uid) = self.lazy.pop_front()?;
            if self.dirty.remove(&uid) {
                return self.statuses.get(&uid).cloned();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: &str, text: &'static str) -> PodStatus {
        PodStatus { uid: uid.into(), status_json: text.into(), ..Default::default() }
    }

    fn drain(outbox: &mut Outbox) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(message) = outbox.next(Instant::now()) {
            sent.push(match message.body.unwrap() {
                Body::PodStatus(status) => {
                    format!("{}={}", status.uid, String::from_utf8_lossy(&status.status_json))
                }
                Body::PodGone(gone) => format!("{} gone", gone.uid),
                Body::ClaimBlock(claim) => format!("claim {}", claim.request),
                other => format!("{other:?}"),
            });
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn statuses_are_coalesced_and_the_urgent_go_first() {
        let mut outbox = Outbox::default();
        outbox.status(status("a", "pending"), true);
        outbox.status(status("b", "pending"), true);
        outbox.status(status("b", "running"), false);
        assert_eq!(drain(&mut outbox), ["b=running"]);
        tokio::time::advance(LAZY).await;
        assert_eq!(drain(&mut outbox), ["a=pending"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_link_gets_everything_that_still_counts() {
        let mut outbox = Outbox::default();
        outbox.status(status("a", "running"), false);
        outbox.status(status("b", "failed"), false);
        outbox.gone(PodGone { uid: "b".into(), ..Default::default() });
        outbox.claim(3);
        let all = ["claim 3", "a=running", "b=failed", "b gone"];
        assert_eq!(drain(&mut outbox), all);
        outbox.resend();
        assert_eq!(drain(&mut outbox), all);
        outbox.forget("b");
        outbox.claim_answered(3);
        outbox.resend();
        assert_eq!(drain(&mut outbox), ["a=running"]);
        outbox.status_again("a");
        outbox.status_again("b");
        assert_eq!(drain(&mut outbox), ["a=running"]);
    }
}
