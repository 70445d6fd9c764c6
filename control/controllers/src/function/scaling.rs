//! How many instances a revision is to have, by what is asked of it.
//!
//! Instances are counted by the requests that were under way on average, over a stable window, or over a shorter one while much
//! more is asked than there are instances for: then none is taken away until that has been over for a stable window. Source:
//! Knative's pod autoscaler (KPA), windows and thresholds.

use std::collections::VecDeque;

use coracle_objects::fields::integer;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::draft::later;

const STABLE_WINDOW_S: i64 = 60;
const PANIC_WINDOW_S: i64 = 6;
/// So many times more is asked than there are instances for: it panics.
const PANIC_FACTOR: f64 = 2.0;
/// Between two looks at a revision of which something was asked lately.
const LOOK_EVERY: SignedDuration = SignedDuration::from_secs(2);

/// What gateways said of a revision since they were heard last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionDemand {
    /// The time that requests were under way, of all of them together.
    pub request_milliseconds: u64,
    pub arrived: u64,
    /// Requests that wait for an instance.
    pub waiting: u32,
}

/// What was asked of a revision lately. Bounded by the stable window.
#[derive(Debug)]
pub struct Load {
    /// Request-seconds by the second in which they were told of, oldest first.
    buckets: VecDeque<(i64, f64)>,
    /// Since when something may have been asked.
    since: Timestamp,
    asked_at: Timestamp,
    /// How many instances were decided on last. Where there are more a node has started some, for requests that waited.
    decided: i64,
    panics_until: Option<Timestamp>,
}

/// What a function asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub min: i64,
    pub max: i64,
    /// Requests that are under way in one instance.
    target: f64,
    idle: SignedDuration,
}

impl Scale {
    pub fn of(function: &Value) -> Self {
        let number =
            |field: &str, default: i64| integer(function, &format!("/spec/scale/{field}")).unwrap_or(default);
        let min = number("min", 0).max(0);
        Self {
            min,
            max: number("max", i64::MAX).max(min.max(1)),
            target: number("targetConcurrency", 50).max(1) as f64,
            idle: SignedDuration::from_secs(number("idleSeconds", 60).max(1)),
        }
    }
}

impl Load {
    /// Of a revision that has so many instances: one that has none is at rest, whoever leads.
    pub fn begin(current: i64, now: Timestamp) -> Self {
        let asked_at = if current > 0 { now } else { Timestamp::MIN };
        // What is asked of those that run is told in a moment: until then none goes.
        let panics_until = (current > 0).then(|| later(now, SignedDuration::from_secs(STABLE_WINDOW_S)));
        Self { buckets: VecDeque::new(), since: now, asked_at, decided: i64::MAX, panics_until }
    }

    /// Gateways have said what was asked.
    pub fn note(&mut self, told: FunctionDemand, now: Timestamp) {
        if told.arrived == 0 && told.request_milliseconds == 0 && told.waiting == 0 {
            return;
        }
        self.asked_at = now;
        let second = now.as_second();
        let seconds = told.request_milliseconds as f64 / 1_000.0;
        match self.buckets.back_mut() {
            Some((last, sum)) if *last == second => *sum += seconds,
            _ => self.buckets.push_back((second, seconds)),
        }
        self.forget_before(second - STABLE_WINDOW_S);
    }

    fn forget_before(&mut self, second: i64) {
        while self.buckets.front().is_some_and(|(at, _)| *at <= second) {
            self.buckets.pop_front();
        }
    }

    /// Requests under way on average over so many seconds; over fewer where nothing was asked before.
    fn average(&self, window_s: i64, now: Timestamp) -> f64 {
        let second = now.as_second();
        let sum: f64 =
            self.buckets.iter().rev().take_while(|(at, _)| *at > second - window_s).map(|(_, sum)| sum).sum();
        sum / (second - self.since.as_second()).clamp(1, window_s) as f64
    }

    /// How many instances there are to be, where there are `current` now, and when to look again.
    pub fn decide(&mut self, scale: Scale, current: i64, now: Timestamp) -> (i64, Option<Timestamp>) {
        self.forget_before(now.as_second() - STABLE_WINDOW_S);
        if current > self.decided {
            self.asked_at = now;
        }
        if self.buckets.is_empty() {
            self.since = now;
        }
        let instances = |average: f64| (average / scale.target).ceil().min(1e9) as i64;
        let stable = instances(self.average(STABLE_WINDOW_S, now));
        let panicked = instances(self.average(PANIC_WINDOW_S, now));
        if panicked > 1 && panicked as f64 >= PANIC_FACTOR * current.max(1) as f64 {
            self.panics_until = Some(later(now, SignedDuration::from_secs(STABLE_WINDOW_S)));
        }
        self.panics_until = self.panics_until.filter(|until| *until > now);
        let asked = if self.panics_until.is_some() { stable.max(panicked).max(current) } else { stable };
        let idle_at = later(self.asked_at, scale.idle);
        // What is in the window still after the idle time is not asked any more.
        let wanted = if idle_at > now { asked.max(scale.min).max(1) } else { scale.min };
        let wanted = wanted.min(scale.max);
        self.decided = wanted;
        let again = if self.buckets.is_empty() {
            Some(idle_at).filter(|at| *at > now)
        } else {
            Some(later(now, LOOK_EVERY))
        };
        (wanted, again)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scale(of: Value) -> Scale {
        Scale::of(&json!({ "spec": { "scale": of } }))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn under_way(requests: u64) -> FunctionDemand {
        FunctionDemand { request_milliseconds: requests * 1_000, arrived: requests, waiting: 0 }
    }

    #[test]
    fn one_instance_stays_until_nothing_was_asked_for_the_idle_time() {
        let (mut load, scale) = (Load::begin(1, at(0)), scale(json!({"idleSeconds": 10})));
        assert_eq!(load.decide(scale, 1, at(9)), (1, Some(at(10))));
        load.note(under_way(1), at(9));
        assert_eq!(load.decide(scale, 1, at(18)).0, 1);
        assert_eq!(
            load.decide(scale, 1, at(19)).0,
            0,
            "what was asked is in the window still, and is not enough for one"
        );
        let kept = Scale { min: 2, ..scale };
        assert_eq!(load.decide(kept, 0, at(100)), (2, None));
        load.note(FunctionDemand { waiting: 1, ..under_way(0) }, at(200));
        assert_eq!(load.decide(scale, 0, at(200)).0, 1, "somebody waits");
        assert_eq!(load.decide(scale, 1, at(210)).0, 0, "and does so no more");
        assert_eq!(load.decide(scale, 1, at(211)).0, 1, "a node has started one");
        assert_eq!(load.decide(scale, 1, at(220)).0, 1);
        assert_eq!(load.decide(scale, 1, at(221)).0, 0);
    }

    #[test]
    fn what_is_at_rest_stays_so_where_nobody_remembers_it() {
        let scale = scale(json!({}));
        assert_eq!(Load::begin(0, at(0)).decide(scale, 0, at(0)), (0, None));
        assert_eq!(Load::begin(20, at(0)).decide(scale, 20, at(0)).0, 20, "nor does what runs go");
    }

    #[test]
    fn a_burst_is_met_at_once_and_given_up_slowly() {
        let (mut load, scale) = (Load::begin(1, at(0)), scale(json!({"targetConcurrency": 10, "max": 30})));
        for second in 0..60 {
            load.note(under_way(20), at(second));
        }
        assert_eq!(load.decide(scale, 2, at(60)).0, 2);
        for second in 60..66 {
            load.note(under_way(200), at(second));
        }
        let (wanted, _) = load.decide(scale, 2, at(66));
        assert!((17..=20).contains(&wanted), "{wanted} by the panic window");
        for second in 66..72 {
            load.note(under_way(1_000), at(second));
        }
        assert_eq!(load.decide(scale, wanted, at(72)).0, 30, "never more than max");
        for second in 72..100 {
            load.note(under_way(10), at(second));
        }
        assert_eq!(load.decide(scale, 30, at(100)).0, 30, "while it panics none goes");
        for second in 100..200 {
            load.note(under_way(10), at(second));
            load.decide(scale, 30, at(second));
        }
        assert_eq!(load.decide(scale, 30, at(200)).0, 1);
    }

    #[test]
    fn what_it_remembers_is_bounded_by_the_window() {
        let mut load = Load::begin(1, at(0));
        (0..10_000).for_each(|second| load.note(under_way(1), at(second)));
        assert!(load.buckets.len() <= STABLE_WINDOW_S as usize + 1);
    }
}
