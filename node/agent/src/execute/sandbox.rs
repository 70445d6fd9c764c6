//! Sandboxes: the addresses that pods get, and what happens when the cluster takes some back.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use coracle_core::{Observation, Pod, PodUid, resources::Limits};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Executor, Sandbox};
use crate::runtime::{SandboxId, SandboxSpec};

/// A pod that is to have an address.
pub(super) struct WaitingPod {
    pub pod: Arc<Pod>,
    /// What it had before.
    pub preferred: Option<IpAddr>,
    pub limits: Limits,
}

impl Executor {
    pub(super) fn create_sandbox(&mut self, wanted: WaitingPod) -> Option<Observation> {
        let Some(address) = self.blocks.take(wanted.preferred) else {
            self.waiting.push(wanted);
            self.claim();
            return None;
        };
        let WaitingPod { pod, limits, .. } = wanted;
        let uid = pod.uid().clone();
        let id = SandboxId { pod: uid.clone(), number: self.sandboxes_made };
        self.sandboxes_made += 1;
        let spec = SandboxSpec {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            labels: pod.metadata.labels.clone(),
            hostname: pod.hostname().to_owned(),
            addresses: vec![address.into()],
            limits,
        };
        self.context.runtime.create_sandbox(&id, spec);
        let plans = Arc::new(Semaphore::new(1));
        let (containers, ending) = (BTreeMap::new(), CancellationToken::new());
        let sandbox = Sandbox { id, address, plans, ending, containers, is_lost: false };
        self.sandboxes.insert(uid.clone(), sandbox);
        Some(Observation::SandboxReady { uid, addresses: vec![address.into()] })
    }

    pub(super) fn stop_sandbox(&mut self, uid: &PodUid) {
        let Some(sandbox) = self.sandboxes.remove(uid) else { return };
        self.end_serving(uid);
        self.context.runtime.remove_sandbox(&sandbox.id);
        self.blocks.release(sandbox.address);
    }

    /// Asks for a block more where one is needed. Before all blocks are known nobody knows whether it is.
    fn claim(&mut self) {
        if self.blocks_known
            && let Some(request) = self.waiting.claim()
        {
            self.context.link.post(|outbox| outbox.claim(request));
        }
    }

    /// A block of addresses is this node's.
    pub fn add_block(&mut self, cidr: &str) {
        if !self.blocks.add(cidr) {
            tracing::warn!(cidr, "a block of pod addresses is no /24");
        }
    }

    /// A block is this node's no longer. What comes of it for pods that have addresses of it.
    pub fn remove_block(&mut self, cidr: &str) -> Vec<Observation> {
        let lost = self.blocks.remove(cidr);
        self.lose(&lost)
    }

    /// A new link: the cluster may have taken blocks back, and says next which are this node's.
    pub fn doubt_blocks(&mut self) {
        self.blocks_known = false;
        self.blocks.doubt();
    }

    /// The link has named all blocks of this node: pods that wait for an address get one, or one is claimed for them.
    pub fn blocks_are_known(&mut self) -> Vec<Observation> {
        self.blocks_known = true;
        let lost = self.blocks.forget_doubtful();
        let mut observations = self.lose(&lost);
        let waiting: Vec<WaitingPod> = self.waiting.drain().collect();
        observations.extend(waiting.into_iter().filter_map(|wanted| self.create_sandbox(wanted)));
        observations
    }

    /// Takes pods off the network whose addresses are another node's now.
    fn lose(&mut self, lost: &[Ipv4Addr]) -> Vec<Observation> {
        let losers = self.sandboxes.iter_mut().filter(|(_, sandbox)| lost.contains(&sandbox.address));
        let observations: Vec<_> = losers
            .map(|(uid, sandbox)| {
                tracing::warn!(pod.uid = %uid, address = %sandbox.address, "the pod's address was taken back");
                self.context.runtime.detach_sandbox(&sandbox.id);
                sandbox.is_lost = true;
                Observation::SandboxLost { uid: uid.clone() }
            })
            .collect();
        observations
    }

    /// A claim for more addresses was answered: whoever waits goes on.
    pub fn block_claimed(&mut self, request: u64, cidr: &str, error: &str) -> Vec<Observation> {
        self.context.link.post(|outbox| outbox.claim_answered(request));
        if !cidr.is_empty() {
            self.add_block(cidr);
        }
        if !self.waiting.answered(request) {
            return Vec::new();
        }
        let waiting: Vec<WaitingPod> = self.waiting.drain().collect();
        let failed = |pod: &Pod| Observation::SandboxFailed {
            uid: pod.uid().clone(),
            message: format!("no address for the pod: {error}"),
        };
        let mut observations = Vec::new();
        for wanted in waiting {
            if cidr.is_empty() {
                observations.push(failed(&wanted.pod));
            } else {
                observations.extend(self.create_sandbox(wanted));
            }
        }
        observations
    }
}
