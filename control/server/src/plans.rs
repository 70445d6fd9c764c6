//! Runs the controllers and the scheduler: feeds them events, proposes what they plan. Only while this member leads.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use coracle_api::Storage;
use coracle_controllers::{Config, Controllers, Outcome};
use coracle_leader::plans::{FAILURE_PAUSE, of_decisions, outcome, warning_of};
use coracle_node_link::demands::Demands;
use coracle_objects::{Event, Transaction};
use coracle_scheduler::Scheduler;
use coracle_storage::watch_hub::{EntryEvents, Feed, Lagged, WatchHub};
use futures::{StreamExt, stream};
use jiff::Timestamp;

use crate::{
    accounts::Accounts,
    events::EventRecorder,
    planning::{Planner, Resting},
};

/// Transactions of one plan under way at a time.
const UNDER_WAY_MAX: usize = 256;

/// The longest sleep without an event or a deadline.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// No task is begun any more once a plan has taken so long: the rest is for the next one.
const PLAN_TIME_MAX: Duration = Duration::from_millis(100);

/// Runs the controllers until it is dropped.
pub async fn run_controllers(
    hub: &WatchHub,
    mut accounts: Accounts,
    recorder: &EventRecorder,
    planning: &Planner,
    demands: &Demands,
    ca_bundle: String,
) {
    let mut controllers = Controllers::new(Config { ca_bundle });
    let mut clock = Clock::default();
    let _resting = Resting(planning);
    let (view, mut events) = hub.follow();
    controllers.resync(&view);
    loop {
        let _lagged: Lagged = 'observing: loop {
            planning.begin();
            drain(&mut events, |event| controllers.observe(event));
            let (now, began) = (clock.now(), Instant::now());
            let mut uid = || uuid::Uuid::new_v4().to_string();
            let plan = controllers.plan_while(now, &mut uid, &mut || began.elapsed() < PLAN_TIME_MAX);
            let coracle_controllers::Situation { waiting, in_trouble, restless, unreadable, remembered } =
                controllers.situation();
            planning.remembered.store(remembered, Ordering::Relaxed);
            planning.restless.store(restless, Ordering::Relaxed);
            note(planning, [waiting, in_trouble, unreadable], &plan.panics);
            for told in plan.events.iter().filter(|told| told.of.is_none()) {
                recorder.record(&told.record);
            }
            if !plan.transactions.is_empty() {
                let observe = |event: &Event| controllers.observe(event);
                let writes = plan.origins.iter().zip(&plan.transactions).map(|(origin, transaction)| {
                    (accounts.storage_of(origin.account()), transaction.clone())
                });
                let (outcomes, missed) = carry_out(&mut events, writes.collect(), observe).await;
                let now = clock.now();
                let settled = plan.origins.iter().zip(&plan.transactions).zip(&outcomes);
                for ((origin, transaction), outcome) in settled {
                    controllers.settle(origin, transaction, outcome, now);
                }
                let is_applied = |at: usize| outcomes.get(at) == Some(&Outcome::Applied);
                for told in plan.events.iter().filter(|told| told.of.is_some_and(is_applied)) {
                    recorder.record(&told.record);
                }
                pause_if_nothing_works(&outcomes).await;
                match missed {
                    Some(lagged) => break 'observing lagged,
                    None => continue,
                }
            }
            if controllers.situation().waiting > 0 {
                // The end of the leadership is noticed between two plans.
                tokio::task::yield_now().await;
                continue;
            }
            planning.rest();
            let patience = clock.left(controllers.next_deadline());
            tokio::select! {
                happened = wait(&mut events, patience) => match happened {
                    Ok(happened) => happened.iter().for_each(|event| controllers.observe(event)),
                    Err(lagged) => break 'observing lagged,
                },
                told = demands.next() => controllers.hear_demand(told, clock.now()),
            }
        };
        let view;
        (view, events) = hub.follow();
        controllers.catch_up(&view);
    }
}

/// Writes down how a planner fares after a plan.
fn note(planning: &Planner, [waiting, in_trouble, unreadable]: [usize; 3], panics: &[String]) {
    planning.waiting.store(waiting, Ordering::Relaxed);
    planning.in_trouble.store(in_trouble, Ordering::Relaxed);
    planning.unreadable.store(unreadable, Ordering::Relaxed);
    planning.panics.fetch_add(panics.len() as u64, Ordering::Relaxed);
    for panic in panics {
        tracing::error!(
            panic,
            "a planner panicked over one task or pod; it is tried again with growing pauses"
        );
    }
    if waiting == 0 {
        planning.caught_up();
    }
}

/// Runs the scheduler until it is dropped.
pub async fn run_scheduler<S: Storage>(
    hub: &WatchHub,
    storage: &S,
    recorder: &EventRecorder,
    planning: &Planner,
) {
    let mut scheduler = Scheduler::new();
    let mut clock = Clock::default();
    let _resting = Resting(planning);
    loop {
        let (view, mut events) = hub.follow();
        scheduler.catch_up(&view);
        let _lagged: Lagged = 'observing: loop {
            planning.begin();
            drain(&mut events, |event| scheduler.observe(event));
            let (now, began) = (clock.now(), Instant::now());
            let decisions = scheduler.schedule_while(now, &mut || began.elapsed() < PLAN_TIME_MAX);
            let coracle_scheduler::Situation { waiting, in_trouble, unreadable, remembered } =
                scheduler.situation();
            planning.remembered.store(remembered, Ordering::Relaxed);
            note(planning, [waiting, in_trouble, unreadable], &decisions.panics);
            for fault in &decisions.faults {
                recorder.record(&warning_of(fault));
            }
            let (transactions, records) = of_decisions(decisions);
            if !transactions.is_empty() {
                let observe = |event: &Event| scheduler.observe(event);
                let writes = transactions.into_iter().map(|transaction| (storage.clone(), transaction));
                let (outcomes, missed) = carry_out(&mut events, writes.collect(), observe).await;
                let now = clock.now();
                for (record, outcome) in records.iter().zip(&outcomes) {
                    let pod = &record.regarding.name;
                    match outcome {
                        Outcome::Applied => recorder.record(record),
                        Outcome::Stale => scheduler.refused(pod, None, now),
                        Outcome::Impossible(why) => scheduler.refused(pod, Some(why), now),
                        Outcome::Unknown => {}
                    }
                }
                pause_if_nothing_works(&outcomes).await;
                match missed {
                    Some(lagged) => break 'observing lagged,
                    None => continue,
                }
            }
            if scheduler.situation().waiting > 0 {
                tokio::task::yield_now().await;
                continue;
            }
            planning.rest();
            match wait(&mut events, clock.left(scheduler.next_deadline())).await {
                Ok(happened) => happened.iter().for_each(|event| scheduler.observe(event)),
                Err(lagged) => break 'observing lagged,
            }
        };
    }
}

/// Proposes the transactions, in order and each in the name of its writer, and observes meanwhile what happens. All of their
/// own events have been published when their outcomes are there; the next [`drain`] sees them. They are all carried out
/// before it is told that events were missed.
async fn carry_out<S: Storage>(
    events: &mut Feed,
    writes: Vec<(S, Transaction)>,
    mut observe: impl FnMut(&Event),
) -> (Vec<Outcome>, Option<Lagged>) {
    let mut outcomes = Vec::with_capacity(writes.len());
    let mut answers = std::pin::pin!(
        stream::iter(writes)
            .map(|(storage, transaction)| async move { storage.propose(transaction).await })
            .buffered(UNDER_WAY_MAX)
    );
    let mut missed = None;
    loop {
        tokio::select! {
            biased;
            happened = events.next(), if missed.is_none() => match happened {
                Ok(happened) => happened.iter().for_each(|event| observe(event)),
                Err(lagged) => missed = Some(lagged),
            },
            answer = answers.next() => match answer {
                None => return (outcomes, missed),
                Some(answer) => {
                    let outcome = outcome(answer);
                    if outcome != Outcome::Applied {
                        tracing::debug!(?outcome, "a plan was not carried out");
                    }
                    outcomes.push(outcome);
                }
            }
        }
    }
}

/// Observes what has happened already. Who has missed something plans nevertheless, and is told when that is carried out:
/// where much is written it may have missed something each time.
fn drain(events: &mut Feed, mut observe: impl FnMut(&Event)) {
    while let Ok(Some(happened)) = events.ready() {
        happened.iter().for_each(|event| observe(event));
    }
}

/// Waits for the next events, and no longer than this.
async fn wait(events: &mut Feed, patience: Duration) -> Result<EntryEvents, Lagged> {
    match tokio::time::timeout(patience, events.next()).await {
        Ok(happened) => happened,
        Err(_) => Ok([].into()),
    }
}

async fn pause_if_nothing_works(outcomes: &[Outcome]) {
    if outcomes.iter().all(|outcome| *outcome == Outcome::Unknown) {
        tokio::time::sleep(FAILURE_PAUSE).await;
    }
}

/// A clock that never goes back, as planners need it, nor stands still where the machine's is set back: or nothing that
/// waits for a moment, a dead node's pods for example, would go on until that clock has caught up.
#[derive(Default)]
struct Clock {
    last: Option<(Timestamp, Instant)>,
}

impl Clock {
    fn now(&mut self) -> Timestamp {
        self.at(Timestamp::now(), Instant::now())
    }

    fn at(&mut self, wall: Timestamp, instant: Instant) -> Timestamp {
        let at_least =
            self.last.map_or(wall, |(last, then)| last.checked_add(instant - then).unwrap_or(last));
        let now = wall.max(at_least);
        self.last = Some((now, instant));
        now
    }

    /// How long to wait for a deadline, at most [`IDLE_MAX`].
    fn left(&mut self, deadline: Option<Timestamp>) -> Duration {
        let now = self.now();
        let left = deadline.map(|deadline| Duration::try_from(deadline.duration_since(now)));
        left.map_or(IDLE_MAX, |left| left.unwrap_or(Duration::ZERO).min(IDLE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_planners_clock_goes_on_where_the_machines_is_set_back() {
        let (wall, begun) = (Timestamp::from_second(1_000_000).unwrap(), Instant::now());
        let after = |seconds| Duration::from_secs(seconds);
        let mut clock = Clock::default();
        assert_eq!(clock.at(wall, begun), wall);
        assert_eq!(clock.at(wall + after(5), begun + after(5)), wall + after(5));
        assert_eq!(clock.at(wall - after(3_600), begun + after(7)), wall + after(7));
        assert_eq!(clock.at(wall - after(3_598), begun + after(9)), wall + after(9));
        assert_eq!(clock.at(wall + after(60), begun + after(10)), wall + after(60));
    }
}
