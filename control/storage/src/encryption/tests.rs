//! From a transaction in clear to the store and back.

use std::{path::Path, sync::Arc};

use coracle_api::{WatchItem, WatchStream};
use coracle_objects::{EventKind, ObjectKey, Refusal, Transaction, Write};
use coracle_raft::{Frozen, StateMachine};
use coracle_store::{Command, Outcome, Request, RequestId};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    NotSealed, SecretBox,
    key::Key,
    rotation,
    state::{self, KeyRingState},
};
use crate::{machine::Machine, watch_hub::WatchHub};

const VALUE: &str = "bm90IGZvciBvdGhlcnM=";

struct Bench {
    machine: Machine,
    hub: Arc<WatchHub>,
    secrets: Arc<SecretBox>,
    /// Every entry: what the log has.
    log: Vec<u8>,
    index: u64,
}

impl Bench {
    fn new(secrets: SecretBox) -> Self {
        let secrets = Arc::new(secrets);
        let (machine, hub) = Machine::new(Arc::new(watch::Sender::new(None)), secrets.clone());
        Self { machine, hub, secrets, log: vec![], index: 0 }
    }

    fn propose(&mut self, transaction: &Transaction) -> Outcome {
        let sealed = self.secrets.seal_transaction(transaction, &self.hub.published()).unwrap();
        self.apply(sealed)
    }

    fn apply(&mut self, transaction: Transaction) -> Outcome {
        self.index += 1;
        let request = Request { id: RequestId { client: 1, sequence: self.index }, transaction };
        let entry = Command { proposer: 1, requests: vec![request] }.encode();
        self.log.extend_from_slice(&entry);
        let applied = self.machine.apply(self.index, 1, &entry);
        applied.batch.results[0].1.clone()
    }

    fn clear(&self, name: &str) -> String {
        String::from_utf8(self.hub.view().get(&key_of(name)).unwrap().draft().to_vec()).unwrap()
    }
}

fn key_of(name: &str) -> ObjectKey {
    ObjectKey::new("secrets", "default", name)
}

fn draft(name: &str, value: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Secret","metadata":{{"name":"{name}","namespace":"default","uid":"u","labels":{{"app":"x"}},"annotations":{{"last":"{value}"}}}},"data":{{"k":"{value}"}}}}"#
    )
}

fn put(name: &str, value: &str) -> Transaction {
    let write = Write::Put { key: key_of(name), draft: draft(name, value).into() };
    Transaction { preconditions: vec![], writes: vec![write] }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn founded(dir: &Path) -> SecretBox {
    SecretBox::found(&dir.join("secrets.ring")).unwrap()
}

async fn next(watch: &mut WatchStream) -> (EventKind, String) {
    loop {
        if let WatchItem::Event(event) = watch.next().await.unwrap() {
            return (event.kind, String::from_utf8_lossy(&event.object.json).into_owned());
        }
    }
}

#[tokio::test]
async fn readers_see_it_clear_and_the_log_and_the_store_never_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(founded(dir.path()));
    let mut live = bench.hub.watch(&"secrets".into(), 0).unwrap();
    bench.propose(&put("a", VALUE)).unwrap();
    let delete = Transaction { preconditions: vec![], writes: vec![Write::Delete { key: key_of("a") }] };
    assert_eq!(bench.clear("a"), draft("a", VALUE));
    let stored = bench.hub.published().sealed.get(&key_of("a")).unwrap().clone();
    assert!(!contains(&stored.json, VALUE), "neither data nor annotations");
    assert_eq!((stored.meta.uid.as_str(), stored.meta.labels["app"].as_str()), ("u", "x"));
    assert!(!contains(&bench.log, VALUE));
    bench.apply(delete).unwrap();
    let mut late = bench.hub.watch(&"secrets".into(), 0).unwrap();
    for watch in [&mut live, &mut late] {
        for kind in [EventKind::Added, EventKind::Deleted] {
            let (seen, json) = next(watch).await;
            assert_eq!(seen, kind);
            assert!(json.contains(VALUE) && json.contains("resourceVersion"), "{json}");
        }
    }
    assert_eq!(bench.hub.view().count("secrets"), 0);
}

#[test]
fn a_snapshot_has_ciphertext_and_is_read_with_the_ring() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(founded(dir.path()));
    bench.propose(&put("a", VALUE)).unwrap();
    let mut snapshot = vec![];
    bench.machine.freeze().write_to(&mut snapshot).unwrap();
    assert!(!contains(&snapshot, VALUE));
    let mut restored = Bench::new(SecretBox::load(&dir.path().join("secrets.ring")).unwrap());
    restored.machine.restore(bench.index, &mut snapshot.as_slice()).unwrap();
    assert_eq!(restored.clear("a"), draft("a", VALUE));
    assert_eq!(restored.hub.state_hash(), bench.hub.state_hash());
}

#[test]
fn a_draft_that_is_there_already_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(founded(dir.path()));
    let first = bench.propose(&put("a", VALUE)).unwrap();
    let same = bench.propose(&put("a", VALUE)).unwrap();
    assert_eq!((same.revision, &same.revisions), (first.revision, &first.revisions));
    assert!(bench.propose(&put("a", "b3RoZXI=")).unwrap().revision > first.revision);
}

#[test]
fn what_the_store_would_refuse_is_refused_before_it_is_sealed() {
    let bench = Bench::new(SecretBox::default());
    let refusal = |draft: String| {
        let writes = vec![Write::Put { key: key_of("a"), draft: draft.into() }];
        let transaction = Transaction { preconditions: vec![], writes };
        match bench.secrets.seal_transaction(&transaction, &bench.hub.published()) {
            Err(NotSealed::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    };
    let revision = draft("a", "").replace(r#""uid""#, r#""resourceVersion":"5","uid""#);
    assert!(matches!(refusal(revision), Refusal::BadDraft { .. }));
    assert!(matches!(refusal("nonsense".into()), Refusal::BadDraft { .. }));
    assert!(matches!(refusal(draft("a", &"x".repeat(2 << 20))), Refusal::TooLarge { .. }));
}

#[test]
fn a_ciphertext_that_was_moved_stays_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(founded(dir.path()));
    bench.propose(&put("a", VALUE)).unwrap();
    let stolen = bench.hub.published().sealed.get(&key_of("a")).unwrap().draft();
    let writes = vec![Write::Put { key: key_of("mine"), draft: stolen }];
    bench.apply(Transaction { preconditions: vec![], writes }).unwrap();
    assert!(bench.hub.view().get(&key_of("mine")).unwrap().sealed().is_some());
    assert!(!bench.clear("mine").contains(VALUE));
}

#[test]
fn no_write_with_an_old_key_comes_after_the_new_one_is_agreed_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(founded(dir.path()));
    let late = bench.secrets.seal_transaction(&put("a", VALUE), &bench.hub.published()).unwrap();
    let old = bench.secrets.ring().writing.clone();
    let new = bench.secrets.generate().unwrap();
    let agreed = KeyRingState { writing: Some(new.clone()), keys: vec![new.clone()], ..Default::default() };
    bench.apply(agreed.write(&bench.hub.view())).unwrap();
    let refusal = bench.apply(late).unwrap_err();
    assert!(super::refused_for_its_keys(&refusal), "{refusal:?}");
    bench.propose(&put("a", VALUE)).unwrap();
    let counts = state::counts(&bench.hub.published().sealed);
    assert_eq!(counts, [(Some(new.to_string()), 1)].into());
    assert_ne!(old, Some(new));
}

#[test]
fn what_was_written_before_there_were_keys_is_sealed_by_the_leader() {
    let mut bench = Bench::new(SecretBox::default());
    bench.propose(&put("a", VALUE)).unwrap();
    assert_eq!(state::counts(&bench.hub.published().sealed), [(None, 1)].into());
    assert_eq!(bench.clear("a"), draft("a", VALUE));
    let key = Key::generate(Timestamp::now());
    let id = key.id.clone();
    let with_key = SecretBox::for_tests([key].into_iter().collect());
    let agreed = KeyRingState { writing: Some(id.clone()), keys: vec![id.clone()], ..Default::default() };
    let revision = bench.apply(agreed.write(&bench.hub.view())).unwrap().revision;
    let object = bench.hub.published().sealed.get(&key_of("a")).unwrap().clone();
    let transaction = rotation::sealed_anew(&with_key, &object, &id, revision).unwrap();
    bench.apply(transaction).unwrap();
    assert_eq!(state::counts(&bench.hub.published().sealed), [(Some(id.to_string()), 1)].into());
    let stored = bench.hub.published().sealed.get(&key_of("a")).unwrap().clone();
    assert_eq!(with_key.open(&stored).unwrap().draft(), draft("a", VALUE));
}

#[tokio::test]
async fn a_member_without_the_key_opens_it_once_it_has_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut with = Bench::new(founded(&dir.path().join("with")));
    let sealed = with.secrets.seal_transaction(&put("a", VALUE), &with.hub.published()).unwrap();
    with.apply(sealed.clone()).unwrap();
    let mut without = Bench::new(SecretBox::load(&dir.path().join("without/secrets.ring")).unwrap());
    without.apply(sealed).unwrap();
    assert!(without.hub.view().get(&key_of("a")).unwrap().sealed().is_some());
    assert_eq!(without.secrets.lacking().len(), 1);
    let (_, mut observer) = without.hub.follow();
    let mut watch = without.hub.watch(&"secrets".into(), 1).unwrap();
    let handed = SecretBox::join(&dir.path().join("x.ring"), &with.secrets.ring().to_bytes()).unwrap();
    let kept = handed.ring().get(handed.ring().ids().next().unwrap().as_str()).unwrap().kept();
    without.secrets.change(|ring| ring.add(Key::from_kept(&kept).unwrap())).unwrap();
    without.hub.reopen();
    assert_eq!(without.clear("a"), draft("a", VALUE));
    assert!(without.secrets.lacking().is_empty());
    assert!(observer.next().await.is_err(), "who observes reads again");
    loop {
        match watch.next().await {
            Some(WatchItem::Overflow) => break,
            Some(WatchItem::Progress(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let again = Bench::new(SecretBox::load(&dir.path().join("without/secrets.ring")).unwrap());
    assert_eq!(again.secrets.ring().ids().count(), 1, "the key is kept");
}
