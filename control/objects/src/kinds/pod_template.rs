//! What workloads share: the pod template, the selector, and the columns that show them.

use serde_json::Value;

use super::pod::{Place, spec_warnings, validate_spec};
use crate::{
    field_error::FieldError,
    fields::{integer, list, present, text},
    kind::Column,
    selector::LabelSelector,
    validate::{
        meta::{validate_annotations, validate_labels},
        rules::{format_selector, immutable, label_selector, not_negative},
    },
};

pub(super) const CONTAINERS: Column =
    Column::wide("Containers", "The names of the containers in the template");
pub(super) const IMAGES: Column = Column::wide("Images", "The images of the containers in the template");
pub(super) const SELECTOR: Column = Column::wide("Selector", "The labels of the pods that are its own");

/// Containers, images and selector.
pub(super) fn wide_cells(object: &Value) -> [Value; 3] {
    let joined = |path: &str| {
        let containers = list(object, "/spec/template/spec/containers").iter();
        containers.map(|container| text(container, path)).collect::<Vec<_>>().join(",").into()
    };
    [joined("/name"), joined("/image"), format_selector(object.pointer("/spec/selector")).into()]
}

/// Checks replicas, selector and template of a workload whose pods run for ever; `what` names it in messages.
pub(super) fn validate(object: &Value, old: Option<&Value>, what: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for key in ["replicas", "minReadySeconds"] {
        not_negative(object, &format!("/spec/{key}"), format!("spec.{key}"), &mut errors);
    }
    let labels = object.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null);
    match object.pointer("/spec/selector").filter(|selector| !selector.is_null()) {
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(selector) => {
            let mut faults = Vec::new();
            label_selector(selector, "spec.selector", &mut faults);
            if let Ok(parsed) = LabelSelector::from_json(Some(selector)) {
                if parsed.is_everything() {
                    let detail = format!("empty selector is invalid for {what}");
                    faults.push(FieldError::invalid("spec.selector", selector.clone(), detail));
                } else if faults.is_empty() && !parsed.matches_value(labels) {
                    let detail = "`selector` does not match template `labels`";
                    faults.push(FieldError::invalid("spec.template.metadata.labels", labels.clone(), detail));
                }
            }
            errors.append(&mut faults);
        }
    }
    if present(object, "/spec/template") {
        template(object, &mut errors);
    } else {
        errors.push(FieldError::required("spec.template", ""));
    }
    if let Some(old) = old {
        immutable(object, old, "/spec/selector", &mut errors);
    }
    errors
}

fn template(object: &Value, errors: &mut Vec<FieldError>) {
    let field = "spec.template";
    validate_labels(object, "/spec/template/metadata/labels", &format!("{field}.labels"), errors);
    validate_annotations(
        object,
        "/spec/template/metadata/annotations",
        &format!("{field}.annotations"),
        errors,
    );
    let spec = object.pointer("/spec/template/spec").unwrap_or(&Value::Null);
    validate_spec(spec, &format!("{field}.spec"), Place::LastingTemplate, errors);
}

/// What of the template has no effect.
pub(super) fn warnings(object: &Value) -> Vec<String> {
    spec_warnings(object.pointer("/spec/template/spec").unwrap_or(&Value::Null), "spec.template.spec")
}

/// The integer at `path`, zero where there is none.
pub(super) fn number(object: &Value, path: &str) -> i64 {
    integer(object, path).unwrap_or(0)
}
