//! Snapshots: made beside the state machine, fetched from the leader in parts, taken over. As the snapshot thread, the
//! fetcher and the transport of `coracle_raft` do it; which snapshot is fetched its `Fetching` decides.

use std::io::{self, Read, Write};

use coracle_raft::snapshot::fetching::Begin;
use coracle_raft::snapshot::incoming::Incoming;
use coracle_raft::snapshot::{Frozen, Header, files};
use coracle_raft::{Error, SnapshotMarker};
use coracle_store::{Store, StoreConfig};
use raft::eraftpb::Message;

use super::front::{Call, Reply};
use super::member::{ended, unreadable};
use super::raft::Input;
use super::{Event, Step, Who, World, life_of};
use crate::disk::SimDisk;
use crate::mutant::Mutant;
use crate::options::MS;
use crate::rng::Rng;
use crate::trace::{Micros, Note};

/// The id of every simulated cluster.
pub const CLUSTER_ID: &str = "sim";

/// How often a part is asked for before the snapshot is given up.
const TRIES_MAX: u32 = 5;
/// Ticks of raft's clock without a byte after which a fetch gives way to another announcement, and after which it has
/// failed, whether somebody tells so or not. Shorter than in production, as everything here.
const GIVES_WAY_TICKS: u64 = 30;
const FAILED_TICKS: u64 = 60;
/// Of a thousand fetches, those of which nothing comes and nobody tells: whoever had them was lost.
const LOST: u64 = 100;
/// Until a part must have come.
const PART_TIMEOUT: Micros = 150 * MS;

/// When the next snapshot is taken, and the one that is being written.
#[derive(Default)]
pub struct Schedule {
    /// Applied since the last.
    pub entries: u64,
    pub asked: bool,
    writing: Option<Writing>,
}

struct Writing {
    index: u64,
    state: FrozenStore,
    marker: Option<SnapshotMarker>,
}

struct FrozenStore(coracle_store::Frozen);

impl Frozen for FrozenStore {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.write_to(out)
    }
}

/// A snapshot on its way from the leader.
pub struct Fetch {
    /// As [`Begin`] has it.
    number: u64,
    incoming: Incoming<SimDisk>,
    index: u64,
    from: u64,
    attempt: u32,
    tries: u32,
    whole: bool,
}

/// A piece of a snapshot's file.
pub struct Part {
    bytes: Vec<u8>,
    last: bool,
}

impl super::apply::Machine {
    /// The process ends while it writes a snapshot: any part of the file may be there.
    pub fn break_off(&mut self, disk: &SimDisk, rng: &mut Rng) {
        if let Some(Writing { state, marker: Some(marker), .. }) = self.snapshots.writing.take() {
            disk.burn_after(rng.below(6));
            // An error is what is wanted here.
            let _ = files::write(disk, &header(marker), &state);
            disk.power_is_back();
        }
    }
}

impl Fetch {
    /// It will not arrive.
    pub fn discard(self) {
        self.incoming.discard();
    }

    /// The process ends while it keeps what has arrived.
    pub fn break_off(self, disk: &SimDisk, rng: &mut Rng) {
        if self.whole {
            disk.burn_after(rng.below(4));
            let _ = self.incoming.finish();
            disk.power_is_back();
        }
    }
}

fn header(marker: SnapshotMarker) -> Header {
    Header { cluster_id: CLUSTER_ID.to_owned(), marker }
}

impl World {
    /// Freezes the state where a snapshot is due and none is being written.
    pub fn snapshot_if_due(&mut self, who: Who) {
        let (every, mutant) = (self.plan.snapshot_every, self.plan.mutant);
        let Some(life) = life_of(&mut self.members, who) else { return };
        let machine = &mut life.machine;
        let schedule = &mut machine.snapshots;
        let due = schedule.asked || schedule.entries >= every;
        if !due || machine.applied == 0 || schedule.writing.is_some() {
            return;
        }
        let index = match mutant {
            Some(Mutant::MislabelledSnapshot) if machine.applied > 1 => machine.applied - 1,
            _ => machine.applied,
        };
        let state = FrozenStore(machine.store.freeze());
        (schedule.entries, schedule.asked) = (0, false);
        schedule.writing = Some(Writing { index, state, marker: None });
        self.give(who, Input::Mark(index));
    }

    /// The raft thread has said what the state is marked with; without a marker a later snapshot was taken over.
    pub fn marked(&mut self, who: Who, index: u64, marker: Option<SnapshotMarker>) {
        let early = self.plan.mutant == Some(Mutant::CompactedEarly);
        let Some(life) = life_of(&mut self.members, who) else { return };
        let writing = &mut life.machine.snapshots.writing;
        let Some(marker) = marker else {
            *writing = None;
            return;
        };
        if let Some(writing) = writing.as_mut().filter(|writing| writing.index == index) {
            writing.marker = Some(marker.clone());
        }
        if early {
            self.give(who, Input::Compact(marker));
        }
        let takes = self.rng.between(300, 60 * MS);
        self.after(takes, Event::SnapshotWritten(who));
    }

    pub fn snapshot_written(&mut self, who: Who) -> Step {
        let Some(member) = self.members.get_mut(&who.id) else { return Ok(()) };
        let (disk, now) = (member.disk.clone(), self.now);
        let failing = member.disk_fails || member.disk_full_until >= now;
        let Some(life) = member.life.as_mut().filter(|life| life.number == who.life) else { return Ok(()) };
        let Some(Writing { index, state, marker: Some(marker) }) = life.machine.snapshots.writing.take()
        else {
            return Ok(());
        };
        match files::write(&disk, &header(marker.clone()), &state) {
            Ok(_) => {
                self.counts.snapshots += 1;
                self.note(Note::Snapshot { member: who.id, index, what: "made" });
                self.give(who, Input::Compact(marker));
            }
            // The log shows what is wrong with the disk.
            Err(_) if failing => {}
            Err(source) => {
                let error = Error::Disk { action: "write", file: files::name(index), source };
                return Err(ended(who.id, &error));
            }
        }
        Ok(())
    }

    /// A message that announces a snapshot which is not here waits for it; any other is stepped.
    pub fn take_message(&mut self, who: Who, message: Message) -> Step {
        let stuck = self.plan.mutant == Some(Mutant::StuckFetch);
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        let Some(marker) = life.core.wants_snapshot(&message) else { return self.step(who, message) };
        if stuck && life.fetching.number().is_some() {
            return Ok(());
        }
        let begin = life.fetching.announced(message, marker, life.ticks, GIVES_WAY_TICKS);
        if let Some(begin) = begin {
            self.fetch(who, begin);
        }
        Ok(())
    }

    fn step(&mut self, who: Who, message: Message) -> Step {
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        // What is out of place is dropped, as in production.
        let _ = life.core.step(message).map_err(|error| ended(who.id, &error))?;
        Ok(())
    }

    /// The raft thread is told how a fetch ended. One that was given up meanwhile is nobody's any more.
    pub fn fetch_ended(&mut self, who: Who, number: u64, arrived: bool) -> Step {
        let Some(life) = self.life(who).filter(|life| life.fetching.number() == Some(number)) else {
            return Ok(());
        };
        if let Some(fetch) = life.fetch.take_if(|fetch| fetch.number == number) {
            fetch.discard();
        }
        if let Some(message) = life.fetching.ended(number, arrived) {
            self.step(who, message)?;
        }
        self.begin_next_fetch(who)
    }

    /// With each tick.
    pub fn follow_fetch(&mut self, who: Who) -> Step {
        let stuck = self.plan.mutant == Some(Mutant::StuckFetch);
        let Some(life) = self.life(who) else { return Ok(()) };
        let now = life.ticks;
        let sign = match &life.fetch {
            Some(fetch) if fetch.whole => u64::MAX - now,
            Some(fetch) => fetch.incoming.offset(),
            None => 0,
        };
        if stuck || !life.fetching.moved(sign, now, FAILED_TICKS) {
            return Ok(());
        }
        if let Some(fetch) = life.fetch.take() {
            let index = fetch.index;
            fetch.discard();
            self.note(Note::Snapshot { member: who.id, index, what: "without a sign" });
        }
        self.counts.lost_fetches += 1;
        self.begin_next_fetch(who)
    }

    fn begin_next_fetch(&mut self, who: Who) -> Step {
        match self.life(who).and_then(|life| life.fetching.take_next()) {
            Some(message) => self.take_message(who, message),
            None => Ok(()),
        }
    }

    fn fetch(&mut self, who: Who, begin: Begin) {
        let Begin { number, from, marker } = begin;
        let Some(member) = self.members.get_mut(&who.id) else { return };
        let disk = member.disk.clone();
        let Some(life) = member.life.as_mut().filter(|life| life.number == who.life) else { return };
        if let Some(older) = life.fetch.take() {
            older.discard();
        }
        let index = marker.index;
        let Ok(incoming) = Incoming::create_numbered(disk, header(marker), number) else {
            // Without a place for it the leader will send another.
            life.fetching.ended(number, false);
            return;
        };
        life.fetch = Some(Fetch { number, incoming, index, from, attempt: 0, tries: 0, whole: false });
        self.note(Note::Snapshot { member: who.id, index, what: "announced" });
        if !self.rng.chance(LOST) {
            self.ask_part(who);
        }
    }

    fn ask_part(&mut self, who: Who) {
        let Some(life) = self.life(who) else { return };
        life.attempts += 1;
        let attempt = life.attempts;
        let Some(fetch) = &mut life.fetch else { return };
        fetch.attempt = attempt;
        fetch.tries += 1;
        let (index, offset, from) = (fetch.index, fetch.incoming.offset(), fetch.from);
        if fetch.tries > TRIES_MAX {
            self.note(Note::Snapshot { member: who.id, index, what: "given up" });
            return self.give_up(who);
        }
        self.call(who, from, Call::Part { index, offset, attempt });
        self.after(PART_TIMEOUT, Event::PartTimeout(who, attempt));
    }

    /// Nothing more is asked for.
    fn give_up(&mut self, who: Who) {
        let Some(fetch) = self.life(who).and_then(|life| life.fetch.as_mut()) else { return };
        // What still comes answers nothing that is asked.
        (fetch.attempt, fetch.whole) = (0, false);
        let number = fetch.number;
        self.give(who, Input::Fetched(number, false));
    }

    pub fn part_timeout(&mut self, who: Who, attempt: u32) {
        let fetch = self.life(who).and_then(|life| life.fetch.as_ref());
        if fetch.is_some_and(|fetch| fetch.attempt == attempt && !fetch.whole) {
            self.ask_part(who);
        }
    }

    /// The leader's side: a part of a file, wherever it was interrupted.
    pub fn serve_part(&mut self, who: Who, to: Who, index: u64, offset: u64, attempt: u32) {
        let most = self.rng.between(200, 4_000);
        let Some(member) = self.members.get(&who.id) else { return };
        let part = files::source(&member.disk, index, offset).ok().and_then(|source| {
            let mut bytes = Vec::new();
            source.take(most).read_to_end(&mut bytes).ok()?;
            let last = (bytes.len() as u64) < most;
            Some(Part { bytes, last })
        });
        self.give(who, Input::Served(to.id));
        self.send_back(who, to, Reply::Part { attempt, part });
    }

    pub fn part_had(&mut self, who: Who, attempt: u32, part: Option<Part>) {
        let Some(life) = life_of(&mut self.members, who) else { return };
        let Some(fetch) = life.fetch.as_mut().filter(|fetch| fetch.attempt == attempt && !fetch.whole) else {
            return;
        };
        let written = part.is_some_and(|part| {
            fetch.whole = part.last;
            fetch.incoming.write(&part.bytes).is_ok()
        });
        fetch.tries = 0;
        if !written {
            self.give_up(who);
        } else if fetch.whole {
            let takes = self.rng.between(200, 8 * MS);
            let number = fetch.number;
            self.after(takes, Event::Fetched(who, number));
        } else {
            self.ask_part(who);
        }
    }

    /// All parts are here: the file is checked, kept, and its message stepped.
    pub fn fetched(&mut self, who: Who, number: u64) {
        let Some(life) = self.life(who) else { return };
        let Some(fetch) = life.fetch.take_if(|fetch| fetch.number == number && fetch.whole) else { return };
        let kept = fetch.incoming.finish().is_ok();
        let what = if kept { "arrived" } else { "arrived broken" };
        self.note(Note::Snapshot { member: who.id, index: fetch.index, what });
        self.give(who, Input::Fetched(number, kept));
    }

    /// The state machine takes over what has arrived.
    pub fn restore(&mut self, who: Who, marker: &SnapshotMarker) -> Step {
        let config = StoreConfig { watch_events_max: self.plan.watch_events_max, ..StoreConfig::default() };
        let Some(member) = self.members.get_mut(&who.id) else { return Ok(()) };
        let mut state =
            files::open_for(&member.disk, CLUSTER_ID, marker).map_err(|error| ended(who.id, &error))?;
        let store =
            Store::restore(&mut state, config).map_err(|error| unreadable(who.id, marker.index, &error))?;
        self.ledger.restored(who.id, marker.index, store.state_hash())?;
        let Some(life) = life_of(&mut self.members, who) else { return Ok(()) };
        life.machine.store = store;
        life.machine.applied = marker.index;
        life.machine.snapshots.entries = 0;
        life.machine.snapshots.asked = false;
        self.counts.restores += 1;
        self.note(Note::Snapshot { member: who.id, index: marker.index, what: "taken over" });
        if self.plan.mutant != Some(Mutant::WatchedOverRestore) {
            self.end_sessions(who);
        }
        Ok(())
    }
}
