//! Who asks: first by the certificate of the connection, then, where there is none, by a token of the request: a bearer
//! token (RFC 6750), or to the registry, whose clients know no other way, a password (RFC 7617). The answer is judged anew
//! for each request.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_api::UserInfo;
use coracle_objects::View;
use coracle_proto::join::Role;
use http::{HeaderMap, header};
use jiff::Timestamp;

use crate::{
    authorization::{PUSHERS, READERS, is_registry},
    identity::Caller,
    tokens,
};

/// Of users that a token names, by its id.
const TOKEN_USER_PREFIX: &str = "coracle:token:";

/// The groups of who shows a token.
const GROUPS: [(Role, &str); 2] = [(Role::Reader, READERS), (Role::Pusher, PUSHERS)];

/// A token that nobody has, or has any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadToken;

/// The caller of a request, whom the connection's certificate has said or left open.
pub fn authenticate(
    by_certificate: Caller,
    path: &str,
    headers: &HeaderMap,
    view: impl FnOnce() -> Arc<View>,
    now: Timestamp,
) -> Result<Caller, BadToken> {
    if !matches!(by_certificate, Caller::Anonymous) {
        return Ok(by_certificate);
    }
    match token(path, headers)? {
        Some(token) => by_token(&token, &view(), now).map(Caller::Client).ok_or(BadToken),
        None => Ok(Caller::Anonymous),
    }
}

/// The token of an `Authorization` header.
fn token(path: &str, headers: &HeaderMap) -> Result<Option<String>, BadToken> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, given)) = value.and_then(|value| value.split_once(' ')) else { return Ok(None) };
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(given.trim().to_owned()));
    }
    if scheme.eq_ignore_ascii_case("basic") && is_registry(path) {
        return password(given.trim()).map(Some).ok_or(BadToken);
    }
    Ok(None)
}

/// Of `user:password` in base64. What the user is called is nothing to us: the token says who it is.
fn password(given: &str) -> Option<String> {
    let decoded = String::from_utf8(STANDARD.decode(given).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.trim().to_owned())
}

fn by_token(token: &str, view: &View, now: Timestamp) -> Option<UserInfo> {
    let (kept, group) = GROUPS
        .into_iter()
        .find_map(|(role, group)| Some((tokens::verify(view, token, role, now).ok()?, group)))?;
    Some(UserInfo::new(format!("{TOKEN_USER_PREFIX}{}", kept.id()), &[group]).completed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_a_token_to_the_registry_alone() {
        let shown = |path: &str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            token(path, &headers)
        };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let some = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(shown("/v2/", &basic("anyone:ab.cd")), some("ab.cd"));
        assert_eq!(shown("/v2/a/tags/list", &basic(":ab.cd")), some("ab.cd"));
        assert_eq!(shown("/api", &basic("anyone:ab.cd")), Ok(None));
        assert_eq!(shown("/api", "bearer ab.cd"), some("ab.cd"));
        for wrong in ["Basic ?", &basic("without a colon")] {
            assert_eq!(shown("/v2/", wrong), Err(BadToken), "{wrong}");
        }
        assert_eq!(token("/v2/", &HeaderMap::new()), Ok(None));
    }
}
