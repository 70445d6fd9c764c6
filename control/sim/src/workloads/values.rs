//! Values as they come about in bodies: those that a schema allows, and those that nobody expects.

use serde_json::{Map, Number, Value, json};

use super::door::schemas;
use crate::rng::Rng;

/// How deep values that follow a schema go.
const SCHEMA_DEPTH_MAX: usize = 4;

/// The longest text that is made.
const TEXT_BYTES_MAX: usize = 20_000;

const TEXTS: &[&str] = &[
    "",
    "x",
    "y",
    "n1",
    "ghost",
    "x.y",
    "X_",
    "-",
    "1",
    "0",
    "1Gi",
    "100m",
    "1e3",
    "-1",
    "1.5",
    "5z",
    "0x1",
    "99999999999999999999999",
    "1e999",
    "25%",
    "300%",
    "-1%",
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00.123456Z",
    "2026-13-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "0000-00-00",
    "10.96.0.77",
    "10.128.0.5",
    "256.1.1.1",
    "::1",
    "None",
    "IPv4",
    "IPv6",
    "Always",
    "Never",
    "TCP",
    "NoExecute",
    "Exists",
    "$(A)$(B)$(A)",
    "é\u{0}",
    "null",
    "true",
    "/",
    "../x",
    "pod-template-hash",
    "kubernetes.io/service-name",
];

pub fn text(rng: &mut Rng) -> Value {
    match rng.below(40) {
        0 => "a".repeat(rng.pick(&[64, 254, 1_025, TEXT_BYTES_MAX]).copied().unwrap_or(64)).into(),
        _ => rng.pick(TEXTS).copied().unwrap_or("").into(),
    }
}

/// No number that could be a time lies between 20 and 400: what time itself causes is over before a cluster is asked
/// to be at rest, or comes long after.
pub fn number(rng: &mut Rng) -> Value {
    match rng.below(18) {
        0..=4 => rng.below(3).into(),
        5 => 7.into(),
        6 => (-1).into(),
        7 => 65_536.into(),
        8 => i64::from(i32::MAX).into(),
        9 => (i64::from(i32::MAX) + 1).into(),
        10 => (i64::from(i32::MIN) - 1).into(),
        11 => i64::MAX.into(),
        12 => u64::MAX.into(),
        13 => float(1.0),
        14 => float(2.0),
        15 => float(1e3),
        16 => float(0.5),
        _ => float(1e19),
    }
}

fn float(number: f64) -> Value {
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

/// Anything at all.
pub fn any(rng: &mut Rng) -> Value {
    match rng.below(16) {
        0..=4 => Value::Null,
        5 => json!([]),
        6 => json!({}),
        7 => json!([null]),
        8 => json!({ "x": null }),
        9 => json!([{}]),
        10 => true.into(),
        11 => nested(rng),
        12 | 13 => number(rng),
        _ => text(rng),
    }
}

/// Lists or maps in each other, about as deep as parsers go.
pub fn nested(rng: &mut Rng) -> Value {
    let depth = match rng.below(3) {
        0 => rng.between(110, 130),
        1 => rng.between(60, 110),
        _ => rng.between(130, 200),
    };
    let lists = rng.chance(500);
    (0..depth).fold(Value::Null, |inner, _| if lists { json!([inner]) } else { json!({ "a": inner }) })
}

/// The schema that a schema refers to, or itself.
pub fn resolve(schema: &Value) -> &Value {
    let reference = schema.get("$ref").or_else(|| schema.pointer("/allOf/0/$ref"));
    let name = reference.and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
    name.and_then(|name| schemas().get(name)).unwrap_or(schema)
}

/// A value of the types that a schema asks for, with few of its fields; now and then something else within.
pub fn of_schema(schema: &Value, rng: &mut Rng, depth: usize) -> Value {
    if rng.chance(40) {
        return any(rng);
    }
    let schema = resolve(schema);
    match schema.get("type").and_then(Value::as_str).unwrap_or("") {
        "string" => text(rng),
        "integer" | "number" => number(rng),
        "boolean" => rng.chance(500).into(),
        "array" => {
            let count = if depth >= SCHEMA_DEPTH_MAX { 0 } else { rng.below(3) };
            let items = schema.get("items").unwrap_or(&Value::Null);
            (0..count).map(|_| of_schema(items, rng, depth + 1)).collect()
        }
        "object" => {
            let mut map = Map::new();
            if depth >= SCHEMA_DEPTH_MAX {
                return map.into();
            }
            if let Some(values) = schema.get("additionalProperties") {
                for _ in 0..rng.below(3) {
                    let key = text(rng).as_str().unwrap_or_default().to_owned();
                    map.insert(key, of_schema(values, rng, depth + 1));
                }
            }
            for (name, field) in some_fields(schema, rng) {
                map.insert(name.clone(), of_schema(field, rng, depth + 1));
            }
            map.into()
        }
        // A quantity, or an integer or a text.
        _ => {
            if rng.chance(500) {
                text(rng)
            } else {
                number(rng)
            }
        }
    }
}

/// Those that the schema requires, and few of the others.
fn some_fields<'a>(schema: &'a Value, rng: &mut Rng) -> Vec<(&'a String, &'a Value)> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return vec![] };
    let required = schema.get("required").and_then(Value::as_array);
    let is_required =
        |name: &String| required.is_some_and(|names| names.iter().any(|one| one.as_str() == Some(name)));
    let share = 2_000 / properties.len().max(2) as u64;
    properties
        .iter()
        .filter(|(name, _)| (is_required(name) && rng.chance(900)) || rng.chance(share))
        .collect()
}
