//! What a definition fills in where a client leaves something out. Source: apiextensions' structural defaulting.

use serde_json::{Map, Value};

use super::rules::Rules;
use crate::transaction::OBJECT_BYTES_MAX;

/// Bytes of defaults that one object is given: with more it could not be stored, and lists make many of one.
const BYTES_MAX: usize = 2 * OBJECT_BYTES_MAX;

impl Rules {
    /// Fills in the defaults of what is not there, and of nulls that may not be. Idempotent.
    pub fn fill_in(&self, object: &mut Value) {
        if self.has_defaults() {
            fill_in(self, object, &mut { BYTES_MAX });
        }
    }
}

fn fill_in(rules: &Rules, value: &mut Value, left: &mut usize) {
    if !rules.has_defaults() || *left == 0 {
        return;
    }
    match value {
        Value::Object(map) => object(rules, map, left),
        Value::Array(list) => {
            let Some(items) = &rules.items else { return };
            list.iter_mut().for_each(|element| fill_in(items, element, left));
        }
        _ => {}
    }
}

fn object(rules: &Rules, map: &mut Map<String, Value>, left: &mut usize) {
    for (name, rules) in &rules.properties {
        let Some(default) = &rules.default else { continue };
        let absent = map.get(name).is_none_or(|value| value.is_null() && !rules.takes_null());
        let bytes = name.len() + default.to_string().len();
        if absent && bytes <= *left {
            *left -= bytes;
            map.insert(name.clone(), default.clone());
        } else if absent {
            *left = 0;
        }
    }
    for (name, value) in map {
        if let Some(rules) = rules.properties.get(name).or(rules.values.as_deref()) {
            fill_in(rules, value, left);
        }
    }
}
