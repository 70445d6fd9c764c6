//! A manifest for each rule of the tables, in which its field is set.

use serde_json::{Value, json};

use super::{DEPLOYMENT, INGRESS, POD_SPEC, REPLICA_SET, Rule, SERVICE, Support, Table};
use crate::patch;

/// A manifest in which one field is set for which there is a rule.
#[derive(Clone, Debug)]
pub struct Example {
    pub object: Value,
    /// The resource's path in a namespace: `apps/v1`, `deployments`.
    pub resource: (&'static str, &'static str),
    /// As messages name it: `spec.containers[0].tty`. Its list where the rule is of elements.
    pub field: String,
    pub support: Support,
    pub note: &'static str,
}

/// The kinds that have tables, with where they are served; each table is that of `spec`.
pub(super) const KINDS: [(&str, &str, &str, &Table); 5] = [
    ("v1", "Pod", "pods", &POD_SPEC),
    ("v1", "Service", "services", &SERVICE),
    ("networking.k8s.io/v1", "Ingress", "ingresses", &INGRESS),
    ("apps/v1", "Deployment", "deployments", &DEPLOYMENT),
    ("apps/v1", "ReplicaSet", "replicasets", &REPLICA_SET),
];

/// One for each rule.
pub fn examples() -> Vec<Example> {
    let mut examples = Vec::new();
    for (version, kind, plural, table) in KINDS {
        let object = |spec: Value| json!({ "apiVersion": version, "kind": kind, "metadata": { "name": "fields" }, "spec": spec });
        table.examples("spec", &object, &mut |rule, field, object| {
            let resource = (version, plural);
            examples.push(Example { object, resource, field, support: rule.support, note: rule.note });
        });
    }
    examples
}

impl Table {
    /// `whole` makes the manifest of a struct that stands at `field`.
    fn examples(
        &self,
        field: &str,
        whole: &dyn Fn(Value) -> Value,
        found: &mut dyn FnMut(&Rule, String, Value),
    ) {
        let base: Value = parsed(self.base);
        for rule in self.rules.iter().filter(|rule| !rule.example.is_empty()) {
            let at = format!("{field}.{}", rule.path.replace("[]", "[0]"));
            found(rule, at, whole(rule.set_in(&base)));
        }
        for part in self.parts.iter().filter(|part| part.has_examples) {
            let within = |value: Value| {
                let mut base = base.clone();
                set(&mut base, part.path, value);
                whole(base)
            };
            part.table.examples(&format!("{field}.{}", part.path.replace("[]", "[0]")), &within, found);
        }
    }
}

impl Rule {
    fn set_in(&self, base: &Value) -> Value {
        let mut value = base.clone();
        match self.example.strip_prefix('^') {
            Some(merged) => patch::merge(&mut value, &parsed(merged)),
            None => set(&mut value, self.path.trim_end_matches("[]"), parsed(self.example)),
        }
        value
    }
}

/// Examples are written down in this crate.
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Sets what a path leads to, by the first element of each list.
fn set(value: &mut Value, path: &str, to: Value) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let (name, is_list) = first.strip_suffix("[]").map_or((first, false), |name| (name, true));
    let mut slot = &mut value[name];
    if is_list {
        if !slot.is_array() {
            *slot = json!([null]);
        }
        slot = &mut slot[0];
    }
    match rest {
        Some(rest) => set(slot, rest, to),
        None => *slot = to,
    }
}
