//! The data of a config map or a secret, decoded. Packed: an object of many small keys takes little more than its JSON.

use std::{collections::BTreeMap, ops::Range};

use ::bytes::Bytes;
use coracle_objects::bytes;
use serde::Deserialize;

use crate::{CoreError, spec::parse_without_nulls};

/// Values by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyedData {
    /// The store's revision of the object: equal revisions, equal data.
    pub revision: u64,
    /// All keys, one behind the other.
    keys: Box<str>,
    /// All values, in the same order.
    values: Bytes,
    /// In order of keys, each once.
    entries: Box<[Entry]>,
}

/// Where a key is, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    key: Span,
    value: Span,
}

/// A message of the link is far smaller than 4 GiB, and what is decoded is no longer than its JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

impl KeyedData {
    /// Reads `data` and `binaryData` of a v1.ConfigMap.
    pub fn from_config_map(json: &[u8], revision: u64) -> Result<Self, CoreError> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct ConfigMap {
            data: BTreeMap<String, String>,
            binary_data: BTreeMap<String, String>,
        }
        let parsed: ConfigMap = parse_without_nulls(json, "config map")?;
        let text = parsed.data.into_iter().map(|(key, text)| (key, text.into_bytes()));
        let binary = parsed.binary_data.into_iter().map(|(key, text)| (key, decode(&text)));
        Ok(Self::pack(revision, &text.chain(binary).collect()))
    }

    /// Reads `data` of a v1.Secret.
    pub fn from_secret(json: &[u8], revision: u64) -> Result<Self, CoreError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Secret {
            data: BTreeMap<String, String>,
        }
        let parsed: Secret = parse_without_nulls(json, "secret")?;
        let entries = parsed.data.into_iter().map(|(key, text)| (key, decode(&text)));
        Ok(Self::pack(revision, &entries.collect()))
    }

    pub fn get(&self, key: &str) -> Option<Bytes> {
        let at = self.entries.binary_search_by(|entry| self.key(entry).cmp(key)).ok()?;
        Some(self.value(&self.entries[at]))
    }

    /// The value as text; bytes that are no UTF-8 are replaced, since an environment is text here.
    pub fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Keys and values in order of keys. Values share the bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Bytes)> {
        self.entries.iter().map(|entry| (self.key(entry), self.value(entry)))
    }

    fn pack(revision: u64, values: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut keys = String::with_capacity(values.keys().map(String::len).sum());
        let mut bytes = Vec::with_capacity(values.values().map(Vec::len).sum());
        let mut entries = Vec::with_capacity(values.len());
        for (key, value) in values {
            let (of_key, of_value) = (keys.len(), bytes.len());
            keys.push_str(key);
            bytes.extend_from_slice(value);
            entries.push(Entry { key: Span::of(of_key..keys.len()), value: Span::of(of_value..bytes.len()) });
        }
        Self { revision, keys: keys.into(), values: bytes.into(), entries: entries.into() }
    }

    fn key(&self, entry: &Entry) -> &str {
        &self.keys[entry.key.range()]
    }

    fn value(&self, entry: &Entry) -> Bytes {
        self.values.slice(entry.value.range())
    }
}

impl Span {
    fn of(range: Range<usize>) -> Self {
        let place = |at| u32::try_from(at).expect("an object of the link is smaller than 4 GiB");
        Self { start: place(range.start), end: place(range.end) }
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// The API server has checked the encoding; what slipped past counts as empty.
fn decode(text: &str) -> Vec<u8> {
    bytes::decode(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_by_key_and_comes_in_order() {
        let json = br#"{"data":{"b":"text","":"none","\u00e4":"","both":"1"},"binaryData":{"a":"AP8=","both":"Mg=="}}"#;
        let data = KeyedData::from_config_map(json, 7).unwrap();
        let all: Vec<(&str, Vec<u8>)> = data.iter().map(|(key, value)| (key, value.to_vec())).collect();
        let expected: [(&str, &[u8]); 5] =
            [("", b"none"), ("a", b"\0\xff"), ("b", b"text"), ("both", b"2"), ("\u{e4}", b"")];
        assert_eq!(all, expected.map(|(key, value)| (key, value.to_vec())));
        for (key, value) in expected {
            assert_eq!(data.get(key).as_deref(), Some(value), "{key:?}");
        }
        assert!(data.get("c").is_none() && data.get("bo").is_none());
        assert_eq!(data.text("a").as_deref(), Some("\0\u{fffd}"));
        let secret = KeyedData::from_secret(br#"{"data":{"a":"MQ==","bad":"?","null":null}}"#, 1).unwrap();
        let all: Vec<(&str, Bytes)> = secret.iter().collect();
        assert_eq!(all, [("a", Bytes::from("1")), ("bad", Bytes::new())]);
        assert!(KeyedData::default().iter().next().is_none());
    }

    #[test]
    fn many_small_keys_take_little_more_than_their_json() {
        let members: Vec<String> = (0..110_000).map(|at| format!(r#""{at:x}":"""#)).collect();
        let json = format!(r#"{{"data":{{{}}}}}"#, members.join(","));
        let data = KeyedData::from_config_map(json.as_bytes(), 1).unwrap();
        assert_eq!((data.iter().count(), data.get("1adaf")), (110_000, Some(Bytes::new())));
        let KeyedData { revision: _, keys, values, entries } = &data;
        let held = keys.len() + values.len() + size_of_val(&**entries);
        assert!(held < 3 * json.len(), "{held} bytes of {} of JSON", json.len());
    }
}
