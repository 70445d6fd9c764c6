//! The links between members: cuts, loss, doubling, delay and, by delay, another order.

use std::collections::BTreeMap;

use crate::options::Plan;
use crate::rng::Rng;
use crate::trace::Micros;

/// A message that is this late is overtaken by many.
const LATE_MAX: Micros = 400_000;

#[derive(Debug)]
pub struct Network {
    /// Until when nothing gets from one to the other.
    cuts: BTreeMap<(u64, u64), Micros>,
    loss: u64,
    doubling: u64,
    late: u64,
    latency: Micros,
    /// Until when, and how many of 1,000 messages are lost, doubled or late.
    storm: (Micros, u64),
}

impl Network {
    pub fn new(plan: &Plan) -> Network {
        Network {
            cuts: BTreeMap::new(),
            loss: plan.loss,
            doubling: plan.doubling,
            late: plan.late,
            latency: plan.latency,
            storm: (0, 0),
        }
    }

    pub fn cut(&mut self, from: u64, to: u64, until: Micros) {
        let end = self.cuts.entry((from, to)).or_default();
        *end = until.max(*end);
    }

    pub fn storm(&mut self, until: Micros, share: u64) {
        self.storm = (until, share);
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
        self.storm = (0, 0);
        self.loss = 0;
    }

    pub fn is_cut(&self, from: u64, to: u64, now: Micros) -> bool {
        self.cuts.get(&(from, to)).is_some_and(|until| *until > now)
    }

    /// One way between two processes.
    pub fn latency(&self, rng: &mut Rng) -> Micros {
        self.latency / 10 + rng.below(self.latency)
    }

    /// The delays after which a message arrives: none where it is lost, two where it is doubled.
    pub fn fate(&self, rng: &mut Rng, from: u64, to: u64, now: Micros) -> [Option<Micros>; 2] {
        let storm = if self.storm.0 > now { self.storm.1 } else { 0 };
        if self.is_cut(from, to, now) || rng.chance(self.loss + storm) {
            return [None, None];
        }
        let delay = |rng: &mut Rng| {
            let late = if rng.chance(self.late + storm) { rng.below(LATE_MAX) } else { 0 };
            self.latency(rng) + late
        };
        let first = delay(rng);
        let second = if rng.chance(self.doubling + storm / 2) { Some(delay(rng)) } else { None };
        [Some(first), second]
    }
}
