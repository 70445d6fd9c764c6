//! ConfigMaps, Secrets and ServiceAccounts.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;
use crate::{
    bytes::{decode, encode},
    field_error::{FIELD_ERRORS_MAX, FieldError},
    fields::{child, count, default_text, entries, flag, list, present, text},
    kind::{Column, Native},
    validate::{rules::immutable, syntax::config_key_faults},
};

/// All values of a ConfigMap or Secret together, in bytes.
const DATA_BYTES_MAX: usize = 1024 * 1024;

pub(super) const CONFIG_MAP: Native = Native {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    columns: &[Column::name(), Column::integer("Data", "How many keys it has"), Column::age()],
    cells: |object, now| {
        let keys = count(object, "/data") + count(object, "/binaryData");
        vec![name(object), keys.into(), created(object, now)]
    },
    defaults: |object| one_spelling(object, "binaryData"),
    validate: validate_config_map,
    ..Native::BASE
};

pub(super) const SECRET: Native = Native {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    columns: &[
        Column::name(),
        Column::text("Type", "What the secret is for"),
        Column::integer("Data", "How many keys it has"),
        Column::age(),
    ],
    cells: |object, now| {
        vec![name(object), text(object, "/type").into(), count(object, "/data").into(), created(object, now)]
    },
    defaults: secret_defaults,
    validate: validate_secret,
    selectable_fields: &["type"],
    ..Native::BASE
};

pub(super) const SERVICE_ACCOUNT: Native = Native {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    columns: &[Column::name(), Column::integer("Secrets", "How many secrets it names"), Column::age()],
    cells: |object, now| vec![name(object), list(object, "/secrets").len().into(), created(object, now)],
    ..Native::BASE
};

fn name(object: &Value) -> Value {
    text(object, "/metadata/name").into()
}

fn created(object: &Value, now: Timestamp) -> Value {
    age(text(object, "/metadata/creationTimestamp"), now).into()
}

/// Bytes may come in several spellings; one is stored, which every reader takes.
fn one_spelling(object: &mut Value, field: &str) {
    let Some(Value::Object(data)) = object.get_mut(field) else { return };
    for value in data.values_mut() {
        let known = value.as_str().and_then(|text| decode(text).map(|bytes| (text, encode(&bytes))));
        if let Some((text, spelled)) = known
            && text != spelled
        {
            *value = spelled.into();
        }
    }
}

/// `stringData` is for writing only: its values are moved into `data`, over those that are there.
fn secret_defaults(object: &mut Value) {
    default_text(object, "type", "Opaque");
    one_spelling(object, "data");
    let Some(clear) = object.as_object_mut().and_then(|object| object.shift_remove("stringData")) else {
        return;
    };
    let Some(Value::Object(data)) = child(object, "data") else { return };
    for (key, value) in entries(&clear, "") {
        data.insert(key.clone(), encode(value.as_str().unwrap_or("").as_bytes()).into());
    }
}

fn validate_config_map(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in entries(object, "/data") {
        check_key("data", key, &mut errors);
        if present(object, "/binaryData") && object["binaryData"].get(key).is_some() {
            errors.push(FieldError::invalid(
                format!("data[{key}]"),
                key.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
        size += value.as_str().map_or(0, str::len);
    }
    size += check_binary(object, "binaryData", &mut errors);
    if size > DATA_BYTES_MAX {
        errors.push(FieldError::too_long("", DATA_BYTES_MAX));
    }
    if let Some(old) = old {
        frozen(object, old, &["data", "binaryData"], &mut errors);
    }
    errors
}

fn validate_secret(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, _) in entries(object, "/data") {
        check_key("data", key, &mut errors);
    }
    if check_binary(object, "data", &mut errors) > DATA_BYTES_MAX {
        errors.push(FieldError::too_long("data", DATA_BYTES_MAX));
    }
    let mut need = |key: &str| {
        if object.get("data").and_then(|data| data.get(key)).is_none() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(object, "/type") {
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        "kubernetes.io/dockerconfigjson" => need(".dockerconfigjson"),
        "kubernetes.io/dockercfg" => need(".dockercfg"),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/service-account-token"
            if object.pointer("/metadata/annotations/kubernetes.io~1service-account.name").is_none() =>
        {
            errors.push(FieldError::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
        }
        _ => {}
    }
    if let Some(old) = old {
        immutable(object, old, "/type", &mut errors);
        frozen(object, old, &["data"], &mut errors);
    }
    errors
}

fn check_key(field: &str, key: &str, errors: &mut Vec<FieldError>) {
    if errors.len() >= FIELD_ERRORS_MAX {
        return;
    }
    for fault in config_key_faults(key) {
        errors.push(FieldError::invalid(format!("{field}[{key}]"), key, fault));
    }
}

/// Checks that the values of a map are base64; gives their decoded size in bytes.
fn check_binary(object: &Value, field: &str, errors: &mut Vec<FieldError>) -> usize {
    let mut size = 0;
    for (key, value) in entries(object, &format!("/{field}")) {
        match value.as_str().map(decode) {
            Some(Some(bytes)) => size += bytes.len(),
            // An absent value is an empty one.
            None if value.is_null() => {}
            _ if errors.len() >= FIELD_ERRORS_MAX => {}
            _ => {
                let mut error = FieldError::invalid(format!("{field}[{key}]"), "", "must be base64-encoded");
                error.value = None;
                errors.push(error);
            }
        }
        if field == "binaryData" {
            check_key(field, key, errors);
        }
    }
    size
}

/// What `immutable: true` once said holds for ever.
fn frozen(object: &Value, old: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    if !flag(old, "/immutable") {
        return;
    }
    let detail = "field is immutable when `immutable` is set";
    if !flag(object, "/immutable") {
        errors.push(FieldError::forbidden("immutable", detail));
    }
    let empty = json!({});
    let content = |object: &Value, field: &str| object.get(field).unwrap_or(&empty).clone();
    for field in fields {
        if content(object, field) != content(old, field) {
            errors.push(FieldError::forbidden(*field, detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn lines(errors: &[FieldError]) -> String {
        errors.iter().map(|error| format!("{error}\n")).collect()
    }

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "clear"}});
        secret_defaults(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "Y2xlYXI=", "b": "eQ=="}, "type": "Opaque"}));
    }

    #[test]
    fn bytes_are_taken_as_go_reads_them_and_stored_as_everybody_does() {
        let mut secret = json!({"data": {"a": "YQ\n==", "b": "YR==", "c": "YQ"}});
        secret_defaults(&mut secret);
        assert_eq!(secret["data"], json!({"a": "YQ==", "b": "YQ==", "c": "YQ"}));
        assert_eq!(
            lines(&validate_secret(&secret, None)),
            "data[c]: Invalid value: must be base64-encoded\n"
        );
        let mut map = json!({"binaryData": {"a": "Y\r\nQ=="}});
        (CONFIG_MAP.defaults)(&mut map);
        assert_eq!(map["binaryData"]["a"], "YQ==");
        assert_eq!(lines(&validate_config_map(&map, None)), "");
    }

    #[test]
    fn keys_and_values_are_checked() {
        let map = json!({"data": {"a": "x", "b/c": "y"}, "binaryData": {"a": "eA==", "z": "%"}});
        let text = lines(&validate_config_map(&map, None));
        assert!(
            text.starts_with("data[a]: Invalid value: \"a\": duplicate of key present in binaryData\n"),
            "{text}"
        );
        assert!(text.contains("data[b/c]: Invalid value: \"b/c\": a valid config key"), "{text}");
        assert!(text.ends_with("binaryData[z]: Invalid value: must be base64-encoded\n"), "{text}");
        let big = json!({"data": {"a": "x".repeat(DATA_BYTES_MAX + 1)}});
        assert_eq!(lines(&validate_config_map(&big, None)), "Too long: may not be more than 1048576 bytes\n");
        expect![[r#"
            data[tls.crt]: Required value
            data[tls.key]: Required value
        "#]]
        .assert_eq(&lines(&validate_secret(&json!({"type": "kubernetes.io/tls"}), None)));
    }

    #[test]
    fn what_is_immutable_stays() {
        let old = json!({"type": "a", "data": {"a": "eA=="}, "immutable": true});
        let new = json!({"type": "b", "data": {}});
        expect![[r#"
            type: Invalid value: "b": field is immutable
            immutable: Forbidden: field is immutable when `immutable` is set
            data: Forbidden: field is immutable when `immutable` is set
        "#]]
        .assert_eq(&lines(&validate_secret(&new, Some(&old))));
        assert_eq!(lines(&validate_secret(&old, Some(&old))), "");
    }
}
