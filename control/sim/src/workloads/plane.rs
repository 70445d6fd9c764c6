//! The control plane's members, as far as its nodes and its leader's duties notice them: who leads, who is frozen, and
//! what the leader heard of nodes.
//!
//! Raft is left out: a member that leads and freezes is followed by another after an election's time. A new leader's
//! duties begin with nothing but the store. What a leader decides of nodes, and how it sees that it was away itself, is
//! `coracle_leader`'s; how a node finds the one that leads is `coracle_core`'s ([`super::seek`]).

use std::time::Duration;

use coracle_leader::{
    hearing::Hearing,
    monitor::Monitor,
    node_object::Pressures,
    presence::{self, Presence},
};
use coracle_objects::View;

use crate::rng::Rng;

/// Until another member leads, and until its duties have begun. Of raft: ten to fifteen ticks of 100 ms.
const ELECTION_MS: (u64, u64) = (1_000, 1_500);
const OPENS_MS: (u64, u64) = (5, 150);

/// A member, by its number.
pub type Member = usize;

/// The members.
pub struct Plane {
    members: usize,
    /// Who leads in the eyes of the others; its duties run only once they have begun.
    leader: Option<Member>,
    frozen: Option<Frozen>,
    elects_at: Option<Duration>,
    opens_at: Option<Duration>,
    pub hearing: Hearing,
    pub monitor: Monitor,
    presence: Presence,
    looked_at: Duration,
    /// It has just gone on, and has not read what lies in its sockets.
    pub dazed: bool,
}

#[derive(Clone, Copy)]
struct Frozen {
    member: Member,
    until: Duration,
}

/// What a turn of the plane has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    Nothing,
    /// The same leader goes on.
    Thawed,
    /// Another one's duties begin.
    Opened,
}

impl Plane {
    pub fn new(members: usize, view: &View, now: Duration) -> Self {
        Self {
            members,
            leader: Some(0),
            frozen: None,
            elects_at: None,
            opens_at: None,
            hearing: Hearing::begin(view, now),
            monitor: Monitor::default(),
            presence: Presence::default(),
            looked_at: now,
            dazed: false,
        }
    }

    /// Addresses of all members, as nodes know them.
    pub fn addresses(&self) -> Vec<String> {
        (0..self.members).map(address).collect()
    }

    /// Whether a leader's duties run.
    pub fn leads(&self) -> bool {
        self.leader.is_some_and(|leader| self.opens_at.is_none() && !self.is_frozen(leader))
    }

    fn is_frozen(&self, member: Member) -> bool {
        self.frozen.is_some_and(|frozen| frozen.member == member)
    }

    /// Until when the member at this address is frozen.
    pub fn frozen_until(&self, at: &str) -> Option<Duration> {
        self.frozen.filter(|frozen| address(frozen.member) == at).map(|frozen| frozen.until)
    }

    /// Whether the member at this address takes links; else whom it takes for the leader, empty where it knows none.
    pub fn answer(&self, at: &str) -> Result<(), String> {
        let leader = self.leader.map(address).unwrap_or_default();
        match leader == at {
            true if self.leads() => Ok(()),
            true => Err(String::new()),
            false => Err(leader),
        }
    }

    pub fn leader_address(&self) -> Option<String> {
        self.leader.map(address)
    }

    /// Of the member that does not answer, if there is one.
    pub fn frozen_address(&self) -> Option<String> {
        self.frozen.map(|frozen| address(frozen.member))
    }

    /// The leader freezes, its sockets open.
    pub fn freeze(&mut self, ms: u64, now: Duration, chance: &mut Rng) {
        let Some(member) = self.leader.filter(|_| self.leads()) else { return };
        let until = now + Duration::from_millis(ms);
        self.frozen = Some(Frozen { member, until });
        let elects = now + between(ELECTION_MS, chance);
        self.elects_at = (self.members > 1 && elects < until).then_some(elects);
    }

    /// The leader gives its office up, or begins anew where it is alone.
    pub fn hand_over(&mut self, now: Duration, chance: &mut Rng) {
        if !self.leads() {
            return;
        }
        let Some(leader) = self.leader else { return };
        let mut others = (1..=self.members).map(|step| (leader + step) % self.members);
        // Nobody hands over to one that does not answer.
        self.leader = others.find(|member| !self.is_frozen(*member));
        self.opens_at = Some(now + between(OPENS_MS, chance));
    }

    /// What is due. The duties of a new leader begin with what the view has.
    pub fn turn(&mut self, view: &View, now: Duration, chance: &mut Rng) -> Happened {
        if self.elects_at.is_some_and(|at| at <= now) {
            self.elects_at = None;
            self.leader = self.leader.map(|leader| (leader + 1 + chance.below(2) as usize) % self.members);
            self.opens_at = Some(now + between(OPENS_MS, chance));
        }
        let mut happened = Happened::Nothing;
        if let Some(frozen) = self.frozen.filter(|frozen| frozen.until <= now) {
            self.frozen = None;
            if self.leader == Some(frozen.member) && self.opens_at.is_none() {
                (happened, self.dazed) = (Happened::Thawed, true);
            }
        }
        if self.opens_at.is_some_and(|at| at <= now) {
            self.opens_at = None;
            self.hearing = Hearing::begin(view, now);
            self.monitor = Monitor::default();
            (self.presence, self.looked_at, self.dazed) = (Presence::default(), now, false);
            happened = Happened::Opened;
        }
        happened
    }

    /// The looks at the clocks up to now, of which time that leapt has left some out; none was made while frozen.
    /// To be called before nodes are judged.
    pub fn be_present(&mut self, now: Duration, counts_silence: bool) {
        if !self.dazed {
            while self.looked_at + presence::PERIOD < now {
                self.looked_at += presence::PERIOD;
                let _ = self.presence.look(self.looked_at, self.looked_at);
            }
        }
        self.looked_at = now;
        if let Some(gap) = self.presence.look(now, now).filter(|_| !counts_silence) {
            self.hearing.away(gap, now);
        }
    }

    /// A node that is linked has sent its heartbeats, the last of them at this moment.
    pub fn hear_beat(&mut self, node: &str, beat: Duration) {
        let at = self.hearing.nodes.get(node).map_or(beat, |heard| heard.at.max(beat));
        let _ = self.hearing.hear(node, Some(Pressures::default()), at);
    }

    pub fn next_due(&self) -> Option<Duration> {
        let frozen = self.frozen.map(|frozen| frozen.until);
        [frozen, self.elects_at, self.opens_at].into_iter().flatten().min()
    }
}

fn address(member: Member) -> String {
    format!("m{member}:6443")
}

fn between((least, most): (u64, u64), chance: &mut Rng) -> Duration {
    Duration::from_millis(chance.between(least, most))
}
