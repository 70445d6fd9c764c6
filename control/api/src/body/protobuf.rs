//! Kubernetes' protobuf bodies, decoded generically by a table of field numbers.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown`: a TypeMeta and the message's bytes. The numbers come from the
//! `.proto` files of Kubernetes 1.33; fields that the table does not have are skipped, as real API servers do.

use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Number, Value, json};
use thiserror::Error;

use crate::strict::{self, VALUES_MAX};

mod write;

pub use write::{encode, encode_event};

const MAGIC: &[u8] = b"k8s\0";
/// Messages nest no deeper than this.
const DEPTH_MAX: u32 = 64;
const TABLE: &str = include_str!("protobuf_fields.txt");

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    #[error("unexpected end of the protobuf message")]
    Truncated,
    #[error("the protobuf message is malformed: {0}")]
    Malformed(&'static str),
    #[error("no kind {0} is registered for protobuf")]
    UnknownKind(String),
}

/// How a field's bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Bytes,
    Integer,
    Boolean,
    Double,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    Duration,
    Fields,
    Raw,
    Message(&'static str),
}

#[derive(Clone, Copy, Debug)]
struct Field {
    number: u64,
    /// Empty: inlined. `[]`: the message is its list.
    name: &'static str,
    type_: Type,
    repeated: bool,
    map: bool,
    keep_zero: bool,
}

/// Decodes a body into JSON with apiVersion and kind.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let unknown = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let (mut api_version, mut kind, mut raw): (String, String, &[u8]) = (String::new(), String::new(), &[]);
    for field in Wire(unknown) {
        match field? {
            (1, Item::Bytes(meta)) => {
                for field in Wire(meta) {
                    match field? {
                        (1, Item::Bytes(text)) => api_version = utf8(text)?.to_owned(),
                        (2, Item::Bytes(text)) => kind = utf8(text)?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let message = message_name(&api_version, &kind)
        .ok_or_else(|| ProtobufError::UnknownKind(format!("{api_version} {kind}")))?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    read_message(raw, message, &mut object, &mut Reading { depth: 0, values: VALUES_MAX })?;
    Ok(Value::Object(object))
}

/// Whether objects of this kind can be written in protobuf.
pub fn has(api_version: &str, kind: &str) -> bool {
    message_name(api_version, kind).is_some()
}

/// The message of a kind in the table's abbreviated form: `a.apps.v1.Deployment`.
fn message_name(api_version: &str, kind: &str) -> Option<&'static str> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    // Groups that end otherwise are declared.
    if group.contains('.') && !group.ends_with(".k8s.io") {
        return None;
    }
    // DeleteOptions travel with the group-version of the object.
    if matches!(kind, "DeleteOptions" | "Status") || group == "meta.k8s.io" {
        return table().get_key_value(format!("m.{kind}").as_str()).map(|(name, _)| *name);
    }
    let group = group.split('.').next().unwrap_or(group);
    table().get_key_value(format!("a.{group}.{version}.{kind}").as_str()).map(|(name, _)| *name)
}

fn table() -> &'static HashMap<&'static str, Vec<Field>> {
    static FIELDS: OnceLock<HashMap<&'static str, Vec<Field>>> = OnceLock::new();
    FIELDS.get_or_init(|| {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| {
                let mut words = line.split(' ');
                Some((words.next()?, words.filter_map(parse_field).collect()))
            })
            .collect()
    })
}

fn parse_field(word: &'static str) -> Option<Field> {
    let mut parts = word.splitn(3, ':');
    let (number, name, mut type_) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let mut take = |mark: char| match type_.strip_prefix(mark) {
        Some(rest) => {
            type_ = rest;
            true
        }
        None => false,
    };
    let (keep_zero, repeated, map) = (take('!'), take('*'), take('%'));
    let type_ = match type_ {
        "s" => Type::Text,
        "b" => Type::Bytes,
        "i" => Type::Integer,
        "t" => Type::Boolean,
        "d" => Type::Double,
        "quantity" => Type::Quantity,
        "intstr" => Type::IntOrString,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "duration" => Type::Duration,
        "fields" => Type::Fields,
        "raw" => Type::Raw,
        message => Type::Message(message),
    };
    Some(Field { number, name, type_, repeated, map, keep_zero })
}

/// One field on the wire.
#[derive(Clone, Copy, Debug)]
enum Item<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// The fields of a message, in order.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(ProtobufError::Truncated)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Malformed("a number is too long"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], ProtobufError> {
        let length = usize::try_from(length).map_err(|_| ProtobufError::Truncated)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Item<'a>), ProtobufError> {
        let tag = self.varint()?;
        let item = match tag & 7 {
            0 => Item::Varint(self.varint()?),
            1 => {
                let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| ProtobufError::Truncated)?;
                Item::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let length = self.varint()?;
                Item::Bytes(self.take(length)?)
            }
            5 => {
                let bytes: [u8; 4] = self.take(4)?.try_into().map_err(|_| ProtobufError::Truncated)?;
                Item::Fixed32(u32::from_le_bytes(bytes))
            }
            _ => return Err(ProtobufError::Malformed("a wire type is unknown")),
        };
        Ok((tag >> 3, item))
    }
}

impl<'a> Iterator for Wire<'a> {
    type Item = Result<(u64, Item<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Where the reading of a message is, and how much may still come.
struct Reading {
    depth: u32,
    values: usize,
}

impl Reading {
    fn count(&mut self) -> Result<(), ProtobufError> {
        self.values =
            self.values.checked_sub(1).ok_or(ProtobufError::Malformed("it has more than 250000 values"))?;
        Ok(())
    }

    /// Reads a message in this one.
    fn inner<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, ProtobufError>,
    ) -> Result<T, ProtobufError> {
        if self.depth >= DEPTH_MAX {
            return Err(ProtobufError::Malformed("messages are nested too deeply"));
        }
        self.depth += 1;
        let outcome = read(self);
        self.depth -= 1;
        outcome
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| ProtobufError::Malformed("a text is not UTF-8"))
}

fn read_message(
    bytes: &[u8],
    message: &str,
    object: &mut Map<String, Value>,
    reading: &mut Reading,
) -> Result<(), ProtobufError> {
    let fields = table().get(message).map_or(&[][..], Vec::as_slice);
    for item in Wire(bytes) {
        let (number, item) = item?;
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        reading.count()?;
        if field.map {
            read_entry(item, field, object, reading)?;
        } else if field.name.is_empty() {
            if let (Type::Message(inner), Item::Bytes(bytes)) = (field.type_, item) {
                reading.inner(|reading| read_message(bytes, inner, object, reading))?;
            }
        } else if field.repeated {
            if let Some(value) = read_value(item, field.type_, reading)? {
                match object.entry(field.name).or_insert_with(|| json!([])) {
                    Value::Array(list) => list.push(value),
                    _ => return Err(ProtobufError::Malformed("a list is none")),
                }
            }
        } else if let Some(value) = read_value(item, field.type_, reading)?
            && (field.keep_zero || !is_zero(&value))
        {
            object.insert(field.name.to_owned(), value);
        }
    }
    Ok(())
}

/// Go leaves a field with `omitempty` out where it is zero. Empty messages stay: they mean something (`emptyDir: {}`).
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

/// One entry of a map: a message of key (1) and value (2).
fn read_entry(
    item: Item<'_>,
    field: &Field,
    object: &mut Map<String, Value>,
    reading: &mut Reading,
) -> Result<(), ProtobufError> {
    let Item::Bytes(bytes) = item else {
        return Err(ProtobufError::Malformed("a map's entry is no message"));
    };
    let (mut key, mut value) = (String::new(), None);
    for item in Wire(bytes) {
        match item? {
            (1, Item::Bytes(text)) => key = utf8(text)?.to_owned(),
            (2, item) => value = read_value(item, field.type_, reading)?,
            _ => {}
        }
    }
    let value = value.unwrap_or_else(|| match field.type_ {
        Type::Text | Type::Bytes => "".into(),
        _ => Value::Null,
    });
    match object.entry(field.name).or_insert_with(|| json!({})) {
        Value::Object(map) => {
            map.insert(key, value);
            Ok(())
        }
        _ => Err(ProtobufError::Malformed("a map is none")),
    }
}

/// None where there is nothing to show: a zero time.
fn read_value(item: Item<'_>, type_: Type, reading: &mut Reading) -> Result<Option<Value>, ProtobufError> {
    let value = match (type_, item) {
        (Type::Integer, Item::Varint(number)) => (number as i64).into(),
        (Type::Boolean, Item::Varint(number)) => (number != 0).into(),
        (Type::Double, Item::Fixed64(bits)) => {
            Number::from_f64(f64::from_bits(bits)).map_or(Value::Null, Value::Number)
        }
        (Type::Double, Item::Fixed32(bits)) => {
            Number::from_f64(f64::from(f32::from_bits(bits))).map_or(Value::Null, Value::Number)
        }
        (Type::Text, Item::Bytes(bytes)) => utf8(bytes)?.into(),
        (Type::Bytes, Item::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Quantity, Item::Bytes(bytes)) => text_at(bytes, 1)?.into(),
        (Type::IntOrString, Item::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Time, Item::Bytes(bytes)) => return time(bytes, 0),
        (Type::MicroTime, Item::Bytes(bytes)) => return time(bytes, 6),
        (Type::Duration, Item::Bytes(bytes)) => duration(number_at(bytes, 1)?).into(),
        (Type::Fields | Type::Raw, Item::Bytes(bytes)) => raw_json(bytes, reading)?,
        (Type::Message(message), Item::Bytes(bytes)) => {
            let mut inner = Map::new();
            reading.inner(|reading| read_message(bytes, message, &mut inner, reading))?;
            let is_list =
                table().get(message).is_some_and(|fields| fields.iter().any(|field| field.name == "[]"));
            if is_list { inner.shift_remove("[]").unwrap_or_else(|| json!([])) } else { Value::Object(inner) }
        }
        _ => return Err(ProtobufError::Malformed("a field has a wrong wire type")),
    };
    Ok(Some(value))
}

fn text_at(bytes: &[u8], number: u64) -> Result<&str, ProtobufError> {
    let mut text = "";
    for item in Wire(bytes) {
        if let (found, Item::Bytes(bytes)) = item?
            && found == number
        {
            text = utf8(bytes)?;
        }
    }
    Ok(text)
}

fn number_at(bytes: &[u8], number: u64) -> Result<i64, ProtobufError> {
    let mut value = 0;
    for item in Wire(bytes) {
        if let (found, Item::Varint(varint)) = item?
            && found == number
        {
            value = varint as i64;
        }
    }
    Ok(value)
}

/// `{1: type (0 = integer, 1 = text), 2: integer, 3: text}`
fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    if number_at(bytes, 1)? == 1 { Ok(text_at(bytes, 3)?.into()) } else { Ok(number_at(bytes, 2)?.into()) }
}

/// `{1: seconds, 2: nanoseconds}` since 1970; an empty message is Go's zero time.
fn time(bytes: &[u8], digits: usize) -> Result<Option<Value>, ProtobufError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let seconds = number_at(bytes, 1)?;
    let nanos = i32::try_from(number_at(bytes, 2)?).map_err(|_| ProtobufError::Malformed("a time"))?;
    let moment =
        Timestamp::new(seconds, nanos).map_err(|_| ProtobufError::Malformed("a time is out of range"))?;
    let text = moment.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let text = if digits == 0 { text } else { format!("{text}.{:06}", moment.subsec_nanosecond() / 1000) };
    Ok(Some(format!("{text}Z").into()))
}

/// Nanoseconds as Go prints a duration of whole seconds, else with a fraction.
fn duration(nanos: i64) -> String {
    let seconds = nanos / 1_000_000_000;
    let fraction = (nanos % 1_000_000_000).abs();
    if fraction == 0 {
        format!("{seconds}s")
    } else {
        format!("{seconds}.{}s", format!("{fraction:09}").trim_end_matches('0'))
    }
}

/// `{1: JSON bytes}`
fn raw_json(bytes: &[u8], reading: &mut Reading) -> Result<Value, ProtobufError> {
    let text = text_at(bytes, 1)?;
    if text.is_empty() {
        return Ok(Value::Null);
    }
    let decoded = strict::decode_json_of(text.as_bytes(), &mut reading.values);
    decoded.map(|decoded| decoded.value).map_err(|_| ProtobufError::Malformed("a raw extension is not JSON"))
}

#[cfg(test)]
mod tests;
