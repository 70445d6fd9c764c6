//! Validation of probes and lifecycle handlers.

use serde_json::Value;

use crate::{
    field_error::FieldError,
    fields::{integer, list, present, text},
    validate::{
        rules::{not_negative, one_of, port_or_name},
        syntax::port_number_faults,
    },
};

/// Checks the probe at `field`; `kind` is the last part of that.
pub(super) fn validate(probe: &Value, field: &str, kind: &str, errors: &mut Vec<FieldError>) {
    handler(probe, field, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        not_negative(probe, &format!("/{key}"), format!("{field}.{key}"), errors);
    }
    let threshold = integer(probe, "/successThreshold").unwrap_or(1);
    if kind != "readinessProbe" && threshold != 1 {
        errors.push(FieldError::invalid(format!("{field}.successThreshold"), threshold, "must be 1"));
    }
    if let Some(seconds) = integer(probe, "/terminationGracePeriodSeconds").filter(|seconds| *seconds <= 0) {
        let at = format!("{field}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(at, seconds, "must be greater than 0"));
    }
    if kind == "readinessProbe" && present(probe, "/terminationGracePeriodSeconds") {
        let at = format!("{field}.terminationGracePeriodSeconds");
        errors.push(FieldError::forbidden(at, "must not be set for readinessProbes"));
    }
}

/// Exactly one of the `kinds` of handler, and that one well formed.
pub(super) fn handler(holder: &Value, field: &str, kinds: &[&str], errors: &mut Vec<FieldError>) {
    let given: Vec<&str> =
        kinds.iter().copied().filter(|kind| present(holder, &format!("/{kind}"))).collect();
    if given.is_empty() {
        errors.push(FieldError::required(field, "must specify a handler type"));
    }
    for second in given.iter().skip(1) {
        errors.push(FieldError::forbidden(
            format!("{field}.{second}"),
            "may not specify more than 1 handler type",
        ));
    }
    let Some(kind) = given.first() else { return };
    let at = format!("{field}.{kind}");
    let action = &holder[*kind];
    match *kind {
        "exec" if list(action, "/command").is_empty() => {
            errors.push(FieldError::required(format!("{at}.command"), ""));
        }
        "httpGet" => {
            if text(action, "/path").is_empty() {
                errors.push(FieldError::required(format!("{at}.path"), ""));
            }
            port_or_name(action.get("port"), &format!("{at}.port"), errors);
            one_of(format!("{at}.scheme"), text(action, "/scheme"), &["HTTP", "HTTPS"], errors);
            for (index, header) in list(action, "/httpHeaders").iter().enumerate() {
                check_header(text(header, "/name"), &format!("{at}.httpHeaders[{index}].name"), errors);
            }
        }
        "tcpSocket" => port_or_name(action.get("port"), &format!("{at}.port"), errors),
        "grpc" => {
            let port = integer(action, "/port").unwrap_or(0);
            let faults = port_number_faults(port);
            errors.extend(
                faults.into_iter().map(|fault| FieldError::invalid(format!("{at}.port"), port, fault)),
            );
        }
        _ => {}
    }
}

fn check_header(name: &str, field: &str, errors: &mut Vec<FieldError>) {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || !name.bytes().all(fine) {
        let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex \
            used for validation is '[-A-Za-z0-9]+')";
        errors.push(FieldError::invalid(field, name, detail));
    }
}
