//! What clients and watchers saw, held against the one order that the store gave it.
//!
//! Every acknowledged write has a revision of its own, so the order is known: nothing has to be searched. Values are
//! unique. The history is what all watchers saw together; each watcher by itself must have seen exactly that.

use std::collections::{BTreeMap, BTreeSet};

/// Which object.
pub type Register = usize;
/// Nanoseconds since the soak began.
pub type Moment = u64;
pub type Revision = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Put(u64),
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(Revision),
    /// Certainly not done.
    Refused,
    Unknown,
}

#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub register: Register,
    pub change: Change,
    /// Only where the object is as of this revision.
    pub expected: Option<Revision>,
    pub invoked: Moment,
    pub completed: Moment,
    pub outcome: Outcome,
}

/// A linearizable read that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    pub register: Register,
    pub invoked: Moment,
    pub completed: Moment,
    /// Of the state that was read, where the answer tells it.
    pub revision: Option<Revision>,
    /// The object's value and revision.
    pub found: Option<(u64, Revision)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub register: Register,
    pub change: Change,
}

/// What one watcher saw: every change behind `from`, but for the gaps, in which it had to read anew.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    pub name: String,
    pub from: Revision,
    pub events: Vec<Event>,
    /// Behind the first and up to the second revision.
    pub gaps: Vec<(Revision, Revision)>,
    /// It saw everything up to here.
    pub to: Revision,
}

/// All that is checked.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
    pub watched: Vec<Watched>,
}

/// What the clients saw that cannot be; the first few, each in words.
pub fn violations(seen: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    let history = history(seen, &mut found);
    watches(seen, &history, &mut found);
    writes(seen, &history, &mut found);
    real_time(seen, &mut found);
    reads(seen, &history, &mut found);
    found
}

type History = BTreeMap<Revision, Event>;

fn history(seen: &Seen, found: &mut Vec<String>) -> History {
    let mut history = History::new();
    for watched in &seen.watched {
        for event in &watched.events {
            if let Some(other) = history.insert(event.revision, *event).filter(|other| other != event) {
                found.push(format!("{}: {event:?}, where another watcher saw {other:?}", watched.name));
            }
        }
    }
    history
}

/// No event lost, doubled or out of order.
fn watches(seen: &Seen, history: &History, found: &mut Vec<String>) {
    for watched in &seen.watched {
        for pair in watched.events.windows(2) {
            if pair[0].revision >= pair[1].revision {
                found.push(format!("{}: {:?} came behind {:?}", watched.name, pair[1], pair[0]));
            }
        }
        let saw: BTreeSet<Revision> = watched.events.iter().map(|event| event.revision).collect();
        for revision in history.keys().filter(|revision| (watched.from + 1..=watched.to).contains(revision)) {
            let excused = watched.gaps.iter().any(|(from, to)| revision > from && revision <= to);
            if !excused && !saw.contains(revision) {
                found.push(format!("{} never saw {:?}", watched.name, history[revision]));
            }
        }
    }
}

/// Acknowledged writes are there, refused ones are not, and none is there twice.
fn writes(seen: &Seen, history: &History, found: &mut Vec<String>) {
    let mut by_value: BTreeMap<u64, Revision> = BTreeMap::new();
    for event in history.values() {
        if let Change::Put(value) = event.change
            && let Some(before) = by_value.insert(value, event.revision)
        {
            found.push(format!(
                "value {value} was written twice, at revisions {before} and {}",
                event.revision
            ));
        }
    }
    let mut last: BTreeMap<Register, Option<Revision>> = BTreeMap::new();
    let mut before: BTreeMap<Revision, Option<Revision>> = BTreeMap::new();
    for event in history.values() {
        let now = (event.change != Change::Delete).then_some(event.revision);
        before.insert(event.revision, last.insert(event.register, now).flatten());
    }
    let mut revisions = BTreeSet::new();
    for write in &seen.writes {
        match write.outcome {
            Outcome::Done(revision) => {
                if !revisions.insert(revision) {
                    found.push(format!("revision {revision} was given to two writes, one of them {write:?}"));
                }
                let expected = Event { revision, register: write.register, change: write.change };
                match history.get(&revision) {
                    Some(event) if *event == expected => {}
                    other => found.push(format!("the acknowledged {write:?} is lost; there is {other:?}")),
                }
                let there = before.get(&revision).copied().flatten();
                if write.expected.is_some_and(|expected| there != Some(expected)) {
                    found.push(format!("{write:?} was done where the object was as of {there:?}"));
                }
            }
            Outcome::Refused => {
                if let Change::Put(value) = write.change
                    && let Some(revision) = by_value.get(&value)
                {
                    found.push(format!("the refused {write:?} was done at {revision}"));
                }
            }
            Outcome::Unknown => {}
        }
    }
}

/// For a moment, the highest revision that was known to somebody before it.
struct Known(Vec<(Moment, Revision)>);

impl Known {
    fn new(mut known: Vec<(Moment, Revision)>) -> Self {
        known.sort_unstable();
        let mut highest = 0;
        for (_, revision) in &mut known {
            highest = highest.max(*revision);
            *revision = highest;
        }
        Self(known)
    }

    fn before(&self, moment: Moment) -> Revision {
        let count = self.0.partition_point(|(completed, _)| *completed < moment);
        count.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

/// A write that began after another had ended has a higher revision.
fn real_time(seen: &Seen, found: &mut Vec<String>) {
    let done = seen.writes.iter().filter_map(|write| match write.outcome {
        Outcome::Done(revision) => Some((write, revision)),
        _ => None,
    });
    let known = Known::new(done.clone().map(|(write, revision)| (write.completed, revision)).collect());
    for (write, revision) in done {
        let before = known.before(write.invoked);
        if before >= revision {
            found.push(format!("{write:?} began after revision {before} was acknowledged"));
        }
    }
}

/// A read shows the state as of its revision, and that is no older than anything acknowledged or read before it began.
fn reads(seen: &Seen, history: &History, found: &mut Vec<String>) {
    let mut versions: BTreeMap<Register, Vec<(Revision, Option<u64>)>> = BTreeMap::new();
    for event in history.values() {
        let value = match event.change {
            Change::Put(value) => Some(value),
            Change::Delete => None,
        };
        versions.entry(event.register).or_default().push((event.revision, value));
    }
    let writes = seen.writes.iter().filter_map(|write| match write.outcome {
        Outcome::Done(revision) => Some((write.register, write.completed, revision)),
        _ => None,
    });
    // A write of unknown outcome is known to have been done as soon as somebody has read what it wrote.
    let objects = seen.reads.iter().filter_map(|read| Some((read.register, read.completed, read.found?.1)));
    let objects = writes.chain(objects);
    let states = seen.reads.iter().filter_map(|read| Some((read.completed, read.revision?)));
    let known = Known::new(objects.clone().map(|(_, at, revision)| (at, revision)).chain(states).collect());
    let mut known_of: BTreeMap<Register, Vec<(Moment, Revision)>> = BTreeMap::new();
    for (register, at, revision) in objects {
        known_of.entry(register).or_default().push((at, revision));
    }
    let known_of: BTreeMap<Register, Known> =
        known_of.into_iter().map(|(register, known)| (register, Known::new(known))).collect();
    let nothing = Vec::new();
    for read in &seen.reads {
        let versions = versions.get(&read.register).unwrap_or(&nothing);
        if let Some(revision) = read.revision {
            let before = known.before(read.invoked);
            if revision < before {
                found.push(format!("stale: {read:?} began after revision {before} was known"));
            }
            let count = versions.partition_point(|(version, _)| *version <= revision);
            let there = count.checked_sub(1).map(|last| versions[last]);
            // Before the first event of the history the value is not known.
            if let Some((version, value)) = there
                && read.found != value.map(|value| (value, version))
            {
                found.push(format!("{read:?}, where the history has {value:?} at {version}"));
            }
        } else {
            let before = known_of.get(&read.register).map_or(0, |known| known.before(read.invoked));
            let newer = versions.iter().any(|(version, value)| *version >= before && value.is_none());
            match read.found {
                Some((value, revision)) => {
                    let there = versions.iter().find(|(version, _)| *version == revision);
                    if revision < before && versions.iter().any(|(version, _)| *version == before) {
                        found.push(format!("stale: {read:?} began after revision {before} was known"));
                    } else if there.is_some_and(|(_, written)| *written != Some(value)) {
                        found.push(format!("{read:?}, where the history has {there:?}"));
                    }
                }
                None if !newer && before > 0 => found.push(format!("stale: {read:?} finds nothing")),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(revision: Revision, value: u64) -> Event {
        Event { revision, register: 0, change: Change::Put(value) }
    }

    fn write(value: u64, invoked: Moment, completed: Moment, outcome: Outcome) -> Write {
        Write { register: 0, change: Change::Put(value), expected: None, invoked, completed, outcome }
    }

    fn read(invoked: Moment, revision: Option<Revision>, found: Option<(u64, Revision)>) -> Read {
        Read { register: 0, invoked, completed: invoked + 5, revision, found }
    }

    fn watched(events: &[Event]) -> Watched {
        Watched { name: "w".into(), from: 10, events: events.to_vec(), gaps: vec![], to: 20 }
    }

    /// Two writes one after the other, one of unknown outcome that took place, and reads in between.
    fn sound() -> Seen {
        let events = [put(11, 1), put(12, 2), put(13, 3)];
        Seen {
            writes: vec![
                write(1, 10, 20, Outcome::Done(11)),
                write(2, 30, 40, Outcome::Done(12)),
                write(3, 35, 99, Outcome::Unknown),
                write(4, 35, 99, Outcome::Unknown),
                write(5, 35, 99, Outcome::Refused),
            ],
            reads: vec![read(21, Some(11), Some((1, 11))), read(50, None, Some((3, 13)))],
            watched: vec![watched(&events), watched(&events)],
        }
    }

    fn breaks(what: &str, change: impl FnOnce(&mut Seen)) {
        let mut seen = sound();
        change(&mut seen);
        let found = violations(&seen);
        assert!(found.iter().any(|found| found.contains(what)), "{what:?} is not in {found:?}");
    }

    #[test]
    fn a_sound_history_passes() {
        assert_eq!(violations(&sound()), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_is_found() {
        breaks("is lost", |seen| {
            seen.watched.iter_mut().for_each(|watched| watched.events.retain(|event| event.revision != 12));
        });
        breaks("is lost", |seen| seen.watched.iter_mut().for_each(|watched| watched.events[1] = put(12, 9)));
        breaks("never saw", |seen| seen.watched[1].events.truncate(2));
        breaks("came behind", |seen| seen.watched[1].events.insert(1, put(11, 1)));
        breaks("came behind", |seen| seen.watched[0].events.swap(0, 1));
        breaks("another watcher saw", |seen| seen.watched[1].events[0] = put(11, 8));
        breaks("written twice", |seen| {
            seen.watched.iter_mut().for_each(|watched| watched.events.push(put(14, 3)));
        });
        breaks("the refused", |seen| {
            seen.watched.iter_mut().for_each(|watched| watched.events.push(put(14, 5)));
        });
        breaks("given to two", |seen| seen.writes.push(write(1, 10, 20, Outcome::Done(11))));
        breaks("began after revision 12", |seen| {
            seen.writes[0] = write(1, 41, 50, Outcome::Done(11));
        });
        breaks("stale", |seen| seen.reads.push(read(60, Some(11), Some((1, 11)))));
        breaks("stale", |seen| {
            seen.reads.push(read(60, Some(13), Some((3, 13))));
            seen.reads.push(read(70, Some(12), Some((2, 12))));
        });
        breaks("stale", |seen| seen.reads.push(read(60, None, Some((1, 11)))));
        breaks("finds nothing", |seen| seen.reads.push(read(60, None, None)));
        // Nobody acknowledged the write at 13, but a read has seen it.
        breaks("stale", |seen| seen.reads.push(read(60, None, Some((2, 12)))));
        breaks("stale", |seen| seen.reads.push(read(60, Some(12), Some((2, 12)))));
        breaks("the history has", |seen| seen.reads.push(read(60, Some(13), Some((2, 12)))));
        breaks("was done where", |seen| seen.writes[1].expected = Some(7));
    }

    #[test]
    fn a_gap_excuses_only_what_lies_in_it() {
        let mut seen = sound();
        seen.watched[1].events.remove(1);
        seen.watched[1].gaps = vec![(11, 12)];
        assert_eq!(violations(&seen), Vec::<String>::new());
        seen.watched[1].gaps = vec![(12, 13)];
        assert_eq!(violations(&seen).len(), 1);
    }
}
