//! Small histories, right ones and wrong ones.

use coracle_objects::{Expect, Revision};
use coracle_raft::core::Apply;
use coracle_store::{Command, Outcome, Request, RequestId, Store, StoreConfig};

use super::*;
use crate::checker::model::Value;

/// A store that does what the clients ask, and a history that may tell otherwise.
struct Bench {
    keys: Keys,
    store: Store,
    ledger: Ledger,
    history: History,
    applied: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            keys: Keys::new(4),
            store: Store::new(StoreConfig::default()),
            ledger: Ledger::default(),
            history: History::default(),
            applied: 0,
        }
    }

    /// A put of object 0 under a condition, begun at some moment.
    fn put(&mut self, expect: Option<Expect>, began: Micros) -> OpId {
        let op = self.history.next_id();
        let draft = format!(r#"{{"metadata":{{"uid":"u"}},"op":{op}}}"#).into();
        let value = Value { uid: "u".to_owned(), deleting: false, draft };
        let preconditions = expect.map(|expect| (0, expect)).into_iter().collect();
        self.write(Spec { preconditions, changes: vec![(0, Some(value))] }, began)
    }

    fn delete(&mut self, began: Micros) -> OpId {
        self.write(Spec { preconditions: vec![], changes: vec![(0, None)] }, began)
    }

    fn write(&mut self, spec: Spec, began: Micros) -> OpId {
        self.history.begin(Asker::Client(0), OpKind::Write(spec), began)
    }

    /// The store does it.
    fn apply(&mut self, op: OpId) -> Outcome {
        let OpKind::Write(spec) = &self.history.op(op).kind else { unreachable!("only writes are applied") };
        self.applied += 1;
        let id = RequestId { client: 1, sequence: self.applied };
        let request = Request { id, transaction: spec.transaction(&self.keys) };
        let data = Command { proposer: 1, requests: vec![request] }.encode();
        let mut batch = self.store.apply(&data).expect("it decodes");
        let item = Apply { index: self.applied, term: 1, data, token: None };
        let hash = self.store.state_hash();
        assert!(self.ledger.applied(1, &item, self.applied, &batch, hash, &self.keys).is_ok());
        batch.results.remove(0).1
    }

    fn end(&mut self, op: OpId, at: Micros, ending: Ending) {
        self.history.end(op, at, ending);
    }

    fn done(&mut self, op: OpId, at: Micros) -> Revision {
        let applied = self.apply(op).expect("it is right");
        let revision = applied.revision;
        self.end(op, at, Ending::Applied(applied));
        revision
    }

    fn read(&mut self, view: View, began: Micros, at: Micros) {
        let op = self.history.begin(Asker::Client(0), OpKind::Read, began);
        self.end(op, at, Ending::Read(view));
    }

    fn verdict(&self) -> String {
        match self.history.check(&self.keys, &self.ledger) {
            Ok(()) => "right".to_owned(),
            Err(broken) => broken.what,
        }
    }
}

#[test]
fn a_plain_history_is_right() {
    let mut bench = Bench::new();
    let first = bench.put(Some(Expect::Absent), 0);
    bench.done(first, 10);
    bench.read(bench.store.view().clone(), 11, 12);
    let second = bench.put(Some(Expect::Absent), 20);
    let refusal = bench.apply(second).expect_err("it exists");
    bench.end(second, 30, Ending::Refused(refusal));
    assert_eq!(bench.verdict(), "right");
}

#[test]
fn an_acknowledged_write_must_be_there() {
    let mut bench = Bench::new();
    let lost = bench.put(None, 0);
    bench.end(lost, 10, Ending::Applied(Applied { revision: 1, revisions: vec![1] }));
    assert!(bench.verdict().contains("lost"), "{}", bench.verdict());
}

#[test]
fn a_stale_read_is_found() {
    let mut bench = Bench::new();
    let old = bench.store.view().clone();
    let write = bench.put(None, 0);
    bench.done(write, 10);
    bench.read(old.clone(), 5, 15);
    assert_eq!(bench.verdict(), "right", "they overlap");
    bench.read(old, 11, 15);
    assert!(bench.verdict().contains("stale read"), "{}", bench.verdict());
}

#[test]
fn reads_do_not_go_back() {
    let mut bench = Bench::new();
    let old = bench.store.view().clone();
    let write = bench.put(None, 0);
    bench.apply(write).expect("it is right");
    bench.read(bench.store.view().clone(), 5, 6);
    bench.read(old, 7, 8);
    bench.end(write, 20, Ending::Unknown);
    assert!(bench.verdict().contains("stale read"), "{}", bench.verdict());
}

#[test]
fn revisions_follow_real_time() {
    let mut bench = Bench::new();
    let (early, late) = (bench.put(None, 0), bench.put(None, 20));
    bench.done(late, 30);
    bench.done(early, 10);
    assert!(bench.verdict().contains("after 2 was known"), "{}", bench.verdict());
}

#[test]
fn what_was_certainly_not_done_is_not() {
    for ending in [Ending::NotDone, Ending::Refused(Refusal::NotFound { key: Keys::new(1).key(0).clone() })] {
        let mut bench = Bench::new();
        let write = bench.put(None, 0);
        bench.apply(write).expect("it is right");
        bench.end(write, 10, ending);
        assert!(bench.verdict().contains("done, but its client"), "{}", bench.verdict());
    }
}

#[test]
fn a_refusal_needs_a_reason_within_its_time() {
    let mut bench = Bench::new();
    let write = bench.put(Some(Expect::Absent), 0);
    bench.done(write, 10);
    let late = bench.put(Some(Expect::Absent), 20);
    let refusal = bench.apply(late).expect_err("it exists");
    let delete = bench.delete(30);
    bench.done(delete, 40);
    bench.end(late, 50, Ending::Refused(refusal.clone()));
    assert_eq!(bench.verdict(), "right", "it existed when it began");
    let later = bench.put(Some(Expect::Absent), 60);
    bench.end(later, 70, Ending::Refused(refusal));
    assert!(bench.verdict().contains("without a reason"), "{}", bench.verdict());
}

#[test]
fn one_operation_is_done_once() {
    let mut bench = Bench::new();
    let twice = bench.put(None, 0);
    bench.apply(twice).expect("it is right");
    let between = bench.put(None, 0);
    bench.done(between, 10);
    bench.apply(twice).expect("the store does not know it");
    bench.end(twice, 20, Ending::Unknown);
    assert!(bench.verdict().contains("done twice"), "{}", bench.verdict());
}

#[test]
fn deletions_of_unknown_outcome_find_their_place() {
    let mut bench = Bench::new();
    let write = bench.put(None, 0);
    bench.done(write, 10);
    let early = bench.delete(5);
    bench.apply(early).expect("it is there");
    bench.end(early, 15, Ending::Unknown);
    let late = bench.delete(100);
    bench.end(late, 110, Ending::Unknown);
    bench.read(bench.store.view().clone(), 20, 30);
    assert_eq!(bench.verdict(), "right");

    // The only one that could have done it began later than its work was seen.
    let mut bench = Bench::new();
    let write = bench.put(None, 0);
    bench.done(write, 10);
    let late = bench.delete(100);
    bench.apply(late).expect("it is there");
    bench.end(late, 110, Ending::Unknown);
    bench.read(bench.store.view().clone(), 20, 30);
    assert!(bench.verdict().contains("nobody may have deleted"), "{}", bench.verdict());
}

#[test]
fn of_two_deletions_the_earlier_was_done_first() {
    let mut bench = Bench::new();
    let write = bench.put(None, 0);
    bench.done(write, 10);
    let early = bench.delete(11);
    bench.apply(early).expect("it is there");
    let update = bench.put(Some(Expect::Exists), 20);
    let refusal = bench.apply(update).expect_err("it is gone");
    bench.end(update, 30, Ending::Refused(refusal));
    let again = bench.put(None, 40);
    bench.done(again, 50);
    let late = bench.delete(60);
    bench.apply(late).expect("it is there");
    bench.end(early, 70, Ending::Unknown);
    bench.end(late, 80, Ending::Unknown);
    assert_eq!(bench.verdict(), "right");
}
