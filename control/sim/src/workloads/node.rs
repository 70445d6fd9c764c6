//! A node: the real core, and in the place of its sandbox, registry and network a model that answers its actions.
//!
//! The loop around the core is that of `coracle_agent::app`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use coracle_core::{
    Action, Desired, NodeFacts, Observation, Observed, Pod, PodUid,
    observe::{Exit, News},
    reconcile::{next_wake, reconcile_pod},
    sources::{Keyed, KeyedData, Kind, Service, Source},
};
use coracle_leader::pod_status::Report;
use coracle_proto::node::{ObjectEvent, object_event::Type};
use jiff::Timestamp;

use super::{
    clock,
    link::{self, report},
    records::Records,
    seek::Link,
};
use crate::rng::Rng;

/// Rounds until a pod must have come to rest, as in the agent.
const ROUNDS_MAX: usize = 32;

pub struct Node {
    pub name: &'static str,
    pub alive: bool,
    /// Since when it is so.
    pub since: Timestamp,
    /// How often its process began.
    pub boot: u32,
    pub link: Link,
    /// Of its link.
    pub link_number: u64,
    /// It is there, and has found its leader since it was not: nobody may take it for lost.
    pub well: bool,
    /// It says nothing until this moment, with all others.
    pub hushed_until: Option<Timestamp>,
    /// It was well when it began to say nothing: one that had not come back yet is lost as well.
    pub hushed_well: bool,
    /// To be sent up, in order.
    pub reports: Vec<Report>,
    desired: Desired,
    observed: Observed,
    /// The newest pod under each name.
    names: BTreeMap<(String, String), PodUid>,
    dirty: BTreeSet<PodUid>,
    /// When pods are to be looked at again.
    wakes: BTreeMap<PodUid, Timestamp>,
    /// What the machinery will have to say, and when.
    coming: BTreeMap<(Timestamp, u64), Observation>,
    told: u64,
    addresses: u32,
    chance: Rng,
}

impl Node {
    pub fn new(name: &'static str, chance: Rng, now: Timestamp) -> Self {
        let facts = NodeFacts {
            name: name.to_owned(),
            host_ip: "192.0.2.1".to_owned(),
            cpu_milli: 4_000,
            memory_bytes: 4 << 30,
            ..NodeFacts::default()
        };
        Self {
            name,
            alive: true,
            since: now,
            boot: 0,
            link: Link::Up,
            link_number: 0,
            well: true,
            hushed_until: None,
            hushed_well: false,
            reports: vec![],
            desired: Desired::default(),
            observed: Observed { node: facts, pods: BTreeMap::new() },
            names: BTreeMap::new(),
            dirty: BTreeSet::new(),
            wakes: BTreeMap::new(),
            coming: BTreeMap::new(),
            told: 0,
            addresses: 0,
            chance,
        }
    }

    /// Comes back, as a new process where `fresh`.
    pub fn revive(&mut self, fresh: bool, now: Timestamp) {
        (self.alive, self.since) = (true, now);
        if fresh {
            self.boot += 1;
            self.observed.pods.clear();
            self.coming.clear();
            self.reports.clear();
        }
    }

    /// Has a link again, and learns what it missed.
    pub fn linked(&mut self, number: u64, first: &[ObjectEvent]) {
        (self.link, self.well, self.link_number) = (Link::Up, true, number);
        self.desired = Desired { sources: std::mem::take(&mut self.desired.sources), ..Desired::default() };
        self.names.clear();
        let mut told = BTreeSet::new();
        for message in first {
            self.take(message);
            told.insert((message.resource.clone(), message.namespace.clone(), message.name.clone()));
        }
        self.forget_all_but(&told);
        let all = self.desired.pods.keys().chain(self.observed.pods.keys());
        self.dirty.extend(all.cloned().collect::<Vec<_>>());
        // Everything that the leader may not have is sent again.
        for state in self.observed.pods.values() {
            if let Some(status) = &state.reported {
                self.reports.push(report(&state.pod, Some(status.clone())));
            }
        }
    }

    /// What the leader sends.
    pub fn take(&mut self, message: &ObjectEvent) {
        match message.r#type() {
            Type::Put => self.put(message),
            Type::Withheld => self.withhold(message),
            Type::Delete => self.delete(message),
        }
    }

    fn delete(&mut self, message: &ObjectEvent) {
        let own = (message.namespace.clone(), message.name.clone());
        match message.resource.as_str() {
            "pods" => {
                if let Some(uid) = self.names.remove(&own) {
                    self.desired.pods.remove(&uid);
                    self.dirty.insert(uid);
                }
            }
            "configmaps" => self.remove_source(Kind::ConfigMap, &own),
            "secrets" => self.remove_source(Kind::Secret, &own),
            "services" => self.remove_source(Kind::Service, &own),
            _ => {}
        }
    }

    /// What cannot be read is passed over, as on a node; that it cannot be is found elsewhere.
    fn put(&mut self, object: &ObjectEvent) {
        let own = (object.namespace.clone(), object.name.clone());
        match object.resource.as_str() {
            "pods" => {
                if let Ok(pod) = Pod::parse(&object.object_json) {
                    self.put_pod(own, pod);
                }
            }
            "configmaps" => {
                if let Ok(data) = KeyedData::from_config_map(&object.object_json, object.revision) {
                    self.put_source(own, Source::ConfigMap(Keyed::Data(Arc::new(data))));
                }
            }
            "secrets" => {
                if let Ok(data) = KeyedData::from_secret(&object.object_json, object.revision) {
                    self.put_source(own, Source::Secret(Keyed::Data(Arc::new(data))));
                }
            }
            "services" => {
                if let Ok(service) = Service::parse(&object.object_json) {
                    self.put_source(own, Source::Service(Arc::new(service)));
                }
            }
            _ => {}
        }
    }

    fn withhold(&mut self, message: &ObjectEvent) {
        if let Some(source) = Source::withheld(&message.resource, &message.reason) {
            self.put_source((message.namespace.clone(), message.name.clone()), source);
        }
    }

    fn put_pod(&mut self, own: (String, String), pod: Pod) {
        let pod = Arc::new(pod);
        let old = self.names.insert(own, pod.uid().clone());
        if let Some(old) = old.filter(|old| old != pod.uid()) {
            self.desired.pods.remove(&old);
            self.dirty.insert(old);
        }
        self.observed.see(&pod);
        let conditions = pod.status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if conditions.iter().any(|one| one["type"] == "Ready" && one["reason"] == "NodeNotReady")
            && let Some(status) = self.observed.pods.get(pod.uid()).and_then(|state| state.reported.clone())
        {
            self.reports.push(report(&pod, Some(status)));
        }
        self.dirty.insert(pod.uid().clone());
        self.desired.pods.insert(pod.uid().clone(), pod);
    }

    /// Of what pods are made of goes what was not told of again.
    fn forget_all_but(&mut self, told: &BTreeSet<(String, String, String)>) {
        let sources = self.desired.sources.clone();
        let gone = |resource: &str, (namespace, name): &(String, String)| {
            !told.contains(&(resource.to_owned(), namespace.clone(), name.clone()))
        };
        for own in sources.config_maps.keys().filter(|own| gone("configmaps", own)) {
            self.remove_source(Kind::ConfigMap, own);
        }
        for own in sources.secrets.keys().filter(|own| gone("secrets", own)) {
            self.remove_source(Kind::Secret, own);
        }
        for own in sources.services.keys().filter(|own| gone("services", own)) {
            self.remove_source(Kind::Service, own);
        }
    }

    fn put_source(&mut self, own: (String, String), source: Source) {
        self.dirty.extend(self.observed.put_source(&mut self.desired.sources, own, source));
    }

    fn remove_source(&mut self, kind: Kind, own: &(String, String)) {
        self.dirty.extend(self.observed.remove_source(&mut self.desired.sources, kind, own));
    }

    /// When there is something to do although nothing is observed.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let coming = self.coming.keys().next().map(|(at, _)| *at);
        coming.into_iter().chain(self.wakes.values().copied()).min()
    }

    /// Does what is to be done now. True where anything was; an error where a pod does not come to rest.
    pub fn step(&mut self, now: Timestamp, calm: bool, records: &mut Records) -> Result<bool, String> {
        while self.coming.keys().next().is_some_and(|(at, _)| *at <= now) {
            let Some((_, observation)) = self.coming.pop_first() else { break };
            self.dirty.insert(observation.uid().clone());
            self.observed.apply(observation, now);
        }
        let due = self.wakes.iter().filter(|(_, at)| **at <= now);
        self.dirty.extend(due.map(|(uid, _)| uid.clone()));
        let mut acted = false;
        while let Some(uid) = self.dirty.pop_first() {
            acted |= self.settle(&uid, now, calm, records)?;
            match self.observed.pods.get(&uid).and_then(|state| next_wake(state, now)) {
                Some(at) => self.wakes.insert(uid, at),
                None => self.wakes.remove(&uid),
            };
        }
        Ok(acted)
    }

    fn settle(
        &mut self,
        uid: &PodUid,
        now: Timestamp,
        calm: bool,
        records: &mut Records,
    ) -> Result<bool, String> {
        for round in 0..ROUNDS_MAX {
            let actions = reconcile_pod(uid, &self.desired, &self.observed, now);
            if actions.is_empty() {
                return Ok(round > 0);
            }
            for action in actions {
                let pod = self.observed.pods.get(uid).map(|state| state.pod.clone());
                self.observed.begin(&action, &self.desired.pods, now);
                if let Some(pod) = pod {
                    self.execute(action, &pod, now, calm, records);
                }
            }
        }
        Err(format!("pod {uid} does not come to rest on its node within {ROUNDS_MAX} rounds"))
    }

    fn later(&mut self, at: Timestamp, observation: Observation) {
        self.told += 1;
        self.coming.insert((at, self.told), observation);
    }

    /// Answers an action. In calm times everything works, and containers that run go on.
    fn execute(&mut self, action: Action, pod: &Pod, now: Timestamp, calm: bool, records: &mut Records) {
        let fails = |chance: &mut Rng, share: u64| !calm && chance.chance(share);
        let delay = |chance: &mut Rng| clock::after(now, chance.between(1, 40));
        let at = delay(&mut self.chance);
        match action {
            Action::CreateSandbox { uid, .. } => {
                self.addresses += 1;
                let address = link::address(self.name, self.addresses);
                let observation = match fails(&mut self.chance, 30) {
                    true => Observation::SandboxFailed { uid, message: "no address".to_owned() },
                    false => Observation::SandboxReady { uid, addresses: vec![IpAddr::V4(address)] },
                };
                self.later(at, observation);
            }
            Action::StopSandbox { uid } => self.later(at, Observation::SandboxStopped { uid }),
            Action::Mount { uid, fingerprint, inputs } => {
                let observation = match (inputs.plan(), fails(&mut self.chance, 30)) {
                    (Err(message), _) => Observation::VolumesHeld { uid, message },
                    (Ok(_), true) => Observation::MountFailed { uid, message: "no room".to_owned() },
                    (Ok(_), false) => Observation::Mounted { uid, fingerprint },
                };
                self.later(at, observation);
            }
            Action::Pull { uid, container, attempt, image, .. } => {
                let news = match fails(&mut self.chance, 40) {
                    true => News::PullFailed { reason: "ErrImagePull".to_owned(), message: "no".to_owned() },
                    false => News::Pulled { image_id: format!("{image}@sha256:00"), fetched: None },
                };
                self.later(at, Observation::Container { uid, container, attempt, news });
            }
            Action::Plan { uid, container, attempt, inputs, .. } => {
                let news = News::Planned(inputs.plan().map(Arc::new));
                self.later(at, Observation::Container { uid, container, attempt, news });
            }
            Action::Start { uid, container, attempt, .. } => {
                if fails(&mut self.chance, 20) {
                    let (reason, message) = ("RunContainerError".to_owned(), "no".to_owned());
                    let news = News::StartFailed { reason, message };
                    return self.later(at, Observation::Container { uid, container, attempt, news });
                }
                let news = News::Started { container_id: format!("wasm://{uid}/{container}/{attempt}") };
                let of = |news| Observation::Container {
                    uid: uid.clone(),
                    container: container.clone(),
                    attempt,
                    news,
                };
                self.later(at, of(news));
                let sidecar = pod.container(&container).is_some_and(|container| container.is_sidecar());
                let ends = (pod.is_init(&container) && !sidecar) || fails(&mut self.chance, 150);
                if ends {
                    let end = clock::after(at, self.chance.between(1, 2_000));
                    let code = i32::from(fails(&mut self.chance, 400));
                    self.later(end, of(News::Exited { exit: Exit::Completed(code), message: String::new() }));
                }
            }
            Action::Probe { uid, container, attempt, kind, .. } => {
                let success = !fails(&mut self.chance, 150);
                let news = News::Probed { kind, success, output: String::new() };
                self.later(at, Observation::Container { uid, container, attempt, news });
            }
            Action::Stop { uid, container, attempt } if !self.chance.chance(100) => {
                let news = News::Exited { exit: Exit::Completed(0), message: String::new() };
                self.later(at, Observation::Container { uid, container, attempt, news });
            }
            Action::Kill { uid, container, attempt } => {
                let news = News::Exited { exit: Exit::Killed, message: String::new() };
                self.later(at, Observation::Container { uid, container, attempt, news });
            }
            Action::Report { status, .. } => self.reports.push(report(pod, Some(status))),
            Action::Emit { event, .. } => records.take_of_pod(self.name, pod, &event),
            Action::Remove { .. } => self.reports.push(report(pod, None)),
            _ => {}
        }
    }

    /// Whether a pod that the cluster wants here is known here.
    pub fn knows(&self, uid: &str) -> bool {
        self.desired.pods.contains_key(uid)
    }
}
