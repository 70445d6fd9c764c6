//! Levels: two builds in one cluster have equal states, and neither writes what the other cannot read.
//!
//! A test of the first kind below holds the bytes and the hash of a level. Where it fails, this build decides, hashes or
//! writes something otherwise than the builds before it, and a rolling upgrade from them would make the members' states
//! differ: the change belongs under a new level. See `src/level.rs`.

use coracle_objects::{Applied, Expect, ObjectKey, Refusal, Transaction, Write};
use coracle_store::{
    Command, CorruptEntry, FIRST_LEVEL, LEVELS, Level, Levels, Origin, Outcome, Request, RequestId,
    SnapshotError, Store, StoreConfig, decode_outcome, decode_transaction, encode_outcome,
    encode_transaction, level_of, snapshot::origin,
};
use sha2::{Digest, Sha256};

/// A build that knows the first level alone, and one that knows another: it takes smaller drafts there.
const OLD: &[Level] = &[LEVELS[0]];
const NEW: &[Level] = &[LEVELS[0], Level { object_bytes_max: 120, ..LEVELS[0] }];

fn store(levels: &'static [Level]) -> Store {
    Store::new(StoreConfig { levels: Levels::new(levels), ..StoreConfig::default() })
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("configmaps", "default", name)
}

fn draft(data: &str) -> bytes::Bytes {
    format!(r#"{{"metadata":{{"name":"a","uid":"u","labels":{{"x":"y"}}}},"data":{{"k":"{data}"}}}}"#).into()
}

fn put(name: &str, data: &str) -> Transaction {
    let write = Write::Put { key: key(name), draft: draft(data) };
    Transaction { preconditions: vec![], writes: vec![write] }
}

fn command(sequence: u64, transactions: Vec<Transaction>) -> Command {
    let requests = (sequence..).zip(transactions).map(|(sequence, transaction)| {
        let id = RequestId { client: 7, sequence };
        Request { id, transaction }
    });
    Command { proposer: 3, requests: requests.collect() }
}

fn entry(level: u8, sequence: u64, transaction: Transaction) -> bytes::Bytes {
    command(sequence, vec![transaction]).encode_at(level, Levels::new(NEW)).unwrap()
}

fn written(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.freeze().write_as("9.0.0", &mut bytes).unwrap();
    bytes
}

fn restored(bytes: &[u8], levels: &'static [Level]) -> Result<Store, SnapshotError> {
    let config = StoreConfig { levels: Levels::new(levels), ..StoreConfig::default() };
    Store::restore(&mut &bytes[..], config)
}

/// Everything that members must have alike.
fn state(store: &Store) -> (u8, u64, [u8; 32], Vec<u8>) {
    (store.level(), store.revision(), store.state_hash(), written(store))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every kind of outcome, with what tells of each.
fn everything() -> Vec<Transaction> {
    let large = "x".repeat(LEVELS[0].object_bytes_max);
    let mut twice = put("b", "1");
    twice.writes.extend(put("b", "2").writes);
    let bad = Write::Put { key: key("c"), draft: "nonsense".into() };
    let stale = Write::Put { key: key("c"), draft: r#"{"metadata":{"resourceVersion":"1"}}"#.into() };
    let delete = |name: &str| Write::Delete { key: key(name) };
    let of = |writes| Transaction { preconditions: vec![], writes };
    vec![
        Transaction::create(key("a"), draft("1")),
        Transaction::create(key("a"), draft("2")),
        Transaction::update(key("a"), draft("3"), 1).expecting(key("a"), Expect::NotDeleting),
        Transaction::update(key("a"), draft("4"), 1),
        put("a", "3"),
        twice,
        put("z", "1").expecting(key("a"), Expect::Uid("other".into())),
        put("z", "1").expecting(key("z"), Expect::Exists),
        of(vec![bad]),
        of(vec![stale]),
        put("c", &large),
        of(vec![delete("c")]),
        of(vec![delete("c")]).expecting(key("c"), Expect::Absent),
        of(vec![delete("b")]),
    ]
}

#[test]
fn the_first_level_stays_as_it_is() {
    let command = command(1, everything());
    let entry = command.encode();
    let mut store = store(LEVELS);
    let outcomes = store.apply(&entry).unwrap().results;
    // A retry, and one that is too far ahead.
    store.apply(&entry).unwrap();
    let far = RequestId { client: 1, sequence: 1 << 41 };
    let request = Request { id: far, transaction: put("a", "5") };
    assert!(
        store.apply(&Command { proposer: 1, requests: vec![request] }.encode()).unwrap().results.is_empty()
    );
    let agreed: Vec<u8> =
        outcomes.into_iter().flat_map(|(_, outcome)| encode_outcome(&wordless(outcome), 1)).collect();
    let hash: String = store.state_hash().iter().map(|byte| format!("{byte:02x}")).collect();
    let found = [digest(&entry), digest(&agreed), hash, digest(&written(&store))];
    let known = [
        "032f2809765a7f81644e35446e6800688621b1ac3023542182d5c34becdda3ad",
        "25f8d6461bdc5f5e673aea450bf1a04558e1d03fa8e7d6025702fbbae1ff8be5",
        "9aec8550f582bd747ddee2b8bf7867fc4df583e6d00b233231d4a9ecd1bb4e46",
        "1a0345239f62fbb8ad87e1c90ae7e1ccf8403ba48eaab2bd56792a0a270e6a0d",
    ];
    assert_eq!(found, known, "entry, outcomes, hash of the state, state in a snapshot");
}

fn wordless(outcome: Outcome) -> Outcome {
    outcome.map_err(|refusal| match refusal {
        Refusal::BadDraft { key, .. } => Refusal::BadDraft { key, reason: String::new() },
        refusal => refusal,
    })
}

#[test]
fn two_builds_decide_alike_at_the_level_of_the_entry() {
    let (mut old, mut new) = (store(OLD), store(NEW));
    let large = put("large", &"x".repeat(200));
    for (sequence, transaction) in (1..).zip([put("a", "1"), large.clone(), put("a", "2")]) {
        let entry = entry(FIRST_LEVEL, sequence, transaction);
        let (first, second) = (old.apply(&entry).unwrap(), new.apply(&entry).unwrap());
        assert_eq!(first.results, second.results);
        assert!(first.results[0].1.is_ok(), "the newer build would refuse it at its own level");
        assert_eq!(state(&old), state(&new));
    }
    // What each has written the other reads, and goes on with.
    let (mut old, mut new) = (restored(&written(&new), OLD).unwrap(), restored(&written(&old), NEW).unwrap());
    let next = entry(FIRST_LEVEL, 4, large);
    assert_eq!(old.apply(&next).unwrap().results, new.apply(&next).unwrap().results);
    assert_eq!(state(&old), state(&new));
}

#[test]
fn a_raised_level_decides_hashes_and_writes_otherwise() {
    let (mut low, mut high) = (store(NEW), store(NEW));
    let before = entry(1, 1, put("a", "1"));
    low.apply(&before).unwrap();
    high.apply(&before).unwrap();
    assert_eq!(state(&low), state(&high));
    let small = put("a", "2");
    low.apply(&entry(1, 2, small.clone())).unwrap();
    high.apply(&entry(2, 2, small)).unwrap();
    assert_eq!((low.level(), high.level()), (1, 2));
    assert_eq!(low.view().tables.len(), high.view().tables.len());
    assert_ne!(low.state_hash(), high.state_hash());
    assert!(
        written(&low).starts_with(b"CORACLE\x03") && written(&high).starts_with(b"CORACLE\x04\x02\x059.0.0")
    );

    let large = put("large", &"x".repeat(200));
    assert!(low.apply(&entry(1, 3, large.clone())).unwrap().results[0].1.is_ok());
    let refused = high.apply(&entry(2, 3, large.clone())).unwrap().results.remove(0).1;
    assert!(matches!(refused, Err(Refusal::TooLarge { limit: 120, .. })), "{refused:?}");
    // A leader that has not heard of it yet leads nobody back, nor does a restart in between.
    let mut again = restored(&written(&high), NEW).unwrap();
    for store in [&mut high, &mut again] {
        let refused = store.apply(&entry(1, 4, large.clone())).unwrap().results.remove(0).1;
        assert!(matches!(refused, Err(Refusal::TooLarge { limit: 120, .. })), "{refused:?}");
    }
    assert_eq!(state(&high), state(&again));
    // Remembered outcomes of both levels are answered.
    for (level, sequence) in [(1, 1), (2, 3)] {
        let retried = again.apply(&entry(level, sequence, large.clone())).unwrap().results.remove(0).1;
        assert_eq!(retried.is_ok(), sequence == 1, "{retried:?}");
    }
}

#[test]
fn an_older_build_stops_before_a_newer_entry_and_is_as_it_was() {
    let mut old = store(OLD);
    old.apply(&entry(1, 1, put("a", "1"))).unwrap();
    let before = state(&old);
    let newer = entry(2, 2, put("a", "2"));
    let error = old.apply(&newer).unwrap_err();
    assert_eq!(error, CorruptEntry::Level { found: 2, newest: 1 });
    assert!(error.to_string().contains("level 2, this build knows levels up to 1: upgrade"), "{error}");
    assert_eq!(state(&old), before);
    assert_eq!(
        command(2, vec![]).encode_at(2, Levels::new(OLD)),
        Err(CorruptEntry::Level { found: 2, newest: 1 }),
        "nor does it write one"
    );
}

#[test]
fn a_newer_state_is_refused_by_its_level_and_version() {
    let mut new = store(NEW);
    new.apply(&entry(2, 1, put("a", "1"))).unwrap();
    let bytes = written(&new);
    let error = restored(&bytes, OLD).unwrap_err();
    let SnapshotError::Level { origin: found, newest: 1 } = &error else { panic!("{error}") };
    assert_eq!(*found, Origin { level: 2, version: "9.0.0".into() });
    assert!(error.to_string().contains("of level 2, of a cluster of version \"9.0.0\""), "{error}");
    // The beginning is enough to tell, whatever the rest is like in builds to come.
    assert!(matches!(origin(&mut &bytes[..15], Levels::new(OLD)), Err(SnapshotError::Level { .. })));
    assert_eq!(origin(&mut &bytes[..15], Levels::new(NEW)).unwrap(), *found);
    for cut in 0..bytes.len() {
        assert!(restored(&bytes[..cut], NEW).is_err(), "cut at {cut}");
    }
    // A version of any length is told as far as there is room.
    let mut long = Vec::new();
    new.freeze().write_as(&"9".repeat(1_000), &mut long).unwrap();
    assert_eq!(state(&restored(&long, NEW).unwrap()), state(&new));
}

#[test]
fn what_goes_to_the_leader_and_back_has_a_level_too() {
    let (old, new) = (Levels::new(OLD), Levels::new(NEW));
    let request = command(1, vec![put("a", "1")]).requests.remove(0);
    let sent = encode_transaction(&request, 2);
    assert_eq!(decode_transaction(&sent, new), Ok(request));
    assert_eq!(decode_transaction(&sent, old), Err(CorruptEntry::Level { found: 2, newest: 1 }));
    let outcome = Ok(Applied { revision: 1, revisions: vec![1] });
    let answer = encode_outcome(&outcome, level_of(&sent));
    assert_eq!(decode_outcome(&answer, new), Ok(outcome));
    assert!(decode_outcome(&answer, old).is_err());
}
