//! Who takes a member's turns: the raft thread, or the caller whose event it is, where nothing else waits.
//!
//! To wake a thread takes longer than a turn. A lone read or write, and each message on its way, would pass two threads
//! at every member; so its sender takes the turn, if it can have it at once and the turn cannot wait for anything. Events
//! keep their order: the raft thread takes them from the queue in its turn, so whoever comes later finds the queue or the
//! turn taken.

use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::member::{Event, Member};
use super::shared::Waker;
use crate::config::EVENTS_BATCH_MAX;
use crate::error::Error;

pub struct Turns<O> {
    slot: Mutex<Slot<O>>,
    events: Sender<Event<O>>,
    waker: Waker<O>,
}

struct Slot<O> {
    /// None before its first turn and once it has ended. Taken out for the turn: after a panic in it nobody has another.
    member: Option<Box<Member<O>>>,
    /// Until then the raft thread sleeps if nothing happens.
    sleeps_until: Instant,
}

/// Why an event was not taken.
pub enum Refusal {
    Full,
    Stopped,
}

impl<O: Send + 'static> Turns<O> {
    pub fn new(events: Sender<Event<O>>, waker: Waker<O>) -> Turns<O> {
        let slot = Slot { member: None, sleeps_until: Instant::now() };
        Turns { slot: Mutex::new(slot), events, waker }
    }

    pub fn is_stopped(&self) -> bool {
        self.waker.shared.is_stopped()
    }

    /// Brings an event to its turn. Never waits.
    pub fn bring(&self, event: Event<O>) -> Result<(), Refusal> {
        if !event.is_light() || !self.events.is_empty() {
            return self.queue(event);
        }
        let Some(mut slot) = self.slot.try_lock() else { return self.queue(event) };
        let Some(mut member) = slot.member.take_if(|member| member.has_room()) else {
            drop(slot);
            return self.queue(event);
        };
        let mut sooner = false;
        self.waker.guard("raft", || {
            if member.turn(&mut vec![event], false)?.is_ok() {
                sooner = member.due().is_some_and(|due| due < slot.sleeps_until);
                slot.sleeps_until = member.due().map_or(slot.sleeps_until, |due| due.min(slot.sleeps_until));
                slot.member = Some(member);
            }
            Ok(())
        });
        let ended = slot.member.is_none();
        drop(slot);
        if sooner || ended {
            self.waker.wake();
        }
        Ok(())
    }

    fn queue(&self, event: Event<O>) -> Result<(), Refusal> {
        self.events
            .try_send(event)
            .map_err(|error| if error.is_full() { Refusal::Full } else { Refusal::Stopped })
    }

    /// The first turn, before any event's: what was committed in an earlier life comes into force, the members among it.
    pub fn begin(&self, member: Member<O>, next_tick: Instant) -> Result<Option<Taken>, Error> {
        let mut slot = self.slot.lock();
        slot.member = Some(Box::new(member));
        slot.turn(&mut Vec::new(), false, next_tick)
    }

    /// The raft thread's turn, with what waits in the queue; None where the member has ended.
    pub fn take(
        &self,
        queue: &Receiver<Event<O>>,
        ticked: bool,
        next_tick: Instant,
    ) -> Result<Option<Taken>, Error> {
        let mut slot = self.slot.lock();
        let mut events: Vec<_> = queue.try_iter().take(EVENTS_BATCH_MAX).collect();
        slot.turn(&mut events, ticked, next_tick)
    }

    /// Nobody takes a turn any more: the queues behind it are closed.
    pub fn end(&self) {
        self.slot.lock().member = None;
    }
}

/// What a turn of the raft thread leads to.
pub struct Taken {
    /// When the next is due if nothing happens.
    pub due: Instant,
    /// How many events it had.
    pub events: usize,
}

impl<O: Send + 'static> Slot<O> {
    fn turn(
        &mut self,
        events: &mut Vec<Event<O>>,
        ticked: bool,
        next_tick: Instant,
    ) -> Result<Option<Taken>, Error> {
        let Some(mut member) = self.member.take() else { return Ok(None) };
        let count = events.len();
        if member.turn(events, ticked)?.is_err() {
            return Ok(None);
        }
        self.sleeps_until = member.due().map_or(next_tick, |due| due.min(next_tick));
        self.member = Some(member);
        Ok(Some(Taken { due: self.sleeps_until, events: count }))
    }
}
