//! What a store knows of its files and names: who uses them, and since when nobody does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{super::room::Taken, is_hex_digest};

/// What a name means: the id of its image, and the digest of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    pub image_id: String,
    pub file: String,
}

impl Meaning {
    pub fn text(&self) -> String {
        format!("{}\n{}.wasm\n", self.image_id, self.file)
    }

    /// `None` where it is not whole.
    pub fn read(text: &str) -> Option<Self> {
        let (image_id, file) = text.strip_suffix('\n')?.split_once('\n')?;
        let file = file.strip_suffix(".wasm").filter(|file| is_hex_digest(file))?;
        let (_, digest) = image_id.split_once("@sha256:")?;
        is_hex_digest(digest).then(|| Self { image_id: image_id.to_owned(), file: file.to_owned() })
    }
}

/// A file or a name that is on disk.
pub struct Entry<T> {
    pub what: T,
    /// The last use, as far as there is none now.
    used: SystemTime,
    /// This process has used it.
    of_this_life: bool,
    /// Uses by namespace.
    users: BTreeMap<Arc<str>, usize>,
}

/// What is known of a name that was read, or resolved at that time.
pub struct Named {
    pub meaning: Meaning,
    pub resolved_at: Option<Instant>,
}

#[derive(Default)]
pub struct Table {
    /// By digest, with their bytes.
    pub files: HashMap<String, Entry<u64>>,
    /// By key, those that were read.
    pub names: HashMap<String, Entry<Option<Named>>>,
    /// When a use of a file was noted on disk.
    marked: HashMap<String, SystemTime>,
    /// Bytes on their way, by namespace.
    coming: BTreeMap<Arc<str>, u64>,
    /// Images take more than they may: unused ones are going.
    pub is_clearing: bool,
}

impl<T> Entry<T> {
    pub fn of_an_earlier_life(what: T, used: Option<SystemTime>) -> Self {
        let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
        Self { what, used, of_this_life: false, users: BTreeMap::new() }
    }

    fn begin_use(&mut self, namespace: &Arc<str>, now: SystemTime) {
        (self.used, self.of_this_life) = (now, true);
        *self.users.entry(namespace.clone()).or_default() += 1;
    }

    fn end_use(&mut self, namespace: &Arc<str>, now: SystemTime) {
        self.used = now;
        if let Some(uses) = self.users.get_mut(namespace) {
            *uses -= 1;
            if *uses == 0 {
                self.users.remove(namespace);
            }
        }
    }

    fn may_go(&self, settled: bool) -> bool {
        self.users.is_empty() && (settled || self.of_this_life)
    }
}

/// The one that was used longest ago of those that may go.
fn oldest<T>(entries: &HashMap<String, Entry<T>>, settled: bool) -> Option<String> {
    let unused = entries.iter().filter(|(_, entry)| entry.may_go(settled));
    unused.min_by_key(|(key, entry)| (entry.used, *key)).map(|(key, _)| key.clone())
}

/// Names are used by whoever uses their files.
const NOBODY: &str = "";

impl Table {
    /// False where there is no such file.
    pub fn use_file(&mut self, file: &str, namespace: &Arc<str>, now: SystemTime) -> bool {
        self.files.get_mut(file).map(|entry| entry.begin_use(namespace, now)).is_some()
    }

    pub fn use_name(&mut self, name: &str, now: SystemTime) -> bool {
        let used = |entry: &mut Entry<_>| entry.begin_use(&NOBODY.into(), now);
        self.names.get_mut(name).map(used).is_some()
    }

    pub fn let_go(&mut self, file: &str, name: Option<&str>, namespace: &Arc<str>, now: SystemTime) {
        if let Some(entry) = self.files.get_mut(file) {
            entry.end_use(namespace, now);
        }
        if let Some(entry) = name.and_then(|name| self.names.get_mut(name)) {
            entry.end_use(&NOBODY.into(), now);
        }
    }

    /// A file that came, or came anew, and is used.
    pub fn put_file(&mut self, file: &str, bytes: u64, namespace: &Arc<str>, now: SystemTime) {
        let new = || Entry::of_an_earlier_life(bytes, Some(now));
        let entry = self.files.entry(file.to_owned()).or_insert_with(new);
        entry.what = bytes;
        entry.begin_use(namespace, now);
        self.marked.insert(file.to_owned(), now);
    }

    pub fn means(&mut self, name: &str, meaning: &Meaning, resolved_at: Option<Instant>, now: SystemTime) {
        let new = || Entry::of_an_earlier_life(None, Some(now));
        let entry = self.names.entry(name.to_owned()).or_insert_with(new);
        (entry.used, entry.of_this_life) = (now, true);
        entry.what = Some(Named { meaning: meaning.clone(), resolved_at });
    }

    pub fn comes(&mut self, namespace: &Arc<str>, bytes: u64) {
        *self.coming.entry(namespace.clone()).or_default() += bytes;
    }

    pub fn arrived(&mut self, namespace: &Arc<str>, bytes: u64) {
        if let Some(coming) = self.coming.get_mut(namespace) {
            *coming -= bytes;
            if *coming == 0 {
                self.coming.remove(namespace);
            }
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|entry| entry.what).sum()
    }

    /// What images take, where `namespace` wants one more.
    pub fn taken(&self, namespace: &Arc<str>) -> Taken {
        let coming = self.coming.values().sum();
        let its = self.coming.get(namespace).copied().unwrap_or(0);
        let mut taken = Taken { all: coming, used: coming, used_by_it: its, coming };
        for entry in self.files.values() {
            taken.all += entry.what;
            if !entry.users.is_empty() {
                taken.used += entry.what;
            }
            if entry.users.contains_key(namespace) {
                taken.used_by_it += entry.what;
            }
        }
        taken
    }

    /// Takes the unused file that was used longest ago out of the table, with its bytes. In the first time after a start
    /// only of those that have been used since.
    pub fn take_oldest_file(&mut self, settled: bool) -> Option<(String, u64)> {
        let file = oldest(&self.files, settled)?;
        let entry = self.files.remove(&file)?;
        self.marked.remove(&file);
        Some((file, entry.what))
    }

    pub fn take_oldest_name(&mut self, settled: bool) -> Option<String> {
        let name = oldest(&self.names, settled)?;
        self.names.remove(&name);
        Some(name)
    }

    pub fn take_names_of(&mut self, file: &str) -> Vec<String> {
        let means = |entry: &Entry<Option<Named>>| {
            entry.what.as_ref().is_some_and(|named| named.meaning.file == file)
        };
        let names: Vec<String> =
            self.names.iter().filter(|(_, entry)| means(entry)).map(|(name, _)| name.clone()).collect();
        for name in &names {
            self.names.remove(name);
        }
        names
    }

    /// Files whose last use should be noted on disk, with its time.
    pub fn take_unmarked(
        &mut self,
        most: usize,
        every: Duration,
        now: SystemTime,
    ) -> Vec<(String, SystemTime)> {
        let mut due = Vec::new();
        for (file, entry) in self.files.iter().filter(|(_, entry)| entry.of_this_life) {
            let used = if entry.users.is_empty() { entry.used } else { now };
            let marked = self.marked.get(file).copied().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_due = match used.duration_since(marked) {
                Ok(since) => since >= every || entry.users.is_empty() && !since.is_zero(),
                // The clock was set back.
                Err(_) => true,
            };
            if is_due {
                due.push((file.clone(), used));
            }
            if due.len() >= most {
                break;
            }
        }
        for (file, used) in &due {
            self.marked.insert(file.clone(), *used);
        }
        due
    }
}
