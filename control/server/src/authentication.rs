//! Who asks: first by the certificate of the connection, then, where there is none, by a bearer token of the request
//! (RFC 6750). The answer is judged anew for each request.

use std::sync::Arc;

use coracle_api::UserInfo;
use coracle_objects::View;
use coracle_proto::join::Role;
use http::{HeaderMap, header};
use jiff::Timestamp;

use crate::{authorization::READERS, identity::Caller, tokens};

/// Of users that a token names, by its id.
const TOKEN_USER_PREFIX: &str = "coracle:token:";

/// A bearer token that nobody has, or has any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadToken;

/// The caller of a request, whom the connection's certificate has said or left open.
pub fn authenticate(
    by_certificate: Caller,
    headers: &HeaderMap,
    view: impl FnOnce() -> Arc<View>,
    now: Timestamp,
) -> Result<Caller, BadToken> {
    if !matches!(by_certificate, Caller::Anonymous) {
        return Ok(by_certificate);
    }
    match bearer(headers) {
        Some(token) => by_token(token, &view(), now).map(Caller::Client).ok_or(BadToken),
        None => Ok(Caller::Anonymous),
    }
}

/// The token of an `Authorization` header of the scheme Bearer.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn by_token(token: &str, view: &View, now: Timestamp) -> Option<UserInfo> {
    let kept = tokens::verify(view, token, Role::Reader, now).ok()?;
    Some(UserInfo::new(format!("{TOKEN_USER_PREFIX}{}", kept.id()), &[READERS]).completed())
}
