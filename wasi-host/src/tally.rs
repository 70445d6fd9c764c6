//! What guests have come to since the start of their host, counted in atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::artifact::Compiles;
use crate::exit::{Exit, KINDS};

/// What a host has done since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// CPU time of all guests; at most a tick old.
    pub cpu: Duration,
    /// How many containers have ended, by how: always the same ones, in the same order.
    pub ends: Vec<(&'static str, u64)>,
    /// Requests to which a component gave no answer: it trapped, exited, was out of memory, or returned without one.
    pub failed_requests: u64,
    /// What has become of compiles.
    pub compiles: Compiles,
}

/// Counts what is seen where containers end and requests fail.
#[derive(Default)]
pub(crate) struct Tally {
    ends: [AtomicU64; KINDS.len()],
    failed_requests: AtomicU64,
}

impl Tally {
    pub(crate) fn ended(&self, exit: &Exit) {
        self.ends[exit.kind()].fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self, requests: usize) {
        self.failed_requests.fetch_add(requests as u64, Relaxed);
    }

    pub(crate) fn read(&self, cpu: Duration, compiles: Compiles) -> Totals {
        let ends = self.ends.iter().map(|count| count.load(Relaxed));
        let ends = KINDS.into_iter().zip(ends).collect();
        Totals { cpu, ends, failed_requests: self.failed_requests.load(Relaxed), compiles }
    }
}
