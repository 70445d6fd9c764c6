//! `nodeSelector` and node affinity.

use std::collections::BTreeMap;

use crate::model::{Requirement, Shape, Term};

/// Whether selector and required affinity admit this node.
pub fn admits(shape: &Shape, name: &str, labels: &BTreeMap<String, String>) -> bool {
    shape.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        && (!shape.has_required || shape.required.iter().any(|term| matches(term, name, labels)))
}

/// The part of the preferred terms' weights that this node earns, from 0 to `scale`. `scale` where there are none.
pub fn preference(shape: &Shape, name: &str, labels: &BTreeMap<String, String>, scale: u64) -> u64 {
    let weight = |weight: i32| weight.max(0) as u64;
    let total: u64 = shape.preferred.iter().map(|term| weight(term.weight)).sum();
    if total == 0 {
        return scale;
    }
    let matching = shape.preferred.iter().filter(|term| {
        let all = term.preference.match_expressions.is_empty() && term.preference.match_fields.is_empty();
        all || matches(&term.preference, name, labels)
    });
    matching.map(|term| weight(term.weight)).sum::<u64>() * scale / total
}

/// A term without requirements matches nothing.
fn matches(term: &Term, name: &str, labels: &BTreeMap<String, String>) -> bool {
    if term.match_expressions.is_empty() && term.match_fields.is_empty() {
        return false;
    }
    let field = |key: &str| (key == "metadata.name").then_some(name);
    term.match_expressions.iter().all(|wanted| holds(wanted, labels.get(&wanted.key).map(String::as_str)))
        && term.match_fields.iter().all(|wanted| holds(wanted, field(&wanted.key)))
}

fn holds(wanted: &Requirement, found: Option<&str>) -> bool {
    let listed = |value: &str| wanted.values.iter().any(|listed| listed == value);
    let compared = || -> Option<std::cmp::Ordering> {
        let value: i64 = found?.parse().ok()?;
        Some(value.cmp(&wanted.values.first()?.parse::<i64>().ok()?))
    };
    match wanted.operator.as_str() {
        "In" => found.is_some_and(listed),
        "NotIn" => !found.is_some_and(listed),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compared().is_some_and(|order| order.is_gt()),
        "Lt" => compared().is_some_and(|order| order.is_lt()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(key: &str, operator: &str, values: &[&str]) -> Requirement {
        Requirement {
            key: key.into(),
            operator: operator.into(),
            values: values.iter().map(|value| value.to_string()).collect(),
        }
    }

    #[test]
    fn operators() {
        assert!(holds(&requirement("z", "In", &["a", "b"]), Some("b")));
        assert!(!holds(&requirement("z", "In", &["a"]), None));
        assert!(holds(&requirement("z", "NotIn", &["a"]), None));
        assert!(holds(&requirement("z", "DoesNotExist", &[]), None));
        assert!(holds(&requirement("z", "Gt", &["4"]), Some("5")));
        assert!(!holds(&requirement("z", "Lt", &["4"]), Some("many")));
    }

    #[test]
    fn terms_are_alternatives_and_an_empty_one_matches_nothing() {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let by_name =
            Term { match_fields: vec![requirement("metadata.name", "In", &["n1"])], ..Term::default() };
        let mut shape =
            Shape { has_required: true, required: vec![Term::default(), by_name], ..Shape::default() };
        assert!(admits(&shape, "n1", &labels));
        assert!(!admits(&shape, "n2", &labels));
        shape.node_selector.insert("zone".into(), "b".into());
        assert!(!admits(&shape, "n1", &labels));
    }
}
