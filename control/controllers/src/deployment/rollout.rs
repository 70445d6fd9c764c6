//! The rolling update: new pods as surge allows, old ones away as availability allows.

use std::collections::BTreeMap;

use coracle_objects::ObjectKey;
use serde_json::Value;

use super::{
    Round,
    conditions::{Condition, FOUND_NEW_SET, NEW_SET_CREATED, PROGRESSING, SET_CREATE_ERROR},
    sets::new_draft,
    spec::Strategy,
};
use crate::{
    model::{DESIRED_REPLICAS, MAX_REPLICAS, REVISION},
    names,
    planner::Planner,
};

/// The annotation with the numbers of earlier rollouts of the same template.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Names are tried so often before the round gives up until the next one.
const COLLISIONS_MAX: i64 = 8;

/// Annotations of a deployment that its sets do not inherit.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

impl Round<'_> {
    /// One round of a rolling update: up where it can, else down where it can, else clean up.
    pub(super) fn roll(&mut self, planner: &mut Planner<'_>) {
        self.ensure_new_set(planner);
        if self.scale_new_set() || self.scale_down_old_sets() {
            return;
        }
        if self.is_complete() {
            self.clean_up();
        }
    }

    /// Sees to it that there is a set of the current template, with the annotations that it should have.
    pub(super) fn ensure_new_set(&mut self, planner: &mut Planner<'_>) {
        if self.sets.new.is_some() {
            self.adopt_new_set();
        } else {
            self.create_new_set(planner);
        }
    }

    /// Brings the annotations of an existing set of the current template up to date.
    pub(super) fn adopt_new_set(&mut self) {
        let revision = self.sets.old_revision_max().saturating_add(1);
        let inherited = self.inherited_annotations();
        let min_ready_s = self.spec.min_ready_s;
        let Some(set) = self.sets.new_set() else { return };
        for (key, text) in &inherited {
            set.annotate(key, text);
        }
        let old_revision = set.revision();
        if old_revision < revision {
            if old_revision > 0 {
                let history = set.known.and_then(|set| set.annotations.get(REVISION_HISTORY));
                let history = match history {
                    Some(known) => format!("{known},{old_revision}"),
                    None => old_revision.to_string(),
                };
                set.annotate(REVISION_HISTORY, &history);
            }
            set.annotate(REVISION, &revision.to_string());
        }
        if set.known.is_some_and(|set| set.min_ready_s != min_ready_s) {
            set.edit()["spec"]["minReadySeconds"] = min_ready_s.into();
        }
        self.revision = Some(revision.max(old_revision));
        if self.spec.has_progress_deadline() && self.conditions.get(PROGRESSING).is_none() {
            let name = self.sets.new_set().map(|set| set.name().to_owned()).unwrap_or_default();
            let message = format!("Found new replica set {name:?}");
            self.conditions.set(Condition::new(PROGRESSING, "True", FOUND_NEW_SET, message, self.now));
        }
    }

    fn create_new_set(&mut self, planner: &mut Planner<'_>) {
        if !planner.state.takes_objects(self.object.namespace()) {
            return;
        }
        if !planner.may_create() {
            let reason = planner.failure().map(str::to_owned);
            self.note_failure(reason);
            return;
        }
        let revision = self.sets.old_revision_max().saturating_add(1);
        let Some((key, hash)) = self.free_name(planner) else { return };
        // Such a set would not be this deployment's, and the next round would make another one.
        if !self.spec.selector.matches(&self.spec.set_labels(&hash)) {
            let reason = "the selector asks for a label pod-template-hash, which the deployment gives its replica \
                          sets by itself: take it out of the selector";
            self.note_failure(Some(reason.to_owned()));
            return;
        }
        let mut annotations = self.inherited_annotations();
        annotations.insert(REVISION.to_owned(), revision.to_string());
        let (replicas, surge) = (self.spec.replicas, self.spec.max_surge);
        annotations.insert(DESIRED_REPLICAS.to_owned(), replicas.to_string());
        annotations.insert(MAX_REPLICAS.to_owned(), (replicas + surge).to_string());
        let name = key.name.name.to_string();
        let draft =
            new_draft(self.object, &self.spec, &name, &hash, planner.new_uid(), annotations, self.now);
        self.sets.create(key, draft, 0);
        let size = self.new_set_size();
        if let Some(set) = self.sets.new_set() {
            set.replicas = size;
        }
        self.revision = Some(revision);
        if self.spec.has_progress_deadline() {
            let message = format!("Created new replica set {name:?}");
            self.conditions.set(Condition::new(PROGRESSING, "True", NEW_SET_CREATED, message, self.now));
        }
        if size > 0 {
            self.record("ScalingReplicaSet", format!("Scaled up replica set {name} from 0 to {size}"));
        }
    }

    /// Notes on the condition Progressing why there is no set of the current template.
    fn note_failure(&mut self, reason: Option<String>) {
        let Some(reason) = reason.filter(|_| self.spec.has_progress_deadline()) else { return };
        self.failed = true;
        let message = format!("Failed to create new replica set: {reason}");
        self.conditions.set(Condition::new(PROGRESSING, "False", SET_CREATE_ERROR, message, self.now));
    }

    /// A name that no set has: where another template's set has it, by chance or by someone's hand, the next one.
    fn free_name(&mut self, planner: &Planner<'_>) -> Option<(ObjectKey, String)> {
        for collisions in self.collisions..self.collisions + COLLISIONS_MAX {
            let hash = names::hash_label(self.spec.template_hash, collisions);
            let name = format!("{}-{hash}", self.object.name());
            let key = ObjectKey::new("replicasets.apps", self.object.namespace(), &name);
            if planner.state.get(&key).is_none() {
                self.collisions = collisions;
                return Some((key, hash));
            }
        }
        None
    }

    fn inherited_annotations(&self) -> BTreeMap<String, String> {
        let value = self.object.parse::<Value>().unwrap_or_default();
        let all = value.pointer("/metadata/annotations").cloned().unwrap_or_default();
        let mut all: BTreeMap<String, String> = serde_json::from_value(all).unwrap_or_default();
        all.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
        all
    }

    /// How large the new set may be now.
    fn new_set_size(&self) -> i64 {
        let wanted = self.spec.replicas;
        let own = self.sets.new.map_or(0, |index| self.sets.all[index].replicas);
        if self.spec.strategy == Strategy::Recreate {
            return wanted;
        }
        let room = wanted + self.spec.max_surge - self.sets.sum(|set| set.size());
        own + room.min(wanted - own).max(0)
    }

    /// Scales the new set towards what is wanted; answers whether it did.
    pub(super) fn scale_new_set(&mut self) -> bool {
        let Some(index) = self.sets.new else { return false };
        let (own, wanted) = (self.sets.all[index].replicas, self.spec.replicas);
        let size = if own > wanted { wanted } else { self.new_set_size() };
        self.scale(index, size)
    }

    /// Scales old sets down: first pods that are unavailable anyway, then as many as availability allows.
    fn scale_down_old_sets(&mut self) -> bool {
        let available_min = self.spec.replicas - self.spec.max_unavailable;
        let new_unavailable = self
            .sets
            .new
            .map_or(0, |index| self.sets.all[index].replicas - self.sets.all[index].surely_available());
        let down_max = self.sets.sum(|set| set.replicas) - available_min - new_unavailable;
        if down_max <= 0 {
            return false;
        }
        let mut left = down_max;
        let mut changed = false;
        for index in self.sets.active_old() {
            let set = &self.sets.all[index];
            let unhealthy = (set.replicas - set.available).max(0).min(left);
            let size = set.replicas - unhealthy;
            left -= unhealthy;
            changed |= self.scale(index, size);
        }
        let mut spare = self.sets.sum(|set| set.surely_available()) - available_min;
        for index in self.sets.active_old() {
            let step = self.sets.all[index].replicas.min(spare).min(left).max(0);
            let size = self.sets.all[index].replicas - step;
            spare -= step;
            left -= step;
            changed |= self.scale(index, size);
        }
        changed
    }
}
