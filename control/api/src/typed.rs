//! The one typed decode: what every writer's object is brought to before anything else looks at it.
//!
//! The schemas are compiled once into [`Type`]s. [`conform`] walks a document and its type together: fields that the
//! type does not have are dropped and named, null is as if the field were absent (in a list or a map it is the zero value
//! of what belongs there), integers are whole and within their range, quantities and times are such. What is admitted
//! here every reader can read: controllers, scheduler and nodes parse the same fields more narrowly, never more strictly.

use coracle_objects::{
    FieldError, FieldPath as Path, Quantity,
    schema::{ELEMENTS_MAX, Type, Types},
};
use jiff::Timestamp;
use serde_json::{Value, json};

/// No document nests deeper, in whatever format it comes: lists and watches wrap objects in a few levels more, and the
/// parsers that read them stop at 128.
pub const DEPTH_MAX: usize = 100;

/// So many unknown fields are named; upstream stops there as well.
pub const UNKNOWN_MAX: usize = 100;

/// Go's zero time. Go's clients send null for it and read this as it; readers that ask for a time find one.
const TIME_ZERO: &str = "0001-01-01T00:00:00Z";

/// What a walk over a document and its type finds.
#[derive(Debug, Default)]
pub struct Findings {
    /// Paths of fields that the type does not have, the first [`UNKNOWN_MAX`]. They have been dropped.
    pub unknown: Vec<String>,
    /// The first value that is not of its type, in the words of Go's decoder.
    pub mismatch: Option<String>,
    /// The list that is too long, where that is the mismatch.
    pub too_many: Option<FieldError>,
}

/// Brings a document into the form of that of the types whose schema is named (`io.k8s.api.apps.v1.Deployment`). A schema that is
/// not known allows anything that does not nest too deeply. Linear in the document.
pub fn conform(value: &mut Value, types: &Types, schema: &str) -> Findings {
    let mut walk = Walk { types, findings: Findings::default(), elements: 0 };
    let type_ = types.by_name(schema).unwrap_or(&Type::Any);
    let owner = schema.rsplit('.').next().unwrap_or(schema);
    // The walk stops at the first mismatch.
    if let Err(mismatch) = walk.value(value, type_, &Place { owner, path: &Path::Root, depth: 1 }) {
        walk.findings.mismatch = Some(mismatch);
    }
    walk.findings
}

/// A value's place: the Go struct that has the field, the field's path, how many levels lead there.
struct Place<'a> {
    owner: &'a str,
    path: &'a Path<'a>,
    depth: usize,
}

impl Place<'_> {
    fn inner<'a>(&'a self, path: &'a Path<'a>) -> Place<'a> {
        Place { owner: self.owner, path, depth: self.depth + 1 }
    }

    fn is_no(&self, value: &Value, type_: &Type, types: &Types) -> String {
        let found = match (value, type_) {
            (Value::Number(number), Type::Int32 | Type::Int64) => format!("number {number}"),
            _ => json_type(value).to_owned(),
        };
        let (owner, path) = (self.owner, self.path.shown());
        let type_ = type_.shown(types);
        format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {type_}")
    }
}

struct Walk<'a> {
    types: &'a Types,
    findings: Findings,
    /// Structs in the lists so far.
    elements: usize,
}

impl Walk<'_> {
    fn value(&mut self, value: &mut Value, type_: &Type, place: &Place<'_>) -> Result<(), String> {
        if place.depth > DEPTH_MAX {
            return Err(too_deep(place.path));
        }
        match (type_, &mut *value) {
            (Type::Any, value) => check_depth(value, place.path, place.depth),
            (Type::AnyObject, Value::Object(_)) => check_depth(value, place.path, place.depth),
            (Type::Text, Value::String(_)) | (Type::Boolean, Value::Bool(_)) => Ok(()),
            (Type::Int32, Value::Number(number))
                if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) =>
            {
                Ok(())
            }
            (Type::Int64, Value::Number(number)) if number.is_i64() => Ok(()),
            (Type::Number, Value::Number(_)) => Ok(()),
            (Type::IntOrString, Value::String(_)) => Ok(()),
            (Type::IntOrString, Value::Number(_)) => self.value(value, &Type::Int32, place),
            (Type::Quantity, Value::String(_) | Value::Number(_)) => quantity(value, place),
            (Type::Time { fraction }, Value::String(text)) => time(text, *fraction, place),
            (Type::List(element, max), Value::Array(list)) => {
                self.check_length(list.len(), element, *max, place)?;
                for (index, value) in list.iter_mut().enumerate() {
                    let path = Path::Index(place.path, index);
                    self.element(value, element, &place.inner(&path))?;
                }
                Ok(())
            }
            (Type::Map(element), Value::Object(map)) => {
                for (key, value) in map.iter_mut() {
                    let path = Path::Field(place.path, key);
                    self.element(value, element, &place.inner(&path))?;
                }
                Ok(())
            }
            (Type::Struct(index), Value::Object(map)) => {
                let type_ = self.types.get(*index);
                let keeps_null = |name: &str| type_.field(name).is_none_or(|field| field.nullable);
                map.retain(|name, value| !value.is_null() || keeps_null(name));
                let mut unknown = false;
                for (name, value) in map.iter_mut() {
                    let path = Path::Field(place.path, name);
                    let Some(field) = type_.field(name) else {
                        if type_.open {
                            check_depth(value, &path, place.depth + 1)?;
                        } else {
                            unknown = true;
                            self.note_unknown(&path);
                        }
                        continue;
                    };
                    if value.is_null() {
                        continue;
                    }
                    self.value(value, &field.type_, &Place { owner: type_.name(), ..place.inner(&path) })?;
                }
                if unknown {
                    map.retain(|name, _| type_.has(name));
                }
                for missing in &type_.times {
                    map.entry(missing).or_insert_with(|| TIME_ZERO.into());
                }
                Ok(())
            }
            (type_, value) => Err(place.is_no(value, type_, self.types)),
        }
    }

    /// A value of a list or of a map, where null is a zero value.
    fn element(&mut self, value: &mut Value, type_: &Type, place: &Place<'_>) -> Result<(), String> {
        if value.is_null() && self.types.is_declared() {
            // Whether it may be null the schema's rules say.
            return Ok(());
        }
        if value.is_null() {
            *value = zero(type_);
        }
        self.value(value, type_, place)
    }

    /// Refuses a list before its elements are looked at.
    fn check_length(
        &mut self,
        length: usize,
        element: &Type,
        max: usize,
        place: &Place<'_>,
    ) -> Result<(), String> {
        let error = if length > max {
            FieldError::too_many(place.path.shown(), length, max)
        } else {
            self.elements += if element.is_plain() { 0 } else { length };
            if self.elements <= ELEMENTS_MAX {
                return Ok(());
            }
            let mut error = FieldError::too_many(place.path.shown(), self.elements, ELEMENTS_MAX);
            error.detail = format!("all lists of the object together must have at most {ELEMENTS_MAX} items");
            error
        };
        let text = error.to_string();
        self.findings.too_many = Some(error);
        Err(text)
    }

    fn note_unknown(&mut self, path: &Path<'_>) {
        if self.findings.unknown.len() < UNKNOWN_MAX {
            self.findings.unknown.push(path.shown());
        }
    }
}

/// Kubernetes writes quantities as text, also those that came as numbers.
fn quantity(value: &mut Value, place: &Place<'_>) -> Result<(), String> {
    Quantity::from_json(value).map_err(|error| format!("{error} (field {})", place.path.shown()))?;
    if let Value::Number(number) = &*value {
        *value = number.to_string().into();
    }
    Ok(())
}

/// Kubernetes writes times in UTC, with whole seconds or (`fraction`) microseconds.
fn time(text: &mut String, fraction: bool, place: &Place<'_>) -> Result<(), String> {
    let moment = rfc3339(text).ok_or_else(|| {
        format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": it is no RFC 3339 time (field {})",
            place.path.shown()
        )
    })?;
    let form = if fraction { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    *text = moment.strftime(form).to_string();
    Ok(())
}

fn rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let shape = bytes.len() >= 20 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[10] == b'T';
    let moment: Timestamp = if shape { text.parse().ok()? } else { return None };
    // Another zone's last day of the year 9999 may be one of the year 10000 here.
    let year = moment.to_zoned(jiff::tz::TimeZone::UTC).year();
    (0..=9999).contains(&year).then_some(moment)
}

/// Refuses what nests too deeply. `depth` levels lead to `value`.
fn check_depth(value: &Value, path: &Path<'_>, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(too_deep(path));
    }
    match value {
        Value::Array(list) => list.iter().enumerate().try_for_each(|(index, value)| {
            check_depth(value, &Path::Index(path, index), depth + usize::from(nests(value)))
        }),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| {
            check_depth(value, &Path::Field(path, key), depth + usize::from(nests(value)))
        }),
        _ => Ok(()),
    }
}

fn nests(value: &Value) -> bool {
    value.is_array() || value.is_object()
}

fn too_deep(path: &Path<'_>) -> String {
    let path: String = path.shown().chars().take(64).collect();
    format!("exceeded max depth: {path}... nests deeper than {DEPTH_MAX} levels")
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What Go has where nothing is given.
fn zero(type_: &Type) -> Value {
    match type_ {
        Type::Any => Value::Null,
        Type::AnyObject | Type::Map(_) | Type::Struct(_) => json!({}),
        Type::Text => "".into(),
        Type::Boolean => false.into(),
        Type::Int32 | Type::Int64 | Type::Number | Type::IntOrString => 0.into(),
        Type::Quantity => "0".into(),
        // A zero time is null, which is nothing to a reader; lists and maps of times there are none.
        Type::Time { .. } => Value::Null,
        Type::List(..) => json!([]),
    }
}

#[cfg(test)]
mod tests;
