//! The revisions of a function, as they are and as a round wants them.

use std::sync::Arc;

use coracle_objects::{
    Object, ObjectKey, Transaction, by_resource,
    fields::{condition_true, integer},
    kinds::{
        FUNCTION_LABEL, FUNCTION_PORT, FUNCTION_REVISIONS, REVISION_LABEL, function_template, what_runs,
    },
};
use serde_json::{Value, json};

use crate::{
    draft::{self, Unreadable, timestamp},
    model::ReplicaSet,
    planner::Planner,
    state::State,
};

const API_VERSION: &str = "coracle.dev/v1";
const SETS: &str = "replicasets.apps";
const SERVICES: &str = "services";

/// All revisions of one function, in the order of their numbers.
pub struct Revisions<'a> {
    pub all: Vec<Revision<'a>>,
}

/// One revision in a round.
pub struct Revision<'a> {
    pub object: &'a Arc<Object>,
    /// The draft, to be changed.
    pub value: Value,
    before: Value,
    pub set: Option<&'a ReplicaSet>,
    has_service: bool,
    /// How many instances the round wants.
    replicas: i64,
}

impl<'a> Revisions<'a> {
    pub fn of(state: &'a State, function: &'a Object) -> Result<Self, Unreadable> {
        let mut all = Vec::new();
        for key in state.dependents(function).filter(|key| key.resource.as_str() == FUNCTION_REVISIONS) {
            let Some(object) = state.get(key).filter(|object| is_controlled_by(object, function)) else {
                continue;
            };
            all.push(Revision::of(state, object)?);
        }
        all.sort_by_key(Revision::number);
        Ok(Self { all })
    }

    /// Whether the latest of them runs what the function asks for.
    pub fn are_of(&self, function: &Value) -> bool {
        let latest = self.latest();
        latest.is_some_and(|latest| what_runs(&latest.value["spec"]) == what_runs(&function["spec"]))
    }

    pub fn latest(&self) -> Option<&Revision<'a>> {
        self.all.last()
    }

    /// The latest that serves, or has served.
    pub fn latest_ready(&self) -> Option<&Revision<'a>> {
        self.all.iter().rev().find(|revision| revision.has_served())
    }

    pub fn get(&self, name: &str) -> Option<&Revision<'a>> {
        self.all.iter().find(|revision| revision.name() == name && !revision.is_deleting())
    }

    /// Adds the next one, with what is of it, to a transaction; its name. What others have taken the names of is passed over.
    pub fn make_next(
        &self,
        planner: &mut Planner<'_>,
        function: &Object,
        value: &Value,
        transaction: &mut Transaction,
    ) -> String {
        let state = planner.state;
        let mut number = self.latest().map_or(0, Revision::number) + 1;
        let name = loop {
            let name = format!("{}-{number}", function.name());
            let is_taken =
                |resource| state.get(&ObjectKey::new(resource, function.namespace(), &name)).is_some();
            if ![FUNCTION_REVISIONS, SETS, SERVICES].into_iter().any(is_taken) {
                break name;
            }
            number += 1;
        };
        let mut spec = what_runs(&value["spec"]);
        spec.insert("function".to_owned(), function.name().into());
        spec.insert("number".to_owned(), number.into());
        let labels = json!({ FUNCTION_LABEL: function.name(), REVISION_LABEL: name });
        let uid = planner.new_uid();
        let revision = json!({
            "apiVersion": API_VERSION, "kind": "FunctionRevision",
            "metadata": {
                "name": name, "namespace": function.namespace(), "uid": uid, "generation": 1,
                "creationTimestamp": timestamp(planner.now), "labels": labels,
                "ownerReferences": [draft::controlled_by(function, API_VERSION, "Function")],
            },
            "spec": spec,
            "status": {},
        });
        create(transaction, FUNCTION_REVISIONS, &revision);
        let owner = json!({
            "apiVersion": API_VERSION, "kind": "FunctionRevision", "name": name, "uid": uid,
            "controller": true, "blockOwnerDeletion": true,
        });
        let replicas = integer(value, "/spec/scale/min").unwrap_or(0).max(1);
        create(transaction, SETS, &new_set(planner, &revision, &owner, replicas));
        create(transaction, SERVICES, &new_service(planner, &revision, &owner));
        name
    }
}

impl<'a> Revision<'a> {
    fn of(state: &'a State, object: &'a Arc<Object>) -> Result<Self, Unreadable> {
        let value = draft::of(object)?;
        let of_it = |resource| {
            let key = ObjectKey::new(resource, object.namespace(), object.name());
            state.get(&key).filter(|found| is_controlled_by(found, object))
        };
        let set = of_it(SETS).and_then(|set| state.models.replica_set(set));
        Ok(Self {
            object,
            before: value.clone(),
            value,
            set,
            has_service: of_it(SERVICES).is_some(),
            replicas: set.map_or(1, |set| set.replicas),
        })
    }

    pub fn name(&self) -> &str {
        self.object.name()
    }

    fn number(&self) -> i64 {
        integer(&self.value, "/spec/number").unwrap_or(0)
    }

    pub fn is_deleting(&self) -> bool {
        self.object.meta.deletion_timestamp.is_some()
    }

    /// Whether an instance serves now.
    pub fn serves(&self) -> bool {
        self.set.is_some_and(|set| set.status.ready_replicas > 0)
    }

    /// Whether one serves, or has.
    pub fn has_served(&self) -> bool {
        self.serves() || condition_true(&self.value, "Ready")
    }

    /// How many instances are wanted.
    pub fn replicas(&self) -> i64 {
        self.replicas
    }

    pub fn set_replicas(&mut self, replicas: i64) {
        self.replicas = replicas;
    }

    /// Makes what is missing of what a revision owns.
    pub fn complete(&self, planner: &mut Planner<'_>, transaction: &mut Transaction) {
        if self.set.is_some() && self.has_service {
            return;
        }
        let owner = draft::controlled_by(self.object, API_VERSION, "FunctionRevision");
        let state = planner.state;
        let is_free =
            |resource| state.get(&ObjectKey::new(resource, self.object.namespace(), self.name())).is_none();
        if self.set.is_none() && is_free(SETS) {
            create(transaction, SETS, &new_set(planner, &self.value, &owner, self.replicas));
        }
        if !self.has_service && is_free(SERVICES) {
            create(transaction, SERVICES, &new_service(planner, &self.value, &owner));
        }
    }

    /// Adds what has changed of the revision and its set.
    pub fn write(&self, transaction: &mut Transaction) {
        if self.value != self.before {
            transaction.join(draft::put(self.object, &self.value));
        }
        if let Some(set) = self.set.filter(|set| set.replicas != self.replicas && !set.deleting())
            && let Ok(mut value) = draft::of(&set.object)
        {
            draft::child(&mut value, "spec").insert("replicas".to_owned(), self.replicas.into());
            draft::next_generation(&mut value);
            transaction.join(draft::put(&set.object, &value));
        }
    }
}

fn is_controlled_by(object: &Object, owner: &Object) -> bool {
    object.controller().is_some_and(|own| own.uid == owner.meta.uid)
}

fn create(transaction: &mut Transaction, resource: &str, value: &Value) {
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
    let key = ObjectKey::new(resource, text("namespace"), text("name"));
    transaction.join(Transaction::create(key, draft::bytes(value)));
}

/// The metadata of what a revision owns.
fn owned(planner: &mut Planner<'_>, revision: &Value, owner: &Value) -> Value {
    let metadata = &revision["metadata"];
    json!({
        "name": metadata["name"], "namespace": metadata["namespace"], "uid": planner.new_uid(),
        "creationTimestamp": timestamp(planner.now), "labels": metadata["labels"], "ownerReferences": [owner],
    })
}

fn selector(revision: &Value) -> Value {
    json!({ REVISION_LABEL: revision["metadata"]["name"] })
}

fn new_set(planner: &mut Planner<'_>, revision: &Value, owner: &Value, replicas: i64) -> Value {
    let mut template = function_template(&revision["spec"]);
    draft::child(&mut template, "metadata")
        .insert("labels".to_owned(), revision["metadata"]["labels"].clone());
    let mut metadata = owned(planner, revision, owner);
    metadata["generation"] = 1.into();
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata,
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": selector(revision) }, "template": template,
        },
        "status": { "replicas": 0 },
    })
}

/// Without an address of its own: gateways go by its endpoints.
fn new_service(planner: &mut Planner<'_>, revision: &Value, owner: &Value) -> Value {
    let port = integer(revision, "/spec/port").unwrap_or(i64::from(FUNCTION_PORT));
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": owned(planner, revision, owner),
        "spec": {
            "clusterIP": "None", "clusterIPs": ["None"], "selector": selector(revision),
            "ports": [{ "name": "http", "port": FUNCTION_PORT, "targetPort": port, "appProtocol": "http" }],
        },
        "status": {},
    });
    if let Some(kind) = by_resource(SERVICES) {
        kind.defaults(&mut service);
    }
    service
}
