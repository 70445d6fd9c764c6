//! Sets of JSON values: whether a value is among many is asked without looking at each.

use std::collections::BTreeMap;

use serde_json::Value;

/// Values, and where each was first. Two objects are the same whatever the order of their fields.
#[derive(Clone, Debug, Default)]
pub struct ValueSet {
    positions: BTreeMap<String, usize>,
}

impl ValueSet {
    pub fn of<'a>(values: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut set = Self::default();
        for (position, value) in values.into_iter().enumerate() {
            set.add(value, position);
        }
        set
    }

    /// Adds a value at a position; the first position of a value stays. Whether it is new.
    pub fn add(&mut self, value: &Value, position: usize) -> bool {
        let text = identity(value);
        let new = !self.positions.contains_key(&text);
        if new {
            self.positions.insert(text, position);
        }
        new
    }

    pub fn contains(&self, value: &Value) -> bool {
        self.position(value).is_some()
    }

    /// Where the value was first.
    pub fn position(&self, value: &Value) -> Option<usize> {
        self.positions.get(&identity(value)).copied()
    }
}

/// A text that two values share only where they are equal.
pub(crate) fn identity(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Array(elements) => {
            text.push('[');
            for element in elements {
                write(element, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            text.push('{');
            for (name, value) in sorted {
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                write(value, text);
                text.push(',');
            }
            text.push('}');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_values_are_one() {
        let values = [json!(1), json!("1"), json!(1.0), json!({"a": [1], "b": null}), json!(null)];
        let set = ValueSet::of(&values);
        for (position, value) in values.iter().enumerate() {
            assert_eq!(set.position(value), Some(position), "{value}");
        }
        assert_eq!(set.position(&json!({"b": null, "a": [1]})), Some(3));
        for other in [json!(2), json!({"a": [1]}), json!([]), json!({"a": 1, "b": null}), json!("null")] {
            assert!(!set.contains(&other), "{other}");
        }
    }
}
