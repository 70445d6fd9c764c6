//! The store's promises, one test each.

use std::sync::Arc;

use coracle_objects::{
    Applied, Event, EventKind, Expect, ObjectKey, Refusal, Transaction, Write, transaction::Found,
};
use coracle_store::{
    Batch, Command, Expired, FIRST_LEVEL, LEVELS, Level, Levels, Outcome, Request, RequestId, SnapshotError,
    Store, StoreConfig, encode_outcome,
};
use proptest::prelude::*;

/// A store and the client that writes to it.
struct Bench {
    store: Store,
    sequence: u64,
}

impl Bench {
    fn new(config: StoreConfig) -> Self {
        Self { store: Store::new(config), sequence: 0 }
    }

    fn apply(&mut self, transaction: Transaction) -> Batch {
        self.sequence += 1;
        self.store.apply(&command(vec![(self.sequence, transaction)]).encode()).unwrap()
    }

    fn outcome(&mut self, transaction: Transaction) -> Outcome {
        self.apply(transaction).results.remove(0).1
    }
}

fn command(transactions: Vec<(u64, Transaction)>) -> Command {
    let requests = transactions
        .into_iter()
        .map(|(sequence, transaction)| Request { id: RequestId { client: 1, sequence }, transaction })
        .collect();
    Command { proposer: 1, requests }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("configmaps", "default", name)
}

fn draft(name: &str, data: &str) -> bytes::Bytes {
    format!(
        r#"{{"kind":"ConfigMap","metadata":{{"name":"{name}","uid":"u-{name}"}},"data":{{"k":"{data}"}}}}"#
    )
    .into()
}

fn put(name: &str, data: &str) -> Transaction {
    Transaction {
        preconditions: vec![],
        writes: vec![Write::Put { key: key(name), draft: draft(name, data) }],
    }
}

fn delete(name: &str) -> Transaction {
    Transaction { preconditions: vec![], writes: vec![Write::Delete { key: key(name) }] }
}

fn revisions(events: &[Arc<Event>]) -> Vec<u64> {
    events.iter().map(|event| event.object.revision).collect()
}

#[test]
fn every_changing_transaction_is_one_revision() {
    let mut bench = Bench::new(StoreConfig::default());
    assert_eq!(bench.outcome(put("a", "1")), Ok(Applied { revision: 1, revisions: vec![1] }));
    let mut both = put("b", "1");
    both.writes.extend(put("c", "1").writes);
    let batch = bench.apply(both);
    assert_eq!(batch.revision, 2);
    assert_eq!(revisions(&batch.events), [2, 2]);
    assert_eq!(bench.store.view().get(&key("c")).unwrap().revision, 2);
}

#[test]
fn a_put_of_the_same_draft_keeps_the_revision() {
    let mut bench = Bench::new(StoreConfig::default());
    bench.apply(put("a", "1"));
    bench.apply(put("b", "1"));
    let batch = bench.apply(put("a", "1"));
    assert_eq!(batch.results[0].1, Ok(Applied { revision: 2, revisions: vec![1] }));
    assert!(batch.events.is_empty());
    let mut mixed = put("a", "1");
    mixed.writes.extend(put("b", "2").writes);
    assert_eq!(bench.outcome(mixed), Ok(Applied { revision: 3, revisions: vec![1, 3] }));
}

#[test]
fn a_deletion_has_a_revision_of_its_own_and_shows_the_last_state() {
    let mut bench = Bench::new(StoreConfig::default());
    bench.apply(put("a", "1"));
    let batch = bench.apply(delete("a"));
    let event = &batch.events[0];
    assert_eq!((event.kind, event.object.revision), (EventKind::Deleted, 2));
    let value: serde_json::Value = event.object.parse().unwrap();
    assert_eq!(value["metadata"]["resourceVersion"], "2");
    assert_eq!(value["data"]["k"], "1");
    assert!(bench.store.view().get(&key("a")).is_none());
    assert_eq!(bench.outcome(delete("a")), Err(Refusal::NotFound { key: key("a") }));
    assert!(bench.outcome(delete("a").expecting(key("a"), Expect::Absent)).is_ok());
}

#[test]
fn preconditions_are_checked_when_applied() {
    let mut bench = Bench::new(StoreConfig::default());
    bench.apply(put("a", "1"));
    let found = || Found::Object { revision: 1, uid: "u-a".into(), deleting: false };
    let refused = |expected: Expect, found: Found| {
        Err(Refusal::Precondition { index: 0, key: key("a"), expected, found })
    };
    for (expect, holds) in [
        (Expect::Absent, false),
        (Expect::Exists, true),
        (Expect::Revision(1), true),
        (Expect::Revision(7), false),
        (Expect::Uid("u-a".into()), true),
        (Expect::Uid("other".into()), false),
        (Expect::NotDeleting, true),
    ] {
        let outcome = bench.outcome(Transaction::default().expecting(key("a"), expect.clone()));
        match holds {
            true => assert_eq!(outcome, Ok(Applied { revision: 1, revisions: vec![] }), "{expect:?}"),
            false => assert_eq!(outcome, refused(expect, found())),
        }
    }
    assert_eq!(
        bench.outcome(Transaction::update(key("z"), draft("z", "1"), 3)),
        Err(Refusal::Precondition {
            index: 0,
            key: key("z"),
            expected: Expect::Revision(3),
            found: Found::Nothing
        })
    );
}

#[test]
fn a_deleting_namespace_takes_no_objects() {
    let mut bench = Bench::new(StoreConfig::default());
    let namespace = ObjectKey::new("namespaces", "", "old");
    let json = r#"{"metadata":{"name":"old","uid":"n","deletionTimestamp":"2026-01-01T00:00:00Z"}}"#;
    bench.apply(Transaction::create(namespace.clone(), json.into()));
    let create = Transaction::create(key("a"), draft("a", "1")).expecting(namespace, Expect::NotDeleting);
    assert!(matches!(bench.outcome(create), Err(Refusal::Precondition { index: 1, .. })));
}

#[test]
fn a_refused_transaction_changes_nothing() {
    const SMALL: &[Level] = &[Level { object_bytes_max: 200, ..LEVELS[0] }];
    let mut bench = Bench::new(StoreConfig { levels: Levels::new(SMALL), ..StoreConfig::default() });
    let mut transaction = put("a", "1");
    transaction.writes.push(Write::Put { key: key("b"), draft: "nonsense".into() });
    assert!(matches!(bench.outcome(transaction.clone()), Err(Refusal::BadDraft { .. })));
    bench.sequence -= 1;
    assert!(matches!(bench.outcome(transaction), Err(Refusal::BadDraft { .. })), "also as a retry");
    let mut transaction = put("a", "1");
    transaction.writes.extend(put("b", &"x".repeat(200)).writes);
    assert!(matches!(bench.outcome(transaction), Err(Refusal::TooLarge { limit: 200, .. })));
    assert_eq!(bench.store.revision(), 0);
    assert_eq!(bench.store.view().count("configmaps"), 0);
}

#[test]
fn the_words_of_a_refusal_are_not_in_the_hash() {
    use sha2::{Digest, Sha256};
    let mut bench = Bench::new(StoreConfig::default());
    let write = Write::Put { key: key("a"), draft: "nonsense".into() };
    let refused = bench.outcome(Transaction { preconditions: vec![], writes: vec![write] });
    let Err(Refusal::BadDraft { key, reason }) = refused else { panic!("{refused:?}") };
    assert!(!reason.is_empty());
    let wordless = encode_outcome(&Err(Refusal::BadDraft { key, reason: String::new() }), FIRST_LEVEL);
    let hash: [u8; 32] = Sha256::new_with_prefix([0; 32]).chain_update(wordless).finalize().into();
    assert_eq!(bench.store.state_hash(), hash);
}

#[test]
fn a_retry_gets_the_first_outcome() {
    let mut store = Store::new(StoreConfig::default());
    let create = Transaction::create(key("a"), draft("a", "1"));
    let first = store.apply(&command(vec![(5, create.clone())]).encode()).unwrap();
    let again = store.apply(&command(vec![(5, create.clone()), (6, create)]).encode()).unwrap();
    assert_eq!(first.results[0], again.results[0]);
    assert!(again.results[1].1.is_err());
    assert!(again.events.is_empty());
    assert_eq!(store.revision(), 1);
}

#[test]
fn a_retry_is_harmless_however_many_clients_there_are() {
    let mut store = Store::new(StoreConfig::default());
    let entry = |client: u64| {
        let transaction = put("a", &client.to_string());
        let id = RequestId { client, sequence: 1 };
        Command { proposer: 1, requests: vec![Request { id, transaction }] }.encode()
    };
    let first: Vec<_> = (0..1000).map(|client| store.apply(&entry(client)).unwrap().results).collect();
    let mut copy = restored(&written(&store)).unwrap();
    for store in [&mut store, &mut copy] {
        let again: Vec<_> = (0..1000).map(|client| store.apply(&entry(client)).unwrap().results).collect();
        assert_eq!(again, first);
        assert_eq!(store.revision(), 1000);
    }
}

#[test]
fn a_restored_backup_applies_nothing_that_its_cluster_has_applied() {
    let mut bench = Bench::new(StoreConfig::default());
    bench.apply(put("a", "1"));
    bench.store.go_on_at(11);
    let retry = command(vec![(1, put("a", "1"))]).encode();
    assert!(bench.store.apply(&retry).unwrap().results.is_empty());
    assert_eq!(bench.store.clock(), 1);
    assert!(bench.outcome(put("a", "2")).is_ok());
}

#[test]
fn events_are_served_from_the_window_and_expire_behind_it() {
    let mut bench = Bench::new(StoreConfig { watch_events_max: 3, ..StoreConfig::default() });
    for data in 1..=5 {
        bench.apply(put("a", &data.to_string()));
    }
    let since = |after| bench.store.events_since("configmaps", after).map(|events| revisions(&events));
    assert_eq!(since(1), Err(Expired { after: 1, oldest: 2 }));
    assert_eq!(since(2), Ok(vec![3, 4, 5]));
    assert_eq!(since(5), Ok(vec![]));
    assert_eq!(since(900), Ok(vec![]));
    assert_eq!(bench.store.events_since("pods", 0).map(|events| events.len()), Ok(0));
}

#[test]
fn a_window_that_cuts_a_transaction_expires_all_of_it() {
    let mut bench = Bench::new(StoreConfig { watch_events_max: 2, ..StoreConfig::default() });
    let mut three = put("a", "1");
    three.writes.extend(put("b", "1").writes);
    three.writes.extend(put("c", "1").writes);
    bench.apply(three);
    assert_eq!(bench.store.events_since("configmaps", 0).unwrap_err(), Expired { after: 0, oldest: 1 });
    assert!(bench.store.events_since("configmaps", 1).unwrap().is_empty());
}

#[test]
fn large_events_make_room_for_each_other_and_leave_quiet_resources_alone() {
    let mut bench = Bench::new(StoreConfig { watch_bytes_max: 1 << 20, ..StoreConfig::default() });
    let quiet = ObjectKey::new("pods", "default", "p");
    bench.apply(Transaction::create(quiet, draft("p", "1")));
    let large = "x".repeat(100_000);
    for number in 0..50 {
        bench.apply(put("a", &format!("{number}{large}")));
    }
    let last = bench.store.revision();
    let (_, count, oldest) =
        bench.store.window().into_iter().find(|(name, ..)| name.as_str() == "configmaps").unwrap();
    assert!((2..=5).contains(&count), "each of {count} counts with the object before it");
    assert_eq!(oldest, last - count as u64);
    assert_eq!(
        bench.store.events_since("configmaps", oldest - 1).unwrap_err(),
        Expired { after: oldest - 1, oldest }
    );
    assert_eq!(bench.store.events_since("configmaps", oldest).unwrap().len(), count);
    assert_eq!(
        bench.store.first_events_since("configmaps", oldest, 1).unwrap()[0].object.revision,
        oldest + 1
    );
    assert_eq!(bench.store.events_since("pods", 0).unwrap().len(), 1);
}

#[test]
fn many_large_resources_share_the_room() {
    let mut bench = Bench::new(StoreConfig { watch_bytes_max: 1 << 20, ..StoreConfig::default() });
    let large = "x".repeat(100_000);
    for number in 0..60 {
        let key = ObjectKey::new(["secrets", "pods", "leases"][number % 3], "default", &format!("n{number}"));
        bench.apply(Transaction::create(key, draft("n", &large)));
    }
    let counts: Vec<usize> = bench.store.window().into_iter().map(|(_, count, _)| count).collect();
    assert_eq!(counts.iter().sum::<usize>(), 10);
    assert!(counts.iter().all(|count| *count >= 3), "{counts:?}");
}

#[test]
fn old_events_leave_by_age_in_revisions_too() {
    let mut bench = Bench::new(StoreConfig { watch_revisions_max: 10, ..StoreConfig::default() });
    for data in 1..=20 {
        bench.apply(put("a", &data.to_string()));
    }
    assert_eq!(bench.store.events_since("configmaps", 3).unwrap_err(), Expired { after: 3, oldest: 9 });
    assert_eq!(bench.store.events_since("configmaps", 9).unwrap().len(), 11);
}

#[test]
fn old_events_are_forgotten_while_all_hold_too_much() {
    let mut bench = Bench::new(StoreConfig::default());
    let quiet = ObjectKey::new("pods", "default", "p");
    bench.apply(Transaction::create(quiet, draft("p", "1")));
    let large = "x".repeat(100_000);
    for number in 0..20 {
        bench.apply(put("a", &format!("{number}{large}")));
    }
    let count = |bench: &Bench, resource: &str| {
        let all = bench.store.window();
        all.into_iter().find(|(name, ..)| name.as_str() == resource).map(|(_, count, _)| count)
    };
    bench.store.forget_events(10, 100 << 20);
    assert_eq!(count(&bench, "configmaps"), Some(20), "there is room");
    bench.store.forget_events(10, 1 << 20);
    // Nine are old, each with what was there before it.
    assert_eq!(count(&bench, "configmaps"), Some(16));
    assert_eq!(bench.store.events_since("configmaps", 4).unwrap_err(), Expired { after: 4, oldest: 5 });
    assert_eq!(bench.store.events_since("configmaps", 5).unwrap().len(), 16);
    assert_eq!(count(&bench, "pods"), Some(1), "they are not what takes the room");
    bench.store.forget_events(21, 0);
    assert_eq!((count(&bench, "configmaps"), count(&bench, "pods")), (Some(0), Some(0)));
    assert_eq!(bench.store.events_since("configmaps", 21).unwrap().len(), 0);
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let mut bench = Bench::new(StoreConfig::default());
    bench.apply(put("a", "1"));
    let bytes = written(&bench.store);
    for cut in 0..bytes.len() {
        assert!(restored(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(matches!(restored(b"CORACLE\x02"), Err(SnapshotError::Magic)));
    assert!(matches!(restored(b"a zip file"), Err(SnapshotError::Magic)));
    assert!(matches!(restored(b"CORACLE\x03\xff\xff\xff\xff"), Err(SnapshotError::TooLong { .. })));

    let mut again = restored(&bytes).unwrap();
    let (revision, hash) = (again.revision(), again.state_hash());
    again.go_on_at(revision + 1_000_000_000);
    again.go_on_at(revision);
    assert_eq!((again.revision(), again.state_hash()), (revision + 1_000_000_000, hash));
    assert!(again.events_since("pods", revision).is_err());
    assert!(again.events_since("pods", again.revision()).is_ok());
}

fn written(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.freeze().write_to(&mut bytes).unwrap();
    bytes
}

fn restored(mut bytes: &[u8]) -> Result<Store, SnapshotError> {
    Store::restore(&mut bytes, StoreConfig::default())
}

/// Few names and values, so that puts, no-ops, conflicts, deletions and retries all happen.
fn arbitrary_transactions() -> impl Strategy<Value = Vec<(u64, Transaction)>> {
    let one = (1..40u64, 0..4u8, 0..3u8, 0..4u8).prop_map(|(sequence, name, data, shape)| {
        let name = format!("n{name}");
        let transaction = match shape {
            0 => Transaction::create(key(&name), draft(&name, &data.to_string())),
            1 => delete(&name),
            2 => Transaction::update(key(&name), draft(&name, "u"), sequence),
            _ => put(&name, &data.to_string()),
        };
        (sequence, transaction)
    });
    proptest::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn replay_gives_the_same_hash_and_a_snapshot_goes_on_as_the_original(
        before in arbitrary_transactions(), after in arbitrary_transactions(),
    ) {
        let mut store = Store::new(StoreConfig::default());
        let mut replica = Store::new(StoreConfig::default());
        for transaction in &before {
            let entry = command(vec![transaction.clone()]).encode();
            store.apply(&entry).unwrap();
            replica.apply(&entry).unwrap();
        }
        prop_assert_eq!(store.state_hash(), replica.state_hash());
        let mut copy = restored(&written(&store)).unwrap();
        let entry = command(after).encode();
        let (original, copied) = (store.apply(&entry).unwrap(), copy.apply(&entry).unwrap());
        prop_assert_eq!(original.results, copied.results);
        prop_assert_eq!(store.state_hash(), copy.state_hash());
        prop_assert_eq!(written(&store), written(&copy));
        prop_assert_eq!(&store.view().tables, &copy.view().tables);
    }

    #[test]
    fn replaying_events_over_nothing_rebuilds_the_view(transactions in arbitrary_transactions()) {
        let mut store = Store::new(StoreConfig::default());
        let mut mirror = std::collections::BTreeMap::new();
        let mut last = 0;
        for transaction in transactions {
            for event in store.apply(&command(vec![transaction]).encode()).unwrap().events {
                prop_assert!(event.object.revision > last, "one event a transaction here");
                last = event.object.revision;
                let previous = match event.kind {
                    EventKind::Deleted => mirror.remove(&event.object.key),
                    _ => mirror.insert(event.object.key.clone(), event.object.clone()),
                };
                prop_assert_eq!(&previous, &event.previous);
            }
        }
        let view: Vec<_> = store.view().list("configmaps", None).cloned().collect();
        prop_assert_eq!(mirror.into_values().collect::<Vec<_>>(), view);
    }
}

#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the clock measures the test; apply does not see it"
)]
/// How long the store takes for one transaction that makes and removes so many objects.
fn applying(count: usize) -> std::time::Duration {
    let names: Vec<String> = (0..count).map(|number| format!("n{number}")).collect();
    let mut transaction = Transaction::default();
    for name in &names {
        transaction.writes.extend(put(name, "1").writes);
        transaction = transaction.expecting(key(name), Expect::Absent);
    }
    transaction.writes.extend(names.iter().map(|name| Write::Delete { key: key(name) }));
    transaction.writes.extend(names.iter().map(|name| Write::Delete { key: key(name) }));
    let entry = command(vec![(1, transaction)]).encode();
    let mut best = std::time::Duration::MAX;
    for _ in 0..3 {
        let mut store = Store::new(StoreConfig::default());
        let begun = std::time::Instant::now();
        let batch = store.apply(&entry).unwrap();
        best = best.min(begun.elapsed());
        assert!(batch.results[0].1.is_ok() && batch.events.is_empty());
    }
    best
}

#[test]
fn a_large_transaction_takes_time_in_proportion() {
    let (small, large) = (applying(1_000), applying(10_000));
    assert!(large < small * 40, "ten times as much took {large:?}, after {small:?}");
}
