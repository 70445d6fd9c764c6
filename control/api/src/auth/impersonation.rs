//! Requests that one user makes as another. Source: kube-apiserver's impersonation filter.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Attributes, Authorizer, UserInfo, authorize};
use crate::error::ApiError;

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const EXTRA: &str = "impersonate-extra-";

/// Whether a request is to be made as somebody else than who makes it.
pub fn asks_to_impersonate(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("impersonate-"))
}

/// Who the request is made as: who makes it, or the one that they impersonate, where they may.
pub fn impersonated(
    authorizer: &dyn Authorizer,
    user: UserInfo,
    headers: &HeaderMap,
) -> Result<UserInfo, ApiError> {
    let text = |value: &HeaderValue| value.to_str().unwrap_or("").to_owned();
    let Some(name) = headers.get(&USER).map(text) else {
        if asks_to_impersonate(headers) {
            return Err(ApiError::BadRequest(
                "requested groups to impersonate without impersonating a user".to_owned(),
            ));
        }
        return Ok(user);
    };
    let may = |resource: &str, subresource: &str, name: &str| {
        let asked = Attributes {
            verb: "impersonate",
            version: "v1",
            resource,
            subresource,
            name,
            ..Attributes::default()
        };
        authorize(authorizer, &user, &asked)
    };
    may("users", "", &name)?;
    let uid = headers.get(&UID).map(text).unwrap_or_default();
    if !uid.is_empty() {
        may("uids", "", &uid)?;
    }
    let groups: Vec<String> = headers.get_all(&GROUP).iter().map(text).collect();
    for group in &groups {
        may("groups", "", group)?;
    }
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            may("userextras", key, &text(value))?;
            extra.entry(key.to_owned()).or_default().push(text(value));
        }
    }
    Ok(UserInfo { name, uid, groups, extra }.completed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Masters;

    #[test]
    fn only_masters_impersonate() {
        let mut headers = HeaderMap::new();
        headers.insert(USER, "joe".parse().unwrap());
        headers.insert(UID, "7".parse().unwrap());
        headers.append(GROUP, "devs".parse().unwrap());
        headers.append("impersonate-extra-team", "blue".parse().unwrap());
        let admin = || UserInfo::new("admin", &["system:masters"]);
        let joe = impersonated(&Masters, admin(), &headers).unwrap();
        assert_eq!((joe.name.as_str(), joe.uid.as_str()), ("joe", "7"));
        assert_eq!(joe.groups, ["devs", "system:authenticated"]);
        assert_eq!(joe.extra["team"], ["blue"]);
        let refused = impersonated(&Masters, UserInfo::new("joe", &[]), &headers).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "users \"joe\" is forbidden: User \"joe\" cannot impersonate resource \"users\" in API group \"\" at the \
             cluster scope"
        );
        assert!(impersonated(&Masters, UserInfo::anonymous(), &headers).is_err());
        headers.remove(USER);
        assert!(impersonated(&Masters, admin(), &headers).is_err());
        assert_eq!(impersonated(&Masters, admin(), &HeaderMap::new()).unwrap(), admin());
    }
}
