//! Who is away: a leader that freezes, machines that die or say nothing, and what must not follow from it.

use std::{collections::BTreeSet, time::Duration};

use coracle_core::race::HEARTBEAT;
use coracle_leader::hearing::Hearing;
use coracle_objects::{Event, EventKind, Object, View};
use jiff::Timestamp;
use serde_json::Value;

use super::{Broken, Nobody, World};
use crate::workloads::{Mutant, clock, link::node_of, plane::Happened, seek::Link};

/// How long the leader is away where nothing else happens, and after how long whatever it could do wrong is done.
const AWAY_MS: u64 = 15_000;
const AFTERWARDS_MS: u64 = 8_000;

/// Until the pods of a machine that dies are evicted, and elsewhere.
pub const HEALED_MS: u64 = 3_000;

impl World {
    /// Who leads, who goes on, and the links of nodes. True where anything happened.
    pub(super) fn turn_of_plane(&mut self) -> bool {
        let now = clock::elapsed(self.now);
        let view = self.view();
        let heard = self.plane.hearing.clone();
        let happened = self.plane.turn(&view, now, &mut self.chance);
        match happened {
            Happened::Nothing => {}
            Happened::Opened => {
                if self.mutant == Some(Mutant::SilenceCounts) {
                    self.plane.hearing = Hearing { since: Duration::ZERO, ..heard };
                }
                self.lead_anew();
            }
            Happened::Thawed => self.go_on(now),
        }
        let mut acted = happened != Happened::Nothing;
        for index in 0..self.nodes.len() {
            acted |= self.follow_link(index, now);
        }
        acted
    }

    /// The leader goes on: links that nobody has given up are as before, others it finds closed.
    fn go_on(&mut self, now: Duration) {
        for node in self.nodes.iter_mut().filter(|node| node.hushed_until.is_none()) {
            match node.link {
                Link::Silent { noticed_at } if node.alive && noticed_at > now => node.link = Link::Up,
                Link::Up => {}
                _ => self.plane.hearing.lose(node.name, now),
            }
        }
    }

    fn follow_link(&mut self, index: usize, now: Duration) -> bool {
        let node = &mut self.nodes[index];
        if node.hushed_until.is_some_and(|until| until <= self.now) {
            node.hushed_until = None;
            // Some find their link gone, some go on with it.
            if self.chance.chance(500) || !self.plane.leads() {
                node.link = Link::lost(&self.plane, self.plane.leader_address(), now);
            } else {
                self.link_up(index);
            }
            return true;
        }
        if !node.alive || node.hushed_until.is_some() {
            return false;
        }
        match &mut node.link {
            Link::Up => false,
            Link::Silent { noticed_at } if *noticed_at <= now => {
                node.link = Link::lost(&self.plane, self.plane.frozen_address(), now);
                true
            }
            Link::Silent { .. } => false,
            Link::Seeking(seek) => {
                let found = seek.step(&self.plane, now, &mut self.chance);
                if found {
                    self.link_up(index);
                }
                found
            }
        }
    }

    /// A node has a link to the leader.
    pub(super) fn link_up(&mut self, index: usize) {
        let name = self.nodes[index].name;
        let now = clock::elapsed(self.now);
        let _ = self.plane.hearing.hear(name, None, now);
        self.register(index);
        self.router.catch_up(self.view());
        self.links += 1;
        self.router.attach(name, self.links, Nobody);
        self.nodes[index].link_number = self.links;
        let first = self.take(index);
        self.nodes[index].linked(self.links, &first);
        self.plane.hear_beat(name, now);
    }

    /// Heartbeats that came since the last look, of which none is an event of its own. A leader that has just gone on
    /// may look at its nodes before it reads what they said.
    pub(super) fn hear_beats(&mut self, now: Duration) {
        if std::mem::take(&mut self.plane.dazed) && self.chance.chance(500) {
            return;
        }
        for (number, node) in self.nodes.iter().enumerate() {
            if node.alive && node.hushed_until.is_none() && node.link.is_up() {
                // Each at its own time of the second.
                let phase = Duration::from_millis(300 * number as u64);
                let since = now.saturating_sub(phase).as_millis() / HEARTBEAT.as_millis();
                let beat = phase + HEARTBEAT * u32::try_from(since).unwrap_or(u32::MAX);
                self.plane.hear_beat(node.name, beat.min(now));
            }
        }
    }

    /// What a leader that runs has seen and heard up to now, though time leapt: before something befalls it or a node.
    fn catch_up(&mut self) {
        if self.plane.leads() {
            let now = clock::elapsed(self.now);
            self.plane.be_present(now, false);
            self.hear_beats(now);
        }
    }

    /// A hearing for each node, as of the only one: a fault that is built in.
    pub(super) fn hearings_apart(&self) -> Vec<Hearing> {
        let all = &self.plane.hearing;
        let far = clock::elapsed(self.now);
        let apart = |name: &String| {
            let mut one = all.clone();
            for (other, heard) in &mut one.nodes {
                // Of the others nothing is to be said now.
                if other != name {
                    (heard.at, heard.lost, heard.pressures) = (far + Duration::from_secs(3_600), None, None);
                }
            }
            one
        };
        all.nodes.keys().map(apart).collect()
    }

    /// A machine dies. Its sockets are closed.
    pub(super) fn kill(&mut self, index: usize, now: Timestamp) {
        self.catch_up();
        let leads = self.plane.leads();
        let node = &mut self.nodes[index];
        if leads && node.alive && node.link.is_up() {
            self.plane.hearing.lose(node.name, clock::elapsed(now));
        }
        (node.alive, node.well, node.since) = (false, false, now);
        node.link = Link::lost(&self.plane, None, clock::elapsed(now));
    }

    pub(super) fn revive(&mut self, index: usize, fresh: bool) {
        if self.nodes[index].alive {
            return;
        }
        let now = clock::elapsed(self.now);
        self.nodes[index].revive(fresh, self.now);
        self.nodes[index].link = Link::lost(&self.plane, None, now);
    }

    pub(super) fn freeze(&mut self, ms: u64) {
        if !self.plane.leads() {
            return;
        }
        self.catch_up();
        let now = clock::elapsed(self.now);
        self.plane.freeze(ms, now, &mut self.chance);
        for node in self.nodes.iter_mut().filter(|node| node.alive && node.hushed_until.is_none()) {
            if node.link.is_up() {
                node.link = Link::falls_silent(now, &mut self.chance);
            }
        }
    }

    pub(super) fn hand_over(&mut self) {
        if !self.plane.leads() {
            return;
        }
        let (now, before) = (clock::elapsed(self.now), self.plane.leader_address());
        self.plane.hand_over(now, &mut self.chance);
        for node in self.nodes.iter_mut().filter(|node| node.alive && node.hushed_until.is_none()) {
            if node.link.is_up() {
                node.link = Link::lost(&self.plane, before.clone(), now);
            }
        }
    }

    /// All machines that are there say nothing for so long.
    pub(super) fn hush(&mut self, ms: u64) -> Result<(), Broken> {
        self.catch_up();
        let until = clock::after(self.now, ms);
        for node in self.nodes.iter_mut().filter(|node| node.alive) {
            node.hushed_well = node.well || (node.hushed_until.is_some() && node.hushed_well);
            (node.hushed_until, node.well) = (Some(until), false);
        }
        self.run_for(ms + 10_000)
    }

    /// What nobody may do to nodes that are well, and to their pods, nor to those that are silent all together.
    pub(super) fn check_absence(&mut self, event: &Event) -> Result<(), Broken> {
        let object = &event.object;
        if event.kind == EventKind::Deleted {
            self.ready.remove(object.name());
            return Ok(());
        }
        match object.key.resource.as_str() {
            "nodes" => {
                let ready = condition(object, "Ready").is_some_and(|ready| ready["status"] == "True");
                let before = self.ready.insert(object.name().to_owned(), ready);
                let node = self.nodes.iter().find(|node| node.name == object.name());
                if before == Some(true) && !ready && node.is_some_and(|node| node.well) {
                    return Err(Broken::new(
                        "well node",
                        format!("{} is well and no longer Ready", object.key),
                    ));
                }
            }
            "pods" => {
                let node = node_of(object).unwrap_or_default();
                let node = self.nodes.iter().find(|one| one.name == node);
                let spared =
                    node.is_some_and(|node| node.well || (node.hushed_until.is_some() && node.hushed_well));
                let judged = given_up(object);
                let before = self.judged.insert(object.meta.uid.clone(), judged.is_some());
                if let Some(what) = judged.filter(|_| spared && before == Some(false)) {
                    let what = format!("{} {what} although nothing is wrong with its node", object.key);
                    return Err(Broken::new("moved pod", what));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Pods of machines that are Ready and are not to go, by uid.
    fn standing(&self, view: &View) -> BTreeSet<String> {
        let names: BTreeSet<&str> = self.nodes.iter().map(|node| node.name).collect();
        let standing = view.list("pods", None).filter(|pod| {
            pod.meta.deletion_timestamp.is_none()
                && is_ready(pod)
                && node_of(pod).is_some_and(|node| names.contains(node.as_str()))
        });
        standing.map(|pod| pod.meta.uid.clone()).collect()
    }

    /// With everything at rest: the leader is away and nothing becomes of it; then a machine dies, and its pods go.
    pub(super) fn absence_and_death(&mut self) -> Result<(), Broken> {
        for index in 0..self.nodes.len() {
            self.revive(index, false);
        }
        self.run_for(10_000)?;
        let before = self.standing(&self.view());
        self.tell(format!("the leader freezes for {AWAY_MS} ms"));
        self.freeze(AWAY_MS);
        self.run_for(AWAY_MS + AFTERWARDS_MS)?;
        let after = self.standing(&self.view());
        if let Some(uid) = before.difference(&after).next() {
            let what =
                format!("pod {uid} was Ready before the leader was away, and is not there or not Ready");
            return Err(Broken::new("moved pod", what));
        }
        let strangers =
            self.view().list("nodes", None).any(|node| self.nodes.iter().all(|one| one.name != node.name()));
        let wait = self.chance.below(3_000);
        self.run_for(wait)?;
        let index = self.chance.below(self.nodes.len() as u64) as usize;
        let name = self.nodes[index].name;
        self.tell(format!("machine {name} dies"));
        self.kill(index, self.now);
        self.run_for(HEALED_MS)?;
        let view = self.view();
        // With nodes that nobody runs this may look like a disruption.
        let left = view.list("pods", None).find(|pod| {
            node_of(pod).as_deref() == Some(name) && after.contains(&pod.meta.uid) && is_to_go(pod)
        });
        if let Some(pod) = left.filter(|_| !strangers) {
            let what = format!("{} is still on {name}, which died {HEALED_MS} ms ago", pod.key);
            return Err(Broken::new("unhealed", what));
        }
        self.revive(index, true);
        self.run_for(AFTERWARDS_MS)
    }

    /// Pods of this label that are Ready on machines that are there.
    pub(super) fn ready_of(&self, app: &str) -> usize {
        let view = self.view();
        let here = |pod: &Object| {
            let node = node_of(pod).unwrap_or_default();
            self.nodes.iter().any(|one| one.name == node && one.alive)
        };
        let ready = view.list("pods", None).filter(|pod| {
            pod.meta.labels.get("app").is_some_and(|value| value == app)
                && pod.meta.deletion_timestamp.is_none()
                && is_ready(pod)
                && here(pod)
        });
        ready.count()
    }

    /// The fixed scenario: three machines, nine pods, a leader that is away for 15 s, machines that are silent all
    /// together, and one that dies. Answers how long its pods were missing, in milliseconds.
    pub fn play_frozen(&mut self) -> Result<u64, Broken> {
        self.calm = true;
        self.run_for(3_000)?;
        let labels = serde_json::json!({ "app": "frozen" });
        let body = serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "frozen" },
            "spec": { "replicas": 9, "selector": { "matchLabels": labels }, "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "c", "image": "registry/app:1" }] },
            } },
        });
        self.ask(&crate::workloads::door::Ask {
            method: "POST",
            path: "/apis/apps/v1/namespaces/default/deployments".to_owned(),
            content_type: "application/json",
            accept: "",
            body: body.to_string().into_bytes(),
        })?;
        self.run_for(10_000)?;
        let before = self.standing(&self.view());
        if before.len() != 9 || self.ready_of("frozen") != 9 {
            return Err(Broken::new("scenario", format!("{} pods are Ready", before.len())));
        }
        self.freeze(AWAY_MS);
        self.run_for(AWAY_MS + AFTERWARDS_MS)?;
        self.hush(AWAY_MS)?;
        if self.standing(&self.view()) != before {
            return Err(Broken::new("moved pod", "other pods are Ready than before"));
        }
        // Nodes that were told to be down have their time to come back; then nothing holds evictions up any more.
        self.run_for(AFTERWARDS_MS)?;
        let index = self.chance.below(self.nodes.len() as u64) as usize;
        let died = self.now;
        self.kill(index, died);
        while self.ready_of("frozen") < 9 {
            self.run_for(super::ROUND_MS)?;
            if clock::ms_between(died, self.now) > HEALED_MS {
                let what = format!("{} pods are Ready {HEALED_MS} ms after", self.ready_of("frozen"));
                return Err(Broken::new("unhealed", what));
            }
        }
        Ok(clock::ms_between(died, self.now))
    }
}

fn condition(object: &Object, type_: &str) -> Option<Value> {
    let value: Value = object.parse().ok()?;
    let conditions = value["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == type_).cloned()
}

fn is_ready(pod: &Object) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready["status"] == "True")
}

/// What was done to a pod because of its node, if anything.
fn given_up(pod: &Object) -> Option<&'static str> {
    let is = |type_: &str, status: &str, reason: &str| {
        condition(pod, type_).is_some_and(|found| found["status"] == status && found["reason"] == reason)
    };
    if is("DisruptionTarget", "True", "DeletionByTaintManager") {
        return Some("is evicted");
    }
    is("Ready", "False", "NodeNotReady").then_some("is no longer Ready")
}

/// Whether a pod is to be moved when its node dies: it does not say itself how long it stays.
fn is_to_go(pod: &Object) -> bool {
    let value: Value = pod.parse().unwrap_or_default();
    let stays = value["spec"]["tolerations"].as_array().is_some_and(|all| !all.is_empty());
    pod.meta.deletion_timestamp.is_none() && !stays
}
