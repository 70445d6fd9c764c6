//! Digests of files: one that many ask for at a time is hashed once, on account of who asked, and one that has not
//! changed since is not hashed again.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::pool::{NotDone, Pool};
use crate::shares::Holder;

/// Files whose digests are remembered.
const KNOWN_MAX: usize = 4096;

/// Bytes of a file that are hashed at once.
const PIECE_BYTES: usize = 256 << 10;

/// Why a file has no digest.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DigestError {
    /// It cannot be read, or is no file.
    #[error(transparent)]
    Io(Arc<io::Error>),
    /// More than is read.
    #[error("the file has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The file's size.
        bytes: u64,
        /// What is accepted.
        limit: u64,
    },
    /// Too many of the namespace wait, or the process ends.
    #[error(transparent)]
    NotDone(#[from] NotDone),
}

impl From<io::Error> for DigestError {
    fn from(error: io::Error) -> Self {
        DigestError::Io(Arc::new(error))
    }
}

/// What changes with a file's content: inode, bytes, time.
type Identity = (u64, u64, SystemTime);

/// A namespace waits for its own turn only, so that its files are hashed beside the same ones of others.
type Key = (Arc<str>, PathBuf, Identity);

type Outcome = Result<String, DigestError>;

/// Files that are hashed, or were.
pub struct Digests {
    pool: Arc<Pool>,
    bytes_max: u64,
    known: Mutex<HashMap<PathBuf, (Identity, String)>>,
    under_way: Mutex<HashMap<Key, WeakShared<BoxFuture<'static, Outcome>>>>,
}

/// One that waits for a digest. Fields are dropped in this order.
struct Waiter {
    outcome: Shared<BoxFuture<'static, Outcome>>,
    _leaving: Leaving,
}

struct Leaving {
    digests: Arc<Digests>,
    key: Key,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut under_way = self.digests.under_way.lock();
        if under_way.get(&self.key).is_some_and(|outcome| outcome.upgrade().is_none()) {
            under_way.remove(&self.key);
        }
    }
}

impl Digests {
    /// Of files of at most so many bytes, hashed by `pool`.
    pub fn new(pool: Arc<Pool>, bytes_max: u64) -> Arc<Digests> {
        Arc::new(Digests { pool, bytes_max, known: Mutex::default(), under_way: Mutex::default() })
    }

    /// Files that are remembered, or under way.
    pub fn held(&self) -> usize {
        self.known.lock().len() + self.under_way.lock().len()
    }

    /// SHA-256 of a file, in hexadecimal.
    pub async fn of(self: &Arc<Self>, path: &Path, namespace: &Arc<str>) -> Outcome {
        let holder = Holder { namespace: Arc::clone(namespace), pod: None };
        let (digests, file) = (Arc::clone(self), path.to_owned());
        let looked = self.pool.call(&holder, move || digests.look(&file)).await??;
        let identity = match looked {
            Looked::Known(digest) => return Ok(digest),
            Looked::Unknown(identity) => identity,
        };
        let mut waiter = self.join((Arc::clone(namespace), path.to_owned(), identity), holder);
        (&mut waiter.outcome).await
    }

    /// The digest of a file that has one already, and has not changed since. It asks the disk, and so may block.
    pub fn known(&self, path: &Path) -> Option<String> {
        match self.look(path) {
            Ok(Looked::Known(digest)) => Some(digest),
            _ => None,
        }
    }

    /// Takes note of a file that was hashed while it was written. It asks the disk, and so may block.
    pub fn learn(&self, path: &Path, digest: &str) {
        if let Ok(metadata) = std::fs::metadata(path) {
            self.remember(path, identity(&metadata), digest);
        }
    }

    /// Forgets a file that is no more.
    pub fn forget(&self, path: &Path) {
        self.known.lock().remove(path);
    }

    fn remember(&self, path: &Path, identity: Identity, digest: &str) {
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(path.to_owned(), (identity, digest.to_owned()));
    }

    fn look(&self, path: &Path) -> Result<Looked, DigestError> {
        // What is no file may never end, or not even begin.
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file").into());
        }
        if metadata.len() > self.bytes_max {
            return Err(DigestError::TooLarge { bytes: metadata.len(), limit: self.bytes_max });
        }
        let identity = identity(&metadata);
        Ok(self.recall(path, identity).map_or(Looked::Unknown(identity), Looked::Known))
    }

    fn recall(&self, path: &Path, identity: Identity) -> Option<String> {
        let known = self.known.lock();
        known.get(path).filter(|(known, _)| *known == identity).map(|(_, digest)| digest.clone())
    }

    fn join(self: &Arc<Self>, key: Key, holder: Holder) -> Waiter {
        let mut under_way = self.under_way.lock();
        let outcome = under_way.get(&key).and_then(WeakShared::upgrade).unwrap_or_else(|| {
            let (digests, pool, path, identity) =
                (Arc::clone(self), Arc::clone(&self.pool), key.1.clone(), key.2);
            let hashing = async move { pool.call(&holder, move || digests.hash(&path, identity)).await? };
            let outcome = hashing.boxed().shared();
            if let Some(weak) = outcome.downgrade() {
                under_way.insert(key.clone(), weak);
            }
            outcome
        });
        Waiter { outcome, _leaving: Leaving { digests: Arc::clone(self), key } }
    }

    fn hash(&self, path: &Path, identity: Identity) -> Outcome {
        // Another namespace may have had it hashed.
        if let Some(digest) = self.recall(path, identity) {
            return Ok(digest);
        }
        let digest = digest_of(path, self.bytes_max)?;
        self.remember(path, identity, &digest);
        Ok(digest)
    }
}

enum Looked {
    Known(String),
    Unknown(Identity),
}

fn identity(metadata: &Metadata) -> Identity {
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    (metadata.ino(), metadata.len(), modified)
}

fn digest_of(path: &Path, bytes_max: u64) -> Result<String, DigestError> {
    // What waits for something, as files of /proc may, is no artifact; nor is what took the file's place meanwhile.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file").into());
    }
    // One byte more, which is too many.
    let mut file = file.take(bytes_max + 1);
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 if file.limit() == 0 => {
                return Err(DigestError::TooLarge { bytes: bytes_max + 1, limit: bytes_max });
            }
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&piece[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    /// Occupies one of a namespace's places until it is told to end.
    fn busy(pool: &Pool, namespace: &str) -> (std::sync::mpsc::Sender<()>, crate::pool::Call<()>) {
        let (end, ended) = std::sync::mpsc::channel();
        let holder = Holder { namespace: namespace.into(), pod: None };
        let call = pool.call(&holder, move || {
            let _ = ended.recv();
        });
        (end, call)
    }

    #[tokio::test]
    async fn a_file_that_many_ask_for_is_hashed_once_in_a_turn_of_their_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"abc").unwrap();
        let pool = Pool::new("digests", 4, 0);
        let digests = Digests::new(pool.clone(), 1 << 20);
        let looked = match digests.look(&path).unwrap() {
            Looked::Unknown(identity) => identity,
            Looked::Known(_) => panic!("nothing is known"),
        };
        let namespaces = ["a", "b"].map(Arc::<str>::from);
        // All of the namespace's places are taken: who asks waits.
        let taken = [busy(&pool, "a"), busy(&pool, "a")];
        let holder = Holder { namespace: namespaces[0].clone(), pod: None };
        let key = (namespaces[0].clone(), path.clone(), looked);
        let mut waiting: Vec<_> = (0..60).map(|_| digests.join(key.clone(), holder.clone())).collect();
        for waiter in &mut waiting {
            assert!((&mut waiter.outcome).now_or_never().is_none());
        }
        assert_eq!(pool.waiting(), 1, "one call for all of them");
        // Another namespace waits for none of that.
        let digest = digests.of(&path, &namespaces[1]).await.unwrap();
        assert_eq!(digest, hex::encode(Sha256::digest(b"abc")));
        for (end, call) in taken {
            drop(end);
            call.await.unwrap();
        }
        for found in join_all(waiting.iter_mut().map(|waiter| &mut waiter.outcome)).await {
            assert_eq!(found.unwrap(), digest);
        }
        drop(waiting);
        assert_eq!(digests.held(), 1, "what is known, and nothing under way");
    }

    #[tokio::test]
    async fn what_has_no_end_is_not_read() {
        let digests = Digests::new(Pool::new("digests", 4, 0), 2);
        let dir = tempfile::tempdir().unwrap();
        let (large, pipe) = (dir.path().join("large"), dir.path().join("pipe"));
        std::fs::write(&large, b"abc").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .unwrap();
        let of = async |path: &Path| digests.of(path, &"a".into()).await.unwrap_err().to_string();
        assert!(of(Path::new("/dev/zero")).await.contains("no regular file"));
        assert!(of(&pipe).await.contains("no regular file"));
        assert!(of(&large).await.contains("the limit is 2"));
        assert!(digest_of(&large, 2).is_err());
        assert!(digest_of(&pipe, 2).is_err());
    }

    #[tokio::test]
    async fn no_more_files_are_known_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"abc").unwrap();
        let digests = Digests::new(Pool::new("digests", 4, 0), 1 << 20);
        let gone = (identity(&path.metadata().unwrap()), String::new());
        let others = (0..KNOWN_MAX).map(|number| (PathBuf::from(number.to_string()), gone.clone()));
        digests.known.lock().extend(others);
        digests.of(&path, &"a".into()).await.unwrap();
        assert!((1..=KNOWN_MAX).contains(&digests.held()), "{}", digests.held());
    }
}
