//! What the cluster wanted of this node last, on disk: a node that starts while no control plane answers runs that.
//!
//! A file of the link's own messages, length before each. Every link writes a new one, since it is told everything, and
//! puts it in the old one's place once it has been told all; from then on changes are appended. Where the disk is slower
//! than the link, of each object only the newest version waits: the file is behind, and catches up. It is for the node's
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
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;

use crate::{
    app::Event,
    decode::Key,
    line::{Line, Waits},
    link::FromLink,
    private,
};

const FILE: &str = "wishes";
const NEXT: &str = "wishes.next";

/// What waits for the disk, of each object the newest version, in bytes: as much as a node can do without. A disk that
/// has fallen so far behind writes nothing at all, and the file is given up until the next link: an old state is no help.
const WAITING_BYTES_MAX: usize = 512 << 20;
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
    line: Arc<Mutex<Line<Said>>>,
    /// Something waits.
    bell: mpsc::Sender<()>,
    waiting_bytes_max: usize,
    /// What is on disk would miss something.
    has_given_up: bool,
}

#[derive(Debug)]
enum Said {
    LinkedAnew,
    Object(ObjectEvent),
    Everything,
    GiveUp,
}

impl Waits for Said {
    fn object(&self) -> Option<&ObjectEvent> {
        if let Self::Object(object) = self { Some(object) } else { None }
    }
}

impl Recorder {
    pub fn start(dir: PathBuf) -> Self {
        let (recorder, bell) = Self::new(WAITING_BYTES_MAX);
        let line = recorder.line.clone();
        tokio::task::spawn_blocking(move || Files::new(dir).run(&line, bell));
        recorder
    }

    fn new(waiting_bytes_max: usize) -> (Self, mpsc::Receiver<()>) {
        let (bell, rung) = mpsc::channel(1);
        (Self { line: Arc::default(), bell, waiting_bytes_max, has_given_up: false }, rung)
    }

    /// Takes note of an event of the link. Never waits for the disk.
    pub fn note(&mut self, event: &Event) {
        let said = match event {
            Event::Link(FromLink::Up { .. }) => Said::LinkedAnew,
            Event::Link(FromLink::Message(Body::Object(object))) => Said::Object(object.clone()),
            Event::Link(FromLink::Message(Body::Synced(_))) => Said::Everything,
            _ => return,
        };
        let mut line = self.line.lock();
        if matches!(said, Said::LinkedAnew) {
            self.has_given_up = false;
            // What it says is of another file.
            line.divide();
        }
        if self.has_given_up {
            return;
        }
        line.push(said);
        if line.bytes() > self.waiting_bytes_max {
            *line = Line::default();
            line.push(Said::GiveUp);
            self.has_given_up = true;
        }
        drop(line);
        // One that has rung already is heard after this.
        let _ = self.bell.try_send(());
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
    fn new(dir: PathBuf) -> Self {
        Self { dir, next: None, current: None }
    }

    fn run(mut self, line: &Mutex<Line<Said>>, mut bell: mpsc::Receiver<()>) {
        while bell.blocking_recv().is_some() {
            self.write_all(line);
        }
    }

    /// What waits is written together.
    fn write_all(&mut self, line: &Mutex<Line<Said>>) {
        let next = || line.lock().pop();
        while let Some(said) = next() {
            let done = self.take(said);
            self.give_up_unless(done);
        }
        let done = self.flush();
        self.give_up_unless(done);
    }

    fn give_up_unless(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            tracing::warn!(%error, "what the cluster wants cannot be kept for a start without it");
            self.give_up();
        }
    }

    fn take(&mut self, said: Said) -> io::Result<()> {
        match said {
            Said::LinkedAnew => {
                self.next = Some(Journal::create(&self.dir.join(NEXT))?);
            }
            Said::Object(object) => {
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
        Said::Object(event(name, revision, r#type))
    }

    fn event(name: &str, revision: u64, r#type: object_event::Type) -> ObjectEvent {
        ObjectEvent {
            r#type: r#type.into(),
            resource: "pods".into(),
            namespace: "d".into(),
            name: name.into(),
            revision,
            object_json: "{}".into(),
            ..ObjectEvent::default()
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
        let mut files = Files::new(dir.path().to_owned());
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

    #[test]
    fn what_is_withheld_is_kept_as_that_and_its_content_is_not() {
        use object_event::Type::{Put, Withheld};
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(dir.path().to_owned());
        let withheld = |name: &str, revision| {
            let (object_json, reason) = (Bytes::new(), "too much; less".into());
            Said::Object(ObjectEvent { object_json, reason, ..event(name, revision, Withheld) })
        };
        let said =
            vec![Said::LinkedAnew, withheld("a", 1), put("b", 2), put("c", 3), Said::Everything, put("a", 4)];
        said.into_iter().chain([withheld("b", 5)]).for_each(|one| files.take(one).unwrap());
        files.flush().unwrap();
        for _ in 0..2 {
            let kept: Vec<_> = load(dir.path())
                .into_iter()
                .map(|event| (event.r#type(), event.name, event.reason, event.object_json.len()))
                .collect();
            let content = |name: &str| (Put, name.to_owned(), String::new(), 2);
            let b = (Withheld, "b".to_owned(), "too much; less".to_owned(), 0);
            assert_eq!(kept, [content("a"), b, content("c")]);
            files.write_anew().unwrap();
        }
    }

    fn up() -> Event {
        Event::Link(FromLink::Up { number: 1, welcome: Welcome::default() })
    }

    fn synced() -> Event {
        Event::Link(FromLink::Message(Body::Synced(Synced { revision: 1 })))
    }

    fn told(event: ObjectEvent) -> Event {
        Event::Link(FromLink::Message(Body::Object(event)))
    }

    #[test]
    fn a_burst_that_the_disk_is_too_slow_for_is_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(dir.path().to_owned());
        let (mut recorder, _rung) = Recorder::new(WAITING_BYTES_MAX);
        let mut note = |event: Event| recorder.note(&event);
        note(up());
        note(told(event("pod", 1, object_event::Type::Put)));
        note(told(event("gone", 2, object_event::Type::Put)));
        note(synced());
        // Nothing of it is written yet, and then comes more than any queue of messages has.
        let large = Bytes::from(vec![b'x'; 1 << 20]);
        let many = |name: &str, revision| ObjectEvent {
            object_json: large.clone(),
            ..event(name, revision, object_event::Type::Put)
        };
        (3..5000).for_each(|revision| note(told(many("one", revision))));
        (0..80).for_each(|at| note(told(many(&format!("many{at:02}"), 6000 + at))));
        note(told(event("gone", 7000, object_event::Type::Delete)));
        let line = recorder.line.clone();
        files.write_all(&line);
        let kept = loaded(dir.path());
        let (pod, rest) = kept.split_first().unwrap();
        assert_eq!(*pod, ("pod".to_owned(), 1));
        assert_eq!((rest.len(), &*rest[0].0, rest[0].1), (81, "one", 4999));
        assert_eq!(rest[80], ("many79".to_owned(), 6079));
        // It goes on from there.
        recorder.note(&told(event("pod", 8000, object_event::Type::Put)));
        files.write_all(&line);
        assert_eq!(loaded(dir.path())[0], ("pod".to_owned(), 8000));
    }

    #[test]
    fn a_disk_that_writes_nothing_leaves_no_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(dir.path().to_owned());
        let (mut recorder, _rung) = Recorder::new(1 << 20);
        let half = |name: &str| {
            let object_json = vec![b'x'; 1 << 19].into();
            told(ObjectEvent { object_json, ..event(name, 1, object_event::Type::Put) })
        };
        let line = recorder.line.clone();
        [up(), half("a"), synced()].iter().for_each(|event| recorder.note(event));
        files.write_all(&line);
        assert_eq!(loaded(dir.path()), [("a".to_owned(), 1)]);
        // The same one again and again is one that waits, and two are too many.
        [half("b"), half("b"), half("b"), half("b")].iter().for_each(|event| recorder.note(event));
        files.write_all(&line);
        assert_eq!(loaded(dir.path()).len(), 2);
        [half("c"), half("d")].iter().for_each(|event| recorder.note(event));
        assert!(line.lock().bytes() < 1 << 19);
        files.write_all(&line);
        recorder.note(&half("e"));
        files.write_all(&line);
        assert!(loaded(dir.path()).is_empty());
        [up(), half("f"), synced()].iter().for_each(|event| recorder.note(event));
        files.write_all(&line);
        assert_eq!(loaded(dir.path()), [("f".to_owned(), 1)]);
    }
}
