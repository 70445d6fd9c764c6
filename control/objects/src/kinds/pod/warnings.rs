//! What of a pod's spec is taken and has no effect, or not the one that it seems to have.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    fields::{integer, list, text},
    support::{self, POD_SPEC},
};

/// Warnings of one list: more of the same say nothing new.
const DUPLICATES_MAX: usize = 8;

/// Of the spec at `field`, in words for its author.
pub(in crate::kinds) fn of_spec(spec: &Value, field: &str) -> Vec<String> {
    let mut warnings = support::warnings(&POD_SPEC, spec, field);
    for key in ["initContainers", "containers"] {
        for (index, container) in list(spec, &format!("/{key}")).iter().enumerate() {
            let at = format!("{field}.{key}[{index}]");
            duplicate_variables(container, &at, &mut warnings);
            duplicate_ports(container, &at, &mut warnings);
        }
    }
    warnings
}

/// The last of several variables with one name counts.
fn duplicate_variables(container: &Value, field: &str, warnings: &mut Vec<String>) {
    let mut known = BTreeMap::new();
    let all = list(container, "/env").iter().enumerate();
    let hiding = all.filter(|(index, variable)| known.insert(text(variable, "/name"), *index).is_some());
    warnings.extend(hiding.take(DUPLICATES_MAX).map(|(index, variable)| {
        let name = text(variable, "/name");
        format!("{field}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply")
    }));
}

fn duplicate_ports(container: &Value, field: &str, warnings: &mut Vec<String>) {
    let mut known = BTreeMap::new();
    let mut told = 0;
    for (index, port) in list(container, "/ports").iter().enumerate() {
        let key = (integer(port, "/containerPort"), text(port, "/protocol"));
        let Some(before) = known.insert(key, index) else { continue };
        if told < DUPLICATES_MAX {
            warnings.push(format!(
                "{field}.ports[{index}]: duplicate port definition with {field}.ports[{before}]"
            ));
            told += 1;
        }
    }
}
