//! One AES-256-GCM key, and what it makes of a draft.

use std::{
    borrow::Borrow,
    fmt,
    io::{Read, Write},
    str::FromStr,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use coracle_objects::ObjectKey;
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use jiff::Timestamp;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Before the key when its id is computed.
const ID_CONTEXT: &[u8] = b"coracle secrets key";

/// Bytes of a key's id; twice as many hexadecimal digits.
const ID_BYTES: usize = 8;

/// The first byte of a plaintext: how the draft follows.
const AS_IT_IS: u8 = 0;
const DEFLATED: u8 = 1;

/// Drafts above this size are deflated before they are sealed: base64 within base64 would not fit below the store's
/// limit on an object otherwise. In bytes.
const DEFLATE_ABOVE_BYTES: usize = 512 * 1024;

/// A draft that was sealed is never larger than this when it is opened, in bytes.
const DRAFT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Names a key by a hash of it: 16 hexadecimal digits. A key under a wrong name is never used.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl KeyId {
    fn of(bytes: &[u8; 32]) -> Self {
        let hash = Sha256::new_with_prefix(ID_CONTEXT).chain_update(bytes).finalize();
        Self(hex::encode(&hash[..ID_BYTES]))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        match digits && text.len() == 2 * ID_BYTES {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("{text:?} is no key id: it has {} hexadecimal digits", 2 * ID_BYTES)),
        }
    }
}

impl TryFrom<String> for KeyId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

/// A key. Its bytes are shown by nothing but [`Key::kept`].
pub struct Key {
    pub id: KeyId,
    /// When it was made.
    pub created: Timestamp,
    bytes: [u8; 32],
    cipher: LessSafeKey,
}

/// A key as a key ring's file and the call that hands keys to members carry it.
#[derive(Serialize, Deserialize)]
pub struct KeptKey {
    pub id: KeyId,
    pub created: Timestamp,
    /// The key in base64.
    key: String,
}

impl Key {
    /// A new key from the operating system's randomness.
    pub(super) fn generate(now: Timestamp) -> Self {
        Self::new(random(), now)
    }

    fn new(bytes: [u8; 32], created: Timestamp) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("32 bytes are an AES-256 key");
        Self { id: KeyId::of(&bytes), created, bytes, cipher: LessSafeKey::new(key) }
    }

    pub fn kept(&self) -> KeptKey {
        KeptKey { id: self.id.clone(), created: self.created, key: STANDARD.encode(self.bytes) }
    }

    /// Fails in words where it is no key, or not the one that its id names.
    pub(super) fn from_kept(kept: &KeptKey) -> Result<Self, String> {
        let bytes = STANDARD.decode(&kept.key).ok().and_then(|bytes| bytes.try_into().ok());
        let bytes = bytes.ok_or_else(|| format!("key {} is not 32 bytes in base64", kept.id))?;
        let key = Self::new(bytes, kept.created);
        if key.id == kept.id {
            Ok(key)
        } else {
            Err(format!("what stands there as key {} is another", kept.id))
        }
    }

    /// Seals a draft for one place in the store: it can be opened there only. Gives nonce, ciphertext and tag in
    /// base64. Nonces are random: a key serves for 2^32 seals.
    pub(super) fn seal(&self, place: &ObjectKey, draft: &[u8]) -> String {
        let mut text = pack(draft);
        let nonce: [u8; NONCE_LEN] = random();
        self.cipher
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), self.place(place), &mut text)
            .expect("a draft is far below the largest message of AES-GCM");
        STANDARD.encode([nonce.as_slice(), &text].concat())
    }

    /// The draft that was sealed for this place; `None` where the text was changed, was moved from another place or is
    /// sealed with another key.
    pub(super) fn open(&self, place: &ObjectKey, text: &str) -> Option<Vec<u8>> {
        let mut text = STANDARD.decode(text).ok()?;
        let (nonce, rest) = text.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let packed = self.cipher.open_in_place(nonce, self.place(place), rest).ok()?;
        unpack(packed)
    }

    /// What a ciphertext is bound to. Neither namespaces nor names have a `/`.
    fn place(&self, place: &ObjectKey) -> Aad<String> {
        let (namespace, name) = (&place.name.namespace, &place.name.name);
        Aad::from(format!("coracle/1/{}/{}/{namespace}/{name}", self.id, place.resource))
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

fn pack(draft: &[u8]) -> Vec<u8> {
    if draft.len() <= DEFLATE_ABOVE_BYTES {
        return [&[AS_IT_IS], draft].concat();
    }
    let mut encoder = DeflateEncoder::new(vec![DEFLATED], Compression::fast());
    let written = encoder.write_all(draft).and_then(|()| encoder.finish());
    written.expect("writing into memory does not fail")
}

fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let (form, rest) = packed.split_first()?;
    match *form {
        AS_IT_IS => Some(rest.to_vec()),
        DEFLATED => {
            let mut draft = Vec::with_capacity(rest.len() * 2);
            DeflateDecoder::new(rest).take(DRAFT_BYTES_MAX).read_to_end(&mut draft).ok()?;
            Some(draft)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> ObjectKey {
        ObjectKey::new("secrets", "default", name)
    }

    #[test]
    fn a_draft_is_opened_by_its_key_and_at_its_place_only() {
        let (key, other) = (Key::generate(Timestamp::now()), Key::generate(Timestamp::now()));
        let sealed = key.seal(&place("a"), b"a draft");
        assert_eq!(key.open(&place("a"), &sealed).unwrap(), b"a draft");
        assert_ne!(key.seal(&place("a"), b"a draft"), sealed, "nonces differ");
        assert_eq!(key.open(&place("b"), &sealed), None, "moved to another name");
        assert_eq!(key.open(&ObjectKey::new("secrets", "other", "a"), &sealed), None, "to another namespace");
        assert_eq!(key.open(&ObjectKey::new("configmaps", "default", "a"), &sealed), None, "to another kind");
        assert_eq!(other.open(&place("a"), &sealed), None, "another key");
        let mut bytes = STANDARD.decode(&sealed).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(key.open(&place("a"), &STANDARD.encode(&bytes)), None, "byte {at} changed");
            bytes[at] ^= 1;
        }
        for text in ["", "AAAA", "no base64"] {
            assert_eq!(key.open(&place("a"), text), None, "{text}");
        }
    }

    #[test]
    fn the_largest_secret_fits_below_the_limit_of_an_object() {
        let key = Key::generate(Timestamp::now());
        let values: Vec<u8> = (0..1024 * 1024 / 32).flat_map(|_| random::<32>()).collect();
        let draft = format!(r#"{{"data":{{"k":"{}"}}}}"#, STANDARD.encode(values));
        let sealed = key.seal(&place("a"), draft.as_bytes());
        assert!(sealed.len() < 1500 * 1024, "{}", sealed.len());
        assert_eq!(key.open(&place("a"), &sealed).unwrap(), draft.as_bytes());
    }

    #[test]
    fn a_key_is_kept_under_its_own_name() {
        let key = Key::generate(Timestamp::UNIX_EPOCH);
        let kept = KeptKey { ..key.kept() };
        assert_eq!(Key::from_kept(&kept).unwrap().id, key.id);
        let other = Key::generate(Timestamp::UNIX_EPOCH).kept();
        let renamed = KeptKey { id: key.id.clone(), ..other };
        assert!(Key::from_kept(&renamed).err().unwrap().contains("is another"));
        let short = KeptKey { key: STANDARD.encode(b"short"), ..key.kept() };
        assert!(Key::from_kept(&short).err().unwrap().contains("32 bytes"));
    }
}
