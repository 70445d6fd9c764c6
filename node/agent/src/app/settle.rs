//! Brings pods to rest, and looks at them again when their time comes.

use std::collections::{BTreeMap, BTreeSet};

use coracle_core::{
    PodUid,
    reconcile::{next_wake, reconcile_pod},
};
use jiff::Timestamp;

use super::App;

/// Rounds until a pod must have come to rest. More would be a fault of reconcile, and ends in the log.
const ROUNDS_MAX: usize = 32;

/// When pods are to be looked at again, each once.
#[derive(Default)]
pub(crate) struct Wakes {
    by_time: BTreeSet<(Timestamp, PodUid)>,
    by_pod: BTreeMap<PodUid, Timestamp>,
}

impl Wakes {
    pub(crate) fn held(&self) -> usize {
        self.by_time.len().max(self.by_pod.len())
    }

    pub fn first(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    fn set(&mut self, uid: &PodUid, at: Option<Timestamp>) {
        if let Some(old) = self.by_pod.remove(uid) {
            self.by_time.remove(&(old, uid.clone()));
        }
        if let Some(at) = at {
            self.by_time.insert((at, uid.clone()));
            self.by_pod.insert(uid.clone(), at);
        }
    }

    fn pop_due(&mut self, now: Timestamp) -> Option<PodUid> {
        self.by_time.first().filter(|(at, _)| *at <= now)?;
        let (_, uid) = self.by_time.pop_first()?;
        self.by_pod.remove(&uid);
        Some(uid)
    }
}

impl App {
    /// Pods whose time has come.
    pub(super) fn wake(&mut self) {
        let now = self.executor.context().clock.now();
        while let Some(uid) = self.wakes.pop_due(now) {
            self.dirty.insert(uid);
        }
    }

    /// Brings every pod that something happened to to rest.
    pub(super) fn step(&mut self) {
        if !self.synced {
            return;
        }
        self.look_at_the_wall_clock();
        while let Some(uid) = self.dirty.pop_first() {
            let now = self.settle(&uid);
            self.schedule(uid, now);
        }
    }

    /// Where the wall clock was set, all statuses are told in its new time.
    fn look_at_the_wall_clock(&mut self) {
        let ahead = self.executor.context().clock.wall_ahead();
        if ahead != self.observed.node.wall_ahead {
            tracing::info!(ahead = %ahead, "the wall clock was set");
            self.observed.node.wall_ahead = ahead;
            self.dirty.extend(self.observed.pods.keys().cloned());
        }
    }

    /// Answers when it came to rest.
    fn settle(&mut self, uid: &PodUid) -> Timestamp {
        for _ in 0..ROUNDS_MAX {
            let now = self.executor.context().clock.now();
            let actions = reconcile_pod(uid, &self.desired, &self.observed, now);
            if actions.is_empty() {
                return now;
            }
            for action in actions {
                let pod = self.observed.pods.get(uid).map(|state| state.pod.clone());
                tracing::debug!(pod.uid = %uid, action = action.name(), "action");
                self.observed.begin(&action, &self.desired.pods, now);
                let outcome = pod.and_then(|pod| self.executor.execute(action, &pod));
                if let Some(observation) = outcome {
                    self.observed.apply(observation, now);
                }
            }
        }
        tracing::error!(pod.uid = %uid, "the pod does not come to rest");
        self.executor.context().clock.now()
    }

    fn schedule(&mut self, uid: PodUid, now: Timestamp) {
        let state = self.observed.pods.get(&uid);
        self.wakes.set(&uid, state.and_then(|state| next_wake(state, now)));
        // Where neither the cluster nor the node knows it any more.
        if state.is_none() && !self.desired.pods.contains_key(&uid) {
            self.executor.context().link.post(|outbox| outbox.forget(uid.as_str()));
        }
    }
}
