//! What a request asks for, as authorizers see it.

use std::fmt;

use coracle_objects::ResourceName;
use http::Method;

use crate::path::Target;

/// What is asked. Source: `k8s.io/apiserver/pkg/authorization/authorizer.Attributes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `impersonate`; of what is no
    /// resource the method in lower case; of gRPC `call`.
    pub verb: &'a str,
    /// Empty for the core group.
    pub group: &'a str,
    pub version: &'a str,
    /// The plural; empty where the request is for no resource.
    pub resource: &'a str,
    pub subresource: &'a str,
    /// Empty for all namespaces, and for what is in none.
    pub namespace: &'a str,
    pub name: &'a str,
    /// Of a request for no resource, as it was asked.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    /// Of a request to the API.
    pub fn of(method: &Method, target: &'a Target, path: &'a str, watches: bool) -> Self {
        match target {
            Target::Resource(resource) => Self {
                verb: verb(method, resource.name.is_some(), watches),
                group: &resource.kind.group,
                version: &resource.kind.version,
                resource: &resource.kind.plural,
                subresource: resource.subresource.map_or("", |endpoint| endpoint.name()),
                namespace: resource.namespace.as_deref().unwrap_or(""),
                name: resource.name.as_deref().unwrap_or(""),
                path: "",
            },
            Target::Review(review) => Self {
                verb: verb(method, false, false),
                group: review.group,
                version: review.version,
                resource: review.plural,
                ..Self::default()
            },
            _ => Self::of_path(method, path),
        }
    }

    /// Of a request for what is no resource.
    pub fn of_path(method: &Method, path: &'a str) -> Self {
        let verb = match method.as_str() {
            "GET" => "get",
            "HEAD" => "head",
            "POST" => "post",
            "PUT" => "put",
            "PATCH" => "patch",
            "DELETE" => "delete",
            "OPTIONS" => "options",
            _ => "use",
        };
        Self { verb, path, ..Self::default() }
    }

    /// The resource as errors name it.
    pub fn resource_name(&self) -> Option<ResourceName> {
        (!self.resource.is_empty()).then(|| ResourceName::new(self.resource, self.group))
    }

    /// Whether nothing is changed by it.
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch" | "head")
    }
}

fn verb(method: &Method, named: bool, watches: bool) -> &'static str {
    match (method.as_str(), named) {
        ("GET" | "HEAD", _) if watches => "watch",
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => "use",
    }
}

/// As a refusal says it: `get resource "pods/log" in API group "" in the namespace "a"`.
impl fmt::Display for Attributes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource, subresource, namespace, path, .. } = self;
        if resource.is_empty() {
            return write!(f, "{verb} path {path:?}");
        }
        let slash = if subresource.is_empty() { "" } else { "/" };
        write!(f, "{verb} resource \"{resource}{slash}{subresource}\" in API group {group:?} ")?;
        match *namespace {
            "" => f.write_str("at the cluster scope"),
            namespace => write!(f, "in the namespace {namespace:?}"),
        }
    }
}
