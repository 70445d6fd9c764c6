//! Paths of the distribution API. Repository names contain slashes, so the fixed parts are searched from the end.

use std::collections::BTreeMap;

use crate::blobs::Digest;
use crate::error::RegistryError;

const NAME_LENGTH_MAX: usize = 200;
const TAG_LENGTH_MAX: usize = 128;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    Base,
    Tags { repository: String },
    Blob { digest: Digest },
    Manifest { repository: String, reference: String },
    Uploads { repository: String },
    Upload { repository: String, upload: String },
}

pub fn parse(path: &str) -> Result<Target, RegistryError> {
    let rest = path.strip_prefix("/v2").unwrap_or(path).trim_start_matches('/');
    if rest.is_empty() {
        return Ok(Target::Base);
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Ok(Target::Tags { repository: repository(name)? });
    }
    if let Some((name, upload)) = rest.rsplit_once("/blobs/uploads") {
        let (repository, upload) = (repository(name)?, upload.trim_matches('/'));
        return Ok(match upload {
            "" => Target::Uploads { repository },
            upload => Target::Upload { repository, upload: upload.to_owned() },
        });
    }
    if let Some((name, text)) = rest.rsplit_once("/blobs/") {
        repository(name)?;
        return Ok(Target::Blob { digest: digest(Some(&text.to_owned()))? });
    }
    if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
        if Digest::parse(reference).is_none() && !is_tag(reference) {
            return Err(RegistryError::tag_invalid(reference));
        }
        return Ok(Target::Manifest { repository: repository(name)?, reference: reference.to_owned() });
    }
    Err(RegistryError::unsupported())
}

/// The decoded query; of repeated keys the last counts.
pub fn query(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            let escaped = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
            match (byte, escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
                (b'%', Some(decoded)) => {
                    bytes.push(decoded);
                    rest = &tail[2..];
                }
                (b'+', _) => {
                    bytes.push(b' ');
                    rest = tail;
                }
                _ => {
                    bytes.push(byte);
                    rest = tail;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

pub fn digest(text: Option<&String>) -> Result<Digest, RegistryError> {
    let text = text.ok_or_else(|| RegistryError::digest_invalid("the query has no digest"))?;
    Digest::parse(text)
        .ok_or_else(|| RegistryError::digest_invalid(&format!("{text:?} is not a sha256 digest")))
}

fn repository(name: &str) -> Result<String, RegistryError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part_ok = |part: &str| {
        let bytes = part.as_bytes();
        let edges = bytes.first().copied().is_some_and(inner) && bytes.last().copied().is_some_and(inner);
        edges && bytes.iter().all(|byte| inner(*byte) || matches!(byte, b'.' | b'_' | b'-'))
    };
    if name.len() <= NAME_LENGTH_MAX && name.split('/').all(part_ok) {
        Ok(name.to_owned())
    } else {
        Err(RegistryError::name_invalid(name))
    }
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
        && text.len() <= TAG_LENGTH_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        let hex = "a".repeat(64);
        let digest = Digest::parse(&format!("sha256:{hex}")).unwrap();
        let repository = || "team/app".to_owned();
        for (path, target) in [
            ("/v2/".to_owned(), Target::Base),
            ("/v2/team/app/tags/list".into(), Target::Tags { repository: repository() }),
            (format!("/v2/team/app/blobs/sha256:{hex}"), Target::Blob { digest }),
            ("/v2/team/app/blobs/uploads/".into(), Target::Uploads { repository: repository() }),
            (
                "/v2/team/app/blobs/uploads/12ab".into(),
                Target::Upload { repository: repository(), upload: "12ab".into() },
            ),
            (
                "/v2/team/app/manifests/1.0".into(),
                Target::Manifest { repository: repository(), reference: "1.0".into() },
            ),
        ] {
            assert_eq!(parse(&path).unwrap(), target, "{path}");
        }
        for wrong in [
            "/v2/Upper/tags/list",
            "/v2/a/../b/tags/list",
            "/v2/a/manifests/-x",
            "/v2/a/blobs/sha256:1",
            "/v2/a",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = query("digest=sha256%3Aab&mount=&n=5");
        assert_eq!(query["digest"], "sha256:ab");
        assert_eq!(query["n"], "5");
    }
}
