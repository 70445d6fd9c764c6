//! What is counted of the gateway's requests: numbers of a fixed table, so that counting neither waits nor allocates.

use coracle_proto::metrics::{Counter, Histogram, Text};
use http::StatusCode;
use std::time::Duration;

/// Upper bounds of the buckets for a request's duration, in microseconds: 100 us, which a component of this node may take, to
/// 60 s, shortly after which an endpoint is given up.
const BOUNDS_US: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Answers by the first digit of their code.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Requests that were answered, and how long that took.
pub(crate) struct Meter {
    answers: [Counter; CLASSES.len()],
    durations: Histogram,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self { answers: Default::default(), durations: Histogram::new(BOUNDS_US) }
    }

    /// The head of an answer is there.
    pub(super) fn answered(&self, status: StatusCode, took: Duration) {
        self.answers[class(status)].add(1);
        self.durations.observe(took);
    }

    /// With how many requests are under way.
    pub(crate) fn write(&self, text: &mut Text, in_flight: usize) {
        let help = "Requests that the gateway has answered, by the first digit of the code.";
        let mut family = text.counter("coracle_gateway_requests_total", help);
        for (class, answers) in CLASSES.iter().zip(&self.answers) {
            family.with(&[("code", class)], answers.get());
        }
        let help = "Time until the head of the gateway's answer.";
        text.histogram("coracle_gateway_request_duration_seconds", help).counts(&[], &self.durations);
        let help = "Requests that the gateway has handed on and whose answers have not ended; upgraded connections among them.";
        text.gauge("coracle_gateway_requests_in_flight", help).is(in_flight);
    }
}

/// The place of a code's first digit among [`CLASSES`].
pub(super) fn class(status: StatusCode) -> usize {
    // A code has three digits. What is beyond 599 is for its client to make sense of.
    usize::from(status.as_u16() / 100 - 1).min(CLASSES.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_their_first_digit() {
        let meter = Meter::new();
        for code in [101, 200, 204, 302, 404, 502, 999] {
            meter.answered(StatusCode::from_u16(code).unwrap(), Duration::from_micros(200));
        }
        let mut text = Text::default();
        meter.write(&mut text, 3);
        let text = text.finish();
        for (class, count) in CLASSES.iter().zip([1, 2, 1, 1, 2]) {
            let line = format!("coracle_gateway_requests_total{{code=\"{class}\"}} {count}");
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(
            text.contains("coracle_gateway_request_duration_seconds_bucket{le=\"0.00025\"} 7\n"),
            "{text}"
        );
        assert!(text.ends_with("coracle_gateway_requests_in_flight 3\n"), "{text}");
    }
}
