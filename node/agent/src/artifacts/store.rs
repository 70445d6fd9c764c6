//! The files of images on this node's disk, and what names meant: `sha256/<hex>.wasm`, and `images/<hex of the name's
//! digest>` with the id and the file of a name.
//!
//! A file stays as long as a [`Pin`] on it lives; of the others those that were used longest ago go where images take more
//! than they may. The table follows the disk and is bounded as that is. What blocks here is called on a [`Pool`]'s
//! threads, never on the node's loop.

mod table;

use std::{
    fs::{self, File, FileTimes},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use coracle_wasi_host::{
    digests::{DigestError, Digests},
    pool::{NotDone, Pool},
    shares::Holder,
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::room::{NoRoom, Space};
use crate::private;
use table::{Entry, Table};

pub use table::Meaning;

/// Files of images, and names, that are kept. Those that pods use are kept beyond.
const FILES_MAX: usize = 4096;
const NAMES_MAX: usize = 4096;
/// Files, or names, that are removed in one go, besides those that make room for a download.
const STEP: usize = 64;
/// How old a file's mark of its last use may be.
const MARK_EVERY: Duration = Duration::from_secs(3600);
/// After a start the pods of the node's last life come for their images first: none goes that nobody has asked for.
pub const SETTLED_AFTER: Duration = Duration::from_secs(300);

/// What the file system of a store has.
pub type Look = Box<dyn Fn() -> Option<Space> + Send + Sync>;

pub struct Store {
    root: PathBuf,
    look: Look,
    table: Mutex<Table>,
    /// Held while files get and lose their names: what is removed is not what has come under its name meanwhile.
    naming: Mutex<()>,
    settled_at: Instant,
    pool: Arc<Pool>,
    digests: Arc<Digests>,
}

/// Keeps a file, and maybe the name under which it was wanted.
pub struct Pin {
    store: Arc<Store>,
    file: String,
    name: Option<String>,
    namespace: Arc<str>,
}

/// A file that is being written, removed where it did not get its name.
pub struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // One that cannot be removed now is removed at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// Room for a file that is on its way.
pub struct Room {
    store: Arc<Store>,
    namespace: Arc<str>,
    bytes: u64,
}

impl Pin {
    /// Keeps the name as well.
    pub fn named(mut self, name: &str) -> Self {
        if self.store.table.lock().use_name(name, SystemTime::now()) {
            self.name = Some(name.to_owned());
        }
        self
    }

    pub fn path(&self) -> PathBuf {
        self.store.path(&self.file)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.store.table.lock().let_go(&self.file, self.name.as_deref(), &self.namespace, SystemTime::now());
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.store.table.lock().arrived(&self.namespace, self.bytes);
    }
}

/// What is known of a name.
pub enum Lookup {
    Nothing,
    /// It is on disk.
    Unread,
    Known(Meaning, Option<Instant>),
}

/// The key of an image's name.
pub fn name_key(image: &str) -> String {
    hex::encode(Sha256::digest(image.as_bytes()))
}

fn is_hex_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl Store {
    /// Takes in what is on disk, and removes what a crash left half done.
    pub fn open(
        root: PathBuf,
        look: Look,
        settled_after: Duration,
        pool: Arc<Pool>,
        bytes_max: u64,
    ) -> io::Result<Arc<Self>> {
        for dir in [root.clone(), root.join("sha256"), root.join("images")] {
            private::create_dir(&dir)?;
        }
        crate::removal::remove_dir(&root.join("tmp"))?;
        private::create_dir(&root.join("tmp"))?;
        let mut table = Table::default();
        scan(
            &root.join("sha256"),
            |name| name.strip_suffix(".wasm").filter(|hex| is_hex_digest(hex)),
            |hex, of| {
                // Its content's time is left alone: the time of its last reading stands for that of its last use.
                let used = of.accessed().into_iter().chain(of.modified()).max();
                table.files.insert(hex, Entry::of_an_earlier_life(of.len(), used));
            },
        )?;
        scan(
            &root.join("images"),
            |name| Some(name).filter(|key| is_hex_digest(key)),
            |key, of| {
                table.names.insert(key, Entry::of_an_earlier_life(None, of.modified().ok()));
            },
        )?;
        let settled_at = Instant::now() + settled_after;
        let digests = Digests::new(pool.clone(), bytes_max);
        let (table, naming) = (Mutex::new(table), Mutex::default());
        Ok(Arc::new(Self { root, look, table, naming, settled_at, pool, digests }))
    }

    /// Does what blocks on account of a namespace.
    pub async fn call<R: Send + 'static>(
        self: &Arc<Self>,
        namespace: &Arc<str>,
        work: impl FnOnce(&Arc<Self>) -> R + Send + 'static,
    ) -> Result<R, NotDone> {
        let store = self.clone();
        self.pool.call(&Holder { namespace: namespace.clone(), pod: None }, move || work(&store)).await
    }

    /// Names and files that are kept.
    pub fn held(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.names.len(), table.files.len())
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.root.join("sha256").join(format!("{file}.wasm"))
    }

    /// A place for something that is not yet whole.
    pub fn scratch(&self) -> Scratch {
        Scratch(self.root.join("tmp").join(hex::encode(rand::random::<[u8; 8]>())))
    }

    pub fn lookup(&self, name: &str) -> Lookup {
        self.table.lock().names.get(name).map_or(Lookup::Nothing, known)
    }

    /// Keeps a file that is there.
    pub fn pin(self: &Arc<Self>, file: &str, namespace: &Arc<str>) -> Option<Pin> {
        let kept = self.table.lock().use_file(file, namespace, SystemTime::now());
        kept.then(|| Pin {
            store: self.clone(),
            file: file.to_owned(),
            name: None,
            namespace: namespace.clone(),
        })
    }

    /// Whether a file is what its name says. It is read where that was not found out by this process, or where it has
    /// changed since.
    pub async fn is_whole(&self, file: &str, namespace: &Arc<str>) -> Result<bool, NotDone> {
        let path = self.path(file);
        match self.digests.of(&path, namespace).await {
            Ok(found) if found == file => return Ok(true),
            Ok(found) => {
                tracing::warn!(path = %path.display(), found, "a file of an image is damaged, it is fetched anew")
            }
            Err(DigestError::NotDone(not_done)) => return Err(not_done),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a file of an image cannot be read, it is fetched anew");
            }
        }
        Ok(false)
    }

    /// The same as far as it is known. It blocks.
    pub fn is_known_whole(&self, file: &str) -> bool {
        self.digests.known(&self.path(file)).is_some_and(|found| found == file)
    }

    /// Reads what a name meant in an earlier life. It blocks.
    pub fn read_name(&self, name: &str) -> Option<Meaning> {
        let read = fs::read_to_string(self.name_path(name)).ok();
        let meaning = read.as_deref().and_then(Meaning::read);
        let _naming = self.naming.lock();
        let mut table = self.table.lock();
        if let Lookup::Known(newer, _) = table.names.get(name).map_or(Lookup::Nothing, known) {
            return Some(newer);
        }
        match &meaning {
            Some(meaning) => table.means(name, meaning, None, SystemTime::now()),
            None => {
                table.names.remove(name);
                drop(table);
                self.remove_name(name);
            }
        }
        meaning
    }

    /// Remembers what a name means now. It blocks.
    pub fn write_name(&self, name: &str, meaning: &Meaning) -> io::Result<()> {
        let scratch = self.scratch();
        let is_new = !matches!(self.lookup(name), Lookup::Known(known, _) if known == *meaning);
        if is_new {
            write_whole(&scratch.0, &meaning.text())?;
        }
        let _naming = self.naming.lock();
        if is_new {
            fs::rename(&scratch.0, self.name_path(name))?;
        }
        self.table.lock().means(name, meaning, Some(Instant::now()), SystemTime::now());
        self.trim_names(1);
        Ok(())
    }

    /// Has unused files go until there is room for one more, on account of the namespace. It blocks.
    pub fn make_room(self: &Arc<Self>, bytes: u64, namespace: &Arc<str>) -> Result<Room, NoRoom> {
        let _naming = self.naming.lock();
        let mut space = (self.look)();
        loop {
            let mut table = self.table.lock();
            let missing = space.map_or(Ok(0), |space| space.missing(bytes, table.taken(namespace)))?;
            let Some(short) = space.as_mut().filter(|_| missing > 0) else {
                table.comes(namespace, bytes);
                return Ok(Room { store: self.clone(), namespace: namespace.clone(), bytes });
            };
            // Rather than that a pod waits one goes that an earlier life's pod may come for.
            let oldest = table.take_oldest_file(self.is_settled()).or_else(|| table.take_oldest_file(true));
            let Some((file, freed)) = oldest else { return Err(short.no_room()) };
            drop(table);
            self.remove_file(&file);
            // Some file systems free it later.
            short.bytes_free += freed;
        }
    }

    /// Gives what was fetched and verified its name. It blocks.
    pub fn place(
        self: &Arc<Self>,
        partial: &Path,
        file: &str,
        bytes: u64,
        namespace: &Arc<str>,
    ) -> io::Result<Pin> {
        let _naming = self.naming.lock();
        fs::rename(partial, self.path(file))?;
        self.digests.learn(&self.path(file), file);
        self.table.lock().put_file(file, bytes, namespace, SystemTime::now());
        let pin =
            Pin { store: self.clone(), file: file.to_owned(), name: None, namespace: namespace.clone() };
        if self.held().1 > FILES_MAX {
            self.trim_one();
        }
        Ok(pin)
    }

    /// A step of what has to be done from time to time. It blocks.
    pub fn tend(&self) {
        self.mark_used();
        let mut space = (self.look)();
        for _ in 0..STEP {
            // Names that are asked for meanwhile wait for one removal, not for all.
            let _naming = self.naming.lock();
            let mut table = self.table.lock();
            let surplus = space.map_or(0, |space| space.surplus(table.bytes(), table.is_clearing));
            table.is_clearing = surplus > 0;
            let is_over = table.is_clearing || table.files.len() > FILES_MAX;
            drop(table);
            let Some(freed) = is_over.then(|| self.trim_one()).flatten() else { break };
            if let Some(space) = &mut space {
                // Some file systems free it later.
                space.bytes_free += freed;
            }
        }
        let _naming = self.naming.lock();
        self.trim_names(STEP);
    }

    fn is_settled(&self) -> bool {
        Instant::now() >= self.settled_at
    }

    /// Removes the unused file that was used longest ago, and answers how many bytes that were. Who calls it holds
    /// `naming`.
    fn trim_one(&self) -> Option<u64> {
        let (file, bytes) = self.table.lock().take_oldest_file(self.is_settled())?;
        self.remove_file(&file);
        Some(bytes)
    }

    /// Removes at most so many names beyond those that are kept. Who calls it holds `naming`.
    fn trim_names(&self, most: usize) {
        for _ in 0..most {
            let mut table = self.table.lock();
            if table.names.len() <= NAMES_MAX {
                return;
            }
            let Some(oldest) = table.take_oldest_name(self.is_settled()) else { return };
            drop(table);
            self.remove_name(&oldest);
        }
    }

    /// Removes a file that the table has no more, and the names that are known to have meant it.
    fn remove_file(&self, file: &str) {
        let path = self.path(file);
        self.digests.forget(&path);
        removed(&path);
        let names = self.table.lock().take_names_of(file);
        names.iter().for_each(|name| self.remove_name(name));
        tracing::info!(path = %path.display(), "an image that no pod uses was removed");
    }

    fn remove_name(&self, name: &str) {
        removed(&self.name_path(name));
    }

    /// Lets the next process know of uses: a file's time of access is that of its last use.
    fn mark_used(&self) {
        let due = self.table.lock().take_unmarked(STEP, MARK_EVERY, SystemTime::now());
        for (file, used) in due {
            let path = self.path(&file);
            let marked =
                File::open(&path).and_then(|file| file.set_times(FileTimes::new().set_accessed(used)));
            if let Err(error) = marked {
                tracing::debug!(path = %path.display(), %error, "the use of an image could not be noted");
            }
        }
    }

    fn name_path(&self, name: &str) -> PathBuf {
        self.root.join("images").join(name)
    }
}

fn known(entry: &Entry<Option<table::Named>>) -> Lookup {
    match &entry.what {
        Some(named) => Lookup::Known(named.meaning.clone(), named.resolved_at),
        None => Lookup::Unread,
    }
}

fn removed(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // The next start finds it, and has it in its table again.
            tracing::warn!(path = %path.display(), %error, "what is left of an image could not be removed");
        }
        _ => {}
    }
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut file = private::open_options().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Takes in the files of a directory, and removes what is none of ours.
fn scan(
    dir: &Path,
    key: impl Fn(&str) -> Option<&str>,
    mut found: impl FnMut(String, fs::Metadata),
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let metadata = entry.metadata()?;
        match name.to_str().and_then(&key) {
            Some(key) if metadata.is_file() => found(key.to_owned(), metadata),
            _ if metadata.is_dir() => crate::removal::remove_dir(&entry.path())?,
            _ => removed(&entry.path()),
        }
    }
    Ok(())
}
