//! The raft thread: raft's clock, and the turns that no caller takes.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select};

use super::member::{Event, Member};
use super::turns::Turns;
use crate::error::Error;

/// So many events at once tell of many callers.
const CROWD: usize = 4;

pub struct RaftThread<O> {
    pub member: Member<O>,
    pub turns: Arc<Turns<O>>,
    pub events: Receiver<Event<O>>,
    pub tick: Duration,
}

impl<O: Send + 'static> RaftThread<O> {
    pub fn run(self) -> Result<(), Error> {
        let RaftThread { member, turns, events, tick } = self;
        let mut next_tick = Instant::now() + tick;
        let mut taken = turns.begin(member, next_tick)?;
        while let Some(last) = taken
            && !turns.is_stopped()
        {
            let mut arrival = Select::new();
            arrival.recv(&events);
            let arrived = arrival.ready_deadline(last.due).is_ok();
            // Under load those who were about to call get in, so that more share one write. A lone caller would only wait
            // for whatever else this machine has to do.
            if arrived && last.events >= CROWD {
                thread::yield_now();
            }
            let now = Instant::now();
            let ticked = now >= next_tick;
            if ticked {
                // Lost ticks are not made up for: time in which this process stood still says nothing about others.
                next_tick = now + tick;
            }
            taken = turns.take(&events, ticked, next_tick)?;
        }
        Ok(())
    }
}
