//! Removals by turns: what a pod has nested or filled holds up nobody else's.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use coracle_wasi_host::PodDisk;
use parking_lot::{Condvar, Mutex};

use super::Removal;

/// How long one directory's turn takes: what a pod has nested or filled does not hold up others' removal. Some disks
/// need milliseconds for an entry.
const TURN: Duration = Duration::from_millis(20);
/// Entries between two looks at the clock.
const TURN_ENTRIES: usize = 16;
/// Directories that take turns; the others wait, so that their number opens no files. One that is not done in its first
/// turn makes room for those that have had none: what is small goes at once, however much others have left behind.
const ACTIVE_MAX: usize = 16;
/// The first wait after a removal that failed, doubled with each failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);

/// Removes directories on a thread of its own, by turns, and tries again what fails.
pub struct Removals {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<PathBuf>,
    /// Those that have made room, with the names that were used in them.
    parked: VecDeque<(PathBuf, u64)>,
    /// Directories that take turns, and those that wait for their next try.
    at_work: usize,
    /// What pods have on the disk, until it is removed.
    of: BTreeMap<PathBuf, PodDisk>,
    /// Nobody will ask for more: what is left is removed at the next start.
    closed: bool,
}

impl Removals {
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        thread::Builder::new().name("removals".to_owned()).spawn(move || Worker::default().run(&own))?;
        Ok(Self { shared })
    }

    /// Removes a directory in the background. Nobody may write into it any more.
    pub fn push(&self, path: PathBuf) {
        self.shared.queue.lock().waiting.push_back(path);
        self.shared.changed.notify_one();
    }

    /// The same of one that counts as a pod's until it is gone.
    pub fn push_of(&self, path: PathBuf, disk: Option<PodDisk>) {
        if let Some(disk) = disk {
            self.shared.queue.lock().of.insert(path.clone(), disk);
        }
        self.push(path);
    }

    /// Directories that are not removed yet.
    pub fn held(&self) -> usize {
        let queue = self.shared.queue.lock();
        queue.waiting.len() + queue.parked.len() + queue.at_work
    }
}

impl Drop for Removals {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// A directory that takes its place.
struct Next {
    path: PathBuf,
    next_name: u64,
    wait: Duration,
    is_long: bool,
}

#[derive(Default)]
struct Worker {
    active: VecDeque<Active>,
    /// What failed, by the time of its next try, with the wait before the one after.
    failed: BTreeMap<(Instant, PathBuf), Duration>,
}

struct Active {
    removal: Removal,
    /// Until it is tried again, should it fail.
    wait: Duration,
    /// It has had a turn that was not enough.
    is_long: bool,
}

impl Worker {
    fn run(mut self, shared: &Shared) {
        while self.take_in(shared) {
            self.go_on(shared);
        }
    }

    /// Gives the next one its turn.
    fn go_on(&mut self, shared: &Shared) {
        let Some(mut active) = self.active.pop_front() else { return };
        match turn(&mut active.removal) {
            Ok(true) => {
                let path = &active.removal.path;
                let disk = shared.queue.lock().of.remove(path);
                if let Some(disk) = disk {
                    disk.forget(path);
                }
            }
            Ok(false) => self.park_or_go_on(shared, Active { is_long: true, ..active }),
            Err(error) => self.fail(active.removal.path, &error, active.wait),
        }
    }

    /// One that takes long makes room where others wait, unless it is the only one of its kind.
    fn park_or_go_on(&mut self, shared: &Shared, active: Active) {
        let mut queue = shared.queue.lock();
        if !queue.waiting.is_empty() && self.active.iter().any(|other| other.is_long) {
            let Removal { path, next_name, .. } = active.removal;
            queue.parked.push_back((path, next_name));
        } else {
            self.active.push_back(active);
        }
    }

    /// Begins what is due, and waits where nothing is. False once the node stops.
    fn take_in(&mut self, shared: &Shared) -> bool {
        let mut queue = shared.queue.lock();
        loop {
            if queue.closed {
                return false;
            }
            let now = Instant::now();
            while self.active.len() < ACTIVE_MAX {
                let Some(Next { path, next_name, wait, is_long }) = self.next(&mut queue, now) else { break };
                match Removal::go_on(&path, next_name) {
                    Ok(Some(removal)) => self.active.push_back(Active { removal, wait, is_long }),
                    Ok(None) => _ = queue.of.remove(&path),
                    Err(error) => self.fail(path, &error, wait),
                }
            }
            queue.at_work = self.active.len() + self.failed.len();
            if !self.active.is_empty() {
                return true;
            }
            match self.failed.first_key_value() {
                Some(((at, _), _)) => {
                    shared.changed.wait_until(&mut queue, *at);
                }
                None => shared.changed.wait(&mut queue),
            }
        }
    }

    /// What begins next: those that have had no turn before those that take long, of which one always goes on.
    fn next(&mut self, queue: &mut Queue, now: Instant) -> Option<Next> {
        let parked = |queue: &mut Queue| {
            let (path, next_name) = queue.parked.pop_front()?;
            Some(Next { path, next_name, wait: RETRY_FIRST, is_long: true })
        };
        if !self.active.iter().any(|active| active.is_long)
            && let Some(next) = parked(queue)
        {
            return Some(next);
        }
        if let Some(first) = self.failed.first_entry()
            && first.key().0 <= now
        {
            let ((_, path), wait) = first.remove_entry();
            return Some(Next { path, next_name: 0, wait, is_long: false });
        }
        match queue.waiting.pop_front() {
            Some(path) => Some(Next { path, next_name: 0, wait: RETRY_FIRST, is_long: false }),
            None => parked(queue),
        }
    }

    fn fail(&mut self, path: PathBuf, error: &io::Error, wait: Duration) {
        tracing::warn!(path = %path.display(), %error, "what a pod left behind could not be removed yet");
        self.failed.insert((Instant::now() + wait, path), (wait * 2).min(RETRY_MAX));
    }
}

/// Goes on with a removal for a turn. True once everything is gone.
fn turn(removal: &mut Removal) -> io::Result<bool> {
    let end = Instant::now() + TURN;
    while !removal.advance(TURN_ENTRIES)? {
        if Instant::now() >= end {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::removal::{quick_dir, remove_dir, tests::nest};

    #[test]
    fn a_large_removal_does_not_hold_up_a_small_one() {
        let dir = quick_dir();
        let (large, small) = (dir.path().join("large"), dir.path().join("small"));
        for path in [&large, &small] {
            fs::create_dir(path).unwrap();
        }
        nest(&large, 5000, |_| "d".into());
        let shared = Shared::default();
        shared.queue.lock().waiting.extend([large.clone(), small.clone()]);
        let mut worker = Worker::default();
        while small.exists() {
            assert!(worker.take_in(&shared));
            let mut active = worker.active.pop_front().unwrap();
            if !active.removal.advance(TURN_ENTRIES).unwrap() {
                worker.active.push_back(active);
            }
        }
        assert!(large.exists(), "the large one has had one turn");
        // The test's own directory is removed by recursion.
        remove_dir(&large).unwrap();
    }

    #[test]
    fn however_many_take_long_a_small_one_goes_at_once() {
        let dir = quick_dir();
        let large: Vec<PathBuf> =
            (0..3 * ACTIVE_MAX).map(|at| dir.path().join(format!("large-{at}"))).collect();
        let small = dir.path().join("small");
        for path in large.iter().chain([&small]) {
            fs::create_dir(path).unwrap();
        }
        large.iter().for_each(|path| nest(path, 200, |_| "d".into()));
        let shared = Shared::default();
        shared.queue.lock().waiting.extend(large.iter().cloned());
        let mut worker = Worker::default();
        let mut turns = 0;
        let mut turn = |worker: &mut Worker| {
            assert!(worker.take_in(&shared));
            let mut active = worker.active.pop_front().unwrap();
            turns += 1;
            if !active.removal.advance(TURN_ENTRIES).unwrap() {
                worker.park_or_go_on(&shared, Active { is_long: true, ..active });
            }
            turns
        };
        for _ in 0..2 * ACTIVE_MAX {
            turn(&mut worker);
        }
        shared.queue.lock().waiting.push_back(small.clone());
        let begun = turn(&mut worker);
        while small.exists() {
            assert!(turn(&mut worker) - begun < 5 * ACTIVE_MAX, "those that were there first go on and on");
        }
        assert!(large.iter().all(|path| path.exists()));
        // What made room goes on where it was, and all of it goes.
        let mut all = large.clone();
        while !all.is_empty() {
            turn(&mut worker);
            all.retain(|path| path.exists());
        }
    }

    #[test]
    fn what_is_on_the_disk_counts_until_it_is_removed() {
        let dir = quick_dir();
        let path = dir.path().join("pod");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        // Nobody works on it but this test.
        let removals = Removals { shared: Arc::default() };
        let counted = || removals.shared.queue.lock().of.contains_key(&path);
        let disk = PodDisk::alone(None);
        removals.push_of(path.clone(), Some(disk.clone()));
        let mut worker = Worker::default();
        while path.exists() {
            assert!(counted(), "it is there");
            worker.take_in(&removals.shared);
            worker.go_on(&removals.shared);
        }
        assert!(!counted());
        // One that is not there is not counted either.
        removals.push_of(path.clone(), Some(disk));
        fs::create_dir(dir.path().join("other")).unwrap();
        removals.push(dir.path().join("other"));
        worker.take_in(&removals.shared);
        assert!(!counted());
    }

    #[test]
    fn what_fails_is_tried_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod");
        // A file in the place of a directory cannot be removed as one.
        fs::write(&path, "").unwrap();
        let shared = Shared::default();
        let mut worker = Worker::default();
        for round in 1..=3 {
            let (path, wait) = match worker.failed.pop_first() {
                Some(((_, path), wait)) => (path, wait),
                None => (path.clone(), RETRY_FIRST),
            };
            assert_eq!(wait, RETRY_FIRST * (1 << (round - 1)));
            worker.fail(path, &io::Error::other("no"), wait);
        }
        let ((at, again), _) = worker.failed.pop_first().unwrap();
        assert!(at > Instant::now() && again == path);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        worker.failed.insert((Instant::now(), again), RETRY_MAX);
        assert!(worker.take_in(&shared));
        assert!(worker.active.pop_front().unwrap().removal.advance(10).unwrap());
        assert!(!path.exists());
    }
}
