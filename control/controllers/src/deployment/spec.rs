//! A deployment's spec, with percentages resolved as upstream rounds them.

use std::collections::BTreeMap;

use coracle_objects::LabelSelector;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::conditions::{Condition, NEW_SET_AVAILABLE, TIMED_OUT};
use crate::{draft::later, names};

/// Old replica sets that are kept where the spec does not say.
const REVISION_HISTORY_DEFAULT: i64 = 10;
/// The value that upstream takes for "no deadline".
const NO_DEADLINE: i64 = i32::MAX as i64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    RollingUpdate,
    Recreate,
}

#[derive(Clone, Debug)]
pub struct Spec {
    pub replicas: i64,
    pub selector: LabelSelector,
    pub selector_value: Value,
    pub template: Value,
    pub template_hash: u64,
    pub strategy: Strategy,
    /// Pods allowed beyond `replicas` during a rollout; 0 for Recreate.
    pub max_surge: i64,
    /// Pods that may be unavailable during a rollout; 0 for Recreate.
    pub max_unavailable: i64,
    pub min_ready_s: i64,
    pub revision_history_limit: i64,
    pub paused: bool,
    progress_deadline_s: Option<i64>,
}

impl Spec {
    pub fn of(deployment: &Value) -> Option<Self> {
        let spec = deployment.get("spec")?;
        let integer = |field: &str| spec.get(field).and_then(Value::as_i64);
        let replicas = integer("replicas").unwrap_or(1).max(0);
        let recreate = spec.pointer("/strategy/type").and_then(Value::as_str) == Some("Recreate");
        let (max_surge, max_unavailable) = if recreate {
            (0, 0)
        } else {
            fenceposts(
                spec.pointer("/strategy/rollingUpdate/maxSurge"),
                spec.pointer("/strategy/rollingUpdate/maxUnavailable"),
                replicas,
            )
        };
        let template = spec.get("template")?.clone();
        Some(Self {
            replicas,
            selector: LabelSelector::from_json(spec.get("selector")).ok()?,
            selector_value: spec.get("selector").cloned().unwrap_or_default(),
            template_hash: names::template_hash(&template),
            template,
            strategy: if recreate { Strategy::Recreate } else { Strategy::RollingUpdate },
            max_surge,
            max_unavailable: max_unavailable.min(replicas),
            min_ready_s: integer("minReadySeconds").unwrap_or(0),
            revision_history_limit: integer("revisionHistoryLimit").unwrap_or(REVISION_HISTORY_DEFAULT),
            paused: spec.get("paused").and_then(Value::as_bool).unwrap_or(false),
            progress_deadline_s: integer("progressDeadlineSeconds").filter(|seconds| *seconds != NO_DEADLINE),
        })
    }

    /// The labels of a replica set of the template whose hash this is.
    pub fn set_labels(&self, hash: &str) -> BTreeMap<String, String> {
        let labels = self.template.pointer("/metadata/labels").and_then(Value::as_object);
        let text = |(key, value): (&String, &Value)| (key.clone(), value.as_str().unwrap_or("").to_owned());
        let mut labels: BTreeMap<String, String> = labels.into_iter().flatten().map(text).collect();
        labels.insert("pod-template-hash".to_owned(), hash.to_owned());
        labels
    }

    pub fn has_progress_deadline(&self) -> bool {
        self.progress_deadline_s.is_some()
    }

    /// When a rollout that stands as this condition Progressing says is too slow. None where it cannot become so.
    pub fn progress_deadline(&self, progressing: &Condition) -> Option<Timestamp> {
        if progressing.reason == NEW_SET_AVAILABLE || progressing.reason == TIMED_OUT {
            return None;
        }
        let since = progressing.last_update.unwrap_or(Timestamp::MIN);
        Some(later(since, SignedDuration::from_secs(self.progress_deadline_s?)))
    }
}

/// maxSurge, rounded up, and maxUnavailable, rounded down. Both zero would stop any rollout: then one may be missing.
fn fenceposts(surge: Option<&Value>, unavailable: Option<&Value>, replicas: i64) -> (i64, i64) {
    let surge = scaled(surge, replicas, true);
    let unavailable = scaled(unavailable, replicas, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// A number, or a part of `total` in percent. Absent means upstream's default of 25 %.
fn scaled(value: Option<&Value>, total: i64, round_up: bool) -> i64 {
    let percent = match value {
        Some(Value::Number(number)) => return number.as_i64().unwrap_or(0).max(0),
        Some(Value::String(text)) => text.trim_end_matches('%').parse::<i64>().unwrap_or(0).max(0),
        _ => 25,
    };
    let product = percent.saturating_mul(total);
    if round_up { (product + 99) / 100 } else { product / 100 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailable() {
        let part = |text: &str| Some(json!(text));
        let resolve = |surge: &str, unavailable: &str, replicas| {
            fenceposts(part(surge).as_ref(), part(unavailable).as_ref(), replicas)
        };
        assert_eq!(resolve("25%", "25%", 10), (3, 2));
        assert_eq!(resolve("25%", "25%", 1), (1, 0));
        assert_eq!(resolve("0%", "10%", 5), (0, 1));
        assert_eq!(fenceposts(Some(&json!(0)), Some(&json!(0)), 5), (0, 1));
        assert_eq!(fenceposts(Some(&json!(2)), Some(&json!(3)), 5), (2, 3));
        assert_eq!(fenceposts(None, None, 4), (1, 1));
    }
}
