//! Decoding that keeps what ordinary decoding loses: duplicate fields, unknown fields and values of a wrong type.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schemas;

/// Nesting beyond this is refused by the parser's own limit; the walk over the schema stops as well.
const DEPTH_MAX: usize = 128;

/// A decoded document and the paths of fields that it gives more than once (the last value counts).
#[derive(Debug, Default)]
pub struct Decoded {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Decodes JSON.
pub fn decode_json(bytes: &[u8]) -> Result<Decoded, serde_json::Error> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Node { path: &Path::Root, duplicates: &mut duplicates }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(Decoded { value, duplicates })
}

/// Decodes the first document of YAML.
pub fn decode_yaml(bytes: &[u8]) -> Result<Decoded, serde_yaml_ng::Error> {
    let mut duplicates = Vec::new();
    let deserializer = serde_yaml_ng::Deserializer::from_slice(bytes);
    let value = Node { path: &Path::Root, duplicates: &mut duplicates }.deserialize(deserializer)?;
    Ok(Decoded { value, duplicates })
}

/// Where in a document we are; turned into text only where something is wrong.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, field) => f.write_str(field),
            Path::Field(parent, field) => write!(f, "{parent}.{field}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Deserialises one value of the document at a path.
struct Node<'a> {
    path: &'a Path<'a>,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let path = Path::Index(self.path, list.len());
            match sequence.next_element_seed(Node { path: &path, duplicates: self.duplicates })? {
                Some(element) => list.push(element),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(Key(key)) = access.next_key::<Key>()? {
            let path = Path::Field(self.path, &key);
            if map.contains_key(&key) {
                self.duplicates.push(path.to_string());
            }
            let value = access.next_value_seed(Node { path: &path, duplicates: self.duplicates })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A key of a map: YAML also has numbers and booleans there, which become text.
struct Key(String);

impl<'de> de::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }

            fn visit_str<E>(self, value: &str) -> Result<Key, E> {
                Ok(Key(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Key, E> {
                Ok(Key(value))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Key, E> {
                Ok(Key(value.to_string()))
            }
        }
        deserializer.deserialize_any(KeyVisitor)
    }
}

/// What a walk over a document and its schema finds.
#[derive(Debug, Default)]
pub struct Findings {
    /// Paths of fields that the schema does not have.
    pub unknown: Vec<String>,
    /// The first value of a wrong type, in the words of Go's decoder.
    pub mismatch: Option<String>,
}

/// Compares a document with its schema (`io.k8s.api.apps.v1.Deployment`). A schema that is not known allows anything.
pub fn check(value: &Value, schema: &str) -> Findings {
    let mut findings = Findings::default();
    if let Some(definition) = schemas::get(schema) {
        walk(value, definition, short(schema), &Path::Root, &mut findings, 0);
    }
    findings
}

/// Removes the fields that the schema does not have.
pub fn prune(value: &mut Value, schema: &str) {
    if let Some(definition) = schemas::get(schema) {
        prune_by(value, definition, 0);
    }
}

fn prune_by(value: &mut Value, schema: &Value, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    if let Some(definition) = schemas::reference(schema).and_then(schemas::get) {
        prune_by(value, definition, depth + 1);
        return;
    }
    match value {
        Value::Array(list) => {
            let Some(items) = schema.get("items") else { return };
            list.iter_mut().for_each(|element| prune_by(element, items, depth + 1));
        }
        Value::Object(map) => {
            let properties = schema.get("properties");
            let additional = schema.get("additionalProperties");
            if let (Some(properties), None) = (properties, additional) {
                map.retain(|name, _| properties.get(name).is_some());
            }
            for (name, field) in map.iter_mut() {
                let inner = properties.and_then(|properties| properties.get(name)).or(additional);
                if let Some(inner) = inner {
                    prune_by(field, inner, depth + 1);
                }
            }
        }
        _ => {}
    }
}

fn short(schema: &str) -> &str {
    schema.rsplit('.').next().unwrap_or(schema)
}

/// `owner` is the Go struct that has the field at `path`.
fn walk(value: &Value, schema: &Value, owner: &str, path: &Path<'_>, findings: &mut Findings, depth: usize) {
    if value.is_null() || depth > DEPTH_MAX {
        return;
    }
    if let Some(name) = schemas::reference(schema) {
        if let Some(definition) = schemas::get(name) {
            let inner = if definition.get("properties").is_some() { short(name) } else { owner };
            walk(value, definition, inner, path, findings, depth + 1);
        }
        return;
    }
    let Some(expected) = schema.get("type").and_then(Value::as_str) else { return };
    let fits = match expected {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_i64().is_some() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        _ => true,
    };
    if !fits {
        if findings.mismatch.is_none() {
            let go = go_type(expected, schema);
            findings.mismatch = Some(format!(
                "json: cannot unmarshal {} into Go struct field {owner}.{path} of type {go}",
                json_type(value)
            ));
        }
        return;
    }
    match value {
        Value::Array(list) => {
            let Some(items) = schema.get("items") else { return };
            for (index, element) in list.iter().enumerate() {
                walk(element, items, owner, &Path::Index(path, index), findings, depth + 1);
            }
        }
        Value::Object(map) => {
            let properties = schema.get("properties");
            let additional = schema.get("additionalProperties");
            for (name, field) in map {
                let at = Path::Field(path, name);
                match (properties.and_then(|properties| properties.get(name)), additional) {
                    (Some(inner), _) | (None, Some(inner)) => {
                        walk(field, inner, owner, &at, findings, depth + 1);
                    }
                    // A schema without properties takes any field: raw extensions, quantities' maps.
                    (None, None) if properties.is_none() => {}
                    (None, None) => findings.unknown.push(at.to_string()),
                }
            }
        }
        _ => {}
    }
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

fn go_type(expected: &str, schema: &Value) -> String {
    match expected {
        "integer" => schema.get("format").and_then(Value::as_str).unwrap_or("int64").to_owned(),
        "number" => "float64".to_owned(),
        "boolean" => "bool".to_owned(),
        "array" => "[]".to_owned() + &element_type(schema.get("items")),
        "object" if schema.get("additionalProperties").is_some() => {
            "map[string]".to_owned() + &element_type(schema.get("additionalProperties"))
        }
        "object" => "struct".to_owned(),
        other => other.to_owned(),
    }
}

fn element_type(schema: Option<&Value>) -> String {
    let Some(schema) = schema else { return "interface {}".to_owned() };
    match schemas::reference(schema) {
        Some(name) => {
            let mut parts = name.rsplit('.');
            let (kind, version) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            format!("{version}.{kind}")
        }
        None => go_type(schema.get("type").and_then(Value::as_str).unwrap_or("interface {}"), schema),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";

    #[test]
    fn duplicates_are_kept() {
        let decoded = decode_json(br#"{"a":{"b":1,"b":2},"c":[{"d":1,"d":1}]}"#).unwrap();
        assert_eq!(decoded.value, json!({"a": {"b": 2}, "c": [{"d": 1}]}));
        assert_eq!(decoded.duplicates, ["a.b", "c[0].d"]);
        let decoded = decode_yaml(b"a: 1\nb: [x, {y: 2}]\n1: z\n").unwrap();
        assert_eq!(decoded.value, json!({"a": 1, "b": ["x", {"y": 2}], "1": "z"}));
        assert!(decode_json(b"{} {}").is_err());
    }

    #[test]
    fn unknown_fields_are_found_by_path() {
        let value = json!({
            "kind": "Deployment",
            "spec": { "foo": 1, "template": { "spec": { "containers": [{ "name": "a", "imagee": "b" }] } } },
            "metadata": { "labels": { "anything": "goes" }, "annotations": null },
        });
        let findings = check(&value, DEPLOYMENT);
        assert_eq!(findings.unknown, ["spec.foo", "spec.template.spec.containers[0].imagee"]);
        assert!(findings.mismatch.is_none());
        let mut pruned = value;
        prune(&mut pruned, DEPLOYMENT);
        assert_eq!(pruned["spec"], json!({ "template": { "spec": { "containers": [{ "name": "a" }] } } }));
        assert_eq!(pruned["metadata"]["labels"]["anything"], "goes");
    }

    #[test]
    fn wrong_types_read_as_those_of_go() {
        let findings = check(&json!({ "spec": { "replicas": "three" } }), DEPLOYMENT);
        assert_eq!(
            findings.mismatch.unwrap(),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        let findings = check(&json!({ "data": { "a": 1 } }), "io.k8s.api.core.v1.ConfigMap");
        assert_eq!(
            findings.mismatch.unwrap(),
            "json: cannot unmarshal number into Go struct field ConfigMap.data.a of type string"
        );
        assert!(check(&json!({"anything": 1}), "dev.coracle.v1.Unknown").unknown.is_empty());
    }
}
