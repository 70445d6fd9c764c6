//! The state machine that raft drives: applies entries to the store, publishes the view, hands events to watchers.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use coracle_objects::{Revision, View};
use coracle_raft::{Frozen, StateMachine, chain, snapshot::Look};
use coracle_store::{Batch, CorruptEntry, SnapshotError, Store, StoreConfig, snapshot};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    encryption::SecretBox,
    version::{Agreed, Build},
    watch_hub::WatchHub,
};

/// Events of this age are kept for watches that resume as long as all take little: after a burst the memory is given back.
/// Source: kube-apiserver has etcd compact after five minutes.
const OLD_AFTER: Duration = Duration::from_secs(300);
const OLD_EVENTS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What an applied entry gives back to its proposer.
#[derive(Clone, Debug)]
pub struct AppliedEntry {
    /// Of the entry in the log.
    pub index: u64,
    /// What became of each of its transactions, and the events.
    pub batch: Arc<Batch>,
}

/// A reason for which this member must stop; empty while there is none.
pub type Fatal = watch::Sender<Option<String>>;

/// Owned by raft's apply thread.
pub struct Machine {
    build: Build,
    store: Arc<Mutex<Store>>,
    hub: Arc<WatchHub>,
    moments: Moments,
    fatal: Arc<Fatal>,
}

/// The revisions of the last few minutes.
#[derive(Default)]
struct Moments(VecDeque<(Instant, Revision)>);

impl Moments {
    /// Takes note of a revision. The one up to which events are old, where that is another than before.
    fn pass(&mut self, now: Instant, revision: Revision) -> Option<Revision> {
        if self.0.back().is_none_or(|(_, last)| *last != revision) {
            self.0.push_back((now, revision));
        }
        let old = self.0.iter().take_while(|(then, _)| now.duration_since(*then) >= OLD_AFTER).count();
        self.0.drain(..old).next_back().map(|(_, revision)| revision)
    }
}

impl Machine {
    /// An empty machine of this build and the hub through which its state is read, opened with these keys.
    #[cfg(test)]
    pub(crate) fn new(fatal: Arc<Fatal>, secrets: Arc<SecretBox>) -> (Self, Arc<WatchHub>) {
        Self::of_build(Build::default(), fatal, secrets)
    }

    /// The same of a build that may be another.
    pub fn of_build(build: Build, fatal: Arc<Fatal>, secrets: Arc<SecretBox>) -> (Self, Arc<WatchHub>) {
        let store = Arc::new(Mutex::new(Store::new(config(&build))));
        let hub = Arc::new(WatchHub::new(store.clone(), secrets));
        (Self { build, store, hub: hub.clone(), moments: Moments::default(), fatal }, hub)
    }

    /// Makes the process stop. Panics, so that raft neither counts the entry as applied nor answers reads of it.
    fn stop(&self, index: u64, reason: &str) -> ! {
        let reason = format!("entry {index} of the log cannot be applied: {reason}");
        self.fatal.send_if_modified(|fatal| fatal.is_none() && fatal.replace(reason.clone()).is_none());
        panic!("{reason}");
    }
}

fn config(build: &Build) -> StoreConfig {
    StoreConfig { levels: build.levels, ..StoreConfig::default() }
}

/// Why a build cannot read a state, in words for who runs it.
pub fn unreadable(error: &SnapshotError, build: &Build) -> String {
    let older = match error {
        SnapshotError::Level { origin, .. } => Agreed::from(origin).refusal(build),
        _ => None,
    };
    older.unwrap_or_else(|| chain(error))
}

/// The same as raft takes it: it goes on, or ends, by the kind.
fn refused(error: &SnapshotError, build: &Build) -> io::Error {
    let kind = match error {
        SnapshotError::Level { .. } => io::ErrorKind::Unsupported,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, unreadable(error, build))
}

/// The store at one moment, as it goes into a snapshot.
pub struct FrozenStore(pub coracle_store::Frozen);

impl Frozen for FrozenStore {
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.write_as(&Agreed::read(self.0.view()).version, out)
    }
}

impl StateMachine for Machine {
    type Output = AppliedEntry;
    type Frozen = FrozenStore;

    /// The view and the events are published before the outcome is given back: a proposer reads its own writes.
    fn apply(&mut self, index: u64, _term: u64, entry: &[u8]) -> AppliedEntry {
        // Held until the events are sent, so that a watch that begins meanwhile has each event exactly once.
        let mut store = self.store.lock();
        match store.apply(entry) {
            Ok(batch) => {
                let view: View = store.view().clone();
                self.hub.publish(Arc::new(view), &batch.events);
                self.hub.set_clock(store.clock());
                self.hub.checkpoints().lock().applied(index, || store.state_hash());
                AppliedEntry { index, batch: Arc::new(batch) }
            }
            Err(error) => {
                let agreed = match error {
                    CorruptEntry::Level { found, .. } => {
                        Agreed { level: found, ..Agreed::read(store.view()) }
                    }
                    _ => Agreed::default(),
                };
                drop(store);
                let reason = agreed.refusal(&self.build).unwrap_or_else(|| chain(&error));
                self.stop(index, &reason)
            }
        }
    }

    fn tend(&mut self) {
        let mut store = self.store.lock();
        if let Some(old) = self.moments.pass(Instant::now(), store.revision()) {
            store.forget_events(old, OLD_EVENTS_BYTES_MAX);
        }
        drop(store);
        self.hub.forget_followed();
    }

    fn freeze(&self) -> FrozenStore {
        FrozenStore(self.store.lock().freeze())
    }

    /// Whoever watches has to read again: what happened between the two states is not known here.
    fn restore(&mut self, index: u64, state: &mut dyn Read) -> io::Result<()> {
        let restored = Store::restore(state, config(&self.build));
        let restored = restored.map_err(|error| refused(&error, &self.build))?;
        let mut store = self.store.lock();
        *store = restored;
        self.hub.replace(Arc::new(store.view().clone()));
        self.hub.set_clock(store.clock());
        self.hub.checkpoints().lock().begin(index);
        Ok(())
    }

    fn look(&self) -> Look {
        let build = self.build.clone();
        Arc::new(move |state| match snapshot::origin(state, build.levels) {
            Ok(_) => Ok(()),
            Err(error) => Err(refused(&error, &build)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use coracle_objects::{ObjectKey, Transaction};
    use coracle_store::{Command, FIRST_LEVEL, LEVELS, Level, Levels, Request, RequestId};

    use super::*;

    const TWO: &[Level] = &[LEVELS[0], LEVELS[0]];

    /// The state of a cluster that has agreed on version 9.0.0, and wrote its last entry at `level`.
    fn state_at(level: u8) -> Vec<u8> {
        let newer = Build { version: "9.0.0".into(), levels: Levels::new(TWO) };
        let (mut machine, _hub) = Machine::of_build(newer, Arc::new(Fatal::new(None)), Arc::default());
        let key = ObjectKey::new("configmaps", "kube-system", "coracle-cluster");
        let draft = r#"{"metadata":{},"data":{"version":"9.0.0","entryFormat":"2"}}"#;
        let id = RequestId { client: 1, sequence: 1 };
        let requests = vec![Request { id, transaction: Transaction::create(key, draft.into()) }];
        let entry = Command { proposer: 1, requests }.encode_at(level, Levels::new(TWO)).unwrap();
        assert!(machine.apply(1, 1, &entry).batch.results[0].1.is_ok());
        let mut state = Vec::new();
        machine.freeze().write_to(&mut state).unwrap();
        state
    }

    #[test]
    fn a_state_that_this_build_cannot_read_is_refused_with_both_versions() {
        let old = Build { version: "0.0.9".into(), levels: Levels::default() };
        let (mut machine, _hub) = Machine::of_build(old, Arc::new(Fatal::new(None)), Arc::default());
        let look = machine.look();
        let (low, high) = (state_at(FIRST_LEVEL), state_at(2));
        look(&mut &low[..]).unwrap();
        machine.restore(1, &mut &low[..]).unwrap();
        let revision = machine.store.lock().revision();
        for error in [look(&mut &high[..]).unwrap_err(), machine.restore(1, &mut &high[..]).unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
            let mend = "the cluster runs version 9.0.0, this is version 0.0.9: use 9.0.0 or newer";
            assert_eq!(error.to_string(), mend);
        }
        assert_eq!(machine.store.lock().revision(), revision);
        assert_eq!(look(&mut &b"nonsense"[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn events_are_old_after_five_minutes() {
        let (mut moments, begun) = (Moments::default(), Instant::now());
        let mut pass = |seconds, revision| moments.pass(begun + Duration::from_secs(seconds), revision);
        for (seconds, revision, old) in
            [(0, 1, None), (15, 1, None), (30, 3, None), (299, 3, None), (300, 3, Some(1)), (400, 4, Some(3))]
        {
            assert_eq!(pass(seconds, revision), old, "{seconds}");
        }
        assert_eq!((pass(700, 4), pass(701, 4)), (Some(4), None));
    }

    #[test]
    fn an_entry_that_cannot_be_applied_stops_the_member() {
        let fatal = Arc::new(Fatal::new(None));
        let (mut machine, _hub) = Machine::new(fatal.clone(), Arc::default());
        assert!(catch_unwind(AssertUnwindSafe(|| machine.apply(7, 1, b"\xffnonsense"))).is_err());
        assert!(fatal.borrow().as_deref().is_some_and(|reason| reason.starts_with("entry 7 ")));
    }
}
