//! A cluster in small: a store that applies transactions as the real one does, and nodes that run pods at once.

mod diff;
mod kubelet;

use std::{fmt::Write as _, sync::Arc};

use coracle_api::{Admission, ApiConfig, ProposeError, UserInfo};
use coracle_controllers::{Config, Controllers, EventRecord, Origin, Outcome};
use coracle_leader::plans::outcome;
use coracle_objects::{Event, EventKind, Expect, Object, ObjectKey, Transaction, View, Write};
use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// Controllers that do not come to rest within so many plans never will.
const ROUNDS_MAX: usize = 200;

/// The largest object that the store takes.
pub const OBJECT_BYTES_MAX: usize = 100_000;

pub struct Cluster {
    pub controllers: Controllers,
    admission: Admission,
    pub view: View,
    pub now: Timestamp,
    /// Everything that was applied since it was last read.
    transcript: String,
    uids: u64,
    /// Transactions that the store refused.
    pub refusals: usize,
    /// Called after each transaction.
    pub check: Option<fn(&Cluster)>,
    /// A store that does not keep everything as the controllers wrote it.
    pub alter: Option<fn(&ObjectKey, &mut Value)>,
    /// The controllers hear of nothing until they catch up.
    pub events_get_lost: bool,
}

impl Cluster {
    /// A cluster with the namespace `default`, at rest. Its controllers run for ten seconds: nodes had time to come.
    pub fn new() -> Self {
        let mut cluster = Self {
            controllers: Controllers::new(Config { ca_bundle: "PEM".to_owned() }),
            admission: Admission::new(ApiConfig::new("test", "0.0.0")),
            view: View::default(),
            now: "2025-12-31T23:59:50Z".parse().unwrap(),
            transcript: String::new(),
            uids: 0,
            refusals: 0,
            check: None,
            alter: None,
            events_get_lost: false,
        };
        cluster.namespace("default");
        cluster.settle();
        cluster.run(10_000);
        cluster.transcript.clear();
        cluster
    }

    pub fn namespace(&mut self, name: &str) {
        let value = json!({
            "metadata": {"name": name, "uid": format!("ns-{name}")},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        self.put(ObjectKey::new("namespaces", "", name), value);
    }

    pub fn node(&mut self, name: &str, ready: &str) {
        let key = ObjectKey::new("nodes", "", name);
        let mut value = self.find(&key).unwrap_or_else(
            || json!({"metadata": {"name": name, "uid": format!("node-{name}")}, "spec": {}, "status": {}}),
        );
        value["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
        self.put(key, value);
    }

    /// Creates or replaces an object as a client would.
    pub fn put(&mut self, key: ObjectKey, mut value: Value) {
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.shift_remove("resourceVersion");
        }
        let draft = value.to_string();
        self.view.revision += 1;
        self.store(key, draft.as_bytes());
    }

    /// Changes an object's spec or labels as a client would: with a new generation.
    pub fn edit(&mut self, key: &ObjectKey, change: impl FnOnce(&mut Value)) {
        let mut value = self.get(key);
        let spec = value["spec"].clone();
        change(&mut value);
        if value["spec"] != spec {
            let generation = value["metadata"]["generation"].as_i64().unwrap_or(0);
            value["metadata"]["generation"] = (generation + 1).into();
        }
        self.put(key.clone(), value);
    }

    /// Deletes as the API server does. `finalizer` is that of the propagation policy.
    pub fn delete(&mut self, key: &ObjectKey, finalizer: Option<&str>) {
        let mut value = self.get(key);
        if let Some(finalizer) = finalizer {
            value["metadata"]["finalizers"] = json!([finalizer]);
        }
        let running_pod = key.resource.as_str() == "pods" && value["spec"]["nodeName"].is_string();
        let held = value["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty());
        if held || running_pod || key.resource.as_str() == "namespaces" {
            value["metadata"]["deletionTimestamp"] = format!("{:.0}", self.now).into();
            self.put(key.clone(), value);
        } else {
            self.view.revision += 1;
            self.remove(key);
        }
    }

    pub fn find(&self, key: &ObjectKey) -> Option<Value> {
        self.view.get(key).map(|object| object.parse().unwrap())
    }

    pub fn get(&self, key: &ObjectKey) -> Value {
        self.find(key).unwrap_or_else(|| panic!("{key} exists"))
    }

    pub fn names(&self, resource: &str) -> Vec<String> {
        self.view.list(resource, None).map(|object| object.key.name.to_string()).collect()
    }

    pub fn pass(&mut self, ms: i64) {
        self.now += SignedDuration::from_millis(ms);
    }

    /// One plan, applied and written down. Answers whether there was anything, or is more to plan at once.
    pub fn step(&mut self) -> bool {
        let plan = self.plan();
        assert_eq!(plan.panics, Vec::<String>::new());
        let any = !plan.transactions.is_empty();
        let applied: Vec<bool> = plan
            .transactions
            .into_iter()
            .zip(&plan.origins)
            .map(|(transaction, origin)| self.apply(origin, transaction))
            .collect();
        for told in plan.events.into_iter().filter(|told| told.of.is_none_or(|at| applied[at])) {
            self.write_event(&told.record);
        }
        any || self.controllers.situation().waiting > 0
    }

    pub fn plan(&mut self) -> coracle_controllers::Plan {
        let uids = &mut self.uids;
        let mut uid = || {
            *uids += 1;
            format!("uid-{uids:04}")
        };
        self.controllers.plan(self.now, &mut uid)
    }

    /// Plans until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if !self.step() {
                return;
            }
        }
        panic!("the controllers do not come to rest:\n{}", self.transcript);
    }

    /// As [`Self::settle`], with nodes that run pods and time that jumps to the next deadline within `ms`.
    pub fn run(&mut self, ms: i64) {
        let end = self.now + SignedDuration::from_millis(ms);
        for _ in 0..10 * ROUNDS_MAX {
            if self.step() | self.kubelet() {
                continue;
            }
            match self.controllers.next_deadline().filter(|deadline| *deadline <= end) {
                Some(deadline) => self.now = self.now.max(deadline),
                None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("the cluster does not come to rest:\n{}", self.transcript);
    }

    /// What was applied since this was last called.
    pub fn read(&mut self) -> String {
        std::mem::take(&mut self.transcript)
    }

    /// Answers whether it was applied.
    pub fn apply(&mut self, origin: &Origin, transaction: Transaction) -> bool {
        let user = UserInfo::component(origin.account());
        let admitted = self.admission.admit(&user, &self.view, transaction.clone());
        let transaction = match admitted.now_or_never().expect("no plugin waits") {
            Ok(admitted) => admitted,
            Err(error) => {
                writeln!(self.transcript, "denied: {error}").unwrap();
                return self.refuse(
                    origin,
                    &transaction,
                    outcome(Err(ProposeError::Denied(Box::new(error)))),
                );
            }
        };
        if let Some(refusal) = transaction.too_large(OBJECT_BYTES_MAX) {
            writeln!(self.transcript, "refused: {refusal:?}").unwrap();
            return self.refuse(origin, &transaction, outcome(Ok(Err(refusal))));
        }
        if let Some(precondition) =
            transaction.preconditions.iter().find(|one| !self.holds(&one.key, &one.expect))
        {
            writeln!(self.transcript, "refused: {} {:?}", precondition.key, precondition.expect).unwrap();
            return self.refuse(origin, &transaction, Outcome::Stale);
        }
        self.view.revision += 1;
        self.controllers.settle(origin, &transaction, &Outcome::Applied, self.now);
        for write in transaction.writes {
            match write {
                Write::Put { key, draft } => {
                    let before = self.find(&key);
                    let mut after: Value = serde_json::from_slice(&draft).unwrap();
                    if let Some(alter) = self.alter {
                        alter(&key, &mut after);
                    }
                    let text = diff::describe(before.as_ref(), &after);
                    let verb = if before.is_some() { "update" } else { "create" };
                    writeln!(self.transcript, "{verb} {key}{text}").unwrap();
                    self.store(key, after.to_string().as_bytes());
                }
                Write::Delete { key } => {
                    writeln!(self.transcript, "delete {key}").unwrap();
                    self.remove(&key);
                }
            }
        }
        if let Some(check) = self.check {
            check(self);
        }
        true
    }

    fn refuse(&mut self, origin: &Origin, transaction: &Transaction, outcome: Outcome) -> bool {
        self.refusals += 1;
        self.controllers.settle(origin, transaction, &outcome, self.now);
        false
    }

    fn holds(&self, key: &ObjectKey, expect: &Expect) -> bool {
        let found = self.view.get(key);
        match expect {
            Expect::Absent => found.is_none(),
            Expect::Exists => found.is_some(),
            Expect::Revision(revision) => found.is_some_and(|object| object.revision == *revision),
            Expect::Uid(uid) => found.is_some_and(|object| object.meta.uid == *uid),
            Expect::NotDeleting => found.is_some_and(|object| object.meta.deletion_timestamp.is_none()),
        }
    }

    fn store(&mut self, key: ObjectKey, draft: &[u8]) {
        let object = Object::from_draft(key.clone(), draft, self.view.revision).unwrap();
        let object = Arc::new(object);
        let table = self.view.tables.entry(key.resource.clone()).or_default();
        let previous = table.insert(key.name.clone(), object.clone());
        assert!(
            previous.as_ref().is_none_or(|known| known.draft() != draft),
            "a write that changes nothing: {key}"
        );
        let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
        self.observe(&Event { kind, object, previous });
    }

    fn observe(&mut self, event: &Event) {
        if !self.events_get_lost {
            self.controllers.observe(event);
        }
    }

    /// The controllers hear of all that got lost.
    pub fn catch_up(&mut self) {
        self.events_get_lost = false;
        self.controllers.catch_up(&self.view);
    }

    fn remove(&mut self, key: &ObjectKey) {
        let table = self.view.tables.get_mut(&key.resource).unwrap();
        let previous = table.remove(&key.name).unwrap_or_else(|| panic!("{key} exists"));
        let object = Arc::new(previous.at_revision(self.view.revision));
        self.observe(&Event { kind: EventKind::Deleted, object, previous: Some(previous) });
    }

    fn write_event(&mut self, event: &EventRecord) {
        let EventRecord { regarding, reason, message, .. } = event;
        writeln!(self.transcript, "event {regarding} {reason}: {message}").unwrap();
    }
}

/// A deployment `default/web` of one container.
pub fn deployment(replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "uid": "web", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "hello:1"}]},
            },
        },
        "status": {},
    })
}

pub fn web() -> ObjectKey {
    ObjectKey::new("deployments.apps", "default", "web")
}
