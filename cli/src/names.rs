//! Names that people and scripts give: a variable that is not set must not turn the deletion of one object into that of
//! all, nor a name that is none into another request.

use anyhow::{Result, bail};
use coracle_objects::{
    NameRule,
    validate::syntax::{label_faults, subdomain_faults},
};

/// Any text but an empty one.
pub fn given(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("it is empty: is a variable of the script not set?".into());
    }
    Ok(text.to_owned())
}

/// A namespace's name.
pub fn namespace(text: &str) -> Result<String, String> {
    checked(text, label_faults)
}

/// A project's name: that of its folder and of its package in all languages, too.
pub fn project(text: &str) -> Result<String, String> {
    let name = checked(text, label_faults)?;
    match name.starts_with(|first: char| first.is_ascii_digit()) {
        true => Err("it begins with a digit, which no package of Rust does: begin with a letter".into()),
        false => Ok(name),
    }
}

/// The name of a node or of a control node.
pub fn machine(text: &str) -> Result<String, String> {
    checked(text, subdomain_faults)
}

fn checked(text: &str, faults: impl Fn(&str) -> Vec<String>) -> Result<String, String> {
    given(text)?;
    match faults(text).into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(text.to_owned()),
    }
}

/// Refuses what can be no name of an object of the kind.
pub fn of_kind(what: &str, rule: NameRule, name: &str) -> Result<()> {
    match checked(name, |name| rule.faults(name)) {
        Ok(_) => Ok(()),
        Err(fault) => bail!("{name:?} is no name of a {what}: {fault}"),
    }
}

/// Percent-encoding of one part of a path or query (RFC 3986).
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        let of_pod = |name| of_kind("pod", NameRule::Subdomain, name);
        for name in ["", " ", "?labelSelector=a", "a/b", "..", "a b", "A", "%2e", "a?x", "a#b", "-"] {
            assert!(of_pod(name).is_err(), "{name:?}");
            assert!(machine(name).is_err(), "{name:?}");
        }
        let said = of_pod("").unwrap_err().to_string();
        assert_eq!(said, "\"\" is no name of a pod: it is empty: is a variable of the script not set?");
        for name in ["a", "a.b-1", "10.96.0.1"] {
            assert!(of_pod(name).is_ok(), "{name}");
        }
        for name in ["", "a.b", "a/b", "?x"] {
            assert!(namespace(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn texts_are_encoded_for_paths_and_queries() {
        assert_eq!(encode("app=a,b!=c"), "app%3Da%2Cb%21%3Dc");
        assert_eq!(encode("a/../b?c#d%"), "a%2F..%2Fb%3Fc%23d%25");
    }
}
