//! Lists whose elements are told apart by keys (`listType=map`): no two elements have the same.
//!
//! What is found twice, server-side apply and strategic merge would take for one, and readers take the first or the last.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    field_error::{FIELD_ERRORS_MAX, FieldError},
    schema::{self, ListType},
    value_set::identity,
};

/// A node has several addresses of one type: the schema's key is not enough to tell them apart, as upstream says of it.
const MANY_OF_A_KEY: (&str, &str) = ("io.k8s.api.core.v1.NodeStatus", "addresses");

/// The elements below `value`, which is of this schema and stands at `field`, whose keys an earlier element has.
pub fn duplicate_keys(value: &Value, schema: &str, field: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    find(value, schema, field, &mut errors);
    errors
}

fn find(value: &Value, schema: &str, field: &str, errors: &mut Vec<FieldError>) {
    for (name, inner) in value.as_object().into_iter().flatten() {
        let child = schema::child(schema, name);
        if let Value::Array(elements) = inner {
            let keys = keys(schema, name);
            let mut seen = BTreeSet::new();
            for (index, element) in elements.iter().enumerate() {
                if errors.len() >= FIELD_ERRORS_MAX {
                    return;
                }
                let at = format!("{field}.{name}[{index}]");
                if keys.is_some_and(|keys| !seen.insert(key_of(element, keys))) {
                    let shown = keys.into_iter().flatten().map(|key| (key.clone(), element[key].clone()));
                    errors.push(FieldError::duplicate(at, shown.collect::<Value>()));
                } else if let Some(child) = child {
                    find(element, child, &at, errors);
                }
            }
        } else if let Some(child) = child {
            find(inner, child, &format!("{field}.{name}"), errors);
        }
    }
}

/// Takes the elements out whose keys an earlier element has.
pub fn keep_first(value: &mut Value, schema: &str) {
    for (name, inner) in value.as_object_mut().into_iter().flatten() {
        let child = schema::child(schema, name);
        if let Value::Array(elements) = inner {
            if let Some(keys) = keys(schema, name) {
                let mut seen = BTreeSet::new();
                elements.retain(|element| seen.insert(key_of(element, keys)));
            }
            if let Some(child) = child {
                elements.iter_mut().for_each(|element| keep_first(element, child));
            }
        } else if let Some(child) = child {
            keep_first(inner, child);
        }
    }
}

fn keys(schema: &str, field: &str) -> Option<&'static [String]> {
    let merge = &schema::field(schema, field)?.merge;
    let by_keys = merge.list == ListType::Map && (schema, field) != MANY_OF_A_KEY;
    by_keys.then_some(&merge.list_keys)
}

fn key_of(element: &Value, keys: &[String]) -> Vec<Option<String>> {
    keys.iter().map(|key| element.get(key).map(identity)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POD: &str = "io.k8s.api.core.v1.PodStatus";

    #[test]
    fn a_key_that_is_there_already_is_named_or_left_out() {
        let ready = json!({"type": "Ready", "status": "True"});
        let late = json!({"type": "Ready", "status": "False"});
        let mut status = json!({"conditions": [ready, {"type": "Other", "status": "True"}, late],
            "podIPs": [{"ip": "10.128.0.1"}, {"ip": "10.128.0.1"}], "containerStatuses": [{"name": "c"}, {"name": "c"}]});
        let told: Vec<String> =
            duplicate_keys(&status, POD, "status").iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                r#"status.conditions[2]: Duplicate value: {"type":"Ready"}"#,
                r#"status.podIPs[1]: Duplicate value: {"ip":"10.128.0.1"}"#
            ]
        );
        keep_first(&mut status, POD);
        assert_eq!(status["conditions"][0], ready);
        assert_eq!(status["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(status["containerStatuses"].as_array().unwrap().len(), 2, "an atomic list");
        assert_eq!(duplicate_keys(&status, POD, "status"), []);
    }

    #[test]
    fn lists_within_lists_are_looked_at_and_addresses_of_nodes_are_not() {
        let port = json!({"containerPort": 80, "protocol": "TCP"});
        let spec = json!({"containers": [{"name": "c", "ports": [port, port]}]});
        let told = duplicate_keys(&spec, "io.k8s.api.core.v1.PodSpec", "spec");
        assert_eq!(told[0].field, "spec.containers[0].ports[1]");
        let status = json!({"addresses": [{"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "InternalIP", "address": "fd00::1"}]});
        assert_eq!(duplicate_keys(&status, MANY_OF_A_KEY.0, "status"), []);
    }

    #[test]
    fn a_long_list_is_looked_at_once() {
        let conditions: Vec<Value> = (0..100_000).map(|at| json!({"type": at.to_string()})).collect();
        let twice = [conditions.clone(), conditions].concat();
        let mut status = json!({ "conditions": twice });
        assert_eq!(duplicate_keys(&status, POD, "status").len(), FIELD_ERRORS_MAX);
        keep_first(&mut status, POD);
        assert_eq!(status["conditions"].as_array().unwrap().len(), 100_000);
    }
}
