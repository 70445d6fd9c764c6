//! What happened, in order: hashed as it comes, put into words only when somebody reads it.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};

use coracle_proto::raft::MessageType;

/// Microseconds since a run began.
pub type Micros = u64;

/// How many notes are kept for the reader of a violation.
const NOTES_MAX: usize = 100_000;

/// One thing that happened. Members are named by their raft ids, operations by their numbers.
#[derive(Clone, Debug, Hash)]
pub enum Note {
    Started { member: u64, life: u32, last: u64, commit: u64 },
    Ended { member: u64, how: &'static str },
    Paused { member: u64, until: Micros },
    Fault { what: &'static str, member: u64, until: Micros },
    Cut { from: u64, to: u64, until: Micros },
    Healed,
    Leader { member: u64, leader: u64, term: u64 },
    Elected { member: u64, term: u64 },
    Sent { from: u64, to: u64, kind: i32, term: u64, index: u64, copies: u8 },
    Got { from: u64, to: u64, kind: i32, term: u64, index: u64 },
    Written { member: u64, number: u64, records: usize, torn: bool },
    Snapshot { member: u64, index: u64, what: &'static str },
    Applied { member: u64, index: u64, revision: u64 },
    Invoked { op: usize, client: usize, member: u64, read: bool },
    Try { op: usize, member: u64, at: Option<u64>, attempt: u32 },
    Answered { op: usize, what: &'static str, revision: u64 },
    Change { member: u64, what: &'static str, id: u64 },
    Watch { watcher: usize, member: u64, what: &'static str, revision: u64 },
}

/// The notes of a run and the hash over all of them.
#[derive(Debug, Default)]
pub struct Trace {
    hash: Fnv,
    notes: VecDeque<(Micros, Note)>,
}

impl Trace {
    pub fn note(&mut self, now: Micros, note: Note) {
        now.hash(&mut self.hash);
        note.hash(&mut self.hash);
        if self.notes.len() == NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back((now, note));
    }

    /// Equal for equal runs.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// The last `lines` notes up to a moment.
    pub fn tail(&self, until: Micros, lines: usize) -> Vec<String> {
        let end = self.notes.partition_point(|(at, _)| *at <= until);
        let range = end.saturating_sub(lines)..end;
        self.notes.range(range).map(|(at, note)| format!("{} {note}", Seconds(*at))).collect()
    }
}

/// Shows microseconds as seconds.
pub struct Seconds(pub Micros);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>3}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Note::Started { member, life, last, commit } => {
                write!(f, "m{member} starts, life {life}: log to {last}, commit {commit}")
            }
            Note::Ended { member, how } => write!(f, "m{member} ends: {how}"),
            Note::Paused { member, until } => write!(f, "m{member} stands still until {}", Seconds(until)),
            Note::Fault { what, member, until } => {
                write!(f, "fault: {what} (m{member}) until {}", Seconds(until))
            }
            Note::Cut { from, to, until } => write!(f, "cut m{from} -> m{to} until {}", Seconds(until)),
            Note::Healed => write!(f, "all faults end"),
            Note::Leader { member, leader, term } => {
                write!(f, "m{member} sees leader m{leader}, term {term}")
            }
            Note::Elected { member, term } => write!(f, "m{member} leads term {term}"),
            Note::Sent { from, to, kind, term, index, copies } => {
                write!(f, "m{from} -> m{to} {} term {term} index {index}, {copies} arrive", Kind(kind))
            }
            Note::Got { from, to, kind, term, index } => {
                write!(f, "m{to} <- m{from} {} term {term} index {index}", Kind(kind))
            }
            Note::Written { member, number, records, torn } => {
                let how = if torn { "was cut off while it wrote" } else { "has written" };
                write!(f, "m{member} {how} round {number}, {records} records")
            }
            Note::Snapshot { member, index, what } => write!(f, "m{member} snapshot {index}: {what}"),
            Note::Applied { member, index, revision } => {
                write!(f, "m{member} applied {index}, revision {revision}")
            }
            Note::Invoked { op, client, member, read } => {
                let what = if read { "read" } else { "write" };
                write!(f, "c{client} asks m{member}: {what} #{op}")
            }
            Note::Try { op, member, at: Some(at), attempt } => {
                write!(f, "m{member} tries #{op} at m{at}, attempt {attempt}")
            }
            Note::Try { op, member, at: None, attempt } => {
                write!(f, "m{member} knows no leader for #{op}, attempt {attempt}")
            }
            Note::Answered { op, what, revision } => write!(f, "#{op} ends: {what}, revision {revision}"),
            Note::Change { member, what, id } => write!(f, "m{member} changes members: {what} m{id}"),
            Note::Watch { watcher, member, what, revision } => {
                write!(f, "w{watcher} at m{member}: {what} {revision}")
            }
        }
    }
}

struct Kind(i32);

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match MessageType::try_from(self.0) {
            Ok(kind) => write!(f, "{}", kind.as_str_name()),
            Err(_) => write!(f, "message {}", self.0),
        }
    }
}

/// FNV-1a: the same on every machine and with every compiler.
#[derive(Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}

/// A short name for bytes.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hash = Fnv::default();
    hash.write(bytes);
    hash.finish()
}
