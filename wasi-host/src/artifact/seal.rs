//! What vouches for compiled code. It is native code: nothing is loaded that this host's own key does not vouch for, wherever
//! it was kept meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::hmac;

use super::cache_dir::CacheDir;
use super::code_store::CodeKey;
use super::inspect::Kind;
use crate::HostError;

/// Bytes of code that are authenticated at once.
const PIECE_BYTES: usize = 256 << 10;

const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;

/// Vouches for code by a key of this host. Nodes that share code need a key in common: which one it is concerns nothing but
/// [`Seal::open`].
pub(crate) struct Seal {
    key: hmac::Key,
}

/// What a seal says of code, as bytes that go where the code goes: a tag, and after it what kind of component it is and on
/// which namespace's account it was compiled. What it says is true where [`Seal::check`] says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Voucher(Vec<u8>);

impl Seal {
    /// With the key of this directory, which is made (0600) where there is none.
    pub(crate) fn open(dir: &CacheDir) -> Result<Seal, HostError> {
        let secret = read_or_make_key(&dir.key_file());
        let secret = secret.map_err(|source| HostError::CacheDir { path: dir.path().to_owned(), source })?;
        Ok(Seal { key: hmac::Key::new(hmac::HMAC_SHA256, &secret) })
    }

    /// Vouches for what was compiled on account of `namespace`, as it is now: code that is changed later is not vouched for.
    pub(super) fn vouch(
        &self,
        key: &CodeKey,
        kind: Kind,
        namespace: &str,
        mut code: &File,
    ) -> io::Result<Voucher> {
        code.rewind()?;
        let about = format!("{}\n{namespace}", kind.to_text());
        let tag = self.tag(key, &about, code)?;
        Ok(Voucher([tag.as_ref(), about.as_bytes()].concat()))
    }

    /// The kind of the component whose code this is; none where this host's key does not vouch for it.
    pub(super) fn check(&self, key: &CodeKey, voucher: &Voucher, code: &File) -> Option<Kind> {
        let (tag, about) = voucher.parts()?;
        let own = self.tag(key, about, code).ok()?;
        // In the same time whatever differs.
        let differs = own.as_ref().iter().zip(tag).fold(0, |differs, (own, given)| differs | (own ^ given));
        let kind = about.split_once('\n').map_or(about, |(kind, _)| kind);
        if differs == 0 { Kind::from_text(kind) } else { None }
    }

    /// Authenticates the code's key and what is said about it as well, so that no code can stand in for another.
    fn tag(&self, key: &CodeKey, about: &str, mut code: &File) -> io::Result<hmac::Tag> {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [&key.to_string(), about] {
            context.update(part.as_bytes());
            context.update(&[0]);
        }
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match code.read(&mut piece)? {
                0 => return Ok(context.sign()),
                read => context.update(&piece[..read]),
            }
        }
    }
}

impl Voucher {
    /// As it was kept. What is no voucher vouches for nothing.
    pub(crate) fn of(kept: Vec<u8>) -> Voucher {
        Voucher(kept)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// On whose account the code was compiled. Of an older version, or of one that is not whole, it is nobody.
    pub(crate) fn owner(&self) -> &str {
        let about = self.parts().map_or("", |(_, about)| about);
        about.split_once('\n').map_or("", |(_, namespace)| namespace)
    }

    fn parts(&self) -> Option<(&[u8], &str)> {
        let (tag, about) = self.0.split_at_checked(TAG_BYTES)?;
        Some((tag, std::str::from_utf8(about).ok()?))
    }
}

fn read_or_make_key(path: &Path) -> io::Result<Vec<u8>> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(mut file) => {
            let secret: [u8; KEY_BYTES] = rand::random();
            file.write_all(&secret)?;
            file.sync_all()?;
            Ok(secret.to_vec())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let secret = fs::read(path)?;
            if secret.len() == KEY_BYTES {
                return Ok(secret);
            }
            // A process that died between making and writing it: nothing can be authentic yet.
            fs::remove_file(path)?;
            read_or_make_key(path)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entry;
    use crate::artifact::inspect::World;
    use crate::engine::WasiVersion;

    #[test]
    fn nothing_is_vouched_for_but_what_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = CacheDir::open(dir.path()).expect("made");
        let seal = Seal::open(&dir).expect("a key");
        let key = |digest: &str| CodeKey { digest: digest.to_owned(), target: "t".into() };
        let kind = Kind {
            entry: Entry::HttpP2,
            world: World::P1,
            engine: WasiVersion::P2,
            structures: 3,
            loaded: 4,
        };
        let file = |content: &[u8]| {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(content).expect("written");
            file
        };
        let code = file(b"code");
        let voucher = seal.vouch(&key("a"), kind, "ns", &code).expect("readable");
        assert_eq!(voucher.owner(), "ns");
        let check = |seal: &Seal, digest: &str, voucher: &Voucher, mut code: &File| {
            code.rewind().expect("a file");
            seal.check(&key(digest), voucher, code)
        };
        assert_eq!(check(&seal, "a", &Voucher::of(voucher.as_bytes().to_vec()), &code), Some(kind));
        assert_eq!(check(&seal, "b", &voucher, &code), None, "another's");
        assert_eq!(check(&seal, "a", &voucher, &file(b"cope")), None);
        for at in [0, TAG_BYTES, voucher.0.len() - 1] {
            let mut changed = voucher.clone();
            changed.0[at] ^= 1;
            assert_eq!(check(&seal, "a", &changed, &code), None, "{at}");
        }
        for cut in [0, TAG_BYTES - 1, TAG_BYTES] {
            let cut = Voucher::of(voucher.0[..cut].to_vec());
            assert_eq!((check(&seal, "a", &cut, &code), cut.owner()), (None, ""));
        }
        assert_eq!(check(&Seal::open(&dir).expect("its key"), "a", &voucher, &code), Some(kind));
        fs::remove_file(dir.key_file()).expect("there");
        assert_eq!(check(&Seal::open(&dir).expect("a key"), "a", &voucher, &code), None, "another host's");
    }
}
