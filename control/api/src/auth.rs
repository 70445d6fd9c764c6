//! Who asks, and what they may do.

pub mod reviews;

use coracle_objects::ResourceName;
use http::{HeaderMap, Method};

use crate::{
    error::ApiError,
    path::{ResourcePath, Target},
};

const MASTERS: &str = "system:masters";
const ANONYMOUS: &str = "system:anonymous";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// A user, as their client certificate names them (CN and O). Put into a request's extensions by whoever ended TLS;
/// a request without one is anonymous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

impl Identity {
    pub fn anonymous() -> Self {
        Self { user: ANONYMOUS.to_owned(), groups: vec![UNAUTHENTICATED.to_owned()] }
    }

    pub fn is_anonymous(&self) -> bool {
        self.user == ANONYMOUS
    }

    /// Whether everything is allowed. What the rest may do comes with roles.
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }

    /// With the group that every user has who is known.
    fn completed(mut self) -> Self {
        if !self.is_anonymous() && !self.groups.iter().any(|group| group == AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}

/// Who the request is made as: the user by certificate, or the one that they impersonate.
pub fn identify(certificate: Option<&Identity>, headers: &HeaderMap) -> Result<Identity, ApiError> {
    let own = certificate.cloned().unwrap_or_else(Identity::anonymous).completed();
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or("").to_owned();
    let others = headers.keys().any(|name| name.as_str().starts_with("impersonate-"));
    let Some(user) = headers.get("impersonate-user").map(text) else {
        if others {
            return Err(ApiError::BadRequest(
                "requested groups to impersonate without impersonating a user".to_owned(),
            ));
        }
        return Ok(own);
    };
    if !own.is_master() {
        return Err(ApiError::Forbidden {
            resource: Some(ResourceName::from("users")),
            name: user,
            reason: format!(
                "User {:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
                own.user
            ),
        });
    }
    let groups = headers.get_all("impersonate-group").iter().map(text).collect();
    Ok(Identity { user, groups }.completed())
}

/// Refuses what the user may not do: 401 where nobody has named themselves, else 403.
pub fn authorize(identity: &Identity, method: &Method, target: &Target, path: &str) -> Result<(), ApiError> {
    if identity.is_master() || matches!(target, Target::Health { .. } | Target::Version) {
        return Ok(());
    }
    if identity.is_anonymous() {
        return Err(ApiError::Unauthorized);
    }
    let user = &identity.user;
    Err(match target {
        Target::Resource(resource) => ApiError::Forbidden {
            resource: Some(resource.kind.resource()),
            name: resource.name.clone().unwrap_or_default(),
            reason: format!("User {user:?} cannot {}", attributes(method, resource)),
        },
        _ => ApiError::Forbidden {
            resource: None,
            name: String::new(),
            reason: format!("User {user:?} cannot {} path {path:?}", method.as_str().to_lowercase()),
        },
    })
}

fn attributes(method: &Method, path: &ResourcePath) -> String {
    let verb = match (method.as_str(), path.name.is_some()) {
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => "use",
    };
    let subresource = path.subresource.map(|endpoint| format!("/{}", endpoint.name())).unwrap_or_default();
    let scope = match &path.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let kind = &path.kind;
    format!("{verb} resource \"{}{subresource}\" in API group {:?} {scope}", kind.plural, &*kind.group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_objects::Catalog;

    use crate::{path::parse, served::Served};

    fn identity(user: &str, groups: &[&str]) -> Identity {
        Identity { user: user.into(), groups: groups.iter().map(|&group| group.into()).collect() }
    }

    #[test]
    fn masters_may_do_everything_and_others_nothing() {
        let ask = |identity: &Identity, path: &str| {
            authorize(identity, &Method::GET, &parse(&Served::of(Catalog::native().clone()), path), path)
                .map_err(|error| error.to_string())
        };
        assert!(ask(&identity("admin", &["system:masters"]), "/api/v1/pods").is_ok());
        assert_eq!(
            ask(&identity("joe", &[]), "/apis/apps/v1/namespaces/a/deployments/x/scale").unwrap_err(),
            "deployments.apps \"x\" is forbidden: User \"joe\" cannot get resource \"deployments/scale\" in API \
             group \"apps\" in the namespace \"a\""
        );
        assert_eq!(
            ask(&identity("joe", &[]), "/openapi/v3").unwrap_err(),
            "forbidden: User \"joe\" cannot get path \"/openapi/v3\""
        );
        assert_eq!(ask(&Identity::anonymous(), "/api").unwrap_err(), "Unauthorized");
        assert!(ask(&Identity::anonymous(), "/readyz").is_ok());
        assert!(ask(&Identity::anonymous(), "/version/").is_ok());
    }

    #[test]
    fn only_masters_impersonate() {
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-user", "joe".parse().unwrap());
        headers.append("impersonate-group", "devs".parse().unwrap());
        let joe = identify(Some(&identity("admin", &["system:masters"])), &headers).unwrap();
        assert_eq!(joe, identity("joe", &["devs", "system:authenticated"]));
        assert!(identify(Some(&identity("joe", &[])), &headers).is_err());
        assert!(identify(None, &headers).is_err());
        headers.remove("impersonate-user");
        assert!(identify(Some(&identity("admin", &["system:masters"])), &headers).is_err());
    }
}
