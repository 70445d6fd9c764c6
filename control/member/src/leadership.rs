//! How much what a member shows can be worth: whether a leader is heard, and for how long none was.

use std::time::Duration;

/// For how long a member that hears no leader lets watches go on, beside what they take to notice.
pub const LEADERLESS_MAX: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Leadership {
    /// A leader is heard.
    Led,
    /// None is heard for a moment, as in an election: watches go on, but do not say how far they are.
    Sought,
    /// None has been heard for long: watches end.
    Lost,
}

impl Leadership {
    /// The one whose number this is.
    pub fn from_code(code: u8) -> Self {
        let all = [Leadership::Led, Leadership::Sought, Leadership::Lost];
        all.into_iter().find(|one| *one as u8 == code).unwrap_or(Leadership::Lost)
    }
}

/// What a member has heard of leaders.
#[derive(Clone, Copy, Debug)]
pub struct Hearing {
    leaderless_max: Duration,
    silent_since: Option<Duration>,
}

impl Hearing {
    /// Of a member that is led.
    pub fn new(leaderless_max: Duration) -> Self {
        Self { leaderless_max, silent_since: None }
    }

    /// A leader is heard now, or none is.
    pub fn hears(&mut self, now: Duration, led: bool) {
        self.silent_since = if led { None } else { Some(self.silent_since.unwrap_or(now)) };
    }

    pub fn at(&self, now: Duration) -> Leadership {
        match self.lost_at() {
            None => Leadership::Led,
            Some(lost) if now < lost => Leadership::Sought,
            Some(_) => Leadership::Lost,
        }
    }

    /// When leadership is lost, where none is heard until then.
    pub fn lost_at(&self) -> Option<Duration> {
        self.silent_since.map(|since| since.saturating_add(self.leaderless_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_its_beginning() {
        let moment = Duration::from_secs;
        let mut hearing = Hearing::new(moment(4));
        assert_eq!((hearing.at(moment(100)), hearing.lost_at()), (Leadership::Led, None));
        hearing.hears(moment(1), false);
        assert_eq!(hearing.at(moment(1)), Leadership::Sought);
        hearing.hears(moment(3), false);
        assert_eq!(hearing.at(moment(5)), Leadership::Lost);
        hearing.hears(moment(6), true);
        assert_eq!(hearing.at(moment(6)), Leadership::Led);
    }
}
