//! Containers that wait for a seat of the sandbox, and seats that get free.

use std::time::Duration;

use coracle_core::{Observation, observe::News};
use tokio::{sync::watch, time::Instant};

use super::App;
use crate::execute::At;

/// Seats that get free within this time are given out together, and it passes before others are tried: a start that comes
/// to nothing costs something too.
const SEATS_SETTLE: Duration = Duration::from_millis(100);
/// Containers that are tried at a time.
const TRIED_MAX: usize = 32;

pub(super) struct Seats {
    freed: watch::Receiver<u64>,
    freed_at: Option<Instant>,
    /// When those that wait are tried.
    pub due: Option<Instant>,
}

impl Seats {
    pub fn new(freed: watch::Receiver<u64>) -> Self {
        Self { freed, freed_at: None, due: None }
    }

    /// Some got free: those that wait are tried soon, and what gets free until then is given out with these.
    fn free(&mut self, now: Instant) {
        self.freed_at = Some(now);
        self.due.get_or_insert(now + SEATS_SETTLE);
    }

    /// Somebody found none. What got free just before may have come before it was known that this one waits.
    fn miss(&mut self, now: Instant) {
        if self.freed_at.is_some_and(|at| now.duration_since(at) < SEATS_SETTLE) {
            self.due.get_or_insert(now + SEATS_SETTLE);
        }
    }

    /// Returns when seats got free for which somebody waited.
    pub async fn changed(&mut self) {
        if self.freed.changed().await.is_err() {
            // The runtime is gone.
            std::future::pending::<()>().await;
        }
    }
}

impl App {
    pub(super) fn seats_freed(&mut self) {
        self.seats.free(Instant::now());
    }

    pub(super) fn seat_missed(&mut self) {
        self.seats.miss(Instant::now());
    }

    pub(super) fn waited_for_a_seat(&self, at: &At) -> bool {
        let container = self.observed.pods.get(&at.uid).and_then(|state| state.container(&at.container));
        container.is_some_and(|container| container.no_seat.is_some())
    }

    pub(super) fn try_for_seats(&mut self) {
        self.seats.due = None;
        for waiting in self.observed.next_for_seats(TRIED_MAX) {
            let (uid, container, attempt) = (waiting.uid, waiting.container, waiting.attempt);
            self.observe(Observation::Container { uid, container, attempt, news: News::SeatFreed });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_gets_free_is_given_out_together_and_to_who_missed_it_just_before() {
        let mut seats = Seats::new(watch::channel(0).1);
        let start = Instant::now();
        let at = |part: u32| start + SEATS_SETTLE * part / 4;
        // Nobody waits for what may get free.
        seats.miss(at(0));
        assert_eq!(seats.due, None);
        seats.free(at(1));
        seats.free(at(3));
        assert_eq!(seats.due, Some(at(5)), "others that get free put nothing off");
        // Those that wait have been tried.
        seats.due = None;
        seats.miss(at(6));
        assert_eq!(seats.due, Some(at(10)), "what got free then may be what this one waits for");
        seats.due = None;
        seats.miss(at(7));
        assert_eq!(seats.due, None, "that was too long ago to have been missed");
    }
}
