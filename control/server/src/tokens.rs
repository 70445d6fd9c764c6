//! Tokens, to join with or to read with: kept as Secrets with a hash of the secret part, scoped to a role, with a lifetime.

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_api::{ProposeError, Storage, new_draft};
use coracle_objects::{
    Object, ObjectKey, Refusal, Transaction, View,
    draft::{editable, encode, timestamp},
};
use coracle_proto::{
    cluster::TokenInfo,
    join::{JoinToken, Role},
};
use jiff::{Timestamp, ToSpan};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

const SECRETS: &str = "secrets";
const NAMESPACE: &str = "kube-system";
const NAME_PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "coracle.dev/join-token";

/// Tokens that may be good at a time.
const TOKENS_MAX: usize = 1024;

/// Lifetime of a token whose maker names none, and the longest that is given, in seconds.
const TTL_DEFAULT_SECONDS: u64 = 24 * 3600;
const TTL_MAX_SECONDS: u64 = 10 * 365 * 24 * 3600;

/// A token as it is kept.
pub struct Kept {
    pub key: ObjectKey,
    pub revision: u64,
    pub role: Role,
    pub used: bool,
    /// The one node that it is for. Without, it is for names that no node has.
    pub node: Option<String>,
    id: String,
    secret_hash: Vec<u8>,
    expires: Timestamp,
    draft: Value,
}

#[derive(Deserialize)]
struct SecretObject {
    #[serde(rename = "type", default)]
    type_: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// What a token is made for.
#[derive(Clone, Debug)]
pub struct Purpose {
    pub role: Role,
    /// The one name that a node joins under.
    pub node: Option<String>,
}

/// Makes a token. `ttl_seconds` 0 is a day. The secret is in the answer only.
pub async fn create<S: Storage>(
    storage: &S,
    ca_pin: [u8; 32],
    purpose: &Purpose,
    ttl_seconds: u64,
    now: Timestamp,
) -> Result<Result<JoinToken, Refusal>, ProposeError> {
    let good = list(&storage.view()).iter().filter(|token| token.expires > now).count();
    if good >= TOKENS_MAX {
        return Err(ProposeError::Unavailable("there are too many tokens: revoke some".into()));
    }
    let id = hex::encode(rand::random::<[u8; 5]>());
    let secret = hex::encode(rand::random::<[u8; 24]>());
    let ttl = if ttl_seconds == 0 { TTL_DEFAULT_SECONDS } else { ttl_seconds.min(TTL_MAX_SECONDS) };
    let expires = now.checked_add((ttl as i64).seconds()).unwrap_or(Timestamp::MAX);
    let key = ObjectKey::new(SECRETS, NAMESPACE, &format!("{NAME_PREFIX}{id}"));
    let base64 = |text: &str| STANDARD.encode(text);
    let role = purpose.role;
    let mut body = json!({
        "type": TYPE,
        "data": {
            "token-id": base64(&id),
            "role": base64(role.as_str()),
            "secret-sha256": base64(&hex::encode(hash(&secret))),
            "expiration": base64(&timestamp(expires)),
        },
    });
    if let Some(node) = &purpose.node {
        body["data"]["node"] = base64(node).into();
    }
    let draft = new_draft("v1", "Secret", &key, body, now);
    let outcome = storage.propose(Transaction::create(key, draft)).await?;
    Ok(outcome.map(|_| JoinToken { ca_pin, role, id, secret }))
}

/// All tokens, whether still good or not.
pub fn list(view: &View) -> Vec<Kept> {
    view.list(SECRETS, Some(NAMESPACE))
        .filter(|secret| secret.name().starts_with(NAME_PREFIX))
        .filter_map(|secret| Kept::read(secret))
        .collect()
}

/// Where tokens are kept, told by their names: their content may be sealed.
pub fn keys(view: &View) -> Vec<ObjectKey> {
    let secrets = view.list(SECRETS, Some(NAMESPACE));
    secrets.filter(|secret| secret.name().starts_with(NAME_PREFIX)).map(|secret| secret.key.clone()).collect()
}

/// Deletions of the tokens that have expired.
pub fn expired(view: &View, now: Timestamp) -> Vec<Transaction> {
    let expired = list(view).into_iter().filter(|token| token.expires <= now);
    expired.map(|token| Transaction::delete(token.key, token.revision)).collect()
}

/// Finds the token that `proof` (`id.secret`) is of, or says in words for the joiner why it does not serve.
pub fn verify(view: &View, proof: &str, role: Role, now: Timestamp) -> Result<Kept, String> {
    // One answer for an unknown id and a wrong secret: it must not be told which ids exist.
    let wrong = || "it is not known here; make one with `coracle token create`".to_owned();
    let (id, secret) = proof.split_once('.').ok_or_else(wrong)?;
    let key = key(id);
    let kept = view.get(&key).and_then(|secret| Kept::read(secret)).ok_or_else(wrong)?;
    // Hashes are compared, so the time that it takes tells nothing about the secret.
    if kept.secret_hash != hash(secret) {
        return Err(wrong());
    }
    if kept.expires <= now {
        return Err(format!(
            "it expired at {}; make one with `coracle token create`",
            timestamp(kept.expires)
        ));
    }
    if kept.role != role {
        let found = kept.role;
        return Err(format!("it is for a {found}; make one with `coracle token create --role {role}`"));
    }
    if kept.role == Role::Control && kept.used {
        let hint = "make one with `coracle token create --role control`";
        return Err(format!("it was used already, and one for control nodes serves once; {hint}"));
    }
    Ok(kept)
}

/// Where the token of this id is kept.
pub fn key(id: &str) -> ObjectKey {
    ObjectKey::new(SECRETS, NAMESPACE, &format!("{NAME_PREFIX}{id}"))
}

impl Kept {
    fn read(secret: &Object) -> Option<Self> {
        let parsed: SecretObject =
            secret.parse().ok().filter(|parsed: &SecretObject| parsed.type_ == TYPE)?;
        let field = |name: &str| {
            let value = STANDARD.decode(parsed.data.get(name)?).ok()?;
            String::from_utf8(value).ok()
        };
        Some(Self {
            key: secret.key.clone(),
            revision: secret.revision,
            role: field("role")?.parse().ok()?,
            used: field("used").is_some(),
            node: field("node"),
            id: field("token-id")?,
            secret_hash: hex::decode(field("secret-sha256")?).ok()?,
            expires: field("expiration")?.parse().ok()?,
            draft: editable(secret),
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn info(&self) -> TokenInfo {
        TokenInfo {
            id: self.id.clone(),
            role: self.role.to_string(),
            expires_unix: self.expires.as_second(),
            used: self.used,
            node: self.node.clone().unwrap_or_default(),
        }
    }

    /// The same token, marked as used.
    pub fn used_draft(&self) -> bytes::Bytes {
        let mut draft = self.draft.clone();
        draft["data"]["used"] = STANDARD.encode("true").into();
        encode(&draft)
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens with the secret `s`: id, role, and seconds until they expire.
    fn view(tokens: &[(&str, &str, i64)]) -> View {
        let now = Timestamp::UNIX_EPOCH;
        let mut view = View::default();
        for (id, role, seconds) in tokens {
            let base64 = |text: &str| STANDARD.encode(text);
            let expires = now.checked_add(seconds.seconds()).unwrap();
            let data = json!({
                "token-id": base64(id),
                "role": base64(role),
                "secret-sha256": base64(&hex::encode(hash("s"))),
                "expiration": base64(&timestamp(expires)),
            });
            let draft = new_draft("v1", "Secret", &key(id), json!({ "type": TYPE, "data": data }), now);
            put(&mut view, Object::from_draft(key(id), &draft, 1).unwrap());
        }
        view
    }

    fn put(view: &mut View, object: Object) {
        let table = view.tables.entry(object.key.resource.clone()).or_default();
        table.insert(object.key.name.clone(), object.into());
    }

    #[test]
    fn only_expired_tokens_are_swept() {
        let (now, view) = (Timestamp::UNIX_EPOCH, view(&[("old", "node", -1), ("good", "node", 1)]));
        assert_eq!(list(&view).len(), 2);
        assert_eq!(expired(&view, now), [Transaction::delete(key("old"), 1)]);
    }

    #[test]
    fn a_token_serves_its_role_in_its_time() {
        let now = Timestamp::UNIX_EPOCH;
        let view = view(&[("n", "node", 10), ("c", "control", 10)]);
        let refused = |proof: &str, role, seconds: i64| {
            verify(&view, proof, role, now.checked_add(seconds.seconds()).unwrap()).err().unwrap_or_default()
        };
        assert_eq!(refused("n.s", Role::Node, 9), "");
        assert!(refused("n.s", Role::Node, 10).contains("expired at 1970-01-01T00:00:10Z"));
        assert!(refused("n.s", Role::Control, 0).contains("it is for a node"));
        assert!(refused("c.s", Role::Node, 0).contains("it is for a control"));
        for wrong in ["n.t", "x.s", "n", ""] {
            assert!(refused(wrong, Role::Node, 0).contains("not known here"), "{wrong}");
        }
    }

    #[test]
    fn a_used_control_token_serves_no_more() {
        let now = Timestamp::UNIX_EPOCH;
        let mut view = view(&[("c", "control", 10)]);
        let used = verify(&view, "c.s", Role::Control, now).expect("it is good").used_draft();
        put(&mut view, Object::from_draft(key("c"), &used, 2).unwrap());
        let refused = verify(&view, "c.s", Role::Control, now).err().expect("it was used");
        assert!(refused.contains("serves once"), "{refused}");
        assert!(list(&view)[0].info().used);
    }
}
