//! Validation of volumes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    names::Names,
    reference::{self, OF_FILES},
};
use crate::{
    field_error::FieldError,
    field_path::shown,
    fields::{entries, integer, list, present, text},
    quantity::Quantity,
    validate::syntax::label_faults,
};

/// Source: `PATH_MAX` and `NAME_MAX` of Linux.
const PATH_BYTES_MAX: usize = 4096;
const PART_BYTES_MAX: usize = 255;

/// Checks the volumes of a pod's spec, whose parts have these names. Sources that no node has are refused elsewhere.
pub(super) fn validate(spec: &Value, field: &str, known: &Names<'_>, errors: &mut Vec<FieldError>) {
    let mut names = BTreeSet::new();
    for (index, volume) in list(spec, "/volumes").iter().enumerate() {
        let at = format!("{field}.volumes[{index}]");
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else {
            for fault in label_faults(name) {
                errors.push(FieldError::invalid(format!("{at}.name"), name, fault));
            }
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{at}.name"), name));
            }
        }
        let sources: Vec<(&String, &Value)> =
            entries(volume, "").filter(|(key, source)| *key != "name" && !source.is_null()).collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::required(&at, "must specify a volume type")),
            [(kind, source), rest @ ..] => {
                check_source(kind, source, &format!("{at}.{kind}"), known, errors);
                for (kind, _) in rest {
                    let detail = "may not specify more than 1 volume type";
                    errors.push(FieldError::forbidden(format!("{at}.{kind}"), detail));
                }
            }
        }
    }
}

fn check_source(kind: &str, source: &Value, field: &str, names: &Names<'_>, errors: &mut Vec<FieldError>) {
    match kind {
        "configMap" => reference::object_name(source, "name", field, errors),
        "secret" => reference::object_name(source, "secretName", field, errors),
        "emptyDir" => size_limit(source, field, errors),
        _ => {}
    }
    check_mode(source, "defaultMode", field, errors);
    let mut paths = Paths::default();
    check_items(kind, source, field, (names, &mut paths), errors);
    for (index, source) in list(source, "/sources").iter().enumerate() {
        let field = format!("{field}.sources[{index}]");
        let given: Vec<(&String, &Value)> = entries(source, "").filter(|(_, one)| !one.is_null()).collect();
        if given.is_empty() {
            errors.push(FieldError::required(&field, "must specify a source"));
        }
        for (at, (kind, source)) in given.into_iter().enumerate() {
            let field = format!("{field}.{kind}");
            if at > 0 {
                let detail = "may not specify more than 1 volume type per source";
                errors.push(FieldError::forbidden(&field, detail));
            }
            if matches!(kind.as_str(), "configMap" | "secret") {
                reference::object_name(source, "name", &field, errors);
            }
            check_items(kind, source, &field, (names, &mut paths), errors);
        }
    }
    paths.check(errors);
}

fn size_limit(source: &Value, field: &str, errors: &mut Vec<FieldError>) {
    let Some(limit) = source.get("sizeLimit").filter(|limit| !limit.is_null()) else { return };
    let at = format!("{field}.sizeLimit");
    match Quantity::from_json(limit) {
        Err(error) => errors.push(FieldError::invalid(at, limit.clone(), error.to_string())),
        Ok(quantity) if quantity.is_negative() => {
            errors.push(FieldError::forbidden(at, "SizeLimit field must be a valid resource quantity"));
        }
        Ok(_) => {}
    }
}

/// The paths of a volume's files, each of which comes from one source, with where they stand.
#[derive(Default)]
struct Paths(Vec<(String, String)>);

impl Paths {
    fn add(&mut self, path: &str, field: String) {
        self.0.push((path.to_owned(), field));
    }

    /// Files within a directory stand behind it, and before all else: no other byte is less than the one between them.
    fn check(mut self, errors: &mut Vec<FieldError>) {
        self.0.sort_by_cached_key(|(path, _)| path.replace('/', "\0"));
        for pair in self.0.windows(2) {
            let [(before, _), (path, field)] = pair else { continue };
            let below = path.strip_prefix(before.as_str());
            let detail = match below {
                Some("") => {
                    "conflicting duplicate paths: each path of a volume can come from one source only"
                }
                Some(below) if below.starts_with('/') => {
                    "conflicting paths: one would be both a file and a directory"
                }
                _ => continue,
            };
            errors.push(FieldError::invalid(field, path.as_str(), detail));
        }
    }
}

/// The permissions of a file.
fn check_mode(owner: &Value, key: &str, field: &str, errors: &mut Vec<FieldError>) {
    let mode = integer(owner, &format!("/{key}"));
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(format!("{field}.{key}"), mode, detail));
    }
}

fn check_items(
    kind: &str,
    source: &Value,
    field: &str,
    (names, paths): (&Names<'_>, &mut Paths),
    errors: &mut Vec<FieldError>,
) {
    for (index, item) in list(source, "/items").iter().enumerate() {
        let at = format!("{field}.items[{index}]");
        check_mode(item, "mode", &at, errors);
        if kind == "downwardAPI" {
            check_downward(item, &at, names, errors);
        } else {
            reference::data_key(item, &at, errors);
        }
        let (path, at) = (text(item, "/path"), format!("{at}.path"));
        if path.is_empty() {
            errors.push(FieldError::required(at, ""));
        } else {
            check_file(path, &at, errors);
            paths.add(path, at);
        }
    }
}

/// A file that shows something of the pod itself.
fn check_downward(item: &Value, field: &str, names: &Names<'_>, errors: &mut Vec<FieldError>) {
    match (present(item, "/fieldRef"), present(item, "/resourceFieldRef")) {
        (true, true) => {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(FieldError::invalid(field, "resource", detail));
        }
        (true, false) => {
            reference::field_ref(&item["fieldRef"], &format!("{field}.fieldRef"), OF_FILES, errors);
        }
        (false, true) => {
            let at = format!("{field}.resourceFieldRef");
            reference::resource_ref(&item["resourceFieldRef"], &at, (names, true), errors);
        }
        (false, false) => {
            let detail = "one of fieldRef and resourceFieldRef is required";
            errors.push(FieldError::required(format!("{field}.fieldRef"), detail));
        }
    }
}

/// The path of a file that the node writes below a volume's root, where it keeps links of its own.
fn check_file(path: &str, field: &str, errors: &mut Vec<FieldError>) {
    check_relative(path, field, errors);
    if path.starts_with("..") && !path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(field, path, "must not start with '..'"));
    } else if !path.starts_with('/') && path.split('/').any(str::is_empty) {
        errors.push(FieldError::invalid(field, path, "must not have empty parts"));
    }
    check_length(path, field, errors);
}

/// A path as long as a file system takes it.
pub(super) fn check_length(path: &str, field: &str, errors: &mut Vec<FieldError>) {
    let (most, most_of_part) = (PATH_BYTES_MAX, PART_BYTES_MAX);
    if path.len() > most || path.split('/').any(|part| part.len() > most_of_part) {
        let detail = format!("may not be longer than {most} bytes, nor one of its parts than {most_of_part}");
        errors.push(FieldError::invalid(field, shown(path), detail));
    }
}

/// A path below a volume's root.
pub(super) fn check_relative(path: &str, field: &str, errors: &mut Vec<FieldError>) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(field, path, "must be a relative path"));
    } else if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(field, path, "must not contain '..'"));
    }
}
