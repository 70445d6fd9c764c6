//! What a request path names.

use std::sync::Arc;

use coracle_objects::{Endpoint, Kind};

use crate::{
    auth::reviews::{REVIEWS, Review},
    error::ApiError,
    served::Served,
};

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
    pub kind: Arc<Kind>,
    /// None for cluster-scoped kinds and for lists over all namespaces.
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// The kind has it.
    pub subresource: Option<Endpoint>,
}

impl PartialEq for ResourcePath {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kind, &other.kind)
            && self.namespace == other.namespace
            && self.name == other.name
            && self.subresource == other.subresource
    }
}

/// Whether a path has the form of one that names one object, or a part of it. What is asked of one takes little time,
/// whatever the store holds.
pub fn names_one_object(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    match parts.next() {
        Some("api") => {}
        Some("apis") => _ = parts.next(),
        _ => return false,
    }
    // Behind the version: a resource and a name, or a namespace, a resource and a name.
    let rest: Vec<&str> = parts.skip(1).take(4).collect();
    match rest.as_slice() {
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => true,
        ["namespaces", _, _] => false,
        [_, _, ..] => true,
        _ => false,
    }
}

/// Reads a request path. A slash at its end is nothing behind what only describes the API; behind a resource it is the
/// mark of a name that was left empty, and such a path names nothing: it must not be taken for the whole collection.
/// Nor does a path with an empty part elsewhere, or with a part that is no name (a slash within it, or dots).
pub fn parse(served: &Served, path: &str) -> Target {
    let Some(path) = path.strip_prefix('/') else { return Target::Unknown };
    let (path, open) = match path.strip_suffix('/') {
        Some(path) => (path, true),
        None => (path, false),
    };
    let decoded: Vec<String> =
        if path.is_empty() { Vec::new() } else { path.split('/').map(decode).collect() };
    if (path.is_empty() && open) || !decoded.iter().all(|part| is_segment(part)) {
        return Target::Unknown;
    }
    let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
    match known(served, &parts) {
        Target::Resource(_) | Target::Review(_) if open => Target::Unknown,
        target => target,
    }
}

/// Whether a decoded part can name anything. Source: `IsValidPathSegmentName`.
fn is_segment(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && !part.contains(['/', '%'])
}

fn known(served: &Served, parts: &[&str]) -> Target {
    match parts {
        [] => Target::Root,
        ["api"] => Target::CoreVersions,
        ["apis"] => Target::Groups,
        ["apis", group] if !group.is_empty() && served.groups.has_group(group) => {
            Target::Group((*group).to_owned())
        }
        ["api", version, rest @ ..] => in_group(served, "", version, rest),
        ["apis", group, version, rest @ ..] => in_group(served, group, version, rest),
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

fn in_group(served: &Served, group: &str, version: &str, rest: &[&str]) -> Target {
    match rest {
        [] if served.groups.has_version(group, version) => {
            Target::GroupVersion { group: group.to_owned(), version: version.to_owned() }
        }
        [] => Target::Unknown,
        // A namespace by itself, or a resource within it.
        ["namespaces", namespace, plural, rest @ ..] if !matches!(*plural, "status" | "finalize") => {
            resource(served, (group, version, plural), Some(namespace), rest)
        }
        [plural, rest @ ..] => resource(served, (group, version, plural), None, rest),
    }
}

fn resource(
    served: &Served,
    (group, version, plural): (&str, &str, &str),
    namespace: Option<&str>,
    rest: &[&str],
) -> Target {
    let review = REVIEWS
        .iter()
        .find(|review| review.group == group && review.version == version && review.plural == plural);
    if let (Some(review), None, []) = (review, namespace, rest) {
        return Target::Review(review);
    }
    let Some(kind) = served.catalog.by_plural(group, version, plural).cloned() else {
        return Target::Unknown;
    };
    let scoped = namespace.is_some();
    let (name, subresource) = match rest {
        [] => (None, None),
        [name] => (Some((*name).to_owned()), None),
        [name, subresource] => match Endpoint::by_name(subresource).filter(|endpoint| kind.has(*endpoint)) {
            Some(endpoint) => (Some((*name).to_owned()), Some(endpoint)),
            None => return Target::Unknown,
        },
        _ => return Target::Unknown,
    };
    // An object of a namespaced kind is named within its namespace only; a cluster-scoped one never is.
    if (scoped && !kind.namespaced) || (kind.namespaced && !scoped && name.is_some()) {
        return Target::Unknown;
    }
    Target::Resource(ResourcePath { kind, namespace: namespace.map(str::to_owned), name, subresource })
}

/// Letters of a path's part that an error shows.
const SHOWN_MAX: usize = 100;

/// Why a path of a resource names nothing: which kind, or which of its subresources, is not served.
pub fn not_served(served: &Served, path: &str) -> ApiError {
    let parts: Vec<String> = path.split('/').skip(1).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return ApiError::NoSuchPath,
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let shown = |part: &str| part.chars().take(SHOWN_MAX).collect::<String>();
    match rest {
        ["", ..] => ApiError::NoSuchPath,
        [plural, ..] if served.catalog.by_plural(group, version, plural).is_none() => {
            let slash = if group.is_empty() { "" } else { "/" };
            let (plural, of) = (shown(plural), shown(&format!("{group}{slash}{version}")));
            ApiError::NotServed(format!("{plural} of {of} are not served"))
        }
        [plural, _, subresource] if !subresource.is_empty() => {
            let (plural, subresource) = (shown(plural), shown(subresource));
            ApiError::NotServed(format!("the subresource {subresource} of {plural} is not served"))
        }
        _ => ApiError::NoSuchPath,
    }
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
    use coracle_objects::Catalog;

    use super::*;

    fn parse(path: &str) -> Target {
        super::parse(&Served::of(Catalog::native().clone()), path)
    }

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
        assert_eq!((&*pods.kind.plural, pods.namespace, pods.name), ("pods", None, None));
        let log = resource_of("/api/v1/namespaces/default/pods/a/log");
        assert_eq!(log.namespace.as_deref(), Some("default"));
        assert_eq!((log.name.as_deref(), log.subresource), (Some("a"), Some(Endpoint::Log)));
        let namespace = resource_of("/api/v1/namespaces/kube-system");
        assert_eq!((&*namespace.kind.plural, namespace.name.as_deref()), ("namespaces", Some("kube-system")));
        let finalize = resource_of("/api/v1/namespaces/x/finalize");
        assert_eq!((finalize.name.as_deref(), finalize.subresource), (Some("x"), Some(Endpoint::Finalize)));
        let scale = resource_of("/apis/apps/v1/namespaces/a/deployments/we%62/scale");
        assert_eq!((&*scale.kind.kind, scale.name.as_deref()), ("Deployment", Some("web")));
    }

    #[test]
    fn a_name_that_was_left_empty_is_no_collection() {
        for path in [
            "/api/v1/namespaces/default/pods/",
            "/api/v1/namespaces/default/pods//",
            "/api/v1/namespaces/default/pods//log",
            "/api/v1/namespaces//pods",
            "/api/v1/namespaces//pods/a",
            "/api/v1/namespaces/",
            "/api/v1/nodes/",
            "/api/v1/nodes/a/",
            "//api/v1/nodes",
            "/api//v1/nodes",
            "/apis//v1/nodes",
            "/apis/apps/v1/namespaces/default/deployments/",
            "/api/v1/namespaces/default/pods/%2e%2e",
            "/api/v1/namespaces/default/pods/.",
            "/api/v1/namespaces/default/pods/a%2flog",
            "/api/v1/namespaces/default/pods/%2F",
            "/api/v1/namespaces/default/pods/%25",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/",
            "//",
            "",
        ] {
            assert!(matches!(parse(path), Target::Unknown), "{path} is {:?}", parse(path));
        }
        // An encoded query stays a part of the name.
        let odd = resource_of("/api/v1/namespaces/default/pods/%3FlabelSelector=a");
        assert_eq!(odd.name.as_deref(), Some("?labelSelector=a"));
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
        for path in [
            "/apis/nope",
            "/api/v2",
            "/api/v1/nopes",
            "/api/v1/pods/a",
            "/x",
            "/api/v1/namespaces/a/pods/b/scale",
        ] {
            assert!(matches!(parse(path), Target::Unknown), "{path}");
        }
    }
}
