//! Digests: the names of content. Source: the OCI image specification, `descriptor.md`.

use std::fmt;

use sha2::{Digest as _, Sha256, Sha512};

/// The registered algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    pub fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
            Self::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }
}

/// An algorithm and lower-case hexadecimal digits, as `sha256:...`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    pub fn parse(text: &str) -> Option<Self> {
        let (algorithm, hex) = text.split_once(':')?;
        let algorithm = Algorithm::parse(algorithm)?;
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let fits = hex.len() == algorithm.hex_length() && hex.bytes().all(is_digit);
        fits.then(|| Self { algorithm, hex: hex.to_owned() })
    }

    /// Of content, by the algorithm that names it where nobody asks for another.
    pub fn of(content: &[u8]) -> Self {
        Self::by(Algorithm::Sha256, content)
    }

    pub fn by(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = algorithm.hasher();
        hasher.update(content);
        hasher.finish()
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

/// A digest in the making.
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn update(&mut self, piece: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(piece),
            Self::Sha512(hasher) => hasher.update(piece),
        }
    }

    pub fn finish(self) -> Digest {
        let (algorithm, hex) = match self {
            Self::Sha256(hasher) => (Algorithm::Sha256, hex::encode(hasher.finalize())),
            Self::Sha512(hasher) => (Algorithm::Sha512, hex::encode(hasher.finalize())),
        };
        Digest { algorithm, hex }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_are_taken_for_digests() {
        let (short, long) = ("a".repeat(64), "a".repeat(128));
        for good in [format!("sha256:{short}"), format!("sha512:{long}")] {
            assert_eq!(Digest::parse(&good).expect("a digest").to_string(), good);
        }
        for wrong in [
            short.clone(),
            format!("sha256:{}", "A".repeat(64)),
            "sha256:../../x".into(),
            format!("sha512:{short}"),
            format!("sha256:{long}"),
            format!("md5:{short}"),
        ] {
            assert!(Digest::parse(&wrong).is_none(), "{wrong}");
        }
    }

    /// Source: FIPS 180-4, the examples of one block.
    #[test]
    fn content_has_the_digests_of_the_standard() {
        let short = Digest::of(b"abc").to_string();
        assert_eq!(short, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let long = Digest::by(Algorithm::Sha512, b"abc");
        assert!(long.hex().starts_with("ddaf35a193617abacc417349ae204131"), "{long}");
        assert_eq!(Digest::parse(&long.to_string()), Some(long));
    }
}
