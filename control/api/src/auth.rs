//! Who asks, and what they may do. The names are kube-apiserver's: user info, attributes, authorizer.

mod attributes;
mod impersonation;
pub mod reviews;

use std::collections::BTreeMap;

pub use attributes::Attributes;
pub use impersonation::{asks_to_impersonate, impersonated};

use crate::error::ApiError;

/// Where the components' accounts are.
const SYSTEM_NAMESPACE: &str = "kube-system";
/// The group of all nodes, and what their names begin with.
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const MASTERS: &str = "system:masters";
const ANONYMOUS: &str = "system:anonymous";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Who asks. Put into a request's extensions by whoever has authenticated it, by a certificate or a token; a request without
/// one is anonymous.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// `system:node:n1`
    pub name: String,
    /// Tells two users of one name apart; mostly empty.
    pub uid: String,
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// A component of the control plane, of which each has a service account.
    pub fn component(account: &str) -> Self {
        let name = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{account}");
        let of_namespace = format!("system:serviceaccounts:{SYSTEM_NAMESPACE}");
        Self::new(name, &["system:serviceaccounts", &of_namespace]).completed()
    }

    pub fn scheduler() -> Self {
        Self::new("system:kube-scheduler", &[]).completed()
    }

    pub fn node(name: &str) -> Self {
        Self::new(format!("{NODE_PREFIX}{name}"), &[NODES]).completed()
    }

    /// A control node itself.
    pub fn api_server() -> Self {
        Self::new("system:apiserver", &[MASTERS]).completed()
    }

    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// The name of the node that this is. Source: kube-apiserver's node authorizer.
    pub fn as_node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.is_in(NODES))
    }

    pub fn is_anonymous(&self) -> bool {
        self.name == ANONYMOUS
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// With the group that every user has who is known.
    pub fn completed(mut self) -> Self {
        if !self.is_anonymous() && !self.is_in(AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    /// With more to say of it, or nothing.
    Denied(String),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        *self == Self::Allowed
    }
}

/// Says who may do what. One of them is asked for REST, gRPC, the registry and metrics alike.
pub trait Authorizer: Send + Sync + 'static {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision;
}

/// `system:masters` may do everything, and everybody may see how the server does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Masters;

impl Authorizer for Masters {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        if user.is_in(MASTERS) || is_public(attributes) {
            return Decision::Allowed;
        }
        Decision::Denied(String::new())
    }
}

/// What everybody may ask, also without a name.
pub fn is_public(attributes: &Attributes<'_>) -> bool {
    let path = attributes.path.trim_end_matches('/');
    let under =
        |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    path == "/version" || ["/healthz", "/livez", "/readyz"].into_iter().any(under)
}

/// Refuses what the user may not do: 401 where nobody has named themselves, else 403.
pub fn authorize(
    authorizer: &dyn Authorizer,
    user: &UserInfo,
    attributes: &Attributes<'_>,
) -> Result<(), ApiError> {
    let more = match authorizer.authorize(user, attributes) {
        Decision::Allowed => return Ok(()),
        Decision::Denied(_) if user.is_anonymous() => return Err(ApiError::Unauthorized),
        Decision::Denied(more) => more,
    };
    let colon = if more.is_empty() { "" } else { ": " };
    let reason = format!("User {:?} cannot {attributes}{colon}{more}", user.name);
    Err(ApiError::Forbidden {
        resource: attributes.resource_name(),
        name: attributes.name.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use coracle_objects::Catalog;
    use http::Method;

    use super::*;
    use crate::{path::parse, served::Served};

    #[test]
    fn masters_may_do_everything_and_others_nothing() {
        let served = Served::of(Catalog::native().clone());
        let ask = |user: &UserInfo, path: &str| {
            let target = parse(&served, path);
            authorize(&Masters, user, &Attributes::of(&Method::GET, &target, path, false))
                .map_err(|error| error.to_string())
        };
        assert!(ask(&UserInfo::new("admin", &["system:masters"]), "/api/v1/pods").is_ok());
        let joe = UserInfo::new("joe", &[]);
        assert_eq!(
            ask(&joe, "/apis/apps/v1/namespaces/a/deployments/x/scale").unwrap_err(),
            "deployments.apps \"x\" is forbidden: User \"joe\" cannot get resource \"deployments/scale\" in API \
             group \"apps\" in the namespace \"a\""
        );
        assert_eq!(
            ask(&joe, "/api/v1/nodes").unwrap_err(),
            "nodes is forbidden: User \"joe\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"
        );
        assert_eq!(
            ask(&joe, "/openapi/v3").unwrap_err(),
            "forbidden: User \"joe\" cannot get path \"/openapi/v3\""
        );
        assert_eq!(ask(&UserInfo::anonymous(), "/api").unwrap_err(), "Unauthorized");
        for path in ["/readyz", "/readyz/ping", "/version/", "/livez"] {
            assert!(ask(&UserInfo::anonymous(), path).is_ok(), "{path}");
        }
        assert!(ask(&UserInfo::anonymous(), "/readyzz").is_err());
    }
}
