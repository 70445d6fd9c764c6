//! The status of a pod: nodes report it, the scheduler and users with the right to it write to it as well.

use serde_json::{Value, json};

use crate::{
    field_error::{FIELD_ERRORS_MAX, FieldError},
    fields::{integer, list, text},
    validate::{rules::one_of, status::addresses},
};

const PHASES: [&str; 5] = ["Failed", "Pending", "Running", "Succeeded", "Unknown"];

/// `podIP` and the first of `podIPs` are one: who writes one of them alone means both. Of two that differ the single one
/// counts, as upstream has it.
pub fn one_address(status: &mut Value) {
    let all = list(status, "/podIPs");
    let first = all.first().map_or("", |first| text(first, "/ip")).to_owned();
    let address = text(status, "/podIP").to_owned();
    let Some(status) = status.as_object_mut() else { return };
    if address.is_empty() && !first.is_empty() {
        status.insert("podIP".to_owned(), first.into());
    } else if !address.is_empty() && address != first {
        status.insert("podIPs".to_owned(), json!([{ "ip": address }]));
    }
}

/// A pod that is held back says so, until it is scheduled. Source: the pod strategy's `applySchedulingGatedCondition`.
pub fn gated(status: &mut Value) {
    let is_known = list(status, "/conditions").iter().any(|condition| condition["type"] == "PodScheduled");
    if is_known {
        return;
    }
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates",
        "lastProbeTime": null, "lastTransitionTime": null,
    });
    crate::draft::set_condition(status, condition);
}

pub fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let phase = text(object, "/status/phase");
    if !phase.is_empty() {
        one_of("status.phase", phase, &PHASES, &mut errors);
    }
    addresses(object, "podIP", "podIPs", &mut errors);
    addresses(object, "hostIP", "hostIPs", &mut errors);
    for key in ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"] {
        for (index, container) in list(object, &format!("/status/{key}")).iter().enumerate() {
            if errors.len() >= FIELD_ERRORS_MAX {
                return errors;
            }
            if let Some(count) = integer(container, "/restartCount").filter(|count| *count < 0) {
                let field = format!("status.{key}[{index}].restartCount");
                errors.push(FieldError::invalid(field, count, "must be greater than or equal to 0"));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::by_resource;

    fn faults(status: Value) -> Vec<String> {
        let kind = by_resource("pods").unwrap();
        kind.status_faults(&json!({ "status": status }), None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_status_is_of_the_words_that_its_readers_know() {
        let fine = json!({"phase": "Running", "podIP": "10.128.0.1", "podIPs": [{"ip": "10.128.0.1"}],
            "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "c", "restartCount": 3}]});
        assert_eq!(faults(fine), [""; 0]);
        assert_eq!(faults(json!({})), [""; 0]);
        for (status, field) in [
            (json!({"phase": "Weird"}), "status.phase"),
            (json!({"podIP": "1.2.3"}), "status.podIP"),
            (json!({"podIP": "10.128.0.01"}), "status.podIP"),
            (json!({"podIP": "10.128.0.1", "podIPs": [{"ip": "10.128.0.2"}]}), "status.podIPs[0].ip"),
            (json!({"podIP": "10.128.0.1", "podIPs": [{"ip": "10.128.0.1"}, {}]}), "status.podIPs[1].ip"),
            (json!({"hostIP": "x"}), "status.hostIP"),
            (json!({"hostIPs": [{"ip": "192.0.2.1"}]}), "status.hostIPs[0].ip"),
            (
                json!({"containerStatuses": [{"restartCount": -1}]}),
                "status.containerStatuses[0].restartCount",
            ),
            (json!({"conditions": [{"status": "True"}]}), "status.conditions[0].type"),
            (json!({"conditions": [{"type": "A", "status": "yes"}]}), "status.conditions[0].status"),
            (
                json!({"conditions": [{"type": "A", "status": "True"}, {"type": "A", "status": "False"}]}),
                "status.conditions[1]",
            ),
        ] {
            let told = faults(status.clone());
            assert!(told.iter().any(|fault| fault.starts_with(&format!("{field}: "))), "{status}: {told:?}");
        }
    }

    #[test]
    fn an_address_that_is_written_alone_is_written_in_both_places() {
        let both = |mut status: Value| {
            one_address(&mut status);
            status
        };
        let expected = json!({"podIP": "10.128.0.1", "podIPs": [{"ip": "10.128.0.1"}]});
        assert_eq!(both(json!({"podIP": "10.128.0.1"})), expected);
        assert_eq!(both(json!({"podIP": "10.128.0.1", "podIPs": [{"ip": "10.128.0.9"}]})), expected);
        assert_eq!(both(json!({"podIPs": [{"ip": "10.128.0.1"}]}))["podIP"], "10.128.0.1");
        assert_eq!(both(json!({})), json!({}));
    }
}
