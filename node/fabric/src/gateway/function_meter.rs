//! What is counted of each revision of a function: its answers, how long they took, and how long requests waited for an instance.

use super::meter::CLASSES;
use crate::names::Name;
use coracle_proto::metrics::{Counter, Histogram, Labels, Text};
use http::StatusCode;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds.
const BOUNDS_US: &[u64] =
    &[500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];
/// Revisions that are counted. Others are served all the same.
const COUNTED_MAX: usize = 4_096;

/// One revision's.
pub(crate) struct FunctionMeter {
    answers: [Counter; CLASSES.len()],
    durations: Histogram,
    waits: Histogram,
}

impl FunctionMeter {
    fn new() -> Self {
        Self {
            answers: Default::default(),
            durations: Histogram::new(BOUNDS_US),
            waits: Histogram::new(BOUNDS_US),
        }
    }

    /// The head of an answer is there.
    pub(super) fn answered(&self, status: StatusCode, took: Duration) {
        self.answers[super::meter::class(status)].add(1);
        self.durations.observe(took);
    }

    /// A request has waited for an instance, and has one now.
    pub(super) fn waited(&self, time: Duration) {
        self.waits.observe(time);
    }
}

/// Those of all revisions that there are and that were asked for.
#[derive(Default)]
pub(crate) struct FunctionMeters(Mutex<ByRevision>);

/// By namespace and name.
type ByRevision = BTreeMap<(Arc<str>, Arc<str>), Arc<FunctionMeter>>;

impl FunctionMeters {
    /// The meter of a revision, where there is room for one.
    pub(super) fn of(&self, revision: &Name) -> Option<Arc<FunctionMeter>> {
        let mut meters = self.0.lock();
        let key = (revision.namespace.clone(), revision.name.clone());
        if let Some(known) = meters.get(&key) {
            return Some(known.clone());
        }
        if meters.len() >= COUNTED_MAX {
            return None;
        }
        let meter = Arc::new(FunctionMeter::new());
        meters.insert(key, meter.clone());
        Some(meter)
    }

    /// The revision is gone.
    pub(super) fn forget(&self, revision: &Name) {
        self.0.lock().remove(&(revision.namespace.clone(), revision.name.clone()));
    }

    pub(crate) fn held(&self) -> usize {
        self.0.lock().len()
    }

    /// Writes them, family by family. Nothing where no function was asked for.
    pub(crate) fn write(&self, text: &mut Text) {
        let meters = self.0.lock().clone();
        if meters.is_empty() {
            return;
        }
        let help = "Requests to functions that the gateway has answered, by revision and the first digit of the code.";
        let mut family = text.counter("coracle_function_requests_total", help);
        for ((namespace, revision), meter) in &meters {
            for (class, answers) in
                CLASSES.iter().zip(&meter.answers).filter(|(_, answers)| answers.get() > 0)
            {
                let labels: Labels<'_> = &[("namespace", namespace), ("revision", revision), ("code", class)];
                family.with(labels, answers.get());
            }
        }
        type Of = fn(&FunctionMeter) -> &Histogram;
        let histograms: [(&'static str, &str, Of); 2] = [
            (
                "coracle_function_request_duration_seconds",
                "Time until the head of an answer, by revision; what a request waited for an instance is a part of it.",
                |meter| &meter.durations,
            ),
            (
                "coracle_function_wait_seconds",
                "Time that requests waited for an instance, by revision: those that found one ready are not among them.",
                |meter| &meter.waits,
            ),
        ];
        for (name, help, of) in histograms {
            let mut family = text.histogram(name, help);
            for ((namespace, revision), meter) in &meters {
                family.counts(&[("namespace", namespace), ("revision", revision)], of(meter));
            }
        }
    }
}
