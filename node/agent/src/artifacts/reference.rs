//! Names of images.
//!
//! Source: the grammar of docker's `distribution/reference`. What differs: a name without a registry host means the
//! cluster's own registry, and `file:///path` a local file.

use std::{fmt, path::PathBuf};

use thiserror::Error;

/// The longest name, in bytes. Source: `distribution/reference`.
const NAME_BYTES_MAX: usize = 255;
/// The longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    Local(PathBuf),
    Cluster(Name),
    Remote { registry: String, name: Name },
}

/// A name within a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub repository: String,
    /// `latest` where neither a tag nor a digest is given.
    pub tag: Option<String>,
    /// `sha256:<hex>` of the manifest; wins over the tag.
    pub digest: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("invalid reference format")]
pub struct InvalidImage;

impl Name {
    /// What stands behind `/manifests/`.
    pub fn reference(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// The last part of the repository with the tag: what one would call it at home.
    pub fn short(&self) -> String {
        let last = self.repository.rsplit('/').next().unwrap_or(&self.repository);
        format!("{last}:{}", self.tag.as_deref().unwrap_or("latest"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

pub fn parse(image: &str) -> Result<ImageRef, InvalidImage> {
    if let Some(path) = image.strip_prefix("file://") {
        return if path.starts_with('/') { Ok(ImageRef::Local(path.into())) } else { Err(InvalidImage) };
    }
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
        Some(_) => return Err(InvalidImage),
        None => (image, None),
    };
    // A colon behind the last slash begins a tag; before it, it belongs to the registry's port.
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[slash..].split_once(':') {
        Some((last, tag)) if is_tag(tag) => (&rest[..slash + last.len()], Some(tag.to_owned())),
        Some(_) => return Err(InvalidImage),
        None => (rest, None),
    };
    let (registry, repository) = match path.split_once('/') {
        Some((host, _)) if looks_like_host(host) && !is_host(host) => return Err(InvalidImage),
        Some((host, repository)) if looks_like_host(host) => (Some(host), repository),
        _ => (None, path),
    };
    if repository.len() > NAME_BYTES_MAX || !repository.split('/').all(is_component) {
        return Err(InvalidImage);
    }
    let name = Name { repository: repository.to_owned(), tag, digest };
    Ok(match registry {
        Some(registry) => ImageRef::Remote { registry: registry.to_owned(), name },
        None => ImageRef::Cluster(name),
    })
}

/// The first part is a host where it has a dot or a port, or is `localhost`.
fn looks_like_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

/// Labels joined by dots, and maybe a port.
fn is_host(part: &str) -> bool {
    let (name, port) = part.split_once(':').unwrap_or((part, "0"));
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    port.parse::<u16>().is_ok() && name.split('.').all(label)
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Lower-case words joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(part: &str) -> bool {
    let mut separator = String::new();
    let mut begun = false;
    for c in part.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            let joined =
                separator.chars().all(|c| c == '-') || matches!(separator.as_str(), "." | "_" | "__");
            if !joined || !begun && !separator.is_empty() {
                return false;
            }
            separator.clear();
            begun = true;
        } else if matches!(c, '.' | '_' | '-') {
            separator.push(c);
        } else {
            return false;
        }
    }
    begun && separator.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(repository: &str, tag: Option<&str>, digest: Option<&str>) -> Name {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Name { repository: repository.into(), tag: owned(tag), digest: owned(digest) }
    }

    #[test]
    fn names_without_a_host_are_the_clusters_own() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let cases = [
            ("hello", name("hello", None, None)),
            ("hello:1.0", name("hello", Some("1.0"), None)),
            ("team/hello_x:v1-rc.2", name("team/hello_x", Some("v1-rc.2"), None)),
            (&format!("hello@{digest}"), name("hello", None, Some(&digest))),
        ];
        for (image, expected) in cases {
            assert_eq!(parse(image), Ok(ImageRef::Cluster(expected)), "{image}");
        }
    }

    #[test]
    fn hosts_and_files_are_told_apart() {
        let remote = |image: &str| match parse(image) {
            Ok(ImageRef::Remote { registry, name }) => (registry, name.repository, name.tag),
            other => panic!("{image}: {other:?}"),
        };
        assert_eq!(remote("ghcr.io/x/y:1"), ("ghcr.io".into(), "x/y".into(), Some("1".into())));
        assert_eq!(remote("localhost/y"), ("localhost".into(), "y".into(), None));
        assert_eq!(remote("r:5000/y"), ("r:5000".into(), "y".into(), None));
        assert_eq!(parse("file:///a/b.wasm"), Ok(ImageRef::Local("/a/b.wasm".into())));
    }

    #[test]
    fn nonsense_is_refused() {
        let long = "a".repeat(256);
        for image in [
            "",
            "Hello",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:12",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "file://a",
            "../a",
            &long,
        ] {
            assert_eq!(parse(image), Err(InvalidImage), "{image}");
        }
    }
}
