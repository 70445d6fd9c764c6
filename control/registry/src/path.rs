//! Paths of the distribution API. Repository names contain slashes, so the fixed parts are searched from the end.

use crate::{digest::Digest, error::RegistryError};

const NAME_LENGTH_MAX: usize = 200;
const TAG_LENGTH_MAX: usize = 128;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Base,
    Tags { repository: String },
    Blob { repository: String, digest: Digest },
    Manifest { repository: String, reference: String },
    Uploads { repository: String },
    Upload { repository: String, upload: String },
    Referrers { repository: String, digest: Digest },
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
        return Ok(Target::Blob { repository: repository(name)?, digest: digest(text)? });
    }
    if let Some((name, text)) = rest.rsplit_once("/referrers/") {
        return Ok(Target::Referrers { repository: repository(name)?, digest: digest(text)? });
    }
    if let Some((name, reference)) = rest.rsplit_once("/manifests/") {
        match reference.contains(':') {
            true => _ = digest(reference)?,
            false => tag(reference)?,
        }
        return Ok(Target::Manifest { repository: repository(name)?, reference: reference.to_owned() });
    }
    Err(RegistryError::unsupported())
}

/// A decoded query.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self(pairs.map(|(key, value)| (decode(key), decode(value))).collect())
    }

    /// All values of a key, in order.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The last of them.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).last()
    }

    /// The digest that an upload ends with.
    pub fn digest(&self) -> Result<Digest, RegistryError> {
        digest(self.get("digest").ok_or_else(|| RegistryError::digest_invalid("the query has no digest"))?)
    }
}

fn decode(text: &str) -> String {
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
}

/// A value as it stands in a query.
pub fn encode(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

pub fn digest(text: &str) -> Result<Digest, RegistryError> {
    Digest::parse(text)
        .ok_or_else(|| RegistryError::digest_invalid(&format!("{text:?} is no digest of sha256 or sha512")))
}

/// Refuses what cannot be a tag.
pub fn tag(text: &str) -> Result<(), RegistryError> {
    if is_tag(text) { Ok(()) } else { Err(RegistryError::tag_invalid(text)) }
}

pub fn repository(name: &str) -> Result<String, RegistryError> {
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
            (
                format!("/v2/team/app/blobs/sha256:{hex}"),
                Target::Blob { repository: repository(), digest: digest.clone() },
            ),
            (
                format!("/v2/team/app/referrers/sha256:{hex}"),
                Target::Referrers { repository: repository(), digest },
            ),
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
            "/v2/a/manifests/sha256:1",
            "/v2/a/referrers/1",
            "/v2/a",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("digest=sha256%3Aab&mount=&n=5&tag=a&tag=b");
        assert_eq!(query.get("digest"), Some("sha256:ab"));
        assert_eq!((query.get("n"), query.get("last")), (Some("5"), None));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b"]);
        assert!(query.digest().is_err());
        let odd = "a/b+c d%";
        assert_eq!(Query::parse(&format!("x={}", encode(odd))).get("x"), Some(odd));
    }
}
