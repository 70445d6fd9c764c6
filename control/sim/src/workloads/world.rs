//! One cluster of one run: the parts, joined as `coracle_server` and `coracle_agent` join them, and virtual time.
//!
//! A round gives every part its turn: controllers, scheduler, nodes, the monitor of nodes, the records of events. While
//! something happens a round takes [`ROUND_MS`]; otherwise time leaps to what is due next.

mod absence;
mod checks;
mod turns;

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use coracle_api::{Admission, ApiConfig, Storage as _};
use coracle_controllers::{Config, Controllers};
use coracle_leader::{
    router::{Router, Wake},
    untaken::Taken,
};
use coracle_objects::{ObjectKey, Transaction, View, claims, draft};
use coracle_proto::node::ObjectEvent;
use coracle_scheduler::Scheduler;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Mutant, Progress, clock,
    door::{Ask, Door},
    link,
    node::Node,
    plane::Plane,
    readers,
    records::Records,
    script::{Act, NODES, Script, Write},
    storage::{MemoryStorage, Writer, Written},
};
use crate::rng::Rng;

/// What a round takes in which something is written: a plan, its proposals, and what follows from them.
const ROUND_MS: u64 = 5;

/// After the last operation a cluster has so long to come to rest, and then is watched for as long again.
const REST_MS: u64 = 60_000;

/// Entries of what is tried in vain, in the first minute that is watched.
const RETRIED_MAX: u64 = 60;

/// Entries of a whole run. Most runs write some hundred.
const ENTRIES_MAX: u64 = 2_000;

/// Until somebody leads again, whatever happened.
const LEADERLESS_MS_MAX: u64 = 30_000;

/// Rounds one after another in which a part wants its turn and does nothing with it.
const SPINS_MAX: u32 = 1_000;

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Equal for what has the same cause, most likely.
    pub class: String,
    pub what: String,
}

impl Broken {
    pub fn new(class: impl Into<String>, what: impl Into<String>) -> Self {
        Self { class: class.into(), what: what.into() }
    }
}

/// What is done to a cluster that has come to rest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Then {
    /// The leader is away for a while, and later a machine dies.
    pub absence: bool,
    /// Everything is deleted again.
    pub teardown: bool,
}

pub struct World {
    pub storage: MemoryStorage,
    pub now: Timestamp,
    /// Every request in words, with its answer, and what happened to machines.
    pub told: Vec<String>,
    pub admitted: u64,
    pub refused: u64,
    door: Door,
    admission: Admission,
    controllers: Controllers,
    scheduler: Scheduler,
    nodes: Vec<Node>,
    /// What the leader sends its nodes, as far as it has come.
    router: Router<Nobody>,
    links: u64,
    records: Records,
    chance: Rng,
    mutant: Option<Mutant>,
    progress: Arc<Progress>,
    /// How many events each part has seen.
    seen: Seen,
    plane: Plane,
    /// A part that carried out a plan plans again at once.
    again: Again,
    paused_until: Option<Timestamp>,
    forgets_at: Timestamp,
    /// Nodes whose objects are gone, and since when.
    relinks: BTreeMap<&'static str, Timestamp>,
    /// When the monitor has to look again.
    judges_at: Option<Timestamp>,
    /// Nodes as they were last, by whether they were Ready.
    ready: BTreeMap<String, bool>,
    /// By uid, pods that were seen to be evicted or to have lost their readiness with their node.
    judged: BTreeMap<String, bool>,
    /// Machines work, and so do containers.
    calm: bool,
    spins: u32,
    /// By uid, the most replicas that a replica set ever wanted.
    wanted: BTreeMap<String, i64>,
}

/// Each node looks at its turn.
struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

#[derive(Default)]
struct Seen {
    controllers: usize,
    scheduler: usize,
    checks: usize,
}

#[derive(Default)]
struct Again {
    controllers: bool,
    scheduler: bool,
}

impl World {
    pub fn new(rng: &mut Rng, mutant: Option<Mutant>, progress: Arc<Progress>) -> Self {
        let members = if rng.chance(600) { 3 } else { 1 };
        Self::of(members, rng, mutant, progress)
    }

    /// With so many members of the control plane.
    pub fn of(members: usize, rng: &mut Rng, mutant: Option<Mutant>, progress: Arc<Progress>) -> Self {
        clock::set(clock::begin());
        let now = clock::now();
        let storage = MemoryStorage::new(rng.fork(), mutant == Some(Mutant::NullAdmitted));
        let mut config = ApiConfig::new("sim", "0.0.0");
        config.now = clock::now;
        let admission = Admission::new(config);
        let door = Door::new(storage.clone(), admission.clone());
        let plane = Plane::new(members, &View::default(), clock::elapsed(now));
        let nodes = NODES.into_iter().map(|name| Node::new(name, rng.fork(), now)).collect();
        let mut world = Self {
            storage,
            now,
            told: vec![],
            admitted: 0,
            refused: 0,
            door,
            admission,
            controllers: Controllers::new(settings()),
            scheduler: Scheduler::new(),
            nodes,
            router: Router::begin(Arc::default()),
            links: 0,
            records: Records::default(),
            chance: rng.fork(),
            mutant,
            progress,
            seen: Seen::default(),
            plane,
            again: Again::default(),
            paused_until: None,
            forgets_at: now,
            relinks: BTreeMap::new(),
            judges_at: None,
            ready: BTreeMap::new(),
            judged: BTreeMap::new(),
            calm: false,
            spins: 0,
            wanted: BTreeMap::new(),
        };
        world.bootstrap();
        world
    }

    pub fn view(&self) -> Arc<View> {
        self.storage.view()
    }

    /// The objects that every cluster has from its beginning, and its nodes.
    fn bootstrap(&mut self) {
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let body = json!({ "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" } });
            self.put("v1", "Namespace", ObjectKey::new("namespaces", "", name), body);
        }
        let body = json!({ "spec": {
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "type": "ClusterIP",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443 }],
        }, "status": { "loadBalancer": {} } });
        self.put("v1", "Service", ObjectKey::new("services", "default", "kubernetes"), body);
        let parent = json!({ "resource": "services", "namespace": "default", "name": "kubernetes" });
        let key = ObjectKey::new(claims::ADDRESSES, "", claims::KUBERNETES_SERVICE_IP);
        self.put("networking.k8s.io/v1", "IPAddress", key, json!({ "spec": { "parentRef": parent } }));
        for index in 0..self.nodes.len() {
            let (name, spec) = link::block_claim(self.nodes[index].name);
            let key = ObjectKey::new("podblocks.coracle.dev", "", &name);
            self.put("coracle.dev/v1", "PodBlock", key, json!({ "spec": spec }));
            self.link_up(index);
        }
    }

    fn put(&mut self, api_version: &str, kind: &str, key: ObjectKey, body: Value) {
        let mut draft = json!({ "kind": kind, "apiVersion": api_version, "metadata": {
            "name": *key.name.name, "uid": super::storage::uid(&mut self.chance),
            "creationTimestamp": draft::timestamp(self.now),
        } });
        if !key.name.namespace.is_empty() {
            draft["metadata"]["namespace"] = (*key.name.namespace).into();
        }
        for (field, value) in body.as_object().into_iter().flatten() {
            draft[field] = value.clone();
        }
        let transaction = Transaction::create(key, draft.to_string().into());
        let _ = self.storage.apply(Writer::Monitor, transaction);
    }

    /// Plays a script and then waits for rest; then what is asked for beside it.
    pub fn play(&mut self, script: &Script, then: Then) -> Result<(), Broken> {
        self.run_for(1_000)?;
        for step in &script.steps {
            self.run_for(step.wait_ms)?;
            self.act(&step.act)?;
        }
        self.calm = true;
        self.rest()?;
        self.check_at_rest()?;
        if then.absence {
            self.absence_and_death()?;
        }
        if then.teardown { self.tear_down() } else { Ok(()) }
    }

    /// Asks what is to be asked, some time apart, and then waits for rest.
    pub fn play_asks(&mut self, asks: &[Ask]) -> Result<(), Broken> {
        self.run_for(500)?;
        for ask in asks {
            let body = super::script::with_uids(ask.body.clone(), &self.view());
            self.ask(&Ask { body, ..ask.clone() })?;
            self.run_for(100)?;
        }
        self.calm = true;
        self.rest()?;
        self.check_at_rest()
    }

    /// Lets the cluster come to rest, and watches it for a while. What is tried in vain again and again may be, with
    /// pauses that grow: in 240 s no more of it than in the 180 s before, but for what reaches from one into the other.
    fn rest(&mut self) -> Result<(), Broken> {
        self.run_for(REST_MS)?;
        let first = self.watch(REST_MS)?;
        if first.entries == 0 {
            return Ok(());
        }
        let what = "60 s after the last operation entries are still written, in the next 60 s";
        if first.entries > RETRIED_MAX {
            return Err(self.restless(&first, what));
        }
        let second = self.watch(2 * REST_MS)?;
        let third = self.watch(4 * REST_MS)?;
        if 4 * third.entries > 5 * (first.entries + second.entries) {
            let what = format!(
                "{what} {}, in 120 s after them {}, and then in 240 s",
                first.entries, second.entries
            );
            return Err(self.restless(&third, &what));
        }
        Ok(())
    }

    /// What is written within so long.
    fn watch(&mut self, ms: u64) -> Result<Written, Broken> {
        let before = self.storage.written();
        self.run_for(ms)?;
        Ok(self.storage.written().since(&before))
    }

    fn restless(&self, more: &Written, what: &str) -> Broken {
        let most = more.by.iter().max_by_key(|(_, count)| **count);
        let class = most.map_or_else(String::new, |((writer, about), _)| format!("{writer:?} {about}"));
        let recent = self.storage.recent().join("\n    ");
        Broken::new(format!("restless {class}"), format!("{what}: {}\n    {recent}", more.words()))
    }

    fn act(&mut self, act: &Act) -> Result<(), Broken> {
        match act {
            Act::Write(write) => self.write(write),
            Act::Kill(name) => {
                self.tell(format!("machine {name} dies"));
                let now = self.now;
                if let Some(index) = self.nodes.iter().position(|node| node.name == *name) {
                    self.kill(index, now);
                }
                Ok(())
            }
            Act::Return { node: name, fresh } => {
                self.tell(format!("machine {name} returns"));
                let Some(index) = self.nodes.iter().position(|node| node.name == *name) else {
                    return Ok(());
                };
                self.revive(index, *fresh);
                Ok(())
            }
            Act::Lead => {
                self.tell("another member leads".to_owned());
                self.hand_over();
                Ok(())
            }
            Act::Freeze { ms } => {
                self.tell(format!("the leader freezes for {ms} ms"));
                self.freeze(*ms);
                Ok(())
            }
            Act::Hush { ms } => {
                self.tell(format!("all machines fall silent for {ms} ms"));
                self.hush(*ms)
            }
        }
    }

    fn tell(&mut self, what: String) {
        let at = clock::ms_between(clock::begin(), self.now);
        let line = format!("{:>3}.{:03} {what}", at / 1_000, at % 1_000);
        self.progress.tell(&line);
        self.told.push(line);
    }

    fn write(&mut self, write: &Write) -> Result<(), Broken> {
        let ask = write.render(&self.view());
        self.ask(&ask)
    }

    /// A client asks until somebody leads who can answer.
    fn ask(&mut self, ask: &Ask) -> Result<(), Broken> {
        for _ in 0..LEADERLESS_MS_MAX / ROUND_MS {
            if self.plane.leads() {
                break;
            }
            self.run_for(ROUND_MS)?;
        }
        let body = String::from_utf8_lossy(&ask.body).into_owned();
        let line = format!("{} {} {} {body}", ask.method, ask.path, ask.content_type);
        self.tell(line.clone());
        let door = &self.door;
        let answer = guarded("the API", || door.ask(ask))?;
        let text = format!(
            "      -> {} {}",
            answer.status,
            if answer.status < 300 { String::new() } else { answer.message() }
        );
        self.told.push(text);
        if answer.status < 300 {
            self.admitted += 1;
        } else {
            self.refused += 1;
        }
        if answer.status >= 500 {
            let what = format!("{line}\n    is answered {} {}", answer.status, answer.message());
            return Err(Broken::new(format!("answer {}", answer.status), what));
        }
        self.check_objects()
    }

    /// What the link of a node takes now.
    fn take(&mut self, index: usize) -> Vec<ObjectEvent> {
        let Node { name, link_number, .. } = self.nodes[index];
        let taken = std::iter::from_fn(|| self.router.take(name, link_number).ok().flatten());
        let object = |taken| match taken {
            Taken::Object(object) => Some(object),
            Taken::Synced(_) | Taken::Trust => None,
        };
        taken.filter_map(object).collect()
    }

    /// What a new leader begins with: none of the memories.
    fn lead_anew(&mut self) {
        let view = self.view();
        self.controllers = Controllers::new(settings());
        self.controllers.resync(&view);
        self.scheduler = Scheduler::new();
        self.scheduler.resync(&view);
        self.records.lead_anew();
        self.router = Router::begin(view);
        self.seen.controllers = self.storage.count_events();
        self.seen.scheduler = self.seen.controllers;
        self.again = Again { controllers: true, scheduler: true };
        self.paused_until = None;
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, ms: u64) -> Result<(), Broken> {
        let until = clock::after(self.now, ms);
        loop {
            let acted = self.round()?;
            // Each pod that is wanted is made, placed, run, restarted some times, ended, and told of each time.
            let wanted: i64 = self.wanted.values().sum();
            if self.storage.entries() > ENTRIES_MAX + 20 * wanted.unsigned_abs() {
                let all = self.storage.written();
                return Err(self.restless(&all, "more entries than anything here explains"));
            }
            if acted {
                self.spins = 0;
                self.advance(clock::after(self.now, ROUND_MS));
                if self.now >= until {
                    return Ok(());
                }
                continue;
            }
            let next = self.next_deadline().filter(|next| *next < until);
            let Some(next) = next else {
                self.advance(until);
                return Ok(());
            };
            if next > self.now {
                self.spins = 0;
                self.advance(next);
                continue;
            }
            self.spins += 1;
            if self.spins > SPINS_MAX {
                let who = self.who_spins();
                return Err(Broken::new(
                    format!("spin {who}"),
                    format!("{who} want(s) a turn again and again and does nothing with it"),
                ));
            }
            self.advance(clock::after(self.now, ROUND_MS));
            if self.now >= until {
                return Ok(());
            }
        }
    }

    /// Never back.
    fn advance(&mut self, to: Timestamp) {
        self.now = self.now.max(to);
        clock::set(self.now);
    }

    /// Deletes everything that clients made, with all machines there: nothing may stay.
    fn tear_down(&mut self) -> Result<(), Broken> {
        self.tell("everything is deleted".to_owned());
        for index in 0..self.nodes.len() {
            self.revive(index, false);
        }
        self.run_for(5_000)?;
        for round in 0..2 {
            for object in self.made_by_clients() {
                self.let_go_of(&object, round > 0)?;
            }
            self.run_for(REST_MS)?;
        }
        let left: Vec<String> = self.made_by_clients().iter().map(|object| object.key.to_string()).collect();
        match left.first() {
            None => Ok(()),
            Some(first) => {
                let class = first.split(' ').next().unwrap_or_default();
                Err(Broken::new(
                    format!("stuck {class}"),
                    format!("two minutes after its deletion there is still: {}", left.join(", ")),
                ))
            }
        }
    }

    /// Deletes an object as a client would; where that was of no use, takes its finalizers off as well.
    fn let_go_of(&mut self, object: &coracle_objects::Object, finalizers: bool) -> Result<(), Broken> {
        let resource = object.key.resource.as_str();
        let Some(kind) = coracle_objects::by_resource(resource) else { return Ok(()) };
        let path = readers::object_path(kind, object);
        let write = |method, form, base| Write { method, path: path.clone(), form, base, edits: vec![] };
        if finalizers && !object.meta.finalizers.is_empty() {
            let body = json!({ "metadata": { "finalizers": null } });
            self.write(&write("PATCH", super::script::Form::Merge, body))?;
        }
        self.write(&write("DELETE", super::script::Form::None, Value::Null))
    }

    fn made_by_clients(&self) -> Vec<Arc<coracle_objects::Object>> {
        let view = self.view();
        let own = |key: &ObjectKey| match key.resource.as_str() {
            _ if &*key.name.namespace == "a" => true,
            "namespaces" => &*key.name.name == "a",
            "nodes" => !NODES.contains(&&*key.name.name),
            "services" => &*key.name.name != "kubernetes",
            "configmaps" => &*key.name.name != "kube-root-ca.crt",
            "serviceaccounts" => &*key.name.name != "default",
            "pods"
            | "deployments.apps"
            | "replicasets.apps"
            | "secrets"
            | "endpoints"
            | "ingresses.networking.k8s.io"
            | "leases.coordination.k8s.io" => true,
            _ => false,
        };
        view.tables
            .values()
            .flat_map(|table| table.values())
            .filter(|object| own(&object.key))
            .cloned()
            .collect()
    }
}

fn settings() -> Config {
    Config { ca_bundle: "-----BEGIN CERTIFICATE-----".to_owned() }
}

/// Calls into a part; its panic is a violation.
pub fn guarded<T>(part: &str, call: impl FnOnce() -> T) -> Result<T, Broken> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = message(&*panic);
        let place = super::last_panic();
        Broken::new(format!("panic {part} {place}"), format!("{part} panics at {place}: {text}"))
    })
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
