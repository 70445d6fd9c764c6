//! Join tokens, as people paste them.

use coracle_proto::join::JoinToken;

/// A text is a token or it is not; one that is survives being written and read again.
pub fn join_token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(token) = text.parse::<JoinToken>() else { return };
    assert_eq!(token.to_string().parse::<JoinToken>().ok().as_ref(), Some(&token));
    assert!(
        !format!("{token:?}").contains(&token.secret) || token.secret.len() < 24,
        "the secret is not shown"
    );
}
