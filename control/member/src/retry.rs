//! Tries at whoever leads: what each means, whether there is another, and what is answered when time is up.
//!
//! A write keeps its identity from try to try, so the store gives a later one the first one's outcome: trying again after
//! an unknown outcome is harmless.

use std::time::Duration;

use coracle_store::Outcome;

/// Between two tries, where nothing tells that trying again makes sense.
pub const RETRY_PAUSE: Duration = Duration::from_millis(25);

const NO_LEADER: &str = "no leader is known";
const MOVED: &str = "the leader changed meanwhile";

/// Where the next try is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// This member leads.
    Here,
    /// The member of this id leads.
    There(u64),
}

impl Place {
    fn of(member: u64, leader: u64) -> Self {
        if leader == member { Place::Here } else { Place::There(leader) }
    }
}

/// How one try to write went.
#[derive(Clone, Debug)]
pub enum Try {
    /// By the entry of this index.
    Done { outcome: Outcome, index: u64 },
    /// Certainly not done by this try.
    Not(String),
    /// Perhaps done, now or later.
    Unknown(String),
    /// Certainly not done, and trying again at once makes no sense: too many disks are nearly full.
    NoSpace,
    /// Certainly not done by this try, nor by another under the same identity.
    Forgotten,
}

impl Try {
    /// There is another leader or term. An old leader that is cut off would keep the try for long.
    pub fn moved() -> Self {
        Try::Unknown(MOVED.to_owned())
    }
}

/// What follows from a try.
#[derive(Clone, Debug)]
pub enum Next {
    /// To be answered once this member has applied `index` too, or at the deadline: it is done all the same.
    Done {
        outcome: Outcome,
        index: u64,
    },
    /// The next try begins after [`RETRY_PAUSE`], or as soon as leadership has moved.
    Again,
    /// The next try begins at once, under another identity.
    Anew,
    Failed(Failure),
}

/// Why a write has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Certainly not done.
    Unavailable(String),
    /// Certainly not done, for want of room on disks.
    NoSpace,
    /// It may have been done, or be done yet.
    Unknown(String),
    /// No try did it, but what was sent under its identities before may have been done and be forgotten.
    Forgotten,
}

/// One write on its way to an outcome.
#[derive(Debug)]
pub struct Write {
    member: u64,
    deadline: Duration,
    /// That it may have other than the one it has.
    identities_left: usize,
    /// Why the last try that may have done it may have.
    unknown: Option<String>,
    /// Why the last try did not do it.
    reason: Option<String>,
}

impl Write {
    /// A write that is tried by `member`, under so many identities at most. No try begins at the deadline or later.
    pub fn new(member: u64, deadline: Duration, identities_max: usize) -> Self {
        let identities_left = identities_max.saturating_sub(1);
        Self { member, deadline, identities_left, unknown: None, reason: None }
    }

    /// Begins a try, where `leader` leads as far as this member knows. Nowhere where nobody does: it begins once there is a
    /// leader, or at the deadline.
    pub fn begin(&mut self, now: Duration, leader: Option<u64>) -> Result<Option<Place>, Failure> {
        if now >= self.deadline {
            return Err(match self.unknown.take() {
                Some(why) => Failure::Unknown(why),
                None => Failure::Unavailable(self.reason.take().unwrap_or_else(|| NO_LEADER.to_owned())),
            });
        }
        if leader.is_none() {
            self.reason = None;
        }
        Ok(leader.map(|leader| Place::of(self.member, leader)))
    }

    /// A try has ended.
    pub fn tried(&mut self, tried: Try) -> Next {
        match tried {
            Try::Done { outcome, index } => return Next::Done { outcome, index },
            Try::Not(why) => self.reason = Some(why),
            Try::Unknown(why) => self.unknown = Some(why),
            // An earlier try may have done it all the same.
            Try::NoSpace if self.unknown.is_some() => {}
            Try::NoSpace => return Next::Failed(Failure::NoSpace),
            Try::Forgotten if self.unknown.is_some() => {
                return Next::Failed(Failure::Unknown("its outcome is forgotten".to_owned()));
            }
            Try::Forgotten if self.identities_left == 0 => return Next::Failed(Failure::Forgotten),
            Try::Forgotten => {
                self.identities_left -= 1;
                self.reason = None;
                return Next::Anew;
            }
        }
        Next::Again
    }
}

/// A read index on its way from the leader. After a try that gave none the next begins as a write's does.
#[derive(Debug)]
pub struct Ask {
    member: u64,
    deadline: Duration,
    reason: Option<String>,
}

impl Ask {
    /// No try begins at the deadline or later.
    pub fn new(member: u64, deadline: Duration) -> Self {
        Self { member, deadline, reason: None }
    }

    /// As [`Write::begin`]. Fails with the reason of the last try.
    pub fn begin(&mut self, now: Duration, leader: Option<u64>) -> Result<Option<Place>, String> {
        if now >= self.deadline {
            return Err(self.reason.take().unwrap_or_else(|| NO_LEADER.to_owned()));
        }
        if leader.is_none() {
            self.reason = None;
        }
        Ok(leader.map(|leader| Place::of(self.member, leader)))
    }

    /// A try gave no index.
    pub fn failed(&mut self, why: String) {
        self.reason = Some(why);
    }

    /// There is another leader or term: the try is given up.
    pub fn moved(&mut self) {
        self.failed(MOVED.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::Applied;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);
    const EARLY: Duration = Duration::from_secs(1);

    fn not() -> Try {
        Try::Not("not".to_owned())
    }

    fn unknown() -> Try {
        Try::Unknown("unknown".to_owned())
    }

    fn again(next: Next) {
        assert!(matches!(next, Next::Again), "{next:?}");
    }

    fn failure(next: Next) -> Failure {
        match next {
            Next::Failed(failure) => failure,
            next => panic!("{next:?}"),
        }
    }

    #[test]
    fn a_write_goes_to_whoever_leads_until_it_is_done() {
        let mut write = Write::new(1, DEADLINE, 1);
        assert_eq!(write.begin(EARLY, None), Ok(None));
        assert_eq!(write.begin(EARLY, Some(2)), Ok(Some(Place::There(2))));
        again(write.tried(Try::moved()));
        assert_eq!(write.begin(EARLY, Some(1)), Ok(Some(Place::Here)));
        let outcome = Ok(Applied { revision: 3, revisions: vec![] });
        assert!(matches!(write.tried(Try::Done { outcome, index: 5 }), Next::Done { index: 5, .. }));
    }

    #[test]
    fn a_deadline_says_whether_any_try_may_have_done_it() {
        let mut write = Write::new(1, DEADLINE, 1);
        assert_eq!(write.begin(DEADLINE, Some(1)), Err(Failure::Unavailable(NO_LEADER.to_owned())));
        again(write.tried(not()));
        assert_eq!(write.begin(DEADLINE, Some(1)), Err(Failure::Unavailable("not".to_owned())));
        again(write.tried(unknown()));
        again(write.tried(not()));
        assert_eq!(write.begin(DEADLINE, Some(1)), Err(Failure::Unknown("unknown".to_owned())));
    }

    #[test]
    fn a_full_disk_ends_only_what_no_try_may_have_done() {
        assert_eq!(failure(Write::new(1, DEADLINE, 1).tried(Try::NoSpace)), Failure::NoSpace);
        let mut write = Write::new(1, DEADLINE, 1);
        again(write.tried(unknown()));
        again(write.tried(Try::NoSpace));
    }

    #[test]
    fn what_is_forgotten_has_another_identity_only_where_no_try_may_have_done_it() {
        let mut write = Write::new(1, DEADLINE, 2);
        assert!(matches!(write.tried(Try::Forgotten), Next::Anew));
        assert_eq!(failure(write.tried(Try::Forgotten)), Failure::Forgotten);
        let mut write = Write::new(1, DEADLINE, 2);
        again(write.tried(unknown()));
        assert!(matches!(failure(write.tried(Try::Forgotten)), Failure::Unknown(_)));
    }

    #[test]
    fn a_read_index_is_asked_for_until_the_deadline() {
        let mut ask = Ask::new(1, DEADLINE);
        assert_eq!(ask.begin(EARLY, Some(1)), Ok(Some(Place::Here)));
        ask.failed("overload".to_owned());
        assert_eq!(ask.begin(DEADLINE, Some(1)), Err("overload".to_owned()));
        assert_eq!(ask.begin(EARLY, Some(2)), Ok(Some(Place::There(2))));
        ask.moved();
        assert_eq!(ask.begin(DEADLINE, Some(2)), Err(MOVED.to_owned()));
    }
}
