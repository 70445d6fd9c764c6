//! Compiled code on this node's disk.
//!
//! `<key>.cwasm` beside `<key>.mac`, which has its voucher.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{CodeKey, CodeStore, Kept, Pins};
use crate::artifact::PrepareError;
use crate::artifact::cache_dir::CacheDir;
use crate::artifact::desk::Desk;
use crate::artifact::seal::Voucher;
use crate::files::has_room;

/// Bytes of compiled code kept. Beyond it the namespace that has the most loses what it used longest ago, and so makes
/// room at its own cost; what containers use goes not at all: it would take its room as long as it is mapped, and has a
/// bound of its own in `room.rs`. Code that several namespaces use counts here for the one on whose account it was compiled.
const CACHE_BYTES_MAX: u64 = 4 << 30;

/// The entries of the cache's directory. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LocalStore {
    dir: CacheDir,
    known: Arc<Known>,
}

/// What is remembered of entries, by name. Follows what is on disk.
#[derive(Default)]
struct Known {
    /// On whose account they were compiled, as far as that was asked.
    owners: Mutex<HashMap<String, Arc<str>>>,
    /// Of those that are in memory.
    pins: Mutex<HashMap<String, Weak<Pins>>>,
}

/// What a namespace has of the cache.
#[derive(Default)]
struct Holding {
    bytes: u64,
    /// What may go, with its last use and its bytes: what was used longest ago is the last.
    unused: Vec<(SystemTime, u64, String)>,
}

#[async_trait]
impl CodeStore for LocalStore {
    /// There is nowhere else.
    async fn bring(&self, key: &CodeKey, desk: &Desk) -> bool {
        let (store, name) = (self.clone(), key.to_string());
        desk.run(move || Ok(store.has(&name))).await.unwrap_or(false)
    }

    fn size(&self, key: &CodeKey) -> Option<u64> {
        let name = key.to_string();
        if self.has(&name) { fs::metadata(self.code_path(&name)).ok().map(|found| found.len()) } else { None }
    }

    fn get(&self, key: &CodeKey) -> io::Result<Option<Kept>> {
        let name = key.to_string();
        let path = self.code_path(&name);
        // The voucher is put last.
        if !fs::exists(self.mac_path(&name))? || !fs::exists(&path)? {
            return Ok(None);
        }
        let voucher = self.voucher(&name);
        mark_used(&path);
        Ok(Some(Kept { path, voucher }))
    }

    fn make_room(&self, bytes: u64) -> Result<(), PrepareError> {
        let dir = self.dir.path();
        // Beside the part of the disk that is left to the node.
        if has_room(dir, bytes) {
            return Ok(());
        }
        self.evict_beyond(self.bytes().saturating_sub(bytes), "");
        if has_room(dir, bytes) { Ok(()) } else { Err(PrepareError::NoRoom) }
    }

    fn put(&self, key: &CodeKey, code: File, voucher: &Voucher) -> Result<(), PrepareError> {
        self.make_room(code.metadata().map_or(0, |found| found.len()))?;
        let name = key.to_string();
        let (scratch, mac) = (self.dir.scratch(&name, "cwasm"), self.dir.scratch(&name, "mac"));
        if let Err(source) = self.write(&name, code, voucher, &scratch, &mac) {
            // What is left behind of these is harmless and removed where that is possible.
            let _ = fs::remove_file(&scratch);
            let _ = fs::remove_file(&mac);
            return Err(PrepareError::io("cannot write the cache entry", &self.code_path(&name))(source));
        }
        self.evict_beyond(CACHE_BYTES_MAX, &name);
        Ok(())
    }

    fn remove(&self, key: &CodeKey) {
        self.remove_entry(&key.to_string());
    }

    fn pins(&self, key: &CodeKey) -> Arc<Pins> {
        let mut all = self.known.pins.lock();
        let name = key.to_string();
        if let Some(pins) = all.get(&name).and_then(Weak::upgrade) {
            return pins;
        }
        all.retain(|_, pins| pins.strong_count() > 0);
        let pins = Arc::<Pins>::default();
        all.insert(name, Arc::downgrade(&pins));
        pins
    }
}

impl LocalStore {
    pub(crate) fn new(dir: CacheDir) -> LocalStore {
        LocalStore { dir, known: Arc::default() }
    }

    /// Whether there is an entry. It need not be whole.
    fn has(&self, name: &str) -> bool {
        self.mac_path(name).exists() && self.code_path(name).exists()
    }

    fn code_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.cwasm"))
    }

    fn mac_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.mac"))
    }

    /// An entry's voucher. Where it cannot be read it vouches for nothing, and the entry goes.
    fn voucher(&self, name: &str) -> Voucher {
        Voucher::of(fs::read(self.mac_path(name)).unwrap_or_default())
    }

    /// Makes an entry of what the compiler wrote: a copy, which nobody else has opened.
    fn write(
        &self,
        name: &str,
        mut code: File,
        voucher: &Voucher,
        scratch: &Path,
        mac: &Path,
    ) -> io::Result<()> {
        code.rewind()?;
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(scratch)?;
        io::copy(&mut code, &mut copy)?;
        fs::write(mac, voucher.as_bytes())?;
        fs::rename(scratch, self.code_path(name))?;
        fs::rename(mac, self.mac_path(name))?;
        self.known.owners.lock().remove(name);
        Ok(())
    }

    fn remove_entry(&self, name: &str) {
        // Failing to remove it costs a compile at the next start, no more.
        let _ = fs::remove_file(self.code_path(name));
        let _ = fs::remove_file(self.mac_path(name));
    }

    /// On whose account an entry was compiled.
    fn owner(&self, name: &str) -> Arc<str> {
        if let Some(owner) = self.known.owners.lock().get(name) {
            return Arc::clone(owner);
        }
        let owner = Arc::<str>::from(self.voucher(name).owner());
        self.known.owners.lock().insert(name.to_owned(), Arc::clone(&owner));
        owner
    }

    /// How an entry was used since it was loaded, where it is in memory.
    fn pins_of(&self, name: &str) -> Option<Arc<Pins>> {
        self.known.pins.lock().get(name)?.upgrade()
    }

    /// Removes entries until the rest is within the bound: of the namespace that has the most, what it used longest ago.
    /// Neither goes what is pinned nor `fresh`, which nobody has loaded yet.
    fn evict_beyond(&self, bytes_max: u64, fresh: &str) {
        let Ok(entries) = fs::read_dir(self.dir.path()) else {
            return;
        };
        let mut total = 0;
        let mut all: HashMap<String, (u64, Option<SystemTime>)> = HashMap::new();
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let (Some(name), Ok(metadata)) = (name.strip_suffix(".cwasm"), entry.metadata()) else {
                continue;
            };
            total += metadata.len();
            let marked = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let used = match self.pins_of(name) {
                _ if name == fresh => None,
                Some(pins) => pins.last_use().map(|used| marked.max(used)),
                None => Some(marked),
            };
            all.insert(name.to_owned(), (metadata.len(), used));
        }
        self.known.owners.lock().retain(|name, _| all.contains_key(name));
        if total <= bytes_max {
            return;
        }
        let mut holdings = self.holdings(all);
        while total > bytes_max {
            let with_unused = holdings.values_mut().filter(|holding| !holding.unused.is_empty());
            let Some(largest) = with_unused.max_by_key(|holding| holding.bytes) else { break };
            let Some((_, bytes, name)) = largest.unused.pop() else { break };
            self.remove_entry(&name);
            largest.bytes -= bytes;
            total -= bytes;
        }
    }

    /// Bytes of all entries.
    fn bytes(&self) -> u64 {
        let entries = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
    }

    /// Entries, with their bytes and last use where they are not used now, by whose they are.
    fn holdings(&self, all: HashMap<String, (u64, Option<SystemTime>)>) -> BTreeMap<Arc<str>, Holding> {
        let mut holdings: BTreeMap<Arc<str>, Holding> = BTreeMap::new();
        for (name, (bytes, used)) in all {
            let holding = holdings.entry(self.owner(&name)).or_default();
            holding.bytes += bytes;
            holding.unused.extend(used.map(|used| (used, bytes, name)));
        }
        for holding in holdings.values_mut() {
            holding.unused.sort_by(|one, other| other.cmp(one));
        }
        holdings
    }
}

/// An entry's time is that of its last use, also for the next process.
fn mark_used(path: &Path) {
    let marked = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = marked {
        tracing::debug!(path = %path.display(), %error, "the use of compiled code could not be noted");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pin;
    use super::*;
    use crate::artifact::Entry;
    use crate::artifact::inspect::{Kind, World};
    use crate::artifact::seal::Seal;
    use crate::engine::WasiVersion;

    fn key(digest: &str) -> CodeKey {
        CodeKey { digest: digest.to_owned(), target: "t".into() }
    }

    fn path(store: &LocalStore, digest: &str) -> PathBuf {
        store.code_path(&key(digest).to_string())
    }

    fn set_used(store: &LocalStore, digest: &str, seconds: u64) {
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let file = File::open(path(store, digest)).expect("there");
        file.set_modified(at).expect("ours");
    }

    /// Code that containers use.
    fn pinned(store: &LocalStore, digest: &str) -> Pin {
        store.pins(&key(digest)).pin()
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_runs_does_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = LocalStore::new(CacheDir::open(dir.path()).expect("made"));
        // In the order in which they were compiled.
        let all = ["runs", "ready", "loaded", "idle", "other", "fresh"];
        for (name, compiled) in all.into_iter().zip([1, 2, 3, 4, 5, 0]) {
            fs::write(path(&store, name), [0; 10]).expect("written");
            fs::write(store.mac_path(&key(name).to_string()), []).expect("written");
            set_used(&store, name, compiled);
        }
        let ready = store.pins(&key("ready"));
        assert!(store.get(&key("loaded")).expect("readable").is_some());
        let runs = pinned(&store, "runs");
        let left = |bytes_max| {
            store.evict_beyond(bytes_max, &key("fresh").to_string());
            let mut left: Vec<&str> = all.into();
            left.retain(|name| path(&store, name).exists());
            left
        };
        assert_eq!(left(60).len(), 6);
        assert_eq!(left(50), ["runs", "ready", "loaded", "other", "fresh"]);
        assert_eq!(left(40), ["runs", "ready", "loaded", "fresh"]);
        // It was asked for again since the other was loaded.
        ready.touch();
        assert_eq!(left(30), ["runs", "ready", "fresh"]);
        assert_eq!(left(0), ["runs", "fresh"]);
        drop(runs);
        assert_eq!(left(0), ["fresh"]);
    }

    #[test]
    fn code_is_there_once_its_voucher_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = LocalStore::new(CacheDir::open(dir.path()).expect("made"));
        assert!(store.get(&key("a")).expect("readable").is_none());
        fs::write(path(&store, "a"), b"code").expect("written");
        assert!(store.get(&key("a")).expect("readable").is_none() && path(&store, "a").exists());
        fs::write(store.mac_path(&key("a").to_string()), b"voucher").expect("written");
        let kept = store.get(&key("a")).expect("readable").expect("whole");
        assert_eq!(kept.voucher.as_bytes(), b"voucher");
    }

    #[test]
    fn pins_are_the_same_for_all_and_forgotten_with_the_last() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = LocalStore::new(CacheDir::open(dir.path()).expect("made"));
        let pins = store.pins(&key("a"));
        let pin = pinned(&store, "a");
        assert!(pins.is_pinned() && pins.last_use().is_none());
        drop(pin);
        assert!(!pins.is_pinned() && pins.last_use().is_some());
        drop(pins);
        drop(store.pins(&key("b")));
        drop(store.pins(&key("c")));
        assert_eq!(store.known.pins.lock().len(), 1);
    }

    #[test]
    fn who_has_the_most_loses_first_whenever_others_used_theirs() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = CacheDir::open(dir.path()).expect("made");
        let (store, seal) = (LocalStore::new(cache.clone()), Seal::open(&cache).expect("a key"));
        let compiled = |digest: &str, namespace: &str, bytes: usize, seconds| {
            let written = tempfile::tempfile().expect("a file");
            written.set_len(bytes as u64).expect("ours");
            let kind = Kind {
                entry: Entry::Command,
                world: World::P2,
                engine: WasiVersion::P2,
                structures: 0,
                loaded: 0,
            };
            let voucher = seal.vouch(&key(digest), kind, namespace, &written).expect("readable");
            store.put(&key(digest), written, &voucher).expect("written");
            assert_eq!(store.size(&key(digest)), Some(bytes as u64));
            set_used(&store, digest, seconds);
        };
        let left = |store: &LocalStore, bytes_max| {
            store.evict_beyond(bytes_max, &key("hostile-9").to_string());
            let mut left: Vec<String> = (0..10).map(|at| format!("hostile-{at}")).collect();
            left.extend(["quiet".to_owned(), "other".to_owned()]);
            left.retain(|digest| path(store, digest).exists());
            left
        };
        compiled("quiet", "b", 20, 1);
        compiled("other", "c", 25, 2);
        for number in 0..10 {
            compiled(&format!("hostile-{number}"), "a", 10, 10 + number);
        }
        let _runs = pinned(&store, "hostile-1");
        assert_eq!(left(&store, 150).len(), 12);
        let expected = ["hostile-1", "hostile-6", "hostile-7", "hostile-8", "hostile-9", "quiet", "other"];
        assert_eq!(left(&store, 95), expected);
        // Another process knows whose it is as well. At last the parts are about equal.
        let again = LocalStore::new(cache);
        let _runs = pinned(&again, "hostile-1");
        assert_eq!(left(&again, 65), ["hostile-1", "hostile-9", "quiet", "other"]);
        assert_eq!(left(&again, 41), ["hostile-1", "hostile-9", "quiet"]);
        // What went is not remembered.
        assert!(again.known.owners.lock().len() <= 4);
        again.evict_beyond(1000, "");
        assert_eq!(again.known.owners.lock().len(), 3);
    }
}
