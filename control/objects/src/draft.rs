//! Editing drafts: objects as JSON values on their way to a transaction.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

/// As Kubernetes writes times: RFC 3339 in UTC with whole seconds.
pub fn timestamp(moment: Timestamp) -> String {
    format!("{moment:.0}")
}

/// `moment` + `duration`, or the end of time.
pub fn later(moment: Timestamp, duration: SignedDuration) -> Timestamp {
    moment.checked_add(duration).unwrap_or(Timestamp::MAX)
}

/// The child object at `key`, made where there is none.
pub fn child<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    let child = object(value).entry(key).or_insert(Value::Null);
    object(child)
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was just made one")
}

/// Sets `metadata.KEY`.
pub fn set_meta(value: &mut Value, key: &str, to: impl Into<Value>) {
    child(value, "metadata").insert(key.to_owned(), to.into());
}

/// Notes a change of the spec.
pub fn next_generation(value: &mut Value) {
    let metadata = child(value, "metadata");
    let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(0);
    metadata.insert("generation".to_owned(), (generation + 1).into());
}

/// Replaces the condition of the same type in `conditions` of an object's status, or adds it. Where the condition's status
/// stays, so does `lastTransitionTime`.
pub fn set_condition(status: &mut Value, mut condition: Value) {
    let conditions = object(status).entry("conditions").or_insert(Value::Null);
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let conditions = conditions.as_array_mut().expect("it was just made a list");
    match conditions.iter_mut().find(|known| known["type"] == condition["type"]) {
        Some(known) => {
            if known["status"] == condition["status"] && known["lastTransitionTime"].is_string() {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_whose_status_stays_keeps_its_time() {
        let condition =
            |status: &str, time: &str| json!({"type": "Ready", "status": status, "lastTransitionTime": time});
        let mut status = json!({"conditions": [{"type": "Other", "status": "True"}]});
        set_condition(&mut status, condition("True", "1"));
        set_condition(&mut status, condition("True", "2"));
        assert_eq!(status["conditions"][1], condition("True", "1"));
        set_condition(&mut status, condition("False", "3"));
        assert_eq!(status["conditions"][1], condition("False", "3"));
        let mut none = Value::Null;
        set_condition(&mut none, condition("True", "4"));
        assert_eq!(none["conditions"], json!([condition("True", "4")]));
    }
}
