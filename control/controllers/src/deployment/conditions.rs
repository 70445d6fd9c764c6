//! A deployment's conditions, with the two times that each of them has.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::draft::timestamp;

pub const AVAILABLE: &str = "Available";
pub const PROGRESSING: &str = "Progressing";

pub const NEW_SET_CREATED: &str = "NewReplicaSetCreated";
pub const SET_CREATE_ERROR: &str = "ReplicaSetCreateError";
pub const FOUND_NEW_SET: &str = "FoundNewReplicaSet";
pub const SET_UPDATED: &str = "ReplicaSetUpdated";
pub const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub const PAUSED: &str = "DeploymentPaused";
pub const RESUMED: &str = "DeploymentResumed";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_update: Option<Timestamp>,
    pub last_transition: Option<Timestamp>,
}

impl Condition {
    pub fn new(type_: &str, status: &str, reason: &str, message: String, now: Timestamp) -> Self {
        Self {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_update: Some(now),
            last_transition: Some(now),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions(Vec<Condition>);

impl Conditions {
    pub fn of(deployment: &Value) -> Self {
        let known = deployment.pointer("/status/conditions").and_then(Value::as_array);
        let text = |value: &Value, field: &str| value[field].as_str().unwrap_or("").to_owned();
        let moment = |value: &Value, field: &str| value[field].as_str().and_then(|text| text.parse().ok());
        let parse = |value: &Value| Condition {
            type_: text(value, "type"),
            status: text(value, "status"),
            reason: text(value, "reason"),
            message: text(value, "message"),
            last_update: moment(value, "lastUpdateTime"),
            last_transition: moment(value, "lastTransitionTime"),
        };
        Self(known.into_iter().flatten().map(parse).collect())
    }

    pub fn get(&self, type_: &str) -> Option<&Condition> {
        self.0.iter().find(|condition| condition.type_ == type_)
    }

    /// Replaces the condition of this type, unless status and reason stay the same. Where the status stays, so does its
    /// transition time.
    pub fn set(&mut self, condition: Condition) {
        if let Some(known) = self.get(&condition.type_)
            && known.status == condition.status
            && known.reason == condition.reason
        {
            return;
        }
        self.replace(condition);
    }

    /// Replaces the condition of this type in any case. Where the status stays, so does its transition time.
    pub fn replace(&mut self, mut condition: Condition) {
        if let Some(known) = self.get(&condition.type_)
            && known.status == condition.status
        {
            condition.last_transition = known.last_transition;
        }
        self.remove(&condition.type_.clone());
        self.0.push(condition);
    }

    pub fn remove(&mut self, type_: &str) {
        self.0.retain(|condition| condition.type_ != type_);
    }

    pub fn to_value(&self) -> Value {
        let write = |condition: &Condition| {
            let mut value = json!({"type": condition.type_, "status": condition.status});
            for (field, moment) in
                [("lastUpdateTime", condition.last_update), ("lastTransitionTime", condition.last_transition)]
            {
                if let Some(moment) = moment {
                    value[field] = timestamp(moment).into();
                }
            }
            value["reason"] = condition.reason.as_str().into();
            value["message"] = condition.message.as_str().into();
            value
        };
        self.0.iter().map(write).collect()
    }
}
