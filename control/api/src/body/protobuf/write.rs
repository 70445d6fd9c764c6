//! Objects as Kubernetes' protobuf, by the same table that reads them.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::{DEPTH_MAX, Field, MAGIC, ProtobufError, Type, message_name, table};

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

type Written = Result<(), ProtobufError>;

/// An object with its apiVersion and kind, or a list of such.
pub fn encode(object: &Value) -> Result<Vec<u8>, ProtobufError> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (mut meta, mut raw) = (Vec::new(), Vec::new());
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    write_kind(&mut raw, api_version, kind, object)?;
    let mut encoded = MAGIC.to_vec();
    put_bytes(&mut encoded, 1, &meta);
    put_bytes(&mut encoded, 2, &raw);
    // How the bytes are encoded and of which type: in no particular way.
    put_bytes(&mut encoded, 3, &[]);
    put_bytes(&mut encoded, 4, &[]);
    Ok(encoded)
}

/// An event of a watch: `{1: type, 2: {1: object}}`.
pub fn encode_event(event: &Value) -> Result<Vec<u8>, ProtobufError> {
    let (mut raw, mut object) = (Vec::new(), Vec::new());
    put_bytes(&mut object, 1, &encode(event.get("object").unwrap_or(&Value::Null))?);
    put_bytes(&mut raw, 1, event.get("type").and_then(Value::as_str).unwrap_or_default().as_bytes());
    put_bytes(&mut raw, 2, &object);
    Ok(raw)
}

fn write_kind(out: &mut Vec<u8>, api_version: &str, kind: &str, object: &Value) -> Written {
    let unknown = || ProtobufError::UnknownKind(format!("{api_version} {kind}"));
    if let Some(message) = message_name(api_version, kind) {
        return write_message(out, message, object, 0);
    }
    // `{1: metadata, 2: items}`
    let item =
        kind.strip_suffix("List").and_then(|item| message_name(api_version, item)).ok_or_else(unknown)?;
    put_message(out, 1, |out| write_message(out, "m.ListMeta", &object["metadata"], 1))?;
    let items = object.get("items").and_then(Value::as_array).into_iter().flatten();
    for one in items {
        put_message(out, 2, |out| write_message(out, item, one, 1))?;
    }
    Ok(())
}

fn write_message(out: &mut Vec<u8>, message: &str, value: &Value, depth: u32) -> Written {
    if depth >= DEPTH_MAX {
        return Err(ProtobufError::Malformed("messages are nested too deeply"));
    }
    let fields = table().get(message).map_or(&[][..], Vec::as_slice);
    for field in fields {
        match field.name {
            // Its fields are among those of the message around it.
            "" => {
                let Type::Message(inner) = field.type_ else { continue };
                let mut inlined = Vec::new();
                write_message(&mut inlined, inner, value, depth + 1)?;
                if !inlined.is_empty() {
                    put_bytes(out, field.number, &inlined);
                }
            }
            "[]" => write_list(out, field, value, depth)?,
            name => match value.get(name) {
                None | Some(Value::Null) => {}
                Some(Value::Object(map)) if field.map => write_map(out, field, map, depth)?,
                Some(list) if field.repeated => write_list(out, field, list, depth)?,
                Some(value) => write_value(out, field.number, field.type_, value, depth)?,
            },
        }
    }
    Ok(())
}

fn write_list(out: &mut Vec<u8>, field: &Field, list: &Value, depth: u32) -> Written {
    let mut all = list.as_array().into_iter().flatten();
    all.try_for_each(|value| write_value(out, field.number, field.type_, value, depth))
}

/// Entries of key (1) and value (2).
fn write_map(out: &mut Vec<u8>, field: &Field, map: &Map<String, Value>, depth: u32) -> Written {
    map.iter().try_for_each(|(key, value)| {
        put_message(out, field.number, |out| {
            put_bytes(out, 1, key.as_bytes());
            if value.is_null() { Ok(()) } else { write_value(out, 2, field.type_, value, depth) }
        })
    })
}

fn write_value(out: &mut Vec<u8>, number: u64, type_: Type, value: &Value, depth: u32) -> Written {
    match type_ {
        Type::Integer => put_integer(out, number, integer(value)?),
        Type::Boolean => {
            put_integer(out, number, i64::from(value.as_bool().ok_or(wrong("a boolean is none"))?))
        }
        Type::Double => {
            put_tag(out, number, FIXED64);
            out.extend(value.as_f64().ok_or(wrong("a number is none"))?.to_le_bytes());
        }
        Type::Text => put_bytes(out, number, text(value)?.as_bytes()),
        Type::Bytes => {
            let bytes = STANDARD.decode(text(value)?).map_err(|_| wrong("bytes are not base64"))?;
            put_bytes(out, number, &bytes);
        }
        Type::Quantity => put_message(out, number, |out| {
            put_bytes(out, 1, shown(value).as_bytes());
            Ok(())
        })?,
        Type::IntOrString => put_message(out, number, |out| {
            match value {
                Value::String(text) => {
                    put_integer(out, 1, 1);
                    put_integer(out, 2, 0);
                    put_bytes(out, 3, text.as_bytes());
                }
                value => {
                    put_integer(out, 1, 0);
                    put_integer(out, 2, integer(value)?);
                    put_bytes(out, 3, &[]);
                }
            }
            Ok(())
        })?,
        Type::Time | Type::MicroTime => {
            let moment: Timestamp = text(value)?.parse().map_err(|_| wrong("a time is none"))?;
            put_message(out, number, |out| {
                put_integer(out, 1, moment.as_second());
                put_integer(out, 2, moment.subsec_nanosecond().into());
                Ok(())
            })?;
        }
        Type::Duration => {
            let length: SignedDuration = text(value)?.parse().map_err(|_| wrong("a duration is none"))?;
            let nanos = i64::try_from(length.as_nanos()).map_err(|_| wrong("a duration is out of range"))?;
            put_message(out, number, |out| {
                put_integer(out, 1, nanos);
                Ok(())
            })?;
        }
        Type::Fields | Type::Raw => put_message(out, number, |out| {
            put_bytes(out, 1, value.to_string().as_bytes());
            Ok(())
        })?,
        Type::Message(message) => {
            put_message(out, number, |out| write_message(out, message, value, depth + 1))?
        }
    }
    Ok(())
}

fn wrong(what: &'static str) -> ProtobufError {
    ProtobufError::Malformed(what)
}

fn text(value: &Value) -> Result<&str, ProtobufError> {
    value.as_str().ok_or(wrong("a text is none"))
}

/// A text, or what a number is written as.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn integer(value: &Value) -> Result<i64, ProtobufError> {
    let number = value.as_i64().or_else(|| value.as_u64().map(|number| number as i64));
    number.ok_or(wrong("an integer is none"))
}

fn put_message(out: &mut Vec<u8>, number: u64, write: impl FnOnce(&mut Vec<u8>) -> Written) -> Written {
    let mut message = Vec::new();
    write(&mut message)?;
    put_bytes(out, number, &message);
    Ok(())
}

fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_tag(out, number, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_integer(out: &mut Vec<u8>, number: u64, value: i64) {
    put_tag(out, number, VARINT);
    put_varint(out, value as u64);
}

fn put_tag(out: &mut Vec<u8>, number: u64, wire: u64) {
    put_varint(out, number << 3 | wire);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
