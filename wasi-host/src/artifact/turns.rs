//! Whose component is compiled next: namespaces take turns, and slow compiles leave room for quick ones.
//!
//! A job is one component that is to be compiled, whoever waits for it. It waits once for each container, on the account
//! of that container's namespace, and its turn has come with the first of them. Two jobs run at once. One that runs
//! longer than [`QUICK`] is a slow one, of which one may run: a second has to give up its place as soon as a job that is
//! not known to be slow waits, and is begun anew when the place for slow ones is free. So whatever a namespace has
//! compiled, another waits for one quick turn at most for each namespace before it, and for one slow turn where its own
//! component is slow.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::PrepareError;

/// Compiles at once; each uses all cores by itself.
const RUNNING_MAX: usize = 2;

/// After so long a compile is a slow one. Most take less than three seconds, at the priority that they have.
pub(super) const QUICK: Duration = Duration::from_secs(20);

/// Containers that wait for a compile, in all. A namespace has at most as many as are free.
const WAITING_MAX: usize = 8_192;

#[derive(Default)]
pub(super) struct Turns {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: HashMap<u64, Entry>,
    /// Jobs by the namespace on whose account they wait, in order. One may be there several times.
    waiting: BTreeMap<Arc<str>, VecDeque<u64>>,
    waiting_sum: usize,
    /// The namespace whose turn was last.
    last: Option<Arc<str>>,
    /// Jobs that run, with the namespace on whose account.
    running: Vec<(u64, Arc<str>)>,
    /// The job that has the place for slow ones.
    slow: Option<u64>,
    next_id: u64,
}

struct Entry {
    phase: Phase,
    /// It ran longer than a quick one once.
    slow: bool,
    /// Told of what changes for this job.
    told: Arc<Notify>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It does not want to run yet, or any more.
    Idle,
    Waiting,
    Running,
}

impl Turns {
    /// A job that nobody waits for yet.
    pub(super) fn job(self: &Arc<Self>) -> Arc<Job> {
        let mut state = self.state.lock();
        state.next_id += 1;
        let id = state.next_id;
        let told = Arc::new(Notify::new());
        state.jobs.insert(id, Entry { phase: Phase::Idle, slow: false, told: Arc::clone(&told) });
        Arc::new(Job { turns: Arc::clone(self), id, told })
    }

    /// Has `job` wait on the account of `namespace` too, as long as what is returned lives.
    pub(super) fn wait(self: &Arc<Self>, job: &Job, namespace: &str) -> Result<Waiting, PrepareError> {
        let mut state = self.state.lock();
        let own = state.waiting.get(namespace).map_or(0, VecDeque::len);
        if own >= WAITING_MAX - state.waiting_sum {
            return Err(PrepareError::Busy);
        }
        let namespace: Arc<str> = namespace.into();
        state.waiting_sum += 1;
        state.waiting.entry(Arc::clone(&namespace)).or_default().push_back(job.id);
        state.give_turns();
        Ok(Waiting { turns: Arc::clone(self), namespace, job: job.id })
    }

    /// Containers that wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting_sum
    }
}

impl State {
    fn give_turns(&mut self) {
        while self.running.len() < RUNNING_MAX {
            let Some((namespace, id)) = self.next() else { return };
            let Some(entry) = self.jobs.get_mut(&id) else { return };
            entry.phase = Phase::Running;
            entry.told.notify_one();
            self.running.push((id, Arc::clone(&namespace)));
            if entry.slow {
                self.slow = Some(id);
            }
            self.last = Some(namespace);
        }
        self.ask_for_room();
    }

    /// The next namespace after the last that has a job which may run; those that have none running come first.
    fn next(&self) -> Option<(Arc<str>, u64)> {
        let last = self.last.as_deref().unwrap_or_default();
        let in_turn = || {
            let after = self.waiting.range::<str, _>((Bound::Excluded(last), Bound::Unbounded));
            after.chain(self.waiting.range::<str, _>((Bound::Unbounded, Bound::Included(last))))
        };
        let first = |(namespace, jobs): (&Arc<str>, &VecDeque<u64>)| {
            let job = jobs.iter().copied().find(|id| self.may_run(*id))?;
            Some((Arc::clone(namespace), job))
        };
        let idle = |(namespace, _): &(&Arc<str>, &VecDeque<u64>)| !self.runs(namespace);
        in_turn().filter(idle).find_map(first).or_else(|| in_turn().find_map(first))
    }

    fn runs(&self, namespace: &Arc<str>) -> bool {
        self.running.iter().any(|(_, of)| of == namespace)
    }

    /// On whose account a job runs; `None` where it does not.
    fn account(&self, id: u64) -> Option<Arc<str>> {
        self.running.iter().find(|(running, _)| *running == id).map(|(_, namespace)| Arc::clone(namespace))
    }

    fn may_run(&self, id: u64) -> bool {
        self.jobs
            .get(&id)
            .is_some_and(|entry| entry.phase == Phase::Waiting && !(entry.slow && self.slow.is_some()))
    }

    /// Tells a slow job without the place for one that others wait.
    fn ask_for_room(&self) {
        let entries = self.running.iter().filter(|(id, _)| self.slow != Some(*id));
        for entry in entries.filter_map(|(id, _)| self.jobs.get(id)).filter(|entry| entry.slow) {
            if self.next().is_some() {
                entry.told.notify_one();
            }
        }
    }

    fn stop(&mut self, id: u64, phase: Phase) {
        let Some(entry) = self.jobs.get_mut(&id) else { return };
        entry.phase = phase;
        self.running.retain(|(running, _)| *running != id);
        if self.slow == Some(id) {
            self.slow = None;
        }
        self.give_turns();
    }
}

/// A component that is to be compiled. Gone when it is dropped.
pub(super) struct Job {
    turns: Arc<Turns>,
    id: u64,
    told: Arc<Notify>,
}

impl Job {
    /// Waits for the job's turn.
    pub(super) async fn turn(&self) -> Turn<'_> {
        // Whatever ends this wait, the job wants no turn any more.
        let mut turn = Turn { job: self, namespace: Arc::default() };
        self.turns.state.lock().stop(self.id, Phase::Waiting);
        loop {
            let running = self.turns.state.lock().account(self.id);
            if let Some(namespace) = running {
                turn.namespace = namespace;
                return turn;
            }
            self.told.notified().await;
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        state.stop(self.id, Phase::Idle);
        state.jobs.remove(&self.id);
    }
}

/// A job's turn, until it is dropped.
pub(super) struct Turn<'a> {
    job: &'a Job,
    namespace: Arc<str>,
}

impl Turn<'_> {
    /// On whose account it is.
    pub(super) fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// Waits until the job has to give up its place. For ever, where it may go on to its end.
    pub(super) async fn is_over(&self) {
        let Job { turns, id, told } = self.job;
        tokio::time::sleep(QUICK).await;
        loop {
            {
                let mut state = turns.state.lock();
                if let Some(entry) = state.jobs.get_mut(id) {
                    entry.slow = true;
                }
                if state.slow.is_none() {
                    state.slow = Some(*id);
                }
                if state.slow != Some(*id) && state.next().is_some() {
                    return;
                }
            }
            told.notified().await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.job.turns.state.lock().stop(self.job.id, Phase::Idle);
    }
}

/// One container that waits for a job.
pub(super) struct Waiting {
    turns: Arc<Turns>,
    namespace: Arc<str>,
    job: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        let State { waiting, waiting_sum, .. } = &mut *state;
        let Some(jobs) = waiting.get_mut(&self.namespace) else { return };
        if let Some(at) = jobs.iter().position(|job| *job == self.job) {
            jobs.remove(at);
            *waiting_sum -= 1;
        }
        if jobs.is_empty() {
            waiting.remove(&self.namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    /// Runs a job of this length to its end, as the compiler does. Returns when that was.
    async fn compiled(turns: Arc<Turns>, namespace: &'static str, length: Duration) -> Instant {
        let job = turns.job();
        let _waiting = turns.wait(&job, namespace).expect("room");
        loop {
            let turn = job.turn().await;
            tokio::select! {
                () = tokio::time::sleep(length) => return Instant::now(),
                () = turn.is_over() => {}
            }
        }
    }

    fn is_empty(turns: &Turns) -> bool {
        let state = turns.state.lock();
        state.jobs.is_empty()
            && state.waiting.is_empty()
            && state.running.is_empty()
            && (state.waiting_sum, state.slow) == (0, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_with_a_thousand_slow_components_delays_another_by_a_turn() {
        let turns = Arc::new(Turns::default());
        let slow: Vec<_> = (0..1_000)
            .map(|_| tokio::spawn(compiled(turns.clone(), "hostile", Duration::from_secs(300))))
            .collect();
        tokio::time::sleep(Duration::from_secs(100)).await;
        for _ in 0..20 {
            let begun = Instant::now();
            let other = compiled(turns.clone(), "other", Duration::from_secs(2));
            let ended = tokio::time::timeout(Duration::from_secs(3600), other).await.expect("it ends");
            assert!(ended - begun <= QUICK + Duration::from_secs(2), "{:?}", ended - begun);
        }
        // A slow one waits for one slow turn of the other.
        let begun = Instant::now();
        let other = compiled(turns.clone(), "other", Duration::from_secs(60));
        let ended = tokio::time::timeout(Duration::from_secs(3600), other).await.expect("it ends");
        assert!(ended - begun <= Duration::from_secs(300 + 60) + 3 * QUICK, "{:?}", ended - begun);
        for task in &slow {
            task.abort();
        }
        for task in slow {
            let _ = task.await;
        }
        assert!(is_empty(&turns));
    }

    #[tokio::test(start_paused = true)]
    async fn alone_a_namespace_has_all_and_slow_ones_run_to_their_end() {
        let turns = Arc::new(Turns::default());
        let begun = Instant::now();
        let jobs = [0, 1].map(|_| compiled(turns.clone(), "a", Duration::from_secs(100)));
        for ended in futures::future::join_all(jobs).await {
            assert_eq!(ended - begun, Duration::from_secs(100));
        }
        assert!(is_empty(&turns));
    }

    /// When jobs of these namespaces and lengths end that come at once, in seconds.
    async fn ends_of(turns: &Arc<Turns>, jobs: &[(&'static str, u64)]) -> Vec<u64> {
        let begun = Instant::now();
        let jobs = jobs.iter().map(|(of, length)| compiled(turns.clone(), of, Duration::from_secs(*length)));
        let ends = tokio::time::timeout(Duration::from_secs(3600), futures::future::join_all(jobs)).await;
        ends.expect("they end").into_iter().map(|ended| (ended - begun).as_secs()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn two_run_at_once_and_namespaces_take_turns() {
        let turns = Arc::new(Turns::default());
        assert_eq!(ends_of(&turns, &[("a", 10); 5]).await, [10, 10, 20, 20, 30]);
        let jobs = ["a", "a", "a", "b", "b", "b", "c", "c", "c"].map(|of| (of, 10));
        let ends = ends_of(&turns, &jobs).await;
        assert!(ends[6] <= 20 && ends[7] <= 40, "the last by name waits no longer: {ends:?}");
        // Who has one that runs waits for who has none.
        let ends = ends_of(&turns, &[("a", 19), ("b", 1), ("a", 19), ("b", 1), ("b", 1)]).await;
        assert_eq!(ends[4], 3, "{ends:?}");
        assert!(is_empty(&turns));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_makes_room_for_who_comes_later() {
        let turns = Arc::new(Turns::default());
        let slow = [0, 1].map(|_| tokio::spawn(compiled(turns.clone(), "a", Duration::from_secs(100))));
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(ends_of(&turns, &[("b", 2)]).await, [2]);
        for task in slow {
            task.await.expect("they run to their ends");
        }
        assert!(is_empty(&turns));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_over_leaves_its_place_while_its_job_is_there() {
        let turns = Arc::new(Turns::default());
        let jobs = [0, 1, 2].map(|_| turns.job());
        let _waiting = jobs.each_ref().map(|job| turns.wait(job, "a").expect("room"));
        let (first, _second) = (jobs[0].turn().await, jobs[1].turn().await);
        assert!(tokio::time::timeout(QUICK / 2, jobs[2].turn()).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(QUICK / 2, jobs[2].turn()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_several_namespaces_wait_for_comes_with_the_first() {
        let turns = Arc::new(Turns::default());
        let busy: Vec<_> =
            (0..50).map(|_| tokio::spawn(compiled(turns.clone(), "a", Duration::from_secs(10)))).collect();
        tokio::task::yield_now().await;
        let job = turns.job();
        let first = turns.wait(&job, "a").expect("room");
        let _second = turns.wait(&job, "b").expect("room");
        let begun = Instant::now();
        let turn = job.turn().await;
        assert!(begun.elapsed() <= Duration::from_secs(10), "{:?}", begun.elapsed());
        drop((turn, first));
        busy.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded_and_leaves_room_for_others() {
        let turns = Arc::new(Turns::default());
        let job = turns.job();
        let waits = std::iter::from_fn(|| turns.wait(&job, "a").ok());
        let mut all: Vec<_> = waits.take(2 * WAITING_MAX).collect();
        assert_eq!(all.len(), WAITING_MAX / 2);
        assert!(matches!(turns.wait(&job, "a"), Err(PrepareError::Busy)));
        all.push(turns.wait(&job, "b").expect("room for another"));
        drop((all, job));
        assert!(is_empty(&turns));
    }
}
