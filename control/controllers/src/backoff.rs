//! What does not succeed is tried again ever more rarely: after refusals, after faults of our own, after work that
//! others undo again, and where writes that are carried out lead to nothing but more of them.
//!
//! A task that is refused waits as a whole. Where only the making of objects failed, or what was made is soon gone again,
//! only its making of objects waits, so that its status goes on to say how things stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{Event, EventKind, Expect, Object, ObjectKey, Refusal, Transaction};
use jiff::{SignedDuration, Timestamp};

use crate::{draft::later, model::Pod, state::State, task::Task};

/// A plan that was stale is soon made anew; from the third time in a row on it waits, twice as long each time.
const STALE_FREE: u32 = 2;
const STALE_MS_MIN: i64 = 50;
const STALE_MS_MAX: i64 = 30_000;

/// Plans that are stale again and again although others between them are carried out: each counts so much, and each that
/// is carried out takes one away. Who counts so many of them waits, twice as long each time, as above. Honest work, of
/// which most succeeds, never does, nor does what has been at peace for a while.
const CONTESTED_WEIGHT: u32 = 4;
const CONTESTED_FREE: u32 = 16;
const CONTESTED_PEACE_MS: i64 = 10_000;

/// What was refused for good waits from the first time on.
const FAILED_MS_MIN: i64 = 1_000;
/// What was undone may be done again once; from then on it waits.
const UNDONE_FREE: u32 = 1;
const UNDONE_MS_MIN: i64 = 2_000;
/// Writes of objects that were just written, one following from the other with nothing from outside between them: more
/// than a rollout or a deletion makes until it has to wait for a node. From then on the task rests after each.
const LINKS_FREE: u32 = 16;
/// The same for a task that went on for longer not long ago.
const LINKS_FREE_AGAIN: u32 = 2;
const RESTLESS_MS_MIN: i64 = 1_000;
/// The longest wait for all of these.
const RETRY_MS_MAX: i64 = 300_000;

/// What goes so soon after it was made is work that was undone.
const UNDONE_WITHIN_MS: i64 = 60_000;
/// A pod that was started and is older has served for a while.
const LIVED_MS_MIN: i64 = 5_000;
/// So many objects are remembered as just made, the oldest forgotten first.
const MADE_MAX: usize = 100_000;

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// Its preconditions held no more.
    Stale,
    /// It can never be applied as it is: why.
    Impossible(String),
    /// It was not proposed, or nobody knows what became of it. No fault of the task.
    Unknown,
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Precondition { .. } | Refusal::NotFound { .. } => Outcome::Stale,
            Refusal::BadDraft { key, reason } => Outcome::Impossible(format!("{key}: {reason}")),
            Refusal::TooLarge { key, size, limit } => {
                Outcome::Impossible(format!("{key} would take {size} bytes; the limit is {limit}"))
            }
        }
    }
}

/// How a task fares.
#[derive(Debug, Default)]
struct Trouble {
    /// In a row.
    stale: u32,
    /// In the long run: see [`CONTESTED_WEIGHT`].
    contested: u32,
    /// Then that is forgotten, unless more is stale until then.
    contested_until: Timestamp,
    /// Successes between do not end it: what fails and succeeds in turn does so ever more rarely.
    failed: u32,
    undone: u32,
    /// Something that it made is gone again since it last ran.
    undone_anew: bool,
    /// Nothing of it is done before.
    runs_from: Option<Timestamp>,
    /// How often its writes went on by themselves.
    restless: u32,
    /// It is not run before, unless something from outside wakes it.
    rests_until: Option<Timestamp>,
    /// It makes nothing before.
    creates_from: Option<Timestamp>,
    /// Why it last failed.
    reason: Option<String>,
    /// Then all is forgotten, unless there is more trouble until then.
    ends: Timestamp,
}

impl Trouble {
    /// How long the task waits, in milliseconds.
    fn stale_again(&mut self, now: Timestamp) -> i64 {
        if self.contested_until <= now {
            self.contested = 0;
        }
        self.stale = self.stale.saturating_add(1);
        self.contested = self.contested.saturating_add(CONTESTED_WEIGHT);
        let in_a_row = delay_ms(self.stale, STALE_FREE, STALE_MS_MIN, STALE_MS_MAX);
        let contested =
            delay_ms(self.contested / CONTESTED_WEIGHT, CONTESTED_FREE, STALE_MS_MIN, STALE_MS_MAX);
        let wait = in_a_row.max(contested);
        self.contested_until =
            later(now, SignedDuration::from_millis(wait.saturating_mul(2) + CONTESTED_PEACE_MS));
        wait
    }
}

/// The troubles of all tasks. Bounded by the objects that there are.
#[derive(Debug, Default)]
pub struct Backoff {
    troubles: BTreeMap<Task, Trouble>,
    ends: BTreeSet<(Timestamp, Task)>,
    /// Whose own writes wake it again and again.
    restless: BTreeSet<Task>,
    /// Who made an object not long ago, and until when that counts as not long ago.
    made: BTreeMap<ObjectKey, (Task, Timestamp)>,
    made_until: BTreeSet<(Timestamp, ObjectKey)>,
    /// The time of the last plan.
    now: Timestamp,
}

impl Backoff {
    /// Until when a task as a whole waits, if it does.
    pub fn waits_until(&self, task: &Task, now: Timestamp) -> Option<Timestamp> {
        let trouble = self.troubles.get(task)?;
        trouble.runs_from.max(trouble.rests_until).filter(|moment| *moment > now)
    }

    /// Until when a task makes nothing, if it does not.
    pub fn creates_from(&self, task: &Task, now: Timestamp) -> Option<Timestamp> {
        self.troubles.get(task)?.creates_from.filter(|moment| *moment > now)
    }

    /// Whether the task waits for having failed: as a whole, or (`creating`) in making something.
    pub fn waits_after(&self, task: &Task, creating: bool, now: Timestamp) -> bool {
        let trouble = self.troubles.get(task).filter(|trouble| trouble.failed > 0);
        trouble.is_some_and(|trouble| {
            if creating { trouble.creates_from } else { trouble.runs_from }.is_some_and(|until| until > now)
        })
    }

    /// Why the task last failed for good, as long as that holds.
    pub fn reason(&self, task: &Task) -> Option<&str> {
        self.troubles.get(task)?.reason.as_deref()
    }

    /// How many tasks have had trouble lately.
    pub fn len(&self) -> usize {
        self.troubles.len()
    }

    /// How much is remembered in all.
    pub fn remembered(&self) -> usize {
        self.troubles.len() + self.made.len() + self.restless.len()
    }

    /// How many tasks' own writes wake them again and again.
    pub fn restless(&self) -> usize {
        self.restless.len()
    }

    /// Notes that a task has written something that is so many links on in a chain of our own writes. Answers until when
    /// it rests, where it has to, and whether this is the first time.
    pub fn wrote(&mut self, task: &Task, links: u32, now: Timestamp) -> Option<(Timestamp, bool)> {
        let free = if self.restless.contains(task) { LINKS_FREE_AGAIN } else { LINKS_FREE };
        if links <= free {
            return None;
        }
        let trouble = self.troubles.entry(task.clone()).or_default();
        trouble.restless = trouble.restless.saturating_add(1);
        let wait = delay_ms(trouble.restless, 0, RESTLESS_MS_MIN, RETRY_MS_MAX);
        let until = later(now, SignedDuration::from_millis(wait));
        trouble.rests_until = Some(until);
        self.lasts(task, wait, now);
        Some((until, self.restless.insert(task.clone())))
    }

    /// Notes that something from outside wakes a task: it rests no longer.
    pub fn stir(&mut self, task: &Task) {
        if self.restless.contains(task)
            && let Some(trouble) = self.troubles.get_mut(task)
        {
            trouble.rests_until = None;
        }
    }

    /// Notes what became of a transaction. Answers when its task is to be tried again, where it has to wait.
    pub fn note(
        &mut self,
        task: &Task,
        transaction: &Transaction,
        outcome: &Outcome,
        now: Timestamp,
    ) -> Option<Timestamp> {
        match outcome {
            Outcome::Unknown => None,
            Outcome::Applied => {
                self.note_made(task, transaction, now);
                if let Some(trouble) = self.troubles.get_mut(task) {
                    trouble.stale = 0;
                    trouble.contested = trouble.contested.saturating_sub(1);
                    if creates(transaction) || trouble.runs_from.is_some() {
                        trouble.reason = None;
                    }
                }
                None
            }
            Outcome::Stale => {
                let trouble = self.troubles.entry(task.clone()).or_default();
                let wait = trouble.stale_again(now);
                let until = later(now, SignedDuration::from_millis(wait));
                trouble.runs_from = Some(until);
                self.lasts(task, wait, now);
                Some(until)
            }
            Outcome::Impossible(reason) => Some(self.failed(task, creates(transaction), reason, now)),
        }
    }

    /// Notes that a task failed: as a whole, or (`creating`) in making something. Answers when it is to be tried again.
    pub fn failed(&mut self, task: &Task, creating: bool, reason: &str, now: Timestamp) -> Timestamp {
        let trouble = self.troubles.entry(task.clone()).or_default();
        trouble.failed += 1;
        trouble.reason = Some(reason.to_owned());
        let wait = delay_ms(trouble.failed, 0, FAILED_MS_MIN, RETRY_MS_MAX);
        let until = later(now, SignedDuration::from_millis(wait));
        *(if creating { &mut trouble.creates_from } else { &mut trouble.runs_from }) = Some(until);
        self.lasts(task, wait, now);
        until
    }

    /// Notes what others do with what a task has made. Called after the state has taken the event.
    pub fn observe(&mut self, state: &State, event: &Event) {
        let key = &event.object.key;
        if !self.made.contains_key(key) {
            return;
        }
        let pod = state.models.pods.get(&key.name).filter(|pod| pod.object.key == *key);
        let undone = match event.kind {
            EventKind::Deleted => self.undone_by_deletion(state, event.previous.as_ref()),
            // A pod that ended by itself serves its owner no more than one that is gone, nor does one that is evicted.
            EventKind::Modified => pod.is_some_and(|pod| match pod.deleting() {
                false => pod.terminal(),
                true => pod.disrupted && self.hardly_lived(state, pod),
            }),
            EventKind::Added => false,
        };
        if !undone && event.kind != EventKind::Deleted {
            return;
        }
        let Some((task, until)) = self.made.remove(key) else { return };
        self.made_until.remove(&(until, key.clone()));
        if undone {
            self.troubles.entry(task.clone()).or_default().undone_anew = true;
            self.lasts(&task, 0, self.now);
        }
    }

    /// What was asked to end and then ended is as somebody wants it. What goes without being asked, a pod whose node is
    /// gone for one, was in vain unless it has done its work for a while.
    fn undone_by_deletion(&self, state: &State, before: Option<&Arc<Object>>) -> bool {
        let Some(before) = before.filter(|before| before.meta.deletion_timestamp.is_none()) else {
            return false;
        };
        before.key.resource.as_str() != "pods"
            || Pod::of(before).is_ok_and(|pod| self.hardly_lived(state, &pod))
    }

    /// A pod that ran on a node that failed then was not made in vain: the next one goes elsewhere.
    fn hardly_lived(&self, state: &State, pod: &Pod) -> bool {
        let lived = pod.created.map_or(0, |created| self.now.duration_since(created).as_millis());
        pod.ips.is_empty() || lived < LIVED_MS_MIN.into() && state.zones.is_ready(&pod.node)
    }

    /// Forgets a task's troubles: what it works on is another thing now.
    pub fn forget(&mut self, task: &Task) {
        self.restless.remove(task);
        if let Some(trouble) = self.troubles.remove(task) {
            self.ends.remove(&(trouble.ends, task.clone()));
        }
    }

    /// Called before a task runs: counts what was undone since it last ran.
    pub fn begin(&mut self, task: &Task, now: Timestamp) {
        let Some(trouble) = self.troubles.get_mut(task).filter(|trouble| trouble.undone_anew) else { return };
        trouble.undone_anew = false;
        trouble.undone += 1;
        let wait = delay_ms(trouble.undone, UNDONE_FREE, UNDONE_MS_MIN, RETRY_MS_MAX);
        if wait > 0 {
            trouble.creates_from = Some(later(now, SignedDuration::from_millis(wait)));
        }
        self.lasts(task, wait, now);
    }

    /// Forgets what is long past.
    pub fn expire(&mut self, now: Timestamp) {
        self.now = now;
        while let Some((_, task)) = self.ends.first().filter(|(moment, _)| *moment <= now).cloned() {
            self.forget(&task);
        }
        while let Some((until, key)) =
            self.made_until.first().filter(|(until, _)| *until <= now || self.made.len() > MADE_MAX).cloned()
        {
            self.made_until.remove(&(until, key.clone()));
            self.made.remove(&key);
        }
    }

    fn note_made(&mut self, task: &Task, transaction: &Transaction, now: Timestamp) {
        let until = later(now, SignedDuration::from_millis(UNDONE_WITHIN_MS));
        for key in created(transaction) {
            if let Some((_, before)) = self.made.insert(key.clone(), (task.clone(), until)) {
                self.made_until.remove(&(before, key.clone()));
            }
            self.made_until.insert((until, key.clone()));
        }
    }

    /// A task's trouble is over when twice its last wait, and a while, has gone by without more of it.
    fn lasts(&mut self, task: &Task, wait_ms: i64, now: Timestamp) {
        let Some(trouble) = self.troubles.get_mut(task) else { return };
        self.ends.remove(&(trouble.ends, task.clone()));
        let ends = later(now, SignedDuration::from_millis(2 * wait_ms + UNDONE_WITHIN_MS));
        trouble.ends = trouble.ends.max(ends);
        self.ends.insert((trouble.ends, task.clone()));
    }
}

/// The objects that a transaction makes.
pub fn created(transaction: &Transaction) -> impl Iterator<Item = &ObjectKey> {
    transaction.preconditions.iter().filter(|one| one.expect == Expect::Absent).map(|one| &one.key)
}

/// Whether a transaction makes an object.
pub fn creates(transaction: &Transaction) -> bool {
    created(transaction).next().is_some()
}

/// Nothing for the first `free` times, then `min`, then twice as long each time, at most `max`.
fn delay_ms(times: u32, free: u32, min: i64, max: i64) -> i64 {
    match times.checked_sub(free + 1) {
        None => 0,
        Some(doublings) => min.saturating_mul(1_i64 << doublings.min(40)).min(max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound() {
        let waits: Vec<i64> = (1..6).map(|times| delay_ms(times, 2, 50, 150)).collect();
        assert_eq!(waits, [0, 0, 50, 100, 150]);
        assert_eq!(delay_ms(u32::MAX, 0, 1_000, RETRY_MS_MAX), RETRY_MS_MAX);
    }

    #[test]
    fn what_succeeds_again_is_forgotten() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (task, mut backoff) = (Task::new("c", ObjectKey::new("nodes", "", "a")), Backoff::default());
        let update = Transaction::update(ObjectKey::new("nodes", "", "a"), "{}".into(), 1);
        for _ in 0..4 {
            backoff.note(&task, &update, &Outcome::Stale, now);
        }
        assert!(backoff.waits_until(&task, now).is_some());
        backoff.note(&task, &update, &Outcome::Applied, now);
        backoff.note(&task, &update, &Outcome::Stale, now);
        assert_eq!(backoff.waits_until(&task, now), None);
        backoff.note(&task, &update, &Outcome::Impossible("too large".into()), now);
        assert_eq!(backoff.reason(&task), Some("too large"));
        backoff.expire(later(now, SignedDuration::from_mins(10)));
        assert_eq!((backoff.len(), backoff.reason(&task)), (0, None));
    }

    fn update() -> Transaction {
        Transaction::update(ObjectKey::new("nodes", "", "a"), "{}".into(), 1)
    }

    /// Plans `cycle` again and again, each plan as soon as it may be and `pace_ms` after the one before. Answers how many
    /// plans there were in ten minutes, and the longest wait of one.
    fn ten_minutes(cycle: &[Outcome], pace_ms: i64) -> (usize, i64) {
        let begun: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (task, mut backoff, mut now) =
            (Task::new("c", ObjectKey::new("nodes", "", "a")), Backoff::default(), begun);
        let (mut plans, mut longest) = (0, 0);
        for outcome in cycle.iter().cycle() {
            now = later(now, SignedDuration::from_millis(pace_ms));
            backoff.expire(now);
            if let Some(until) = backoff.waits_until(&task, now) {
                longest = longest.max(until.duration_since(now).as_millis() as i64);
                now = until;
            }
            if now.duration_since(begun) >= SignedDuration::from_mins(10) {
                break;
            }
            backoff.begin(&task, now);
            backoff.note(&task, &update(), outcome, now);
            plans += 1;
        }
        (plans, longest)
    }

    #[test]
    fn what_is_stale_and_carried_out_in_turn_for_ever_waits_ever_longer() {
        let (stale, applied) = (Outcome::Stale, Outcome::Applied);
        let one = |outcome: &Outcome| vec![outcome.clone()];
        for cycle in [
            [one(&stale), one(&applied)].concat(),
            [one(&stale), vec![applied.clone(); 2]].concat(),
            [vec![stale.clone(); 2], one(&applied)].concat(),
            [vec![stale.clone(); 2], vec![applied.clone(); 5]].concat(),
        ] {
            for pace_ms in [1, 100] {
                let (plans, longest) = ten_minutes(&cycle, pace_ms);
                assert!(plans < 400, "{plans} plans of {cycle:?}, one each {pace_ms} ms");
                assert!(longest > STALE_MS_MAX - 1_000, "{longest} ms");
            }
        }
    }

    #[test]
    fn what_fails_and_succeeds_in_turn_for_ever_waits_ever_longer() {
        let (plans, longest) = ten_minutes(&[Outcome::Impossible("too large".into()), Outcome::Applied], 1);
        assert!(plans < 40 && longest > RETRY_MS_MAX / 2, "{plans} plans, {longest} ms");
    }

    #[test]
    fn honest_work_that_is_stale_now_and_then_never_waits() {
        // A rollout in which one of five is stale, at any pace; one of two where that is rare.
        let mostly = [vec![Outcome::Applied; 4], vec![Outcome::Stale]].concat();
        assert_eq!(ten_minutes(&mostly, 10), (60_000 - 1, 0));
        assert_eq!(ten_minutes(&[Outcome::Stale, Outcome::Applied], 6_000).1, 0);
    }
}
