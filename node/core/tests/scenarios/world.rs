//! A node made of a clock and a transcript: what the scenarios are played on.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use coracle_core::{
    Action, Desired, NodeFacts, Observation, Observed, Pod,
    action::Failure,
    observe::{Exit, Fetched, News},
    pod::Phase,
    probe::{ProbeCheck, ProbeKind},
    reconcile::{next_wake, reconcile},
    sources::{Keyed, KeyedData, Service, Source},
    spec::PodUid,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

pub const POD: &str = "u1";

/// More rounds than any real pod needs until nothing is left to do.
const ROUNDS_MAX: usize = 20;

pub struct World {
    pub desired: Desired,
    pub observed: Observed,
    now: Timestamp,
    started: Timestamp,
    object: Value,
    transcript: String,
    quiet: bool,
}

/// A pod's JSON with this spec.
pub fn pod(spec: &str) -> String {
    format!(r#"{{"metadata":{{"name":"p","namespace":"d","uid":"{POD}"}},"spec":{{{spec}}},"status":{{}}}}"#)
}

impl World {
    pub fn new() -> Self {
        let started = Timestamp::from_second(1_767_225_600).unwrap();
        let node = NodeFacts {
            name: "n1".into(),
            host_ip: "192.0.2.1".into(),
            cpu_milli: 2000,
            memory_bytes: 1 << 30,
            ..NodeFacts::default()
        };
        Self {
            desired: Desired::default(),
            observed: Observed { node, pods: BTreeMap::new() },
            now: started,
            started,
            object: Value::Null,
            transcript: String::new(),
            quiet: false,
        }
    }

    pub fn check(self, expected: expect_test::Expect) {
        expected.assert_eq(&self.transcript);
    }

    pub fn check_text(self, expected: &str) {
        assert_eq!(self.transcript, expected);
    }

    /// Without a transcript.
    pub fn quietly(&mut self, play: impl FnOnce(&mut Self)) {
        self.quiet = true;
        play(self);
        self.quiet = false;
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        if !self.quiet {
            writeln!(self.transcript, "{text}").unwrap();
        }
    }

    fn heading(&mut self, text: &str) {
        let seconds = self.now.duration_since(self.started).as_secs();
        self.line(format_args!("{seconds}s {text}"));
    }

    fn store(&mut self) {
        let json = serde_json::to_vec(&self.object).unwrap();
        let pod = Arc::new(Pod::parse(&json).unwrap_or_else(|_| Pod::unreadable(&json).unwrap()));
        self.observed.see(&pod);
        self.desired.pods.insert(pod.uid().clone(), pod);
    }

    pub fn put(&mut self, json: &str) {
        self.object = serde_json::from_str(json).unwrap();
        self.heading("put");
        self.store();
        self.settle();
    }

    pub fn delete_in(&mut self, seconds: i64) {
        self.object["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z".into();
        self.object["metadata"]["deletionGracePeriodSeconds"] = seconds.into();
        self.heading("delete");
        self.store();
        self.settle();
    }

    pub fn object_gone(&mut self) {
        self.desired.pods.clear();
        self.heading("object gone");
        self.settle();
    }

    pub fn config_map(&mut self, name: &str, json: &str, revision: u64) {
        let data = KeyedData::from_config_map(json.as_bytes(), revision).unwrap();
        self.source(name, Source::ConfigMap(Keyed::Data(Arc::new(data))));
        self.heading(&format!("config map {name} at {revision}"));
        self.settle();
    }

    pub fn withheld(&mut self, name: &str, why: &str) {
        self.source(name, Source::ConfigMap(Keyed::Withheld(why.into())));
        self.heading(&format!("config map {name} withheld"));
        self.settle();
    }

    pub fn service(&mut self, name: &str, json: &str) {
        self.source(name, Source::Service(Arc::new(Service::parse(json.as_bytes()).unwrap())));
        self.heading(&format!("service {name}"));
        self.settle();
    }

    fn source(&mut self, name: &str, source: Source) {
        self.observed.put_source(&mut self.desired.sources, ("d".to_owned(), name.to_owned()), source);
    }

    /// Time passes; whatever falls due on the way is done when it falls due.
    pub fn wait(&mut self, seconds: i64) {
        let until = self.now + SignedDuration::from_secs(seconds);
        while let Some(wake) = self.next_wake().filter(|wake| *wake <= until) {
            self.now = wake;
            self.heading("wake");
            self.settle();
        }
        self.now = until;
    }

    /// When a pod is looked at again of itself.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.observed.pods.values().filter_map(|pod| next_wake(pod, self.now)).min()
    }

    fn tell(&mut self, what: &str, observation: Observation) {
        self.heading(what);
        self.observed.apply(observation, self.now);
        self.settle();
    }

    pub fn sandbox_ready(&mut self) {
        let addresses = vec!["10.128.0.9".parse().unwrap()];
        self.tell("sandbox ready", Observation::SandboxReady { uid: POD.into(), addresses });
    }

    pub fn sandbox_lost(&mut self) {
        self.tell("sandbox lost", Observation::SandboxLost { uid: POD.into() });
    }

    pub fn evicted(&mut self, failure: Failure) {
        self.tell("evicted", Observation::Evicted { uid: POD.into(), failure });
    }

    pub fn node_stops(&mut self, seconds: u64) {
        self.desired.stopping = Some(std::time::Duration::from_secs(seconds));
        self.heading("node stops");
        self.settle();
    }

    pub fn wall_clock_is_set(&mut self, ahead: i64) {
        self.observed.node.wall_ahead = SignedDuration::from_secs(ahead);
        self.heading(&format!("wall clock {ahead}s ahead"));
        self.settle();
    }

    pub fn is_starting(&self, container: &str) -> bool {
        self.observed.pods[POD].containers[container].phase == Phase::Starting
    }

    /// The status that was reported last.
    pub fn reported(&self) -> &Value {
        self.observed.pods[POD].reported.as_ref().unwrap()
    }

    pub fn started_at(&self) -> String {
        self.reported()["containerStatuses"][0]["state"]["running"]["startedAt"].as_str().unwrap().to_owned()
    }

    pub fn sandbox_stopped(&mut self) {
        self.tell("sandbox stopped", Observation::SandboxStopped { uid: POD.into() });
    }

    pub fn mounted(&mut self) {
        let uid = PodUid::from(POD);
        let state = &self.observed.pods[&uid];
        let fingerprint = coracle_core::volumes::fingerprint(&state.pod, state);
        self.tell("mounted", Observation::Mounted { uid, fingerprint });
    }

    /// A pod that comes to the node, up to where its containers may begin.
    pub fn put_and_mount(&mut self, json: &str) {
        self.put(json);
        self.sandbox_ready();
        self.mounted();
    }

    /// The volumes could not be written, for want of room.
    pub fn mount_fails(&mut self) {
        let message = "no room".to_owned();
        self.tell("mount fails", Observation::MountFailed { uid: POD.into(), message });
    }

    /// [`World::mounted`] after the object is gone.
    pub fn mounted_late(&mut self) {
        self.tell("mounted", Observation::Mounted { uid: POD.into(), fingerprint: 0 });
    }

    fn news(&mut self, container: &str, attempt: u32, what: &str, news: News) {
        let what = format!("{container}/{attempt} {what}");
        let observation =
            Observation::Container { uid: POD.into(), container: container.into(), attempt, news };
        self.tell(&what, observation);
    }

    pub fn pulled(&mut self, container: &str, attempt: u32) {
        let fetched = Some(Fetched { took: std::time::Duration::from_millis(250), bytes: 1000 });
        let image_id = format!("{container}@sha256:00");
        self.news(container, attempt, "pulled", News::Pulled { image_id, fetched });
    }

    pub fn pull_and_start(&mut self, container: &str, attempt: u32) {
        self.pulled(container, attempt);
        self.started(container, attempt);
    }

    pub fn pull_failed(&mut self, container: &str, attempt: u32, reason: &str, message: &str) {
        let news = News::PullFailed { reason: reason.into(), message: message.into() };
        self.news(container, attempt, "pull failed", news);
    }

    pub fn no_seat(&mut self, container: &str, attempt: u32) {
        // The figures of each try are others.
        let message = format!("this node runs all that it may at {}", self.now);
        self.news(container, attempt, "no seat", News::NoSeat { message });
    }

    /// Seats got free: whoever is next is tried.
    pub fn seats_freed(&mut self) {
        for next in self.observed.next_for_seats(1) {
            self.news(&next.container, next.attempt, "seat freed", News::SeatFreed);
        }
    }

    pub fn started(&mut self, container: &str, attempt: u32) {
        let container_id = format!("wasm://{container}-{attempt}");
        self.news(container, attempt, "started", News::Started { container_id });
    }

    pub fn exited(&mut self, container: &str, attempt: u32, exit: Exit) {
        self.exited_saying(container, attempt, exit, "");
    }

    /// With a message of its own.
    pub fn exited_saying(&mut self, container: &str, attempt: u32, exit: Exit, message: &str) {
        let what = format!("exited {exit:?}");
        self.news(container, attempt, &what, News::Exited { exit, message: message.to_owned() });
    }

    pub fn probed(&mut self, container: &str, attempt: u32, kind: &str, success: bool) {
        let kind = ProbeKind::ALL.into_iter().find(|one| one.title() == kind).unwrap();
        let output = if success { String::new() } else { "connection refused".to_owned() };
        self.news(container, attempt, &format!("{kind:?} {success}"), News::Probed { kind, success, output });
    }

    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let actions = reconcile(&self.desired, &self.observed, self.now);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.observed.begin(&action, &self.desired.pods, self.now);
                self.perform(&action);
            }
        }
        panic!("reconcile does not come to rest:\n{}", self.transcript);
    }
}

impl World {
    /// Plans at once, and tells of everything else.
    fn perform(&mut self, action: &Action) {
        let planned = match action {
            Action::Plan { uid, container, attempt, inputs, .. } => {
                let plan = inputs.plan().map(Arc::new);
                if let Err(message) = &plan {
                    self.line(format_args!("  hold {container}: {message}"));
                }
                let (uid, container) = (uid.clone(), container.clone());
                Observation::Container { uid, container, attempt: *attempt, news: News::Planned(plan) }
            }
            Action::Mount { uid, inputs, .. } => match inputs.plan() {
                Ok(volumes) => {
                    let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
                    return self.line(format_args!("  mount {names:?}"));
                }
                Err(message) => {
                    self.line(format_args!("  hold volumes: {message}"));
                    Observation::VolumesHeld { uid: uid.clone(), message }
                }
            },
            other => {
                let text = describe(other);
                return self.line(format_args!("  {text}"));
            }
        };
        self.observed.apply(planned, self.now);
    }
}

fn describe(action: &Action) -> String {
    match action {
        Action::Admit { .. } => "admit".into(),
        Action::CreateSandbox { preferred, .. } => format!("create sandbox, preferred {preferred:?}"),
        Action::Mount { .. } | Action::Plan { .. } => unreachable!("they are told of when they are planned"),
        Action::Pull { container, attempt, image, policy, .. } => {
            format!("pull {container}/{attempt} {image} {policy:?}")
        }
        Action::Announce { container, .. } => format!("announce {container}"),
        Action::Start { container, attempt, plan, .. } => {
            format!("start {container}/{attempt} {:?}", plan.arguments)
        }
        Action::Probe { container, attempt, kind, check, .. } => match check {
            ProbeCheck::Http { port, path, .. } => {
                format!("probe {container}/{attempt} {kind:?} http :{port}{path}")
            }
            other => format!("probe {container}/{attempt} {kind:?} {other:?}"),
        },
        Action::End { container, grace, why, .. } => format!("end {container} within {grace:?}: {why}"),
        Action::Stop { container, attempt, .. } => format!("stop {container}/{attempt}"),
        Action::Kill { container, attempt, .. } => format!("kill {container}/{attempt}"),
        Action::EndPod { grace, failure, .. } => format!("end pod within {grace:?} {failure:?}"),
        Action::StopSandbox { .. } => "stop sandbox".into(),
        Action::Report { status, .. } => format!("report {}", summary(status)),
        Action::Emit { event, .. } => {
            format!("event {} {}: {}", event.field_path, event.reason, event.message)
        }
        Action::FreeVolumes { .. } => "free volumes".into(),
        Action::Remove { .. } => "remove".into(),
        Action::Forget { .. } => "forget".into(),
    }
}

/// Phase, the conditions that hold, and each container's state in short.
fn summary(status: &Value) -> String {
    let holding: Vec<&str> = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["status"] == "True" && one["type"] != "PodScheduled")
        .map(|one| one["type"].as_str().unwrap())
        .collect();
    let mut text = format!("{} {holding:?}", status["phase"].as_str().unwrap());
    for list in ["initContainerStatuses", "containerStatuses"] {
        for one in status[list].as_array().into_iter().flatten() {
            let (state, detail) = one["state"].as_object().unwrap().iter().next().unwrap();
            let reason = detail["reason"].as_str().unwrap_or_default();
            let code = detail.get("exitCode").map(|code| format!("={code}")).unwrap_or_default();
            let restarts = one["restartCount"].as_u64().unwrap();
            let ready = if one["ready"] == true { " ready" } else { "" };
            write!(text, "; {} {state}:{reason}{code} x{restarts}{ready}", one["name"].as_str().unwrap())
                .unwrap();
            if let Some(message) = detail["message"].as_str() {
                write!(text, " ({message})").unwrap();
            }
        }
    }
    text
}
