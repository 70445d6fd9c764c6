//! Names and hashes that are made here.

use serde_json::Value;

/// Upstream's alphabet for generated names: no vowels, no digits that look like letters.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many characters are added to a generated name.
const SUFFIX_LENGTH: usize = 5;
/// How many characters a template's hash has.
const HASH_LENGTH: usize = 10;
/// Names of what is generated stay within a DNS label.
const NAME_LENGTH_MAX: usize = 63;

/// `base` and five characters that `uid`, which is random, decides. A long base is cut.
pub fn generate(base: &str, uid: &str) -> String {
    let base = &base[..base.floor_char_boundary(NAME_LENGTH_MAX - SUFFIX_LENGTH)];
    format!("{base}{}", letters(fnv(uid.as_bytes()), SUFFIX_LENGTH))
}

/// What tells the template of one revision from those of others: equal for templates that mean the same.
///
/// The hash is of the JSON in canonical form, without what means nothing (null, empty lists, empty maps where a map and
/// none are the same) and without the label that the hash itself becomes. It is part of names and must never change.
pub fn template_hash(template: &Value) -> u64 {
    let mut text = String::new();
    canonical(template, &mut text);
    fnv(text.as_bytes())
}

/// The hash as a label's value. `collisions` gives another one where a name is taken by something else.
pub fn hash_label(hash: u64, collisions: i64) -> String {
    let salted = if collisions == 0 { hash } else { hash ^ fnv(&collisions.to_le_bytes()) };
    letters(salted, HASH_LENGTH)
}

fn letters(mut number: u64, count: usize) -> String {
    let mut text = String::with_capacity(count);
    for _ in 0..count {
        text.push(ALPHABET[(number % 27) as usize] as char);
        number /= 27;
    }
    text
}

/// FNV-1a, 64 bits, with a final mixing so that the low digits depend on all bytes.
fn fnv(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ *byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 32)
}

fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> =
                map.iter().filter(|(key, value)| !means_nothing(key, value)).collect();
            entries.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (key, value) in entries {
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                canonical(value, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

fn means_nothing(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => {
            map.is_empty()
                && matches!(
                    key,
                    "labels"
                        | "annotations"
                        | "nodeSelector"
                        | "resources"
                        | "limits"
                        | "requests"
                        | "metadata"
                )
        }
        Value::String(_) => key == "pod-template-hash",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn generated_names_fit_and_depend_on_the_uid() {
        let name = generate(&format!("{}-", "x".repeat(80)), "u1");
        assert_eq!(name.len(), 63);
        assert_ne!(generate("web-", "u1"), generate("web-", "u2"));
        assert_eq!(generate("web-", "u1"), generate("web-", "u1"));
    }

    #[test]
    fn the_hash_looks_at_meaning_only() {
        let plain = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let same = json!({"spec": {"containers": [{"image": "i", "name": "c", "resources": {}, "env": []}]},
            "metadata": {"creationTimestamp": null, "labels": {"a": "b", "pod-template-hash": "x"}}});
        let other = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "j"}]}});
        assert_eq!(template_hash(&plain), template_hash(&same));
        assert_ne!(template_hash(&plain), template_hash(&other));
        let volumes = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        assert_ne!(template_hash(&volumes), template_hash(&json!({"volumes": [{"name": "v"}]})));
    }

    #[test]
    fn the_hash_of_a_template_never_changes() {
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}});
        assert_eq!(hash_label(template_hash(&template), 0), "b7n9kmjrbn");
        assert_ne!(hash_label(template_hash(&template), 1), hash_label(template_hash(&template), 0));
    }
}
