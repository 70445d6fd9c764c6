//! Decoding that keeps what ordinary decoding loses, duplicate fields, and stops where a document is out of proportion:
//! nested too deeply, or of more values than its bytes can spell out.

use std::fmt;

use coracle_objects::FieldPath as Path;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::typed::DEPTH_MAX;

/// Values of one document. The largest object that can be stored has no room for so many, as each takes a name or stands in
/// a list that may not be so long; and each takes a hundred bytes of memory, whatever it took of the body.
pub const VALUES_MAX: usize = 250_000;

/// So many duplicate fields are named; upstream stops there as well.
const DUPLICATES_MAX: usize = 100;

/// A decoded document and the paths of fields that it gives more than once (the last value counts), the first
/// [`DUPLICATES_MAX`] of them.
#[derive(Debug, Default)]
pub struct Decoded {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Decodes JSON.
pub fn decode_json(bytes: &[u8]) -> Result<Decoded, serde_json::Error> {
    decode_json_of(bytes, &mut { VALUES_MAX })
}

/// Decodes JSON of at most so many values, and counts them off.
pub fn decode_json_of(bytes: &[u8], values: &mut usize) -> Result<Decoded, serde_json::Error> {
    let mut reading = Reading::of(bytes, false);
    reading.values = *values;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = reading.root().deserialize(&mut deserializer)?;
    deserializer.end()?;
    *values = reading.values;
    Ok(Decoded { value, duplicates: reading.duplicates })
}

/// Decodes the first document of YAML.
pub fn decode_yaml(bytes: &[u8]) -> Result<Decoded, serde_yaml_ng::Error> {
    let mut reading = Reading::of(bytes, true);
    let all = || serde_yaml_ng::Deserializer::from_slice(bytes);
    // Of nothing but comments there is no first document, and the whole says so.
    let deserializer = all().next().unwrap_or_else(all);
    let value = reading.root().deserialize(deserializer)?;
    Ok(Decoded { value, duplicates: reading.duplicates })
}

/// What is kept while a document is read.
struct Reading {
    duplicates: Vec<String>,
    /// How much may still come: each value and each byte of text takes one. Without aliases a document cannot need more
    /// than two for each of its bytes, so that what expands beyond that was written to expand.
    left: usize,
    /// How many values may still come.
    values: usize,
    yaml: bool,
}

impl Reading {
    fn of(bytes: &[u8], yaml: bool) -> Self {
        Self { duplicates: Vec::new(), left: 2 * bytes.len() + 16, values: VALUES_MAX, yaml }
    }

    fn root(&mut self) -> Node<'_> {
        Node { path: &Path::Root, depth: 0, reading: self }
    }

    fn take<E: de::Error>(&mut self, amount: usize) -> Result<(), E> {
        self.left = self.left.checked_sub(amount).ok_or_else(|| {
            E::custom("the document is excessively aliased: its aliases expand to far more than was sent")
        })?;
        Ok(())
    }
}

impl Reading {
    /// One more value of a list or a map.
    fn count<E: de::Error>(&mut self) -> Result<(), E> {
        self.values = self
            .values
            .checked_sub(1)
            .ok_or_else(|| E::custom(format!("the document has more than {VALUES_MAX} values")))?;
        Ok(())
    }
}

/// Deserialises one value of the document at a path.
struct Node<'a> {
    path: &'a Path<'a>,
    /// How many lists and maps it is in.
    depth: usize,
    reading: &'a mut Reading,
}

impl Node<'_> {
    /// Enters a list or a map.
    fn nest<E: de::Error>(&mut self) -> Result<usize, E> {
        self.reading.take(1)?;
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(format!("exceeded max depth: it nests deeper than {DEPTH_MAX} levels")));
        }
        Ok(self.depth + 1)
    }
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

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.reading.take(1)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.reading.take(1)?;
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.reading.take(1)?;
        Ok(Value::Number(value.into()))
    }

    /// YAML has one kind of number: `3.0` is 3, as upstream's conversion to JSON has it. In JSON it is no integer.
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        const WHOLE_MAX: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
        self.reading.take(1)?;
        if self.reading.yaml && value.fract() == 0.0 && value.abs() <= WHOLE_MAX {
            return Ok(Value::Number((value as i64).into()));
        }
        let number = Number::from_f64(value)
            .ok_or_else(|| E::custom(format!("{}: {value} is no number in JSON", self.path.shown())))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        self.reading.take(1 + value.len())?;
        Ok(Value::String(value))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.reading.take(1)?;
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<Value, A::Error> {
        let depth = self.nest()?;
        let mut list = Vec::new();
        loop {
            let path = Path::Index(self.path, list.len());
            match sequence.next_element_seed(Node { path: &path, depth, reading: self.reading })? {
                Some(element) => {
                    self.reading.count()?;
                    list.push(element);
                }
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.nest()?;
        let mut map = Map::new();
        while let Some(Key(key)) = access.next_key::<Key>()? {
            self.reading.take(key.len())?;
            self.reading.count()?;
            let path = Path::Field(self.path, &key);
            if map.contains_key(&key) && self.reading.duplicates.len() < DUPLICATES_MAX {
                self.reading.duplicates.push(path.shown());
            }
            let value = access.next_value_seed(Node { path: &path, depth, reading: self.reading })?;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
    fn the_first_document_of_yaml_counts() {
        let one = json!({"a": 1});
        for text in [
            "---\na: 1\n",
            "a: 1\n---\nb: 2\n",
            "%YAML 1.2\n---\na: 1\n...\n---\nb: [\n",
            "# x\n---\na: 1\n---\n",
        ] {
            assert_eq!(decode_yaml(text.as_bytes()).unwrap().value, one, "{text}");
        }
        for nothing in ["", "# x\n", "---\n---\na: 1\n"] {
            assert!(
                decode_yaml(nothing.as_bytes()).map_or(true, |decoded| decoded.value.is_null()),
                "{nothing}"
            );
        }
    }

    #[test]
    fn nesting_is_bounded_in_every_format() {
        for (depth, fits) in [(DEPTH_MAX, true), (DEPTH_MAX + 1, false), (126, false)] {
            let body = "[".repeat(depth) + &"]".repeat(depth);
            assert_eq!(decode_json(body.as_bytes()).is_ok(), fits, "{depth}");
            assert_eq!(decode_yaml(body.as_bytes()).is_ok(), fits, "{depth}");
        }
        let error = decode_yaml("[".repeat(110).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("exceeded max depth") || error.contains("did not find"), "{error}");
    }

    #[test]
    fn aliases_that_expand_are_refused_and_others_serve() {
        let bomb = format!("a: &a [{}0]\nb: [{}0]\n", "0,".repeat(3000), "*a,".repeat(3000));
        assert!(decode_yaml(bomb.as_bytes()).unwrap_err().to_string().contains("excessively aliased"));
        let text = format!("a: &a {}\nb: [{}0]\n", "x".repeat(3000), "*a,".repeat(3000));
        assert!(decode_yaml(text.as_bytes()).is_err());
        let decoded = decode_yaml(b"a: &a {x: y}\nb: *a\n").unwrap();
        assert_eq!(decoded.value, json!({"a": {"x": "y"}, "b": {"x": "y"}}));
        // The densest documents that have no aliases: nothing of them is refused.
        for dense in ["[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]", "{a,b,c,d,e,f,g,h,i,j,k,l,m,n,o}"]
        {
            assert!(decode_yaml(dense.as_bytes()).is_ok(), "{dense}");
        }
        let escapes = format!("\"{}\"", "\\L".repeat(1000));
        assert_eq!(decode_yaml(escapes.as_bytes()).unwrap().value.as_str().unwrap().len(), 3000);
    }

    #[test]
    fn no_document_has_more_values_than_memory_is_meant_for() {
        for element in ["{}", "\"\"", "0", "[]", "{\"a\":0}"] {
            let dense = format!("[{element}{}]", format!(",{element}").repeat(VALUES_MAX));
            let refused = decode_json(dense.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains("more than 250000 values"), "{refused}");
        }
        let dense = format!("[0{}]", ",0".repeat(VALUES_MAX));
        assert!(decode_yaml(dense.as_bytes()).unwrap_err().to_string().contains("more than 250000 values"));
        let fits = format!("[0{}]", ",0".repeat(VALUES_MAX - 1));
        assert!(decode_json(fits.as_bytes()).is_ok());
    }

    #[test]
    fn whole_numbers_of_yaml_are_integers_and_those_of_json_are_not() {
        assert_eq!(decode_yaml(b"[1.0, 1e3, 1.5]").unwrap().value, json!([1, 1000, 1.5]));
        assert_eq!(decode_json(b"[1.0]").unwrap().value, json!([1.0]));
        assert!(decode_yaml(b"a: .inf").is_err());
    }

    #[test]
    fn the_named_duplicates_are_few() {
        let body = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(1000));
        assert_eq!(decode_json(body.as_bytes()).unwrap().duplicates.len(), DUPLICATES_MAX);
    }
}
