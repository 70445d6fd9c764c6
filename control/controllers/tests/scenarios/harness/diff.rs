//! What a write changes, in words.

use serde_json::Value;

/// Fields that say nothing in a transcript.
const QUIET: [&str; 4] = ["resourceVersion", "creationTimestamp", "lastUpdateTime", "lastTransitionTime"];

/// For an update the changed fields, for a creation nothing but a set's size.
pub fn describe(before: Option<&Value>, after: &Value) -> String {
    let mut text = String::new();
    match before {
        Some(before) => changes("", before, after, &mut text),
        None => {
            if let Some(replicas) = after.pointer("/spec/replicas") {
                text = format!(" replicas={replicas}");
            }
        }
    }
    text
}

fn changes(path: &str, before: &Value, after: &Value, text: &mut String) {
    if before == after {
        return;
    }
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let gone = old.keys().filter(|key| !new.contains_key(*key));
            for key in new.keys().chain(gone).filter(|key| !QUIET.contains(&key.as_str())) {
                let child = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let get = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                changes(&child, &get(old), &get(new), text);
            }
        }
        _ if path.ends_with("conditions") => {
            for condition in after.as_array().into_iter().flatten() {
                let known =
                    before.as_array().into_iter().flatten().find(|old| old["type"] == condition["type"]);
                let what = |value: &Value| (value["status"].clone(), value["reason"].clone());
                if known.map(what) != Some(what(condition)) {
                    let word = |field: &str| condition[field].as_str().unwrap_or("").to_owned();
                    text.push_str(&format!(" {}={}({})", word("type"), word("status"), word("reason")));
                }
            }
        }
        _ => text.push_str(&format!(" {path}={after}")),
    }
}
