//! What a request path names.

use coracle_objects::{Kind, by_plural, kinds};

use crate::auth::reviews::{REVIEWS, Review};

/// What a path names. Names are decoded but not checked.
#[derive(Clone, Debug)]
pub enum Target {
    /// `/`
    Root,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/G`
    Group(String),
    /// `/api/v1`, `/apis/G/V`
    GroupVersion {
        group: String,
        version: String,
    },
    Resource(ResourcePath),
    /// A review kind, which is answered and never stored.
    Review(&'static Review),
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiIndex,
    /// `/openapi/v3/api/v1`: the group-version's path behind `/openapi/v3/`.
    OpenApiDocument(String),
    Version,
    /// `/healthz`, `/livez`, `/readyz`, with the check's name where one is asked.
    Health {
        endpoint: &'static str,
        check: Option<String>,
    },
    /// Nothing that this server knows.
    Unknown,
}

/// Objects of one kind.
#[derive(Clone, Debug)]
pub struct ResourcePath {
    pub kind: &'static Kind,
    /// None for cluster-scoped kinds and for lists over all namespaces.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl PartialEq for ResourcePath {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.kind, other.kind)
            && self.namespace == other.namespace
            && self.name == other.name
            && self.subresource == other.subresource
    }
}

/// Whether a path names one object, or a part of it. What is asked of one takes little time, whatever the store holds.
pub fn names_one_object(path: &str) -> bool {
    matches!(parse(path), Target::Resource(ResourcePath { name: Some(_), .. }))
}

/// Reads a request path. Trailing slashes are nothing.
pub fn parse(path: &str) -> Target {
    let decoded: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
    match parts.as_slice() {
        [] => Target::Root,
        ["api"] => Target::CoreVersions,
        ["apis"] => Target::Groups,
        ["apis", group] => group_known(group).map_or(Target::Unknown, Target::Group),
        ["api", version, rest @ ..] => in_group("", version, rest),
        ["apis", group, version, rest @ ..] => in_group(group, version, rest),
        ["openapi", "v2"] => Target::OpenApiV2,
        ["openapi", "v3"] => Target::OpenApiIndex,
        ["openapi", "v3", rest @ ..] => Target::OpenApiDocument(rest.join("/")),
        ["version"] => Target::Version,
        ["healthz", rest @ ..] => health("healthz", rest),
        ["livez", rest @ ..] => health("livez", rest),
        ["readyz", rest @ ..] => health("readyz", rest),
        _ => Target::Unknown,
    }
}

fn health(endpoint: &'static str, rest: &[&str]) -> Target {
    match rest {
        [] => Target::Health { endpoint, check: None },
        [check] => Target::Health { endpoint, check: Some((*check).to_owned()) },
        _ => Target::Unknown,
    }
}

fn group_known(group: &str) -> Option<String> {
    let known =
        kinds().iter().any(|kind| kind.group == group) || REVIEWS.iter().any(|review| review.group == group);
    (known && !group.is_empty()).then(|| group.to_owned())
}

fn in_group(group: &str, version: &str, rest: &[&str]) -> Target {
    match rest {
        [] => {
            let known = kinds().iter().any(|kind| kind.group == group && kind.version == version)
                || REVIEWS.iter().any(|review| review.group == group && review.version == version);
            if known {
                Target::GroupVersion { group: group.to_owned(), version: version.to_owned() }
            } else {
                Target::Unknown
            }
        }
        // A namespace by itself, or a resource within it.
        ["namespaces", namespace, plural, rest @ ..] if !matches!(*plural, "status" | "finalize") => {
            resource(group, version, Some(namespace), plural, rest)
        }
        [plural, rest @ ..] => resource(group, version, None, plural, rest),
    }
}

fn resource(group: &str, version: &str, namespace: Option<&str>, plural: &str, rest: &[&str]) -> Target {
    let review = REVIEWS
        .iter()
        .find(|review| review.group == group && review.version == version && review.plural == plural);
    if let (Some(review), None, []) = (review, namespace, rest) {
        return Target::Review(review);
    }
    let Some(kind) = by_plural(group, version, plural) else { return Target::Unknown };
    let scoped = namespace.is_some();
    let (name, subresource) = match rest {
        [] => (None, None),
        [name] => (Some((*name).to_owned()), None),
        [name, subresource @ ..] => (Some((*name).to_owned()), Some(subresource.join("/"))),
    };
    // An object of a namespaced kind is named within its namespace only; a cluster-scoped one never is.
    if (scoped && !kind.namespaced) || (kind.namespaced && !scoped && name.is_some()) {
        return Target::Unknown;
    }
    Target::Resource(ResourcePath { kind, namespace: namespace.map(str::to_owned), name, subresource })
}

/// Percent-decoding (RFC 3986). What is no escape stays as it is.
fn decode(part: &str) -> String {
    if !part.contains('%') {
        return part.to_owned();
    }
    let bytes = part.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource_of(path: &str) -> ResourcePath {
        match parse(path) {
            Target::Resource(resource) => resource,
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn one_object_is_told_from_many() {
        for path in [
            "/api/v1/namespaces/default/pods/a",
            "/api/v1/namespaces/default/pods/a/status",
            "/api/v1/nodes/n",
        ] {
            assert!(names_one_object(path), "{path}");
        }
        for path in
            ["/api/v1/pods", "/api/v1/namespaces/default/pods", "/apis", "/openapi/v2", "/readyz", "/x/y/z"]
        {
            assert!(!names_one_object(path), "{path}");
        }
    }

    #[test]
    fn resources_are_found_by_path() {
        let pods = resource_of("/api/v1/pods");
        assert_eq!((pods.kind.plural, pods.namespace, pods.name), ("pods", None, None));
        let log = resource_of("/api/v1/namespaces/default/pods/a/log/");
        assert_eq!(log.namespace.as_deref(), Some("default"));
        assert_eq!((log.name.as_deref(), log.subresource.as_deref()), (Some("a"), Some("log")));
        let namespace = resource_of("/api/v1/namespaces/kube-system/");
        assert_eq!((namespace.kind.plural, namespace.name.as_deref()), ("namespaces", Some("kube-system")));
        let finalize = resource_of("/api/v1/namespaces/x/finalize");
        assert_eq!(
            (finalize.name.as_deref(), finalize.subresource.as_deref()),
            (Some("x"), Some("finalize"))
        );
        let scale = resource_of("/apis/apps/v1/namespaces/a/deployments/we%62/scale");
        assert_eq!((scale.kind.kind, scale.name.as_deref()), ("Deployment", Some("web")));
    }

    #[test]
    fn other_paths_are_known_or_not() {
        assert!(matches!(parse("/api/"), Target::CoreVersions));
        assert!(matches!(parse("/apis/apps"), Target::Group(_)));
        assert!(matches!(parse("/apis/apps/v1/"), Target::GroupVersion { .. }));
        assert!(
            matches!(parse("/openapi/v3/apis/apps/v1"), Target::OpenApiDocument(path) if path == "apis/apps/v1")
        );
        assert!(matches!(parse("/readyz/ping"), Target::Health { endpoint: "readyz", check: Some(_) }));
        for path in ["/apis/nope", "/api/v2", "/api/v1/nopes", "/api/v1/pods/a", "/x"] {
            assert!(matches!(parse(path), Target::Unknown), "{path}");
        }
    }
}
