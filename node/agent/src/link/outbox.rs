//! What is on its way up to the leader. It survives the loss of a link: what counts is sent again over the next one.
//!
//! Statuses, ends of pods and events have a sequence and are in flight until the leader has acknowledged them: what it
//! could not take, or what a lost link took along, is sent again. Of a pod's statuses only the newest ever is.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use coracle_proto::node::{
    ClaimBlock, NodeEvent, NodeUp, PodGone, PodStatus, PodWoken, Usage, node_up::Body,
};
use tokio::time::Instant;

use super::event_line::EventLine;

/// Messages that may be in flight without an acknowledgement.
const IN_FLIGHT_MAX: usize = 256;
/// Before what the leader could not take is sent again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long the status of a pod that is only coming up may wait for a better one.
const LAZY: Duration = Duration::from_millis(50);

/// Everything that is to be sent, at most once each; coalesced by pod.
#[derive(Default)]
pub struct Outbox {
    /// The newest status of every pod of this node.
    statuses: BTreeMap<String, PodStatus>,
    /// Pods whose status is to be sent, and whether at once or once the wait is over.
    dirty: BTreeMap<String, bool>,
    urgent: VecDeque<String>,
    lazy: VecDeque<(Instant, String)>,
    /// Pods that are over, until the cluster has forgotten them too.
    gone: BTreeMap<String, PodGone>,
    gone_dirty: BTreeSet<String>,
    events: EventLine,
    claims: BTreeSet<u64>,
    claims_dirty: BTreeSet<u64>,
    /// Instances that the node has started by itself, until the leader has answered.
    woken: BTreeMap<String, PodWoken>,
    woken_dirty: BTreeSet<String>,
    usage: Option<Usage>,
    /// Events that there was no room for since the last that was sent.
    dropped: u64,
    /// Whether the present link's leader acknowledges.
    acknowledged: bool,
    /// The sequence of the last message of this link that has one.
    sequence: u64,
    in_flight: BTreeMap<u64, InFlight>,
    /// What the leader could not take, with when it is due.
    later: VecDeque<(Instant, InFlight)>,
}

/// A message that was sent and is not acknowledged.
enum InFlight {
    /// Of the pod with this uid.
    Status(String),
    Gone(String),
    /// With its namespace.
    Event(String, NodeEvent),
}

impl Outbox {
    /// A pod's newest status. `lazy` ones may wait a moment for the next.
    pub fn status(&mut self, status: PodStatus, lazy: bool) {
        let uid = status.uid.clone();
        self.statuses.insert(uid.clone(), status);
        if !lazy {
            self.hasten(uid);
        } else if !self.dirty.contains_key(&uid) {
            self.dirty.insert(uid.clone(), false);
            self.lazy.push_back((Instant::now() + LAZY, uid));
        }
    }

    /// Has a pod's status sent at once. It is in the queue once, however often it changes while there is no link.
    fn hasten(&mut self, uid: String) {
        if self.dirty.insert(uid.clone(), true) != Some(true) {
            self.urgent.push_back(uid);
        }
    }

    /// The cluster forgot what it was told of a pod: it is told again.
    pub fn status_again(&mut self, uid: &str) {
        if self.statuses.contains_key(uid) && !self.dirty.contains_key(uid) {
            self.hasten(uid.to_owned());
        }
    }

    /// A pod is over on this node. Its last status goes first.
    pub fn gone(&mut self, gone: PodGone) {
        if self.dirty.contains_key(&gone.uid) {
            self.hasten(gone.uid.clone());
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
        self.woken_answered(uid);
    }

    /// How much there is of what is to be sent.
    pub fn held(&self) -> [(&'static str, usize); 6] {
        [
            ("statuses", self.statuses.len()),
            ("statuses to send", self.dirty.len().max(self.urgent.len() + self.lazy.len())),
            ("ends of pods to send", self.gone.len().max(self.gone_dirty.len())),
            ("events to send", self.events.len()),
            ("instances that the leader is asked for", self.woken.len()),
            ("messages without an answer", self.in_flight.len() + self.later.len() + self.claims.len()),
        ]
    }

    /// An event of a namespace.
    pub fn event(&mut self, namespace: String, event: NodeEvent) {
        self.dropped += self.events.push(namespace, event);
    }

    pub fn claim(&mut self, request: u64) {
        self.claims.insert(request);
        self.claims_dirty.insert(request);
    }

    pub fn claim_answered(&mut self, request: u64) {
        self.claims.remove(&request);
        self.claims_dirty.remove(&request);
    }

    /// The node has started an instance by itself.
    pub fn woken(&mut self, woken: PodWoken) {
        self.woken_dirty.insert(woken.uid.clone());
        self.woken.insert(woken.uid.clone(), woken);
    }

    /// The leader has made a pod of it, or refuses to.
    pub fn woken_answered(&mut self, uid: &str) {
        self.woken.remove(uid);
        self.woken_dirty.remove(uid);
    }

    /// What the leader has not answered is told again.
    pub fn woken_again(&mut self) {
        self.woken_dirty = self.woken.keys().cloned().collect();
    }

    pub fn usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// A new link: everything that the leader may not have is sent again. `acknowledged` tells whether its leader
    /// acknowledges.
    pub fn resend(&mut self, acknowledged: bool) {
        (self.acknowledged, self.sequence) = (acknowledged, 0);
        let lost: Vec<InFlight> = std::mem::take(&mut self.in_flight).into_values().collect();
        let later = std::mem::take(&mut self.later).into_iter().map(|(_, message)| message);
        let lost: Vec<InFlight> = later.chain(lost).collect();
        for message in lost.into_iter().rev() {
            if let InFlight::Event(namespace, event) = message {
                self.dropped += self.events.put_back(namespace, event);
            }
        }
        self.lazy.clear();
        self.urgent = self.statuses.keys().cloned().collect();
        self.dirty = self.statuses.keys().map(|uid| (uid.clone(), true)).collect();
        self.gone_dirty = self.gone.keys().cloned().collect();
        self.claims_dirty = self.claims.clone();
        self.woken_again();
    }

    /// The leader has done all that is to be done about these messages.
    pub fn done(&mut self, sequences: &[u64]) {
        for sequence in sequences {
            self.in_flight.remove(sequence);
        }
    }

    /// The leader could not take these: they are sent again after a moment, where there is nothing newer.
    pub fn again(&mut self, sequences: &[u64], now: Instant) {
        for sequence in sequences {
            if let Some(message) = self.in_flight.remove(sequence) {
                self.later.push_back((now + AGAIN_AFTER, message));
            }
        }
    }

    /// The next message, in order of what waits for it most. It counts as sent.
    pub fn next(&mut self, now: Instant) -> Option<NodeUp> {
        self.recall(now);
        if let Some(request) = self.claims_dirty.pop_first() {
            return Some(NodeUp { body: Some(Body::ClaimBlock(ClaimBlock { request })), sequence: 0 });
        }
        while let Some(uid) = self.woken_dirty.pop_first() {
            if let Some(woken) = self.woken.get(&uid) {
                return Some(NodeUp { body: Some(Body::PodWoken(woken.clone())), sequence: 0 });
            }
        }
        if self.has_room()
            && let Some((body, message)) = self.next_sequenced(now)
        {
            if !self.acknowledged {
                return Some(NodeUp { body: Some(body), sequence: 0 });
            }
            self.sequence += 1;
            self.in_flight.insert(self.sequence, message);
            return Some(NodeUp { body: Some(body), sequence: self.sequence });
        }
        Some(NodeUp { body: Some(Body::Usage(self.usage.take()?)), sequence: 0 })
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() + self.later.len() < IN_FLIGHT_MAX
    }

    fn next_sequenced(&mut self, now: Instant) -> Option<(Body, InFlight)> {
        if let Some(status) = self.next_status(now) {
            let uid = status.uid.clone();
            return Some((Body::PodStatus(status), InFlight::Status(uid)));
        }
        while let Some(uid) = self.gone_dirty.pop_first() {
            if let Some(gone) = self.gone.get(&uid) {
                return Some((Body::PodGone(gone.clone()), InFlight::Gone(uid)));
            }
        }
        let (namespace, mut event) = self.events.pop()?;
        event.dropped += std::mem::take(&mut self.dropped);
        Some((Body::Event(event.clone()), InFlight::Event(namespace, event)))
    }

    /// Puts what could not be taken back to where it waits for its turn.
    fn recall(&mut self, now: Instant) {
        let mut events = Vec::new();
        while self.later.front().is_some_and(|(due, _)| *due <= now) {
            match self.later.pop_front() {
                Some((_, InFlight::Status(uid))) => self.status_again(&uid),
                Some((_, InFlight::Gone(uid))) => _ = self.gone_dirty.insert(uid),
                Some((_, InFlight::Event(namespace, event))) => events.push((namespace, event)),
                None => {}
            }
        }
        for (namespace, event) in events.into_iter().rev() {
            self.dropped += self.events.put_back(namespace, event);
        }
    }

    /// When the next message that waits for its time is due.
    pub fn next_due(&self) -> Option<Instant> {
        let lazy = self.lazy.front().filter(|_| self.has_room()).map(|(due, _)| *due);
        let later = self.later.front().map(|(due, _)| *due);
        lazy.into_iter().chain(later).min()
    }

    fn next_status(&mut self, now: Instant) -> Option<PodStatus> {
        while let Some(uid) = self.urgent.pop_front() {
            if self.dirty.remove(&uid).is_some() {
                return self.statuses.get(&uid).cloned();
            }
        }
        while self.lazy.front().is_some_and(|(due, _)| *due <= now) {
            let (_, uid) = self.lazy.pop_front()?;
            if self.dirty.remove(&uid).is_some() {
                return self.statuses.get(&uid).cloned();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::event_line::EVENTS_MAX;

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
                Body::PodWoken(woken) => format!("woken {}", woken.uid),
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
        outbox.woken(PodWoken { uid: "a".into(), ..Default::default() });
        let all = ["claim 3", "woken a", "a=running", "b=failed", "b gone"];
        assert_eq!(drain(&mut outbox), all);
        outbox.resend(false);
        assert_eq!(drain(&mut outbox), all);
        outbox.woken_again();
        assert_eq!(drain(&mut outbox), ["woken a"]);
        outbox.forget("b");
        outbox.claim_answered(3);
        outbox.woken_answered("a");
        outbox.resend(false);
        assert_eq!(drain(&mut outbox), ["a=running"]);
        outbox.status_again("a");
        outbox.status_again("b");
        assert_eq!(drain(&mut outbox), ["a=running"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_often_without_a_link_waits_once() {
        let mut outbox = Outbox::default();
        for _ in 0..1000 {
            outbox.status(status("a", "waiting"), true);
            outbox.status(status("a", "running"), false);
            outbox.status(status("b", "failed"), false);
            outbox.gone(PodGone { uid: "b".into(), ..Default::default() });
        }
        assert!(outbox.urgent.len() + outbox.lazy.len() <= 4, "{}", outbox.urgent.len());
        assert_eq!(drain(&mut outbox), ["a=running", "b=failed", "b gone"]);
    }

    fn event(text: &'static str) -> NodeEvent {
        NodeEvent { event_json: text.into(), dropped: 0 }
    }

    fn sequenced(outbox: &mut Outbox) -> Vec<(u64, String)> {
        let next = std::iter::from_fn(|| outbox.next(Instant::now()));
        let text = |body| match body {
            Body::PodStatus(status) => String::from_utf8_lossy(&status.status_json).into_owned(),
            Body::Event(event) => String::from_utf8_lossy(&event.event_json).into_owned(),
            other => format!("{other:?}"),
        };
        next.map(|message| (message.sequence, text(message.body.unwrap()))).collect()
    }

    fn numbered(first: u64, texts: &[&str]) -> Vec<(u64, String)> {
        (first..).zip(texts.iter().map(|text| (*text).to_owned())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_acknowledged_is_sent_again_in_order() {
        let mut outbox = Outbox::default();
        outbox.resend(true);
        outbox.status(status("a", "pending"), false);
        ["e1", "e2", "e3"].into_iter().for_each(|text| outbox.event("d".into(), event(text)));
        assert_eq!(sequenced(&mut outbox), numbered(1, &["pending", "e1", "e2", "e3"]));
        outbox.done(&[2]);
        outbox.again(&[1, 3], Instant::now());
        outbox.status(status("a", "running"), false);
        assert_eq!(sequenced(&mut outbox), numbered(5, &["running"]), "the rest has to wait a moment");
        assert_eq!(outbox.next_due(), Some(Instant::now() + AGAIN_AFTER));
        tokio::time::advance(AGAIN_AFTER).await;
        assert_eq!(sequenced(&mut outbox), numbered(6, &["running", "e2"]), "of a status the newest");
        outbox.resend(true);
        let all = ["running", "e3", "e2"];
        assert_eq!(sequenced(&mut outbox), numbered(1, &all), "what the link took along");
        outbox.done(&[1, 2, 3]);
        outbox.resend(true);
        assert_eq!(sequenced(&mut outbox), numbered(1, &["running"]), "the leader may be another");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_has_a_bound_and_what_is_dropped_is_counted() {
        let mut outbox = Outbox::default();
        (0..EVENTS_MAX + 5).for_each(|_| outbox.event("d".into(), event("e")));
        outbox.resend(true);
        let first = outbox.next(Instant::now()).unwrap().body.unwrap();
        assert!(matches!(first, Body::Event(event) if event.dropped == 5));
        assert_eq!(sequenced(&mut outbox).len(), IN_FLIGHT_MAX - 1, "more wait for acknowledgements");
        outbox.claim(1);
        outbox.usage(Usage::default());
        assert_eq!(sequenced(&mut outbox).len(), 2, "others do not");
        outbox.done(&[1, 2]);
        assert_eq!(sequenced(&mut outbox).len(), 2);
        outbox.claim_answered(1);
        outbox.resend(false);
        assert_eq!(outbox.events.len(), EVENTS_MAX - 2);
        assert_eq!(sequenced(&mut outbox).len(), EVENTS_MAX - 2, "an older leader acknowledges nothing");
    }
}
