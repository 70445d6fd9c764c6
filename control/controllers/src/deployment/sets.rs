//! The replica sets of a deployment, as they are and as a round wants them.

use std::collections::BTreeMap;

use coracle_objects::{Expect, Object, ObjectKey, Precondition, Transaction, Write};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::spec::Spec;
use crate::{
    draft::{self, Unreadable, timestamp},
    model::{DESIRED_REPLICAS, MAX_REPLICAS, Pod, ReplicaSet},
    planner::Planner,
    state::State,
};

/// Once a round's writes are so large, in bytes, the rest of them is for the next round: one more is at most as large as
/// an object may be, and a transaction takes more than both.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// One replica set in a round.
#[derive(Debug)]
pub struct Set<'a> {
    /// None for one that this round creates.
    pub known: Option<&'a ReplicaSet>,
    pub key: ObjectKey,
    /// `spec.replicas` as the round wants it.
    pub replicas: i64,
    /// Pods that count to its replicas, as they are now.
    pub pods: i64,
    /// Those of them that are available now.
    pub available: i64,
    /// Pods that still run, also those that are being deleted.
    pub running: i64,
    /// The draft, once something of it is changed. Replicas aside.
    pub edited: Option<Value>,
}

impl<'a> Set<'a> {
    fn of(state: &'a State, set: &'a ReplicaSet, now: Timestamp) -> Self {
        let pods: Vec<&Pod> = state.pods_of(&set.object).collect();
        let active = || pods.iter().filter(|pod| pod.active());
        Self {
            known: Some(set),
            key: set.object.key.clone(),
            replicas: set.replicas,
            pods: active().count() as i64,
            available: active().filter(|pod| pod.available(set.min_ready_s, now)).count() as i64,
            running: pods.iter().filter(|pod| !pod.terminal()).count() as i64,
            edited: None,
        }
    }

    pub fn name(&self) -> &str {
        &self.key.name.name
    }

    /// The pods that it has or is about to have: what counts against maxSurge.
    pub fn size(&self) -> i64 {
        self.replicas.max(self.pods)
    }

    /// The available pods that it will surely keep: what counts for maxUnavailable.
    pub fn surely_available(&self) -> i64 {
        self.replicas.min(self.available)
    }

    pub fn number(&self, annotation: &str) -> Option<i64> {
        self.known.and_then(|set| set.number(annotation))
    }

    pub fn revision(&self) -> i64 {
        self.known.map_or(0, ReplicaSet::revision)
    }

    /// By age: when created, and the name where that is equal. One that is created now is the youngest.
    pub fn age_key(&self) -> (bool, Option<String>, String) {
        let created = self.known.and_then(|set| set.object.meta.creation_timestamp.clone());
        (self.known.is_none(), created, self.name().to_owned())
    }

    /// The draft, to be changed.
    pub fn edit(&mut self) -> &mut Value {
        let known = self.known;
        self.edited.get_or_insert_with(|| known.map(stored).unwrap_or_default())
    }

    /// Sets an annotation where it differs.
    pub fn annotate(&mut self, key: &str, text: &str) {
        let old = match &self.edited {
            Some(value) => value["metadata"]["annotations"][key].as_str(),
            None => self.known.and_then(|set| set.annotations.get(key)).map(String::as_str),
        };
        if old != Some(text) {
            draft::annotate(self.edit(), key, text);
        }
    }

    /// Notes what the deployment wanted when it last scaled this set.
    pub fn annotate_sizes(&mut self, spec: &Spec) {
        self.annotate(DESIRED_REPLICAS, &spec.replicas.to_string());
        self.annotate(MAX_REPLICAS, &(spec.replicas + spec.max_surge).to_string());
    }

    /// Adds the write, where there is one.
    fn write(&self, transaction: &mut Transaction) {
        if self.known.is_some_and(|known| known.replicas == self.replicas) && self.edited.is_none() {
            return;
        }
        let before = self.known.map(stored).unwrap_or_default();
        let mut value = self.edited.clone().unwrap_or_else(|| before.clone());
        draft::child(&mut value, "spec").insert("replicas".to_owned(), self.replicas.into());
        let expect = match self.known {
            Some(known) => Expect::Revision(known.object.revision),
            None => Expect::Absent,
        };
        if self.known.is_some() && value["spec"] != before["spec"] {
            draft::next_generation(&mut value);
        }
        transaction.preconditions.push(Precondition { key: self.key.clone(), expect });
        transaction.writes.push(Write::Put { key: self.key.clone(), draft: draft::bytes(&value) });
    }
}

/// The draft of a set that is known, and thus readable.
fn stored(set: &ReplicaSet) -> Value {
    draft::of(&set.object)
        .unwrap_or_else(|error| unreachable!("a known replica set is readable: {}", error.reason))
}

/// All replica sets of a deployment.
#[derive(Debug)]
pub struct Sets<'a> {
    /// Oldest first.
    pub all: Vec<Set<'a>>,
    /// The place in `all` of the set of the current template.
    pub new: Option<usize>,
}

impl<'a> Sets<'a> {
    pub fn of(
        state: &'a State,
        deployment: &'a Object,
        spec: &Spec,
        now: Timestamp,
    ) -> Result<Self, Unreadable> {
        // Those that are being deleted count until they are gone: so do their pods.
        let known = state.sets_of(deployment)?;
        let mut all: Vec<Set<'a>> = known.into_iter().map(|set| Set::of(state, set, now)).collect();
        all.sort_by_key(Set::age_key);
        let current = |set: &Set<'_>| set.known.is_some_and(|set| set.template_hash == spec.template_hash);
        let new = all.iter().position(current);
        Ok(Self { all, new })
    }

    pub fn new_set(&mut self) -> Option<&mut Set<'a>> {
        self.new.map(|index| &mut self.all[index])
    }

    /// The places of the sets of older templates, oldest first.
    pub fn old(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|index| Some(*index) != self.new).collect()
    }

    /// The places of old sets that want pods.
    pub fn active_old(&self) -> Vec<usize> {
        self.old().into_iter().filter(|&index| self.all[index].replicas > 0).collect()
    }

    pub fn sum(&self, count: impl Fn(&Set<'a>) -> i64) -> i64 {
        self.all.iter().map(count).sum()
    }

    /// The greatest rollout number among old sets.
    pub fn old_revision_max(&self) -> i64 {
        self.old().into_iter().map(|index| self.all[index].revision()).max().unwrap_or(0)
    }

    /// Adds a set that is to be created, as the new one.
    pub fn create(&mut self, key: ObjectKey, draft: Value, replicas: i64) {
        let set = Set { known: None, key, replicas, pods: 0, available: 0, running: 0, edited: Some(draft) };
        self.new = Some(self.all.len());
        self.all.push(set);
    }

    /// Adds the writes, as many as one transaction takes. One round scales either up or down, so that some of its writes
    /// without the others keep what all of them keep; the next round decides anew about those that were left.
    pub fn write(&self, transaction: &mut Transaction) {
        let mut bytes = 0;
        for set in &self.all {
            let before = transaction.writes.len();
            set.write(transaction);
            bytes += transaction.writes[before..].iter().map(Write::bytes).sum::<usize>();
            if bytes >= WRITE_BYTES_MAX {
                break;
            }
        }
    }
}

/// The draft of a set for the deployment's current template, replicas aside.
pub fn new_draft(
    deployment: &Object,
    spec: &Spec,
    name: &str,
    hash: &str,
    uid: String,
    annotations: BTreeMap<String, String>,
    now: Timestamp,
) -> Value {
    let mut template = spec.template.clone();
    let metadata = draft::child(&mut template, "metadata");
    match metadata.entry("labels").or_insert(Value::Null) {
        Value::Object(labels) => {
            labels.insert("pod-template-hash".to_owned(), hash.into());
        }
        other => *other = json!({"pod-template-hash": hash}),
    }
    let labels = template["metadata"]["labels"].clone();
    let mut selector = spec.selector_value.clone();
    draft::child(&mut selector, "matchLabels").insert("pod-template-hash".to_owned(), hash.into());
    let mut value = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": name, "namespace": deployment.namespace(), "uid": uid,
            "generation": 1, "creationTimestamp": timestamp(now), "labels": labels, "annotations": annotations,
            "ownerReferences": [draft::controlled_by(deployment, "apps/v1", "Deployment")],
        },
        "spec": {"replicas": 0, "selector": selector, "template": template},
        "status": {"replicas": 0},
    });
    if spec.min_ready_s > 0 {
        value["spec"]["minReadySeconds"] = spec.min_ready_s.into();
    }
    value
}

/// Adopts matching sets without a controller and releases own ones that match no more. Answers whether there were any.
pub fn claim(planner: &mut Planner<'_>, deployment: &Object, spec: &Spec) -> Result<bool, Unreadable> {
    let state = planner.state;
    let mut changed = false;
    for set in state.orphan_sets(deployment.namespace()) {
        if set.deleting() || !spec.selector.matches(&set.object.meta.labels) {
            continue;
        }
        let mut value = draft::of(&set.object)?;
        let reference = draft::controlled_by(deployment, "apps/v1", "Deployment");
        match draft::child(&mut value, "metadata").entry("ownerReferences").or_insert_with(|| json!([])) {
            Value::Array(references) => references.push(reference),
            other => *other = json!([reference]),
        }
        let uid = Expect::Uid(deployment.meta.uid.clone());
        planner.propose(draft::put(&set.object, &value).expecting(deployment.key.clone(), uid));
        changed = true;
    }
    for set in state.sets_of(deployment)? {
        if set.deleting() || spec.selector.matches(&set.object.meta.labels) {
            continue;
        }
        let mut left = set.object.meta.owner_references.clone();
        left.retain(|reference| reference.uid != deployment.meta.uid);
        let mut value = draft::of(&set.object)?;
        draft::set_owners(&mut value, &left);
        planner.propose(draft::put(&set.object, &value));
        changed = true;
    }
    Ok(changed)
}
