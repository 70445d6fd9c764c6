//! Which control node a node without a link asks, and when. Several are asked at a time, so that one that has fallen
//! silent without closing anything (its process is frozen, its cable pulled) holds up nobody.
//!
//! The shell asks, and tells the answers. Moments are counted from any beginning.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

/// Between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// How soon a control node is noticed that has fallen silent and closed nothing: within the sum of both. Twice as soon
/// as it notices the silence of a node, so that there is time to find the one that leads instead.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(750);
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Until a control node must have answered Hello.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a control node is waited for before the next is asked beside it.
const STAGGER: Duration = Duration::from_millis(250);
/// The wait between two rounds through all control nodes: the first, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(100);
pub const RETRY_MAX: Duration = Duration::from_secs(2);
/// Redirects that are followed in one round.
const REDIRECTS_MAX: u32 = 4;

/// Whom to ask, and in which order.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// `host:port` of the control nodes.
    pub known: Vec<String>,
    /// Who leads, as far as another control node told.
    pub leader: Option<String>,
    /// Whose link was lost. It is asked last: most probably it is the one that is not there.
    pub lost: Option<String>,
}

impl Candidates {
    fn round(&self) -> VecDeque<String> {
        let last = self.known.iter().filter(|address| Some(*address) == self.lost.as_ref());
        let others = self.known.iter().filter(|address| Some(*address) != self.lost.as_ref());
        let mut seen = BTreeSet::new();
        let all = self.leader.iter().chain(others).chain(last);
        all.filter(|address| seen.insert(address.as_str())).cloned().collect()
    }
}

/// The search for the control node that takes the link. Of one address there is one try at a time.
#[derive(Debug)]
pub struct Race {
    candidates: Candidates,
    round: VecDeque<String>,
    asked: BTreeSet<String>,
    wait: Duration,
    redirects: u32,
    /// A round is over and the next has not begun.
    rests: bool,
    next_at: Duration,
}

impl Race {
    /// None where no control node is known at all.
    pub fn begin(mut candidates: Candidates, now: Duration) -> Option<Self> {
        let round = candidates.round();
        candidates.leader = None;
        let race = Self {
            candidates,
            round,
            asked: BTreeSet::new(),
            wait: RETRY_MIN,
            redirects: 0,
            rests: false,
            next_at: now,
        };
        (!race.round.is_empty()).then_some(race)
    }

    /// When [`Race::ask`] is to be called again, if no answer comes before.
    pub fn next_at(&self) -> Duration {
        self.next_at
    }

    /// Whom to ask now, if anybody. `chance`, from 0 to 1, spreads the rounds of many nodes.
    pub fn ask(&mut self, now: Duration, chance: f64) -> Option<String> {
        let Some(address) = self.round.pop_front() else {
            self.next_at = now + self.wait.mul_f64(0.5 + chance / 2.0);
            self.wait = (self.wait * 2).min(RETRY_MAX);
            (self.round, self.redirects, self.rests) = (self.candidates.round(), 0, true);
            return None;
        };
        self.rests = false;
        if !self.asked.insert(address.clone()) {
            return None;
        }
        self.next_at = now + STAGGER;
        Some(address)
    }

    /// This one did not take the link, but told who leads where it knew.
    pub fn refused(&mut self, address: &str, leader: Option<String>, now: Duration) {
        self.asked.remove(address);
        if let Some(leader) = leader
            && self.redirects < REDIRECTS_MAX
        {
            self.redirects += 1;
            self.round.retain(|other| *other != leader);
            self.round.push_front(leader);
            self.next_at = now;
        }
        // Those that are still to be asked are, and a round whose last try has failed is over. Who refuses late, between
        // two rounds, brings the next no sooner.
        if !self.rests && (!self.round.is_empty() || self.asked.is_empty()) {
            self.next_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn each_is_asked_in_its_turn_and_once_at_a_time() {
        let known = ["a", "b", "c"].map(str::to_owned).to_vec();
        let candidates = Candidates { known, leader: None, lost: Some("a".to_owned()) };
        let mut race = Race::begin(candidates, ms(0)).unwrap();
        assert_eq!(race.ask(ms(0), 0.0).as_deref(), Some("b"));
        assert_eq!(race.next_at(), STAGGER);
        race.refused("b", Some("c".to_owned()), ms(3));
        assert_eq!(race.next_at(), ms(3));
        assert_eq!(race.ask(ms(3), 0.0).as_deref(), Some("c"));
        assert_eq!(race.ask(ms(253), 0.0).as_deref(), Some("a"));
        assert_eq!(race.ask(ms(503), 1.0), None, "the round is over");
        assert_eq!(race.next_at(), ms(503) + RETRY_MIN);
        assert_eq!(race.ask(ms(603), 0.0).as_deref(), Some("b"));
        assert_eq!(race.ask(ms(853), 0.0), None, "c has not answered yet");
        assert!(Race::begin(Candidates::default(), ms(0)).is_none());
    }

    /// The moments at which one that refuses `after` so long is asked, within a minute.
    fn moments(after: Duration) -> Vec<Duration> {
        let candidates = Candidates { known: vec!["a".to_owned()], leader: None, lost: None };
        let mut race = Race::begin(candidates, ms(0)).unwrap();
        let (mut now, mut answer, mut moments) = (ms(0), None, Vec::new());
        while now < Duration::from_secs(60) {
            now = now.max(answer.map_or(race.next_at(), |at: Duration| at.min(race.next_at())));
            if answer.take_if(|at| *at <= now).is_some() {
                race.refused("a", None, now);
            } else if race.ask(now, 1.0).is_some() {
                moments.push(now);
                answer = Some(now + after);
            }
        }
        moments
    }

    #[test]
    fn whoever_refuses_is_asked_again_after_the_wait_and_no_later_however_late_it_refuses() {
        for after in [0, 3, 240, 260, 340, 900] {
            let moments = moments(ms(after));
            let waits: Vec<_> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert_eq!(waits.iter().max(), Some(&(RETRY_MAX + ms(after.min(250)))), "{after}: {waits:?}");
            assert!(waits[10..].iter().all(|wait| *wait >= RETRY_MAX), "{after}: {waits:?}");
        }
    }
}
