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

    /// Returns when seats got free for which somebody waited.
    pub async fn changed(&mut self) {
        if self.freed.changed().await.is_err() {
            // The sandbox is gone.
            std::future::pending::<()>().await;
        }
    }
}

impl App {
    pub(super) fn seats_freed(&mut self) {
        let now = Instant::now();
        self.seats.freed_at = Some(now);
        self.seats.due.get_or_insert(now + SEATS_SETTLE);
    }

    /// A container found no seat. What got free since may have come before it was known that it waits.
    pub(super) fn seat_missed(&mut self) {
        if self.seats.freed_at.is_some_and(|at| at.elapsed() < SEATS_SETTLE) {
            self.seats.due.get_or_insert(Instant::now() + SEATS_SETTLE);
        }
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
