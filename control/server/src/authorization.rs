//! Who may do what on a control node: one authorizer for REST, gRPC, the registry and metrics. There are no roles that
//! users could define yet; what groups may do is written down here.

use coracle_api::{Attributes, Authorizer, Decision, UserInfo, is_public};
use coracle_pki::{MASTERS_ORGANIZATION, NODE_USER_PREFIX, NODES_ORGANIZATION};

use crate::access::{self, Audience, is_grpc};

/// Control nodes. Only a certificate of the peer CA puts anyone here.
pub const MEMBERS: &str = "coracle:members";
/// Those that were control nodes once.
pub const FORMER_MEMBERS: &str = "coracle:former-members";
/// Who may see everything but Secrets, and metrics.
pub const READERS: &str = "coracle:readers";
/// Who may push to the registry and pull from it.
pub const PUSHERS: &str = "coracle:pushers";

const AUTHENTICATED: &str = "system:authenticated";

/// What everybody may find out who is known: which kinds there are, who they are, what they may do. Source: the cluster roles
/// `system:discovery` and `system:basic-user`.
const SELF_REVIEWS: [(&str, &str); 3] = [
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Builtin;

impl Authorizer for Builtin {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        let allowed = match attributes.path {
            "" => may_use_resource(user, attributes),
            path if is_grpc(path) => {
                access::method(path).is_some_and(|(audience, _)| may_call(user, audience))
            }
            path if is_registry(path) => may_use_registry(user, attributes),
            _ => is_public(attributes) || may_see_path(user, attributes),
        };
        if allowed { Decision::Allowed } else { Decision::Denied(String::new()) }
    }
}

/// Whether a path is of the registry.
pub fn is_registry(path: &str) -> bool {
    path == "/v2" || path.starts_with("/v2/")
}

/// Whether a user is a node, and not only in its group.
fn is_node(user: &UserInfo) -> bool {
    user.is_in(NODES_ORGANIZATION) && user.name.starts_with(NODE_USER_PREFIX)
}

fn may_use_resource(user: &UserInfo, asked: &Attributes<'_>) -> bool {
    let review = SELF_REVIEWS.contains(&(asked.group, asked.resource));
    let own = asked.verb == "create" && review && user.is_in(AUTHENTICATED);
    let sees =
        asked.is_read_only() && (asked.group, asked.resource) != ("", "secrets") && asked.resource != "*";
    user.is_in(MASTERS_ORGANIZATION) || own || (user.is_in(READERS) && sees)
}

fn may_see_path(user: &UserInfo, asked: &Attributes<'_>) -> bool {
    let root = asked.path.split('/').nth(1).unwrap_or("");
    let sees = asked.is_read_only() && matches!(root, "" | "api" | "apis" | "openapi");
    user.is_in(MASTERS_ORGANIZATION)
        || (user.is_in(AUTHENTICATED) && sees)
        || (user.is_in(READERS) && asked.is_read_only() && root == "metrics")
}

fn may_use_registry(user: &UserInfo, asked: &Attributes<'_>) -> bool {
    let reads = is_node(user) || user.is_in(MEMBERS) || user.is_in(READERS);
    user.is_in(MASTERS_ORGANIZATION) || user.is_in(PUSHERS) || (reads && asked.is_read_only())
}

/// Whether a user is of the audience of a gRPC method.
pub fn may_call(user: &UserInfo, audience: Audience) -> bool {
    let administers = user.is_in(MEMBERS) || user.is_in(MASTERS_ORGANIZATION);
    match audience {
        Audience::Joiners => true,
        Audience::Members => user.is_in(MEMBERS),
        Audience::Administrators => administers,
        Audience::Status => administers || user.is_in(FORMER_MEMBERS),
        Audience::Nodes => is_node(user),
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn each_group_has_what_is_its_own() {
        let known = |name: &str, group: &str| UserInfo::new(name, &[group]).completed();
        let admin = known("admin", MASTERS_ORGANIZATION);
        let reader = known("coracle:token:ab", READERS);
        let node = known("system:node:n1", NODES_ORGANIZATION);
        let member = known("coracle:member:7", MEMBERS);
        let joe = known("joe", "devs");
        let pusher = known("coracle:token:cd", PUSHERS);
        let everybody = [&admin, &reader, &node, &member, &joe, &UserInfo::anonymous(), &pusher];
        let resource = |verb, resource| Attributes { verb, resource, version: "v1", ..Attributes::default() };
        let review = |group| Attributes { group, ..resource("create", "selfsubjectaccessreviews") };
        let path = |path| Attributes::of_path(&Method::GET, path);
        let put = |path| Attributes::of_path(&Method::PUT, path);
        for (asked, allowed) in [
            (resource("list", "pods"), [true, true, false, false, false, false, false]),
            (resource("get", "secrets"), [true, false, false, false, false, false, false]),
            (resource("create", "pods"), [true, false, false, false, false, false, false]),
            (resource("impersonate", "users"), [true, false, false, false, false, false, false]),
            (review("authorization.k8s.io"), [true, true, true, true, true, false, true]),
            (review("evil.io"), [true, false, false, false, false, false, false]),
            (resource("create", "subjectaccessreviews"), [true, false, false, false, false, false, false]),
            (resource("*", "*"), [true, false, false, false, false, false, false]),
            (path("/metrics"), [true, true, false, false, false, false, false]),
            (path("/apis/apps/v1"), [true, true, true, true, true, false, true]),
            (path("/debug/anything"), [true, false, false, false, false, false, false]),
            (path("/readyz"), [true; 7]),
            (path("/v2/hello/manifests/1"), [true, true, true, true, false, false, true]),
            (put("/v2/hello/manifests/1"), [true, false, false, false, false, false, true]),
        ] {
            let found = everybody.map(|user| Builtin.authorize(user, &asked).is_allowed());
            assert_eq!(found, allowed, "{asked}");
        }
    }
}
