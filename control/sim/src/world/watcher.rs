//! The watchers: each lists a resource, then watches it from the revision of the list at some member, goes on at another
//! when that one is gone, and lists again when it is told that it is too late. And the members' side of it, as
//! `coracle_server`'s watch hub is one.

use std::collections::VecDeque;
use std::sync::Arc;

use coracle_objects::{Event as ObjectEvent, Revision};

use super::client::Asker;
use super::{Broken, Event, Step, Who, World, life_of};
use crate::checker::history::{Ending, OpKind};
use crate::checker::ledger::{Change, Group};
use crate::mutant::Mutant;
use crate::options::MS;
use crate::trace::{Micros, Note};

/// Events that a session may be behind before it reads again from the store's window.
const LIVE_MAX: usize = 12;
/// How long a member may be behind what a watcher has seen.
const ATTACH_TIMEOUT: Micros = 800 * MS;

/// A watcher of one resource.
#[derive(Debug)]
pub struct Watcher {
    resource: usize,
    /// Everything up to here was received; None before the first list.
    after: Option<Revision>,
    /// Counts connections: what comes from an earlier one is void.
    generation: u32,
    connected: bool,
}

/// The member's side of a connected watcher.
#[derive(Debug)]
pub struct Session {
    generation: u32,
    resource: usize,
    backlog: VecDeque<Arc<ObjectEvent>>,
    live: VecDeque<Arc<ObjectEvent>>,
    lagged: bool,
    /// The last revision that was given.
    last: Revision,
    /// When the backlog is used up, everything up to here has been given.
    seen: Option<Revision>,
    pump_due: bool,
    /// What was given arrives in order.
    arrives: Micros,
}

/// What a watcher receives.
#[derive(Clone, Debug)]
pub enum Item {
    Changes(Revision, Vec<Arc<ObjectEvent>>),
    /// Everything up to here has been given.
    Progress(Revision),
    /// 410: it must list again.
    Gone,
    Closed,
}

impl Watcher {
    pub fn new(resource: usize) -> Watcher {
        Watcher { resource, after: None, generation: 0, connected: false }
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
        let from = match mutant {
            Some(Mutant::DoubledWatchEvent) => after.saturating_sub(1),
            _ => after,
        };
        let Ok(mut backlog) = life.machine.store.events_since(name.as_str(), from) else {
            return self.after(MS, Event::Items { watcher: number, generation, items: vec![Item::Gone] });
        };
        if mutant == Some(Mutant::LostWatchEvent) && !backlog.is_empty() {
            backlog.remove(0);
        }
        let session = Session {
            generation,
            resource,
            backlog: backlog.into(),
            live: VecDeque::new(),
            lagged: false,
            last: after,
            seen: Some(life.machine.store.revision()),
            pump_due: true,
            arrives: 0,
        };
        life.sessions.insert(number, session);
        self.after(MS, Event::Pump { who, watcher: number, generation });
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
        let (now, progress) = (self.now, self.rng.chance(300));
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
        for _ in 0..many {
            if session.backlog.is_empty() && session.seen.is_none() && session.lagged {
                session.lagged = false;
                session.live.clear();
                match store.events_since(name.as_str(), session.last) {
                    Ok(backlog) => session.backlog = backlog.into(),
                    Err(_) => {
                        items.push(Item::Gone);
                        gone = true;
                        break;
                    }
                }
                session.seen = Some(store.revision());
            }
            match session.next_changes() {
                Some(changes) => items.push(changes),
                None => break,
            }
        }
        let idle = session.backlog.is_empty() && session.live.is_empty() && !session.lagged;
        if idle && progress && !gone {
            items.push(Item::Progress(store.revision()));
            session.last = store.revision();
        }
        session.arrives = (now + latency).max(session.arrives + 1);
        let arrives = session.arrives;
        session.pump_due = !idle && !gone;
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

    /// A watcher receives, and whatever it receives is the history, the whole history, and in order.
    pub fn receive(&mut self, number: usize, generation: u32, items: Vec<Item>) -> Step {
        if self.watchers[number].generation != generation {
            return Ok(());
        }
        for item in items {
            let (resource, after) = (self.watchers[number].resource, self.watchers[number].after());
            let next = self.ledger.next(resource, after, &self.keys);
            match item {
                Item::Changes(revision, events) => {
                    let changes: Vec<Change> =
                        events.iter().map(|event| Change::of(event, &self.keys)).collect::<Step<_>>()?;
                    self.counts.watch_events += changes.len() as u64;
                    self.note(Note::Watch { watcher: number, member: 0, what: "gets", revision });
                    if next.as_ref() != Some(&Group { revision, changes }) {
                        let due = next.map(|group| group.revision);
                        return Err(Broken::new(format!(
                            "watcher {number} is behind {after} and gets {revision}, but {due:?} is next"
                        )));
                    }
                    self.watchers[number].after = Some(revision);
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
    /// All that is left of the next revision.
    fn next_changes(&mut self) -> Option<Item> {
        let from_backlog = !self.backlog.is_empty();
        if !from_backlog {
            if let Some(seen) = self.seen.take() {
                self.last = seen.max(self.last);
                return Some(Item::Progress(self.last));
            }
            if self.lagged {
                return None;
            }
        }
        let queue = if from_backlog { &mut self.backlog } else { &mut self.live };
        let revision = queue.front()?.object.revision;
        let mut events = Vec::new();
        while queue.front().is_some_and(|event| event.object.revision == revision) {
            events.extend(queue.pop_front());
        }
        self.last = revision;
        Some(Item::Changes(revision, events))
    }
}
