//! Taints and tolerations.

use crate::model::{Taint, Toleration};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The first taint that keeps new pods away (NoSchedule, NoExecute) and that nothing here tolerates.
pub fn untolerated<'a>(taints: &'a [Taint], tolerations: &[Toleration]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .find(|taint| !tolerated(taint, tolerations))
}

/// How many PreferNoSchedule taints nothing here tolerates.
pub fn untolerated_preferences(taints: &[Taint], tolerations: &[Toleration]) -> u64 {
    let untolerated = |taint: &&Taint| taint.effect == "PreferNoSchedule" && !tolerated(taint, tolerations);
    taints.iter().filter(untolerated).count() as u64
}

/// Whether the pod goes to cordoned nodes too, as those of daemon sets do.
pub fn tolerates_cordon(tolerations: &[Toleration]) -> bool {
    tolerated(&no_schedule(UNSCHEDULABLE), tolerations)
}

/// Whether the pod goes to nodes that are not ready too.
pub fn tolerates_not_ready(tolerations: &[Toleration]) -> bool {
    tolerated(&no_schedule(NOT_READY), tolerations)
}

fn no_schedule(key: &str) -> Taint {
    Taint { key: key.to_owned(), value: String::new(), effect: "NoSchedule".to_owned() }
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// An empty effect means all effects, an empty key with `Exists` all taints.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    if !toleration.effect.is_empty() && toleration.effect != taint.effect {
        return false;
    }
    if !toleration.key.is_empty() && toleration.key != taint.key {
        return false;
    }
    match toleration.operator.as_str() {
        "" | "Equal" => !toleration.key.is_empty() && toleration.value == taint.value,
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        Toleration { key: key.into(), operator: operator.into(), value: value.into(), effect: effect.into() }
    }

    #[test]
    fn tolerations_match_by_key_value_and_effect() {
        let taint = Taint { key: "k".into(), value: "v".into(), effect: "NoExecute".into() };
        assert!(tolerates(&toleration("k", "", "v", ""), &taint));
        assert!(tolerates(&toleration("k", "Exists", "", "NoExecute"), &taint));
        assert!(tolerates(&toleration("", "Exists", "", ""), &taint));
        assert!(!tolerates(&toleration("k", "Equal", "w", ""), &taint));
        assert!(!tolerates(&toleration("k", "Exists", "", "NoSchedule"), &taint));
        assert!(!tolerates(&toleration("", "", "", ""), &taint));
        assert!(!tolerates(&toleration("k", "Unheard", "v", ""), &taint));
    }

    #[test]
    fn only_hard_taints_keep_pods_away() {
        let soft = Taint { key: "k".into(), value: String::new(), effect: "PreferNoSchedule".into() };
        assert_eq!(untolerated(std::slice::from_ref(&soft), &[]), None);
        assert_eq!(untolerated_preferences(&[soft], &[]), 1);
    }
}
