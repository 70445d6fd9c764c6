//! A node's link to the control plane: open, to a member that has fallen silent, or being looked for.

use std::{collections::BTreeMap, time::Duration};

use coracle_core::race::{ANSWER_TIMEOUT, Candidates, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, Race};

use super::plane::Plane;
use crate::rng::Rng;

/// How long a question and its answer are on their way.
const WAY_MS: (u64, u64) = (1, 15);

/// Where a node is with its link.
pub enum Link {
    Up,
    /// Nothing comes any more, and nothing was closed.
    Silent {
        noticed_at: Duration,
    },
    Seeking(Seek),
}

/// The search for the control node that leads.
pub struct Seek {
    race: Race,
    /// Answers by when they come, with the address and when it was asked.
    answers: BTreeMap<(Duration, u64), (String, Duration)>,
    asked: u64,
}

impl Link {
    /// The control node that this one is linked to falls silent.
    pub fn falls_silent(now: Duration, chance: &mut Rng) -> Self {
        let idle = Duration::from_millis(chance.below(KEEP_ALIVE_INTERVAL.as_millis() as u64 + 1));
        Link::Silent { noticed_at: now + idle + KEEP_ALIVE_TIMEOUT }
    }

    /// The link is lost, and another is looked for.
    pub fn lost(plane: &Plane, lost: Option<String>, now: Duration) -> Self {
        let candidates = Candidates { known: plane.addresses(), leader: None, lost };
        let race = Race::begin(candidates, now).expect("there are control nodes");
        Link::Seeking(Seek { race, answers: BTreeMap::new(), asked: 0 })
    }

    pub fn is_up(&self) -> bool {
        matches!(self, Link::Up)
    }

    pub fn next_due(&self) -> Option<Duration> {
        match self {
            Link::Up => None,
            Link::Silent { noticed_at } => Some(*noticed_at),
            Link::Seeking(seek) => {
                let answer = seek.answers.keys().next().map(|(at, _)| *at);
                answer.into_iter().chain([seek.race.next_at()]).min()
            }
        }
    }
}

impl Seek {
    /// Asks who is to be asked now, and takes the answers that are here. True once a control node takes the link.
    pub fn step(&mut self, plane: &Plane, now: Duration, chance: &mut Rng) -> bool {
        while let Some((&(at, number), _)) = self.answers.first_key_value().filter(|((at, _), _)| *at <= now)
        {
            let Some((address, asked_at)) = self.answers.remove(&(at, number)) else { break };
            if let Some(until) = plane.frozen_until(&address) {
                // It answers when it goes on, or not in time.
                if at >= asked_at + ANSWER_TIMEOUT {
                    self.race.refused(&address, None, now);
                } else {
                    let way = way(chance);
                    let at = (until + way).min(asked_at + ANSWER_TIMEOUT);
                    self.answers.insert((at, number), (address, asked_at));
                }
                continue;
            }
            match plane.answer(&address) {
                Ok(()) => return true,
                Err(leader) => {
                    self.race.refused(&address, Some(leader).filter(|leader| !leader.is_empty()), now)
                }
            }
        }
        while self.race.next_at() <= now {
            let spread = chance.below(1_000) as f64 / 1_000.0;
            if let Some(address) = self.race.ask(now, spread) {
                self.asked += 1;
                self.answers.insert((now + way(chance), self.asked), (address, now));
            }
        }
        false
    }
}

fn way(chance: &mut Rng) -> Duration {
    Duration::from_millis(chance.between(WAY_MS.0, WAY_MS.1))
}
