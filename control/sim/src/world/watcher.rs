//! The watchers: each lists a resource, then watches it from the revision of the list at some member, goes on at another
//! when that one is gone, and lists again when it is told that it is too late. And the members' side of it, as
//! `coracle_storage`'s watch hub is one: [`coracle_member::watch`] says what is given and how far that is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use coracle_member::leadership::Hearing;
use coracle_member::watch::{Next, PageBounds, Tick, Watch};
use coracle_objects::{Event as ObjectEvent, Revision};
use coracle_store::{Expired, Store};

use super::client::Asker;
use super::{Broken, Event, Step, Who, World, life_of, moment};
use crate::checker::history::{Ending, OpKind};
use crate::checker::ledger::Change;
use crate::mutant::Mutant;
use crate::options::MS;
use crate::trace::{Micros, Note};

/// Events that a session may be behind before it reads again from the store's window.
const LIVE_MAX: usize = 5;
/// How long a member may be behind what a watcher has seen.
const ATTACH_TIMEOUT: Micros = 800 * MS;
/// How much of the window a session takes at a time.
const PAGE: PageBounds = PageBounds { events_max: 5, bytes_max: 4_000 };
/// How often a quiet session says how far it has seen.
const PROGRESS_PERIOD: Micros = 120 * MS;
/// For how long a member that hears no leader lets watches go on. Production waits longer.
pub const LEADERLESS_MAX: Duration = Duration::from_millis(300);

/// A watcher of one resource.
#[derive(Debug)]
pub struct Watcher {
    resource: usize,
    /// Everything up to here was received; None before the first list.
    after: Option<Revision>,
    /// So many changes of the next revision were received too.
    given: usize,
    /// Counts connections: what comes from an earlier one is void.
    generation: u32,
    connected: bool,
}

/// The member's side of a connected watcher.
#[derive(Debug)]
pub struct Session {
    generation: u32,
    resource: usize,
    watch: Watch,
    /// The revision of the last event that was given.
    last: Revision,
    /// What has happened since the window was read last.
    live: VecDeque<Arc<ObjectEvent>>,
    lagged: bool,
    pump_due: bool,
    /// What was given arrives in order.
    arrives: Micros,
}

/// What a watcher receives.
#[derive(Clone, Debug)]
pub enum Item {
    Event(Arc<ObjectEvent>),
    /// Everything up to here has been given.
    Progress(Revision),
    /// 410: it must list again.
    Gone,
    Closed,
}

impl Watcher {
    pub fn new(resource: usize) -> Watcher {
        Watcher { resource, after: None, given: 0, generation: 0, connected: false }
    }

    pub fn resource(&self) -> usize {
        self.resource
    }

    pub fn after(&self) -> Revision {
        self.after.unwrap_or(0)
    }
}

impl World {
    /// A watcher that has no connection: lists, or goes on where it was.
    pub fn watch(&mut self, number: usize) {
        if self.watchers[number].connected {
            return;
        }
        let Some(who) = self.any_member() else { return self.after(30 * MS, Event::Watch(number)) };
        let watcher = &mut self.watchers[number];
        watcher.connected = true;
        watcher.generation += 1;
        match watcher.after {
            None => {
                self.counts.relists += 1;
                self.begin(Asker::Watcher(number), who, OpKind::Read);
            }
            Some(after) => {
                let generation = watcher.generation;
                self.note(Note::Watch {
                    watcher: number,
                    member: who.id,
                    what: "goes on from",
                    revision: after,
                });
                let since = self.now;
                self.after(MS, Event::Attach { who, watcher: number, generation, since });
            }
        }
    }

    /// A watcher's list has ended.
    pub fn listed(&mut self, number: usize, ending: &Ending) {
        let watcher = &mut self.watchers[number];
        watcher.connected = false;
        if let Ending::Read(view) = ending {
            watcher.after = Some(view.revision);
        }
        let pause = self.rng.between(1, 20) * MS;
        self.after(pause, Event::Watch(number));
    }

    /// A watch request arrives at a member.
    pub fn attach(&mut self, who: Who, number: usize, generation: u32, since: Micros) {
        let watcher = &self.watchers[number];
        if watcher.generation != generation {
            return;
        }
        let (resource, after) = (watcher.resource, watcher.after());
        let mutant = self.plan.mutant;
        let name = self.keys.resource(resource).clone();
        let Some(life) = life_of(&mut self.members, who) else { return self.disconnect(number) };
        // The future is waited for: a watch never begins at a revision that its member does not have.
        if life.machine.store.revision() < after {
            if self.now - since > ATTACH_TIMEOUT {
                return self.disconnect(number);
            }
            return self.after(15 * MS, Event::Attach { who, watcher: number, generation, since });
        }
        let watch = Watch::new(after);
        let mut session = Session {
            generation,
            resource,
            watch,
            last: after,
            live: VecDeque::new(),
            lagged: false,
            pump_due: true,
            arrives: 0,
        };
        if session.read_window(&life.machine.store, name.as_str(), after, mutant).is_err() {
            return self.after(MS, Event::Items { watcher: number, generation, items: vec![Item::Gone] });
        }
        life.sessions.insert(number, session);
        self.after(MS, Event::Pump { who, watcher: number, generation });
        self.after(PROGRESS_PERIOD, Event::WatchTick { who, watcher: number, generation });
    }

    /// The events of one entry, with the state that they led to.
    pub fn publish_events(&mut self, who: Who, events: &[Arc<ObjectEvent>]) {
        let keys = &self.keys;
        let Some(life) = life_of(&mut self.members, who) else { return };
        let mut due = Vec::new();
        for (number, session) in &mut life.sessions {
            let resource = keys.resource(session.resource);
            for event in events.iter().filter(|event| event.object.key.resource == *resource) {
                session.live.push_back(event.clone());
            }
            if session.live.len() > LIVE_MAX {
                session.live.clear();
                session.lagged = true;
            }
            if !session.pump_due {
                session.pump_due = true;
                due.push((*number, session.generation));
            }
        }
        for (watcher, generation) in due {
            let delay = if self.rng.chance(60) { self.rng.below(300 * MS) } else { self.rng.below(5 * MS) };
            self.after(delay, Event::Pump { who, watcher, generation });
        }
    }

    /// Another state takes the place of the one that was watched: who watches has to list again.
    pub fn end_sessions(&mut self, who: Who) {
        let Some(life) = self.life(who) else { return };
        let sessions = std::mem::take(&mut life.sessions);
        for (watcher, session) in sessions {
            let at = session.arrives.max(self.now) + MS;
            let generation = session.generation;
            self.push(at, Event::Items { watcher, generation, items: vec![Item::Gone] });
        }
    }

    /// A session gives what it has.
    pub fn pump(&mut self, who: Who, number: usize, generation: u32) {
        let current = self.watchers[number].generation;
        let name = self.keys.resource(self.watchers[number].resource).clone();
        let many = self.rng.between(1, 6) as usize;
        let more_after = self.rng.between(500, 20 * MS);
        let latency = self.rng.between(200, 3 * MS);
        let (now, progress, mutant) = (self.now, self.rng.chance(300), self.plan.mutant);
        let Some(life) = life_of(&mut self.members, who) else { return };
        let store = &life.machine.store;
        let Some(session) = life.sessions.get_mut(&number) else { return };
        if session.generation != generation {
            return;
        }
        if current != generation {
            // The connection is gone.
            life.sessions.remove(&number);
            return;
        }
        let mut items = Vec::new();
        let mut gone = false;
        while items.len() < many && !gone {
            match session.watch.next_item() {
                Next::Event(event) => items.push(session.give(event)),
                Next::Progress(revision) => items.push(Item::Progress(revision)),
                Next::Page { after } => {
                    self.counts.pages += 1;
                    gone = session.read_window(store, name.as_str(), after, mutant).is_err();
                }
                Next::Wait if session.lagged => session.fall_behind(mutant),
                Next::Wait => match session.live.pop_front() {
                    Some(event) => {
                        let event = session.watch.received(event);
                        items.push(session.give(event));
                    }
                    None => break,
                },
            }
        }
        if gone {
            items.push(Item::Gone);
        } else if progress && let Tick::Progress(revision) = session.tick(&life.hearing, now, store, mutant) {
            items.push(Item::Progress(revision));
        }
        let idle = session.watch.waits() && session.live.is_empty() && !session.lagged;
        session.pump_due = !idle && !gone;
        let arrives = session.arrival(now + latency);
        if gone {
            life.sessions.remove(&number);
        }
        if !items.is_empty() {
            self.push(arrives, Event::Items { watcher: number, generation, items });
        }
        if !idle && !gone {
            self.after(more_after, Event::Pump { who, watcher: number, generation });
        }
    }

    /// Time has passed for a session: where it is quiet it says how far it is, and without a leader it ends.
    pub fn tick_session(&mut self, who: Who, number: usize, generation: u32) {
        let (now, mutant) = (self.now, self.plan.mutant);
        let Some(life) = life_of(&mut self.members, who) else { return };
        let Some(session) = life.sessions.get_mut(&number) else { return };
        if session.generation != generation {
            return;
        }
        let item = match session.tick(&life.hearing, now, &life.machine.store, mutant) {
            Tick::Nothing => None,
            Tick::Progress(revision) => Some(Item::Progress(revision)),
            Tick::End => Some(Item::Closed),
        };
        let ends = matches!(item, Some(Item::Closed));
        let arrives = session.arrival(now + MS);
        if ends {
            life.sessions.remove(&number);
            self.counts.ended_watches += 1;
        } else {
            self.after(PROGRESS_PERIOD, Event::WatchTick { who, watcher: number, generation });
        }
        if let Some(item) = item {
            self.push(arrives, Event::Items { watcher: number, generation, items: vec![item] });
        }
    }

    /// A watcher receives, and whatever it receives is the history, the whole history, and in order.
    pub fn receive(&mut self, number: usize, generation: u32, items: Vec<Item>) -> Step {
        if self.watchers[number].generation != generation {
            return Ok(());
        }
        for item in items {
            let (resource, after) = (self.watchers[number].resource, self.watchers[number].after());
            let next = self.ledger.next(resource, after, &self.keys);
            match item {
                Item::Event(event) => {
                    let (revision, change) = (event.object.revision, Change::of(&event, &self.keys)?);
                    self.counts.watch_events += 1;
                    self.note(Note::Watch { watcher: number, member: 0, what: "gets", revision });
                    let watcher = &mut self.watchers[number];
                    let group = next.as_ref().filter(|group| group.revision == revision);
                    if group.and_then(|group| group.changes.get(watcher.given)) != Some(&change) {
                        let due = next.map(|group| group.revision);
                        return Err(Broken::new(format!(
                            "watcher {number} is behind {after} and gets {revision}, but {due:?} is next"
                        )));
                    }
                    watcher.given += 1;
                    if group.is_some_and(|group| group.changes.len() == watcher.given) {
                        watcher.after = Some(revision);
                        watcher.given = 0;
                    }
                }
                Item::Progress(revision) => {
                    if let Some(group) = next.filter(|group| group.revision <= revision) {
                        return Err(Broken::new(format!(
                            "watcher {number} is told of progress to {revision}, but never got {}",
                            group.revision
                        )));
                    }
                    self.watchers[number].after = Some(after.max(revision));
                }
                Item::Gone => {
                    self.note(Note::Watch {
                        watcher: number,
                        member: 0,
                        what: "is too late at",
                        revision: after,
                    });
                    self.watchers[number].after = None;
                    self.reconnect(number);
                    return Ok(());
                }
                Item::Closed => {
                    self.reconnect(number);
                    return Ok(());
                }
            }
        }
        // A client may go away at any time.
        if !self.healed && self.rng.chance(25) {
            self.reconnect(number);
        }
        Ok(())
    }

    fn reconnect(&mut self, number: usize) {
        let watcher = &mut self.watchers[number];
        watcher.connected = false;
        watcher.generation += 1;
        // It goes on behind the last revision that it has as a whole.
        watcher.given = 0;
        let pause = self.rng.between(1, 40) * MS;
        self.after(pause, Event::Watch(number));
    }

    /// A member's side of a watch is gone; its watcher notices.
    pub fn disconnect(&mut self, number: usize) {
        let generation = self.watchers[number].generation;
        let delay = self.rng.between(1, 30) * MS;
        self.after(delay, Event::Items { watcher: number, generation, items: vec![Item::Closed] });
    }
}

impl Session {
    /// Takes a page out of the store's window, and follows it from there.
    fn read_window(
        &mut self,
        store: &Store,
        resource: &str,
        after: Revision,
        mutant: Option<Mutant>,
    ) -> Result<(), Expired> {
        let from = match mutant {
            Some(Mutant::DoubledWatchEvent) => after.saturating_sub(1),
            _ => after,
        };
        let mut found = store.first_events_since(resource, from, PAGE.events_max)?;
        if mutant == Some(Mutant::LostWatchEvent) && !found.is_empty() {
            found.remove(0);
        }
        let (fits, more) = PAGE.cut(&found);
        self.live.clear();
        self.lagged = false;
        self.watch.page(found.into_iter().take(fits).collect(), more, store.revision());
        Ok(())
    }

    fn tick(&mut self, hearing: &Hearing, now: Micros, store: &Store, mutant: Option<Mutant>) -> Tick {
        let empty = self.live.is_empty() && !self.lagged;
        let complete = empty || mutant == Some(Mutant::EarlyProgress);
        self.watch.tick(hearing.at(moment(now)), store.revision(), complete)
    }

    fn give(&mut self, event: Arc<ObjectEvent>) -> Item {
        self.last = event.object.revision;
        Item::Event(event)
    }

    /// The queue has overflowed.
    fn fall_behind(&mut self, mutant: Option<Mutant>) {
        self.lagged = false;
        if mutant == Some(Mutant::TornTransaction) {
            self.watch = Watch::new(self.last);
        } else {
            self.watch.missed();
        }
    }

    /// When what is given now arrives: in order.
    fn arrival(&mut self, at: Micros) -> Micros {
        self.arrives = at.max(self.arrives + 1);
        self.arrives
    }
}
