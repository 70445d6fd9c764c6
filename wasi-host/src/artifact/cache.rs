//! Compiled code on disk. It is native code: nothing is loaded that this host's own key does not vouch for.
//!
//! `<key>.cwasm` beside `<key>.mac`, which vouches for it and says what kind of component it is and on which namespace's
//! account it was compiled; the key names the component, the engines and all that the code depends on.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use ring::hmac;
use wasmtime::Engine;
use wasmtime::component::Component;

use super::PrepareError;
use super::inspect::Kind;
use crate::HostError;
use crate::engine::Engines;
use crate::files::has_room;

/// Bytes of compiled code kept. Beyond it the namespace that has the most loses what it used longest ago, and so makes
/// room at its own cost; what containers use goes not at all: it would take its room as long as it is mapped, and has a
/// bound of its own in `room.rs`. Code that several namespaces use counts here for the one on whose account it was compiled.
const CACHE_BYTES_MAX: u64 = 4 << 30;

/// Bytes of code that are copied and authenticated at once.
const PIECE_BYTES: usize = 256 << 10;

/// The end of the names of what is not yet an entry.
const SCRATCH: &str = ".tmp";

const KEY_FILE: &str = "key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;

/// The cache's directory and the key that its entries are authenticated with. Cheap to clone.
#[derive(Clone)]
pub(super) struct DiskCache {
    dir: Arc<Path>,
    key: hmac::Key,
    /// On whose account entries were compiled, by key, as far as that was asked. Follows what is on disk.
    owners: Arc<Mutex<HashMap<String, Arc<str>>>>,
}

/// What a namespace has of the cache.
#[derive(Default)]
struct Holding {
    bytes: u64,
    /// What may go, with its last use and its bytes: what was used longest ago is the last.
    unused: Vec<(SystemTime, u64, String)>,
}

impl DiskCache {
    /// Opens the cache in `dir`, which is made (0700) where it does not exist, as is its key (0600). Fails where it is
    /// another user's; one that was open to others is closed to them. What a process left behind that died while it
    /// wrote is removed.
    pub(super) fn open(dir: &Path) -> Result<DiskCache, HostError> {
        let failed = |source| HostError::CacheDir { path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        make_private(dir).map_err(failed)?;
        remove_scratch(dir).map_err(failed)?;
        let secret = read_or_make_key(&dir.join(KEY_FILE)).map_err(failed)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Ok(DiskCache { dir: Arc::from(dir), key, owners: Arc::default() })
    }

    /// A path of its own for something that is not yet an entry.
    pub(super) fn scratch(&self, key: &str, extension: &str) -> PathBuf {
        self.dir.join(format!("{key}.{:016x}.{extension}{SCRATCH}", rand::random::<u64>()))
    }

    /// Makes what the compiler wrote on account of `namespace` an entry: a copy, which nobody else has opened.
    pub(super) fn admit(
        &self,
        key: &str,
        kind: Kind,
        namespace: &str,
        written: fs::File,
    ) -> Result<(), PrepareError> {
        let (code, mac) = (self.scratch(key, "cwasm"), self.scratch(key, "mac"));
        let admitted = self.write(key, &format!("{}\n{namespace}", kind.to_text()), written, &code, &mac);
        if let Err(source) = admitted {
            // What is left behind of these is harmless and removed where that is possible.
            let _ = fs::remove_file(&code);
            let _ = fs::remove_file(&mac);
            return Err(PrepareError::io("cannot write the cache entry", &self.code_path(key))(source));
        }
        Ok(())
    }

    /// Bytes of an entry's code; none where there is no entry.
    pub(super) fn code_bytes(&self, key: &str) -> u64 {
        fs::metadata(self.code_path(key)).map_or(0, |found| found.len())
    }

    /// Whether there is an entry. It need not be whole.
    pub(super) fn has(&self, key: &str) -> bool {
        self.mac_path(key).exists() && self.code_path(key).exists()
    }

    fn write(
        &self,
        key: &str,
        about: &str,
        mut written: fs::File,
        code: &Path,
        mac: &Path,
    ) -> io::Result<()> {
        io::Seek::rewind(&mut written)?;
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(code)?;
        let tag = self.tag(key, about, &mut written, |piece| copy.write_all(piece))?;
        fs::write(mac, [tag.as_ref(), about.as_bytes()].concat())?;
        fs::rename(code, self.code_path(key))?;
        fs::rename(mac, self.mac_path(key))?;
        self.owners.lock().remove(key);
        Ok(())
    }

    /// On whose account an entry was compiled. One of an older version, or that is not whole, is nobody's.
    fn owner(&self, key: &str) -> Arc<str> {
        if let Some(owner) = self.owners.lock().get(key) {
            return Arc::clone(owner);
        }
        let read = fs::read(self.mac_path(key)).unwrap_or_default();
        let about =
            read.get(TAG_BYTES..).and_then(|about| std::str::from_utf8(about).ok()).unwrap_or_default();
        let owner = Arc::<str>::from(about.split_once('\n').map_or("", |(_, namespace)| namespace));
        self.owners.lock().insert(key.to_owned(), Arc::clone(&owner));
        owner
    }

    /// Loads an entry; `None` where there is none, or none that is ours and whole. A bad entry is removed.
    pub(super) fn load(&self, key: &str, engines: &Engines) -> Option<(Kind, Component)> {
        let path = self.code_path(key);
        let code = fs::File::open(&path).ok()?;
        let Some(kind) = self.vouched(key, code) else {
            tracing::warn!(path = %path.display(), "compiled code is not authentic, compiling anew");
            self.remove(key);
            return None;
        };
        match deserialize(engines.of(kind.engine), &path) {
            Ok(component) => {
                self.mark_used(&path);
                Some((kind, component))
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code cannot be loaded, compiling anew");
                self.remove(key);
                None
            }
        }
    }

    /// The kind of an entry that this host's key vouches for.
    fn vouched(&self, key: &str, mut code: fs::File) -> Option<Kind> {
        let vouching = fs::read(self.mac_path(key)).ok()?;
        let (tag, about) = vouching.split_at_checked(TAG_BYTES)?;
        let about = std::str::from_utf8(about).ok()?;
        let own = self.tag(key, about, &mut code, |_| Ok(())).ok()?;
        // In the same time whatever differs.
        let differs = own.as_ref().iter().zip(tag).fold(0, |differs, (own, given)| differs | (own ^ given));
        let kind = about.split_once('\n').map_or(about, |(kind, _)| kind);
        if differs == 0 { Kind::from_text(kind) } else { None }
    }

    /// Authenticates the entry's name and what is said about it as well, so that no entry can stand in for another. `seen`
    /// gets the code.
    fn tag(
        &self,
        key: &str,
        about: &str,
        code: &mut fs::File,
        mut seen: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<hmac::Tag> {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [key, about] {
            context.update(part.as_bytes());
            context.update(&[0]);
        }
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match code.read(&mut piece)? {
                0 => return Ok(context.sign()),
                read => {
                    context.update(&piece[..read]);
                    seen(&piece[..read])?;
                }
            }
        }
    }

    fn code_path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.cwasm"))
    }

    fn mac_path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.mac"))
    }

    fn remove(&self, key: &str) {
        // Failing to remove it costs a compile at the next start, no more.
        let _ = fs::remove_file(self.code_path(key));
        let _ = fs::remove_file(self.mac_path(key));
    }

    /// An entry's time is that of its last use, also for the next process.
    fn mark_used(&self, path: &Path) {
        let marked = fs::File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = marked {
            tracing::debug!(path = %path.display(), %error, "the use of compiled code could not be noted");
        }
    }

    /// Removes entries until the rest is within the bound: of the namespace that has the most, what it used longest ago.
    /// `uses` are those since they were loaded, `None` where it goes on. Neither such a one goes nor `fresh`, which nobody
    /// has loaded yet.
    pub(super) fn evict(&self, fresh: &str, uses: &HashMap<String, Option<SystemTime>>) {
        self.evict_beyond(CACHE_BYTES_MAX, fresh, uses);
    }

    fn evict_beyond(&self, bytes_max: u64, fresh: &str, uses: &HashMap<String, Option<SystemTime>>) {
        let Ok(entries) = fs::read_dir(&*self.dir) else {
            return;
        };
        let mut total = 0;
        let mut all: HashMap<String, (u64, Option<SystemTime>)> = HashMap::new();
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let (Some(key), Ok(metadata)) = (name.strip_suffix(".cwasm"), entry.metadata()) else { continue };
            total += metadata.len();
            let marked = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let used = match uses.get(key) {
                _ if key == fresh => None,
                Some(used) => used.map(|used| marked.max(used)),
                None => Some(marked),
            };
            all.insert(key.to_owned(), (metadata.len(), used));
        }
        self.owners.lock().retain(|key, _| all.contains_key(key));
        if total <= bytes_max {
            return;
        }
        let mut holdings = self.holdings(all);
        while total > bytes_max {
            let with_unused = holdings.values_mut().filter(|holding| !holding.unused.is_empty());
            let Some(largest) = with_unused.max_by_key(|holding| holding.bytes) else { break };
            let Some((_, bytes, key)) = largest.unused.pop() else { break };
            self.remove(&key);
            largest.bytes -= bytes;
            total -= bytes;
        }
    }

    /// Sees that there is room for so many bytes of code beside the part of the disk that is left to the node: what is not used
    /// goes for it.
    pub(super) fn make_room(
        &self,
        bytes: u64,
        uses: &HashMap<String, Option<SystemTime>>,
    ) -> Result<(), PrepareError> {
        if has_room(&self.dir, bytes) {
            return Ok(());
        }
        let held = self.bytes();
        self.evict_beyond(held.saturating_sub(bytes), "", uses);
        if has_room(&self.dir, bytes) { Ok(()) } else { Err(PrepareError::NoRoom) }
    }

    /// Bytes of all entries.
    fn bytes(&self) -> u64 {
        let entries = fs::read_dir(&*self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
    }

    /// Entries, with their bytes and last use where they are not used now, by whose they are.
    fn holdings(&self, all: HashMap<String, (u64, Option<SystemTime>)>) -> BTreeMap<Arc<str>, Holding> {
        let mut holdings: BTreeMap<Arc<str>, Holding> = BTreeMap::new();
        for (key, (bytes, used)) in all {
            let holding = holdings.entry(self.owner(&key)).or_default();
            holding.bytes += bytes;
            holding.unused.extend(used.map(|used| (used, bytes, key)));
        }
        for holding in holdings.values_mut() {
            holding.unused.sort_by(|one, other| other.cmp(one));
        }
        holdings
    }
}

/// Removes what was on its way when a process died.
fn remove_scratch(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.ends_with(SCRATCH)) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[allow(unsafe_code, reason = "loading compiled code is inherently unsafe; it is authenticated before")]
fn deserialize(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was written by this host's compiler (which is to be trusted as far as it is sound: see
    // `child.rs`) and has just been authenticated, with its name, by a key
    // that only this host's user can read, in a directory that only this user can write. Whoever could change it
    // between the check and the mapping, or later under the mapping, is this user and needs no such detour. That it
    // fits the engine is in its name, and wasmtime checks it again.
    unsafe { Component::deserialize_file(engine, path) }
}

/// Makes sure that the directory is this user's alone. Where others could write to it, its key goes, and with it all
/// its entries: either may be theirs.
fn make_private(dir: &Path) -> io::Result<()> {
    // By what was opened, so that all of this is about one directory.
    let opened = fs::File::open(dir)?;
    let metadata = opened.metadata()?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
    }
    if metadata.mode() & 0o077 != 0 {
        opened.set_permissions(fs::Permissions::from_mode(0o700))?;
        tracing::warn!(path = %dir.display(), "cache directory was open to other users");
    }
    let key = dir.join(KEY_FILE);
    let foreign = fs::symlink_metadata(&key)
        .is_ok_and(|key| !key.is_file() || key.uid() != metadata.uid() || key.mode() & 0o077 != 0);
    if foreign || metadata.mode() & 0o022 != 0 {
        match fs::remove_file(&key) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
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
            // A process that died between making and writing it: no entry can be authentic yet.
            fs::remove_file(path)?;
            read_or_make_key(path)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Entry;
    use super::*;
    use crate::engine::WasiVersion;

    #[test]
    fn what_a_dead_process_left_behind_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = DiskCache::open(dir.path()).expect("made");
        let left =
            [cache.scratch("abc", "cwasm"), cache.scratch("abc", "mac"), dir.path().join("a.wasm.tmp")];
        let entry = dir.path().join("abc.cwasm");
        for path in left.iter().chain([&entry]) {
            fs::write(path, "x").expect("written");
        }
        DiskCache::open(dir.path()).expect("ours");
        assert!(left.iter().all(|path| !path.exists()) && entry.exists());
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_runs_does_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = DiskCache::open(dir.path()).expect("made");
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        // In the order in which they were compiled.
        for (key, compiled) in
            [("runs", 1), ("ready", 2), ("loaded", 3), ("idle", 4), ("other", 5), ("fresh", 0)]
        {
            fs::write(cache.code_path(key), [0; 10]).expect("written");
            let file = fs::File::open(cache.code_path(key)).expect("there");
            file.set_modified(at(compiled)).expect("ours");
        }
        cache.mark_used(&cache.code_path("loaded"));
        let uses = HashMap::from([("runs".to_owned(), None), ("ready".to_owned(), Some(at(9)))]);
        let left = |bytes_max| {
            cache.evict_beyond(bytes_max, "fresh", &uses);
            let mut left: Vec<&str> = ["runs", "ready", "loaded", "idle", "other", "fresh"].into();
            left.retain(|key| cache.code_path(key).exists());
            left
        };
        assert_eq!(left(60).len(), 6);
        assert_eq!(left(50), ["runs", "ready", "loaded", "other", "fresh"]);
        assert_eq!(left(30), ["runs", "loaded", "fresh"]);
        assert_eq!(left(0), ["runs", "fresh"]);
    }

    #[test]
    fn who_has_the_most_loses_first_whenever_others_used_theirs() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = DiskCache::open(dir.path()).expect("made");
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        let compiled = |key: &str, namespace: &str, bytes: usize, seconds| {
            let written = tempfile::tempfile().expect("a file");
            written.set_len(bytes as u64).expect("ours");
            let kind = Kind {
                entry: Entry::Command,
                world: WasiVersion::P2,
                engine: WasiVersion::P2,
                structures: 0,
                loaded: 0,
            };
            cache.admit(key, kind, namespace, written).expect("written");
            let file = fs::File::open(cache.code_path(key)).expect("there");
            file.set_modified(at(seconds)).expect("ours");
        };
        let left = |cache: &DiskCache, bytes_max| {
            cache.evict_beyond(bytes_max, "hostile-9", &HashMap::from([("hostile-1".to_owned(), None)]));
            let mut left: Vec<String> = (0..10).map(|at| format!("hostile-{at}")).collect();
            left.extend(["quiet".to_owned(), "other".to_owned()]);
            left.retain(|key| cache.code_path(key).exists());
            left
        };
        compiled("quiet", "b", 20, 1);
        compiled("other", "c", 25, 2);
        for number in 0..10 {
            compiled(&format!("hostile-{number}"), "a", 10, 10 + number);
        }
        assert_eq!(left(&cache, 150).len(), 12);
        let expected = ["hostile-1", "hostile-6", "hostile-7", "hostile-8", "hostile-9", "quiet", "other"];
        assert_eq!(left(&cache, 95), expected);
        // Another process knows whose it is as well. At last the parts are about equal.
        let again = DiskCache::open(dir.path()).expect("ours");
        assert_eq!(left(&again, 65), ["hostile-1", "hostile-9", "quiet", "other"]);
        assert_eq!(left(&again, 41), ["hostile-1", "hostile-9", "quiet"]);
        // What went is not remembered.
        assert!(again.owners.lock().len() <= 4);
        again.evict_beyond(1000, "", &HashMap::new());
        assert_eq!(again.owners.lock().len(), 3);
    }

    #[test]
    fn a_directory_of_others_is_refused_and_an_open_one_is_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cache");
        DiskCache::open(&path).expect("made");
        let mode = || fs::metadata(&path).expect("there").mode() & 0o777;
        assert_eq!(mode(), 0o700);
        let key = fs::read(path.join(KEY_FILE)).expect("a key");
        DiskCache::open(&path).expect("ours");
        assert_eq!(fs::read(path.join(KEY_FILE)).expect("a key"), key);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("ours");
        DiskCache::open(&path).expect("ours");
        assert_eq!(mode(), 0o700);
        assert_ne!(fs::read(path.join(KEY_FILE)).expect("a key"), key);
        // Only the superuser can give a directory away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65_534), None).expect("given away");
            assert!(matches!(DiskCache::open(&path), Err(HostError::CacheDir { .. })));
        }
    }
}
