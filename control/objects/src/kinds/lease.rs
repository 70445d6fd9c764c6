//! Leases (coordination.k8s.io).

use serde_json::Value;

use super::age;
use crate::{
    field_error::FieldError,
    fields::{integer, text},
    kind::{Column, Native},
    validate::rules::not_negative,
};

pub(super) const LEASE: Native = Native {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    columns: &[Column::name(), Column::text("Holder", "Who holds the lease"), Column::age()],
    cells: |object, now| {
        vec![
            text(object, "/metadata/name").into(),
            text(object, "/spec/holderIdentity").into(),
            age(text(object, "/metadata/creationTimestamp"), now).into(),
        ]
    },
    validate,
    ..Native::BASE
};

fn validate(object: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(seconds) = integer(object, "/spec/leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    not_negative(object, "/spec/leaseTransitions", "spec.leaseTransitions", &mut errors);
    errors
}
