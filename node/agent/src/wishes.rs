//! What the cluster wanted of this node last, on disk: a node that starts while no control plane answers runs that.
//!
//! A file of the link's own messages, length before each. Every link writes a new one, since it is told everything, and
//! puts it in the old one's place once it has been told all; from then on changes are appended. It is for the node's
//! user alone, as volumes are: it holds what the node's pods are made of, secrets too.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use coracle_proto::{
    MESSAGE_BYTES_MAX,
    node::{ObjectEvent, node_down::Body, object_event},
};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{app::Event, decode::Key, link::FromLink, private};

const FILE: &str = "wishes";
const NEXT: &str = "wishes.next";

/// Messages that wait for the disk. Where it is slower than the link the file is given up until the next link: an old
/// state is no help.
const QUEUE_MAX: usize = 4096;
/// Their objects' bytes, about.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes behind which a file is written anew, without what was changed since.
const GROWN_BYTES: u64 = 64 << 20;
/// And so many times what it had at first.
const GROWN_TIMES: u64 = 4;

/// The objects of the last link that was told everything, in the order in which they came.
pub fn load(dir: &Path) -> Vec<ObjectEvent> {
    let file = match File::open(dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "what the cluster wanted last cannot be read");
            return Vec::new();
        }
    };
    let mut reader = BufReader::new(file);
    let mut latest: BTreeMap<Key, (u64, ObjectEvent)> = BTreeMap::new();
    let mut number = 0;
    // The last message may be cut short: it came as the node ended.
    while let Ok(Some(event)) = read(&mut reader) {
        number += 1;
        let key = (event.resource.clone(), event.namespace.clone(), event.name.clone());
        if event.r#type() == object_event::Type::Delete {
            latest.remove(&key);
        } else {
            // One that changed keeps its place: what it needs came before it.
            let place = latest.get(&key).map_or(number, |(place, _)| *place);
            latest.insert(key, (place, event));
        }
    }
    let mut all: Vec<_> = latest.into_values().collect();
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, event)| event).collect()
}

fn read(reader: &mut impl Read) -> io::Result<Option<ObjectEvent>> {
    let mut length = [0; 4];
    reader.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Ok(None);
    }
    let mut message = vec![0; length];
    reader.read_exact(&mut message)?;
    Ok(ObjectEvent::decode(Bytes::from(message)).ok())
}

/// Writes down what the link says.
pub struct Recorder {
    queue: mpsc::Sender<Said>,
    room: Arc<Semaphore>,
    /// The queue was full: what is on disk would miss something.
    behind: bool,
}

enum Said {
    LinkedAnew,
    /// With its share of the bytes that may wait.
    Object(ObjectEvent, Option<OwnedSemaphorePermit>),
    Everything,
    GiveUp,
}

impl Recorder {
    pub fn start(dir: PathBuf) -> Self {
        let (queue, said) = mpsc::channel(QUEUE_MAX);
        tokio::task::spawn_blocking(move || Files { dir, next: None, current: None }.run(said));
        Self::new(queue)
    }

    fn new(queue: mpsc::Sender<Said>) -> Self {
        Self { queue, room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)), behind: false }
    }

    /// Takes note of an event of the link. Never waits.
    pub fn note(&mut self, event: &Event) {
        let said = match event {
            Event::Link(FromLink::Up { .. }) => Said::LinkedAnew,
            Event::Link(FromLink::Message(Body::Object(object))) => {
                let bytes = u32::try_from(object.object_json.len()).unwrap_or(u32::MAX);
                let room = self.room.clone().try_acquire_many_owned(bytes);
                self.behind |= room.is_err();
                Said::Object(object.clone(), room.ok())
            }
            Event::Link(FromLink::Message(Body::Synced(_))) => Said::Everything,
            _ => return,
        };
        if matches!(said, Said::LinkedAnew) {
            self.behind = false;
        }
        if self.behind {
            // As soon as there is room for the word.
            let _ = self.queue.try_send(Said::GiveUp);
        } else if self.queue.try_send(said).is_err() {
            self.behind = true;
        }
    }
}

/// The files, and who writes them.
struct Files {
    dir: PathBuf,
    /// Of a link that is still being told.
    next: Option<Journal>,
    /// The one in place.
    current: Option<Journal>,
}

struct Journal {
    file: BufWriter<File>,
    bytes: u64,
    /// When it was complete.
    bytes_at_first: u64,
}

impl Journal {
    fn create(path: &Path) -> io::Result<Self> {
        let file = private::open_options().write(true).truncate(true).open(path)?;
        Ok(Self { file: BufWriter::new(file), bytes: 0, bytes_at_first: 0 })
    }

    fn append(&mut self, event: &ObjectEvent) -> io::Result<()> {
        let message = event.encode_to_vec();
        self.file.write_all(&(message.len() as u32).to_le_bytes())?;
        self.file.write_all(&message)?;
        self.bytes += 4 + message.len() as u64;
        Ok(())
    }

    fn has_grown(&self) -> bool {
        self.bytes > GROWN_BYTES + GROWN_TIMES * self.bytes_at_first
    }
}

impl Files {
    fn run(mut self, mut said: mpsc::Receiver<Said>) {
        while let Some(first) = said.blocking_recv() {
            let mut next = Some(first);
            let mut done = Ok(());
            // What waits is written together.
            while let Some(one) = next.take() {
                done = done.and_then(|()| self.take(one));
                next = said.try_recv().ok();
            }
            let done = done.and_then(|()| self.flush());
            if let Err(error) = done {
                tracing::warn!(%error, "what the cluster wants cannot be kept for a start without it");
                self.give_up();
            }
        }
    }

    fn take(&mut self, said: Said) -> io::Result<()> {
        match said {
            Said::LinkedAnew => {
                self.next = Some(Journal::create(&self.dir.join(NEXT))?);
            }
            Said::Object(object, _room) => {
                if let Some(journal) = self.next.as_mut().or(self.current.as_mut()) {
                    journal.append(&object)?;
                }
            }
            Said::Everything => {
                if let Some(journal) = self.next.take() {
                    self.put_in_place(journal)?;
                }
            }
            Said::GiveUp => self.give_up(),
        }
        if self.next.is_none() && self.current.as_ref().is_some_and(Journal::has_grown) {
            self.write_anew()?;
        }
        Ok(())
    }

    fn put_in_place(&mut self, mut journal: Journal) -> io::Result<()> {
        journal.file.flush()?;
        journal.file.get_ref().sync_all()?;
        fs::rename(self.dir.join(NEXT), self.dir.join(FILE))?;
        journal.bytes_at_first = journal.bytes;
        self.current = Some(journal);
        Ok(())
    }

    fn write_anew(&mut self) -> io::Result<()> {
        self.flush()?;
        let mut journal = Journal::create(&self.dir.join(NEXT))?;
        for event in load(&self.dir) {
            journal.append(&event)?;
        }
        self.put_in_place(journal)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.current.iter_mut().chain(&mut self.next).try_for_each(|journal| journal.file.flush())
    }

    fn give_up(&mut self) {
        (self.current, self.next) = (None, None);
        for name in [FILE, NEXT] {
            // Where even that fails the disk is gone, and with it what is on it.
            let _ = fs::remove_file(self.dir.join(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_proto::node::{Synced, Welcome};

    use super::*;

    fn object(name: &str, revision: u64, r#type: object_event::Type) -> Said {
        Said::Object(event(name, revision, r#type), None)
    }

    fn event(name: &str, revision: u64, r#type: object_event::Type) -> ObjectEvent {
        ObjectEvent {
            r#type: r#type.into(),
            resource: "pods".into(),
            namespace: "d".into(),
            name: name.into(),
            revision,
            object_json: "{}".into(),
        }
    }

    fn put(name: &str, revision: u64) -> Said {
        object(name, revision, object_event::Type::Put)
    }

    fn loaded(dir: &Path) -> Vec<(String, u64)> {
        load(dir).into_iter().map(|event| (event.name, event.revision)).collect()
    }

    #[test]
    fn the_last_whole_state_is_kept_with_its_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files { dir: dir.path().to_owned(), next: None, current: None };
        let mut take = |said: Vec<Said>| {
            said.into_iter().for_each(|one| files.take(one).unwrap());
            files.flush().unwrap();
        };
        take(vec![Said::LinkedAnew, put("b", 1), put("a", 2)]);
        assert!(loaded(dir.path()).is_empty(), "not everything was told yet");
        take(vec![Said::Everything, put("c", 3), put("b", 4), object("a", 5, object_event::Type::Delete)]);
        let kept = [("b".to_owned(), 4), ("c".to_owned(), 3)];
        assert_eq!(loaded(dir.path()), kept);
        // A new link that breaks before its end changes nothing.
        take(vec![Said::LinkedAnew, put("x", 9)]);
        assert_eq!(loaded(dir.path()), kept);
        // Cut short in the middle of a message.
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert_eq!(loaded(dir.path()), [("b".to_owned(), 4), ("a".to_owned(), 2), ("c".to_owned(), 3)]);
        fs::write(&path, &whole).unwrap();
        files.write_anew().unwrap();
        assert_eq!(loaded(dir.path()), kept);
        assert!(fs::metadata(&path).unwrap().len() < whole.len() as u64);
        files.give_up();
        assert!(loaded(dir.path()).is_empty());
    }

    #[tokio::test]
    async fn a_disk_that_is_too_slow_leaves_no_old_state() {
        let (queue, mut said) = mpsc::channel(2);
        let mut recorder = Recorder::new(queue);
        let up = || Event::Link(FromLink::Up { number: 1, welcome: Welcome::default() });
        let synced = || Event::Link(FromLink::Message(Body::Synced(Synced { revision: 1 })));
        for event in [up(), synced(), synced()] {
            recorder.note(&event);
        }
        assert!(matches!(said.recv().await, Some(Said::LinkedAnew)));
        recorder.note(&synced());
        assert!(matches!(said.recv().await, Some(Said::Everything)));
        assert!(matches!(said.recv().await, Some(Said::GiveUp)));
        recorder.note(&up());
        assert!(matches!(said.recv().await, Some(Said::LinkedAnew)));
    }
    #[tokio::test]
    async fn what_waits_for_the_disk_is_bounded_in_bytes() {
        let (queue, mut said) = mpsc::channel(QUEUE_MAX);
        let mut recorder = Recorder::new(queue);
        let half = ObjectEvent {
            object_json: vec![b'x'; QUEUE_BYTES_MAX / 2 + 1].into(),
            ..event("a", 1, object_event::Type::Put)
        };
        let half = Event::Link(FromLink::Message(Body::Object(half)));
        recorder.note(&half);
        recorder.note(&half);
        assert!(matches!(said.recv().await, Some(Said::Object(..))));
        assert!(matches!(said.recv().await, Some(Said::GiveUp)));
    }
}
