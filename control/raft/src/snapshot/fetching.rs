//! Which of the snapshots that leaders announce a member fetches. Pure: the caller brings the bytes.
//!
//! One is fetched at a time. What is announced meanwhile takes its place where the leader that announced the first leads
//! no more, or where nothing has come of the first for long; otherwise it waits until the first has arrived or failed. So
//! no fetch, however it fails, and even where nobody tells that it has failed, keeps a member from its next snapshot.

use raft::eraftpb::Message;

use crate::wal::SnapshotMarker;

/// A snapshot to be fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct Begin {
    /// Names this fetch: tell it with [`Fetching::ended`]. Never given twice by one member.
    pub number: u64,
    pub from: u64,
    pub marker: SnapshotMarker,
}

/// What is fetched, and what waits.
#[derive(Debug, Default)]
pub struct Fetching {
    numbers: u64,
    current: Option<Current>,
    /// The last that was announced beside it.
    next: Option<(Message, SnapshotMarker)>,
}

#[derive(Debug)]
struct Current {
    begin: Begin,
    /// Is stepped when the snapshot is here.
    message: Message,
    /// Its last sign of life, and the tick of it.
    sign: u64,
    moved_at: u64,
}

impl Fetching {
    /// A message announces a snapshot that this member lacks. `now` in ticks; a fetch that has not moved for `idle` ticks
    /// gives way. The fetch to begin now, which ends the one before.
    pub fn announced(
        &mut self,
        message: Message,
        marker: SnapshotMarker,
        now: u64,
        idle: u64,
    ) -> Option<Begin> {
        let Some(current) = &mut self.current else { return Some(self.begin(message, marker, now)) };
        let same_leader = message.from == current.message.from && message.term == current.message.term;
        if now.saturating_sub(current.moved_at) >= idle {
            return Some(self.begin(message, marker, now));
        }
        if message.term < current.message.term {
            return None;
        }
        if current.begin.marker == marker {
            // Only a message of the present term counts when it is stepped. Whoever announced it first goes on giving.
            current.message = message.clone();
            if !same_leader {
                self.next = Some((message, marker));
            }
            return None;
        }
        if !same_leader {
            return Some(self.begin(message, marker, now));
        }
        self.next = Some((message, marker));
        None
    }

    /// To be called with each tick: a sign is another number than before where the fetch has moved. True where nothing has come for `idle` ticks: it is given up, and
    /// [`Fetching::take_next`] has what waited for it.
    pub fn moved(&mut self, sign: u64, now: u64, idle: u64) -> bool {
        let Some(current) = &mut self.current else { return false };
        if sign != current.sign {
            (current.sign, current.moved_at) = (sign, now);
        }
        let stuck = now.saturating_sub(current.moved_at) >= idle;
        if stuck {
            self.current = None;
        }
        stuck
    }

    /// A fetch has ended. The message to step where its snapshot is here, and it was not given up meanwhile.
    pub fn ended(&mut self, number: u64, arrived: bool) -> Option<Message> {
        let current = self.current.take_if(|current| current.begin.number == number)?;
        arrived.then_some(current.message)
    }

    /// What was announced while another was fetched, once that has ended. It may be superfluous by now.
    pub fn take_next(&mut self) -> Option<Message> {
        self.next.take_if(|_| self.current.is_none()).map(|(message, _)| message)
    }

    /// The number of the fetch under way.
    pub fn number(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.begin.number)
    }

    fn begin(&mut self, message: Message, marker: SnapshotMarker, now: u64) -> Begin {
        self.numbers += 1;
        self.next = None;
        let begin = Begin { number: self.numbers, from: message.from, marker };
        self.current = Some(Current { begin: begin.clone(), message, sign: 0, moved_at: now });
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: u64 = 60;

    fn announcement(from: u64, term: u64, index: u64) -> (Message, SnapshotMarker) {
        let marker = SnapshotMarker { index, term: 1, ..SnapshotMarker::default() };
        (Message { from, term, index, ..Message::default() }, marker)
    }

    fn announce(
        fetching: &mut Fetching,
        (from, term, index): (u64, u64, u64),
        now: u64,
    ) -> Option<(u64, u64)> {
        let (message, marker) = announcement(from, term, index);
        fetching.announced(message, marker, now, IDLE).map(|begin| (begin.number, begin.from))
    }

    #[test]
    fn the_next_waits_for_the_first() {
        let mut fetching = Fetching::default();
        assert_eq!(announce(&mut fetching, (1, 5, 10), 0), Some((1, 1)));
        assert_eq!(announce(&mut fetching, (1, 5, 20), 1), None);
        assert_eq!(announce(&mut fetching, (2, 4, 30), 1), None, "of a leader that leads no more");
        assert_eq!(fetching.take_next(), None);
        let stepped = fetching.ended(1, true).expect("it has arrived");
        assert_eq!(stepped.index, 10);
        assert_eq!(fetching.take_next().map(|message| message.index), Some(20));
        assert_eq!(fetching.take_next(), None);
        assert_eq!(announce(&mut fetching, (1, 5, 20), 2), Some((2, 1)));
        assert_eq!(announce(&mut fetching, (1, 5, 30), 3), None);
        assert_eq!(fetching.ended(2, false), None);
        assert_eq!(fetching.take_next().map(|message| message.index), Some(30));
    }

    #[test]
    fn a_new_leader_takes_the_place_of_the_old_one() {
        let mut fetching = Fetching::default();
        announce(&mut fetching, (1, 5, 10), 0);
        assert_eq!(announce(&mut fetching, (2, 6, 20), 1), Some((2, 2)));
        assert_eq!(fetching.ended(1, true), None, "it was given up");
        assert_eq!(fetching.number(), Some(2));
        // The same snapshot is not begun anew; what is stepped is of the new term, and the new leader has it too.
        assert_eq!(announce(&mut fetching, (3, 7, 20), 2), None);
        assert_eq!(fetching.ended(2, true).map(|message| (message.from, message.term)), Some((3, 7)));
        let mut fetching = Fetching::default();
        announce(&mut fetching, (1, 5, 10), 0);
        announce(&mut fetching, (2, 6, 10), 1);
        assert_eq!(fetching.ended(1, false), None);
        assert_eq!(fetching.take_next().map(|message| message.from), Some(2));
    }

    #[test]
    fn what_does_not_move_gives_way() {
        let mut fetching = Fetching::default();
        announce(&mut fetching, (1, 5, 10), 0);
        assert!(!fetching.moved(0, IDLE - 1, IDLE) && !fetching.moved(7, IDLE, IDLE));
        assert!(!fetching.moved(7, 2 * IDLE - 1, IDLE));
        assert_eq!(announce(&mut fetching, (1, 5, 10), 2 * IDLE), Some((2, 1)), "the same again");
        assert_eq!(announce(&mut fetching, (1, 5, 20), 2 * IDLE + 1), None);
        assert!(fetching.moved(0, 3 * IDLE, IDLE), "without another word");
        assert_eq!(fetching.number(), None);
        assert_eq!(fetching.take_next().map(|message| message.index), Some(20));
    }
}
