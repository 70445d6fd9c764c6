//! Entries of the log, as the store decodes and applies them.

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use coracle_objects::{Expect, ObjectKey, Precondition, Transaction, Write};
use coracle_store::{
    Command, LEVELS, Level, Levels, Request, RequestId, Store, StoreConfig, decode_outcome, decode_transaction,
};

/// Small drafts are too large at the first level and larger ones at the second, so that both decide.
const TWO: &[Level] =
    &[Level { object_bytes_max: 256, ..LEVELS[0] }, Level { object_bytes_max: 300, ..LEVELS[0] }];

#[derive(Arbitrary, Debug)]
enum Input {
    Raw(Vec<Vec<u8>>),
    Commands(Vec<Vec<Ask>>),
}

#[derive(Arbitrary, Debug)]
struct Ask {
    client: u8,
    sequence: u8,
    conditions: Vec<(u8, Condition)>,
    writes: Vec<(u8, Change)>,
}

#[derive(Arbitrary, Debug)]
enum Condition {
    Absent,
    Exists,
    Revision(u8),
    Uid(u8),
    NotDeleting,
}

#[derive(Arbitrary, Debug)]
enum Change {
    Delete,
    Put(u8),
    Raw(Vec<u8>),
}

/// No entry makes the store panic. One that is refused changes nothing. Two stores that apply the same are the same, and
/// so is one that is restored from a snapshot in the middle.
pub fn store_command(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let entries: Vec<Bytes> = match input.arbitrary()? {
        Input::Raw(entries) => {
            for entry in &entries {
                let levels = Levels::new(TWO);
                let _ = (decode_transaction(entry, levels), decode_outcome(entry, levels));
            }
            // The level, so that more than one in 256 gets further.
            let versioned = entries.into_iter().map(|entry| [&[1], &entry[..]].concat().into());
            versioned.collect()
        }
        Input::Commands(commands) => commands.into_iter().map(encode).collect(),
    };
    let config = StoreConfig {
        levels: Levels::new(TWO),
        watch_events_max: 4,
        watch_revisions_max: 8,
        ..StoreConfig::default()
    };
    let (mut one, mut other) = (Store::new(config), Store::new(config));
    for (number, entry) in entries.iter().enumerate() {
        let (hash, revision) = (one.state_hash(), one.revision());
        match (one.apply(entry), other.apply(entry)) {
            (Ok(batch), Ok(twin)) => {
                assert_eq!(batch.results, twin.results);
                assert_eq!(batch.revision, one.revision());
                assert!(batch.events.iter().all(|event| event.object.revision > revision));
            }
            (Err(_), Err(_)) => assert_eq!((hash, revision), (one.state_hash(), one.revision())),
            (found, _) => panic!("the same entry is sound once and once not: {found:?}"),
        }
        assert_eq!(
            (one.state_hash(), one.view().tables.len()),
            (other.state_hash(), other.view().tables.len())
        );
        if number == entries.len() / 2 {
            let mut bytes = Vec::new();
            other.freeze().write_to(&mut bytes).expect("memory takes it");
            other = Store::restore(&mut &bytes[..], config).expect("a sound snapshot is restored");
        }
    }
    for after in 0..=one.revision() {
        let Ok(events) = one.events_since("configmaps", after) else { continue };
        assert!(events.iter().all(|event| event.object.revision > after));
        assert!(events.is_sorted_by_key(|event| event.object.revision));
    }
    Ok(())
}

fn key(number: u8) -> ObjectKey {
    let resource = if number % 4 == 3 { "secrets" } else { "configmaps" };
    ObjectKey::new(resource, "default", &format!("k{}", number % 4))
}

fn encode(asks: Vec<Ask>) -> Bytes {
    let request = |ask: Ask| {
        let preconditions = ask.conditions.into_iter().map(|(number, condition)| Precondition {
            key: key(number),
            expect: match condition {
                Condition::Absent => Expect::Absent,
                Condition::Exists => Expect::Exists,
                Condition::Revision(revision) => Expect::Revision(revision.into()),
                Condition::Uid(uid) => Expect::Uid(uid.to_string()),
                Condition::NotDeleting => Expect::NotDeleting,
            },
        });
        let writes = ask.writes.into_iter().map(|(number, change)| match change {
            Change::Delete => Write::Delete { key: key(number) },
            Change::Put(value) => Write::Put {
                key: key(number),
                draft: format!(r#"{{"metadata":{{"uid":"{}"}},"v":{value}}}"#, value % 3).into(),
            },
            Change::Raw(draft) => Write::Put { key: key(number), draft: draft.into() },
        });
        Request {
            id: RequestId { client: (ask.client % 2).into(), sequence: ask.sequence.into() },
            transaction: Transaction { preconditions: preconditions.collect(), writes: writes.collect() },
        }
    };
    Command { proposer: 1, requests: asks.into_iter().map(request).collect() }.encode()
}
