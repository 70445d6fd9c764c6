//! The real store behind the boundary that the API asks for, without raft: what is proposed is applied at once.

use std::{collections::BTreeMap, fmt::Write as _, hash::Hasher, io, sync::Arc};

use bytes::Bytes;
use coracle_api::{Expired, NodeError, Nodes, ProposeError, Storage, Unavailable, WatchStream};
use coracle_objects::{
    Applied, Event, Expect, LogOptions, ObjectKey, Precondition, Refusal, ResourceName, Revision,
    Transaction, View, Write,
    claims::{ADDRESSES, PORTS},
};
use coracle_store::{Command, Outcome, Request, RequestId, Store, StoreConfig};
use futures::{Stream, stream};
use parking_lot::Mutex;
use serde_json::Value;

use crate::{rng::Rng, trace::Fnv};

/// The largest transaction that raft takes, as `coracle_storage` bounds it.
const TRANSACTION_BYTES_MAX: usize = 4 * 1024 * 1024 - 64;

/// Transactions that are remembered to tell of.
const RECENT_MAX: usize = 24;

/// Objects whose names the API draws by chance: what they are called means nothing.
const DRAWN: [&str; 2] = ["ipaddresses.networking.k8s.io", "portallocations.coracle.dev"];

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Writer {
    Client,
    Controllers,
    Scheduler,
    Node,
    Monitor,
    Events,
}

/// The store and what was written to it. One for a run; the API holds a clone.
#[derive(Clone)]
pub struct MemoryStorage(Arc<Mutex<Shared>>);

struct Shared {
    store: Store,
    view: Arc<View>,
    sequence: u64,
    /// In the place of the API's own chance.
    chance: Rng,
    events: Vec<Arc<Event>>,
    counts: Written,
    recent: Vec<String>,
    hash: Fnv,
    nulls: bool,
}

/// What was written so far: each is an entry of the log, whatever became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub entries: u64,
    pub refused: u64,
    /// By writer and by the resource of the first write.
    pub by: BTreeMap<(Writer, String), u64>,
}

impl Written {
    /// What was written since an earlier count.
    pub fn since(&self, earlier: &Written) -> Written {
        let by = self.by.iter().filter_map(|(who, count)| {
            let more = count - earlier.by.get(who).unwrap_or(&0);
            (more > 0).then(|| (who.clone(), more))
        });
        Written {
            entries: self.entries - earlier.entries,
            refused: self.refused - earlier.refused,
            by: by.collect(),
        }
    }

    pub fn words(&self) -> String {
        let by: Vec<String> =
            self.by.iter().map(|((writer, what), count)| format!("{writer:?} {what} {count}")).collect();
        format!("{} ({} of them refused): {}", self.entries, self.refused, by.join(", "))
    }
}

impl MemoryStorage {
    /// With `nulls`, templates get a null behind admission's back: a fault that is built in.
    pub fn new(chance: Rng, nulls: bool) -> Self {
        let config = StoreConfig { watch_events_max: 1, ..StoreConfig::default() };
        Self(Arc::new(Mutex::new(Shared {
            store: Store::new(config),
            view: Arc::default(),
            sequence: 0,
            chance,
            events: Vec::new(),
            counts: Written::default(),
            recent: Vec::new(),
            hash: Fnv::default(),
            nulls,
        })))
    }

    pub fn written(&self) -> Written {
        self.0.lock().counts.clone()
    }

    pub fn entries(&self) -> u64 {
        self.0.lock().counts.entries
    }

    /// The latest transactions, in words, oldest first.
    pub fn recent(&self) -> Vec<String> {
        self.0.lock().recent.clone()
    }

    /// Equal where the same was written in the same order, whatever the API drew by chance.
    pub fn hash(&self) -> u64 {
        self.0.lock().hash.finish()
    }

    /// The events behind the first `seen`.
    pub fn events_after(&self, seen: usize) -> Vec<Arc<Event>> {
        self.0.lock().events[seen..].to_vec()
    }

    pub fn count_events(&self) -> usize {
        self.0.lock().events.len()
    }

    /// Applies a transaction as one entry of the log.
    pub fn apply(&self, writer: Writer, transaction: Transaction) -> Result<Outcome, ProposeError> {
        let bytes = size(&transaction);
        if bytes > TRANSACTION_BYTES_MAX {
            let (bytes, limit) = (bytes as u64, TRANSACTION_BYTES_MAX as u64);
            return Err(ProposeError::TooLarge { bytes, limit });
        }
        let mut shared = self.0.lock();
        let shared = &mut *shared;
        shared.sequence += 1;
        let id = RequestId { client: 1, sequence: shared.sequence };
        let words = words(writer, &transaction);
        let about = transaction.writes.first().map_or("nothing", |write| write.key().resource.as_str());
        let about = (writer, about.to_owned());
        let entry = Command { proposer: 1, requests: vec![Request { id, transaction }] }.encode();
        // Encoded here a moment ago.
        let batch = shared.store.apply(&entry).expect("an entry that was just encoded is sound");
        let outcome = batch.results.into_iter().next().expect("one request, one result").1;
        shared.view = Arc::new(shared.store.view().clone());
        shared.events.extend(batch.events);
        shared.counts.entries += 1;
        shared.counts.refused += u64::from(outcome.is_err());
        *shared.counts.by.entry(about).or_default() += 1;
        let words = format!("{words} -> {}", outcome_words(&outcome));
        shared.hash.write(words.as_bytes());
        if shared.recent.len() == RECENT_MAX {
            shared.recent.remove(0);
        }
        shared.recent.push(words);
        Ok(outcome)
    }

    /// Gives what is created the uid, and where it was generated the name, that the seed says.
    fn redraw(&self, mut transaction: Transaction) -> Transaction {
        let mut shared = self.0.lock();
        let shared = &mut *shared;
        let mut renamed: Vec<(ObjectKey, ObjectKey)> = vec![];
        for write in &mut transaction.writes {
            let Write::Put { key, draft } = write else { continue };
            let known = shared.view.get(key).is_some();
            let Ok(mut value) = serde_json::from_slice::<Value>(draft) else { continue };
            if !known && value["metadata"]["uid"].is_string() {
                value["metadata"]["uid"] = uid(&mut shared.chance).into();
                if value["metadata"]["generateName"].is_string()
                    && let Some(name) = redrawn_name(&value, &key.name.name, &mut shared.chance)
                {
                    let other = ObjectKey::new(key.resource.as_str(), &key.name.namespace, &name);
                    value["metadata"]["name"] = name.into();
                    renamed.push((key.clone(), other.clone()));
                    *key = other;
                }
            }
            if shared.nulls
                && let Some(spec) = value.pointer_mut("/spec/template/spec").filter(|spec| spec.is_object())
            {
                spec["tolerations"] = Value::Null;
            }
            if !known || shared.nulls {
                *draft = value.to_string().into();
            }
        }
        rename_claims(&mut transaction, &renamed);
        for Precondition { key, expect } in &mut transaction.preconditions {
            if *expect == Expect::Absent
                && let Some((_, other)) = renamed.iter().find(|(drawn, _)| drawn == key)
            {
                *key = other.clone();
            }
        }
        transaction
    }
}

/// Has the claims of addresses and node ports of a service that was renamed tell its name.
fn rename_claims(transaction: &mut Transaction, renamed: &[(ObjectKey, ObjectKey)]) {
    for (from, to) in renamed.iter().filter(|(from, _)| from.resource.as_str() == "services") {
        let path = |key: &ObjectKey| Value::from(format!("{}/{}", key.name.namespace, key.name.name));
        for write in &mut transaction.writes {
            let Write::Put { key, draft } = write else { continue };
            let (pointer, old, new) = match key.resource.as_str() {
                ADDRESSES => {
                    ("/spec/parentRef/name", Value::from(&*from.name.name), Value::from(&*to.name.name))
                }
                PORTS => ("/spec/service", path(from), path(to)),
                _ => continue,
            };
            let Ok(mut claim) = serde_json::from_slice::<Value>(draft) else { continue };
            if let Some(name) = claim.pointer_mut(pointer).filter(|name| **name == old) {
                *name = new;
                *draft = claim.to_string().into();
            }
        }
    }
}

/// A uid that the seed decides.
pub fn uid(chance: &mut Rng) -> String {
    let (high, low) = (chance.number(), chance.number());
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}

/// The name of an object that the API gave one, drawn anew. None where the client gave it.
fn redrawn_name(value: &Value, name: &str, chance: &mut Rng) -> Option<String> {
    let prefix = value["metadata"]["generateName"].as_str()?;
    let suffix = name.strip_prefix(prefix)?;
    (suffix.len() == 5).then(|| format!("{prefix}{:05x}", chance.below(0x10_0000)))
}

/// About as `coracle_member` reckons it.
fn size(transaction: &Transaction) -> usize {
    let key =
        |key: &ObjectKey| key.resource.as_str().len() + key.name.namespace.len() + key.name.name.len() + 16;
    let writes = transaction.writes.iter().map(|write| match write {
        Write::Put { key: of, draft } => draft.len() + key(of),
        Write::Delete { key: of } => key(of),
    });
    let preconditions = transaction.preconditions.iter().map(|precondition| key(&precondition.key) + 40);
    writes.sum::<usize>() + preconditions.sum::<usize>()
}

fn words(writer: Writer, transaction: &Transaction) -> String {
    let mut text = format!("{writer:?}");
    for write in &transaction.writes {
        let (verb, key) = match write {
            Write::Put { key, .. } => ("put", key),
            Write::Delete { key } => ("delete", key),
        };
        if DRAWN.contains(&key.resource.as_str()) {
            let _ = write!(text, " {verb} {}", key.resource);
        } else {
            let _ = write!(text, " {verb} {key}");
        }
    }
    text
}

fn outcome_words(outcome: &Outcome) -> String {
    match outcome {
        Ok(_) => "applied".to_owned(),
        Err(Refusal::Precondition { key, expected, .. }) => {
            let expected = match expected {
                Expect::Revision(_) => "revision",
                Expect::Uid(_) => "uid",
                Expect::Absent => "absent",
                Expect::Exists => "exists",
                Expect::NotDeleting => "not deleting",
            };
            match DRAWN.contains(&key.resource.as_str()) {
                true => format!("refused: {} {expected}", key.resource),
                false => format!("refused: {key} {expected}"),
            }
        }
        Err(Refusal::NotFound { key }) => format!("refused: no {key}"),
        Err(Refusal::BadDraft { key, reason }) => format!("refused: bad draft of {key}: {reason}"),
        Err(Refusal::TooLarge { key, size, .. }) => format!("refused: {key} has {size} bytes"),
    }
}

impl Storage for MemoryStorage {
    fn view(&self) -> Arc<View> {
        self.0.lock().view.clone()
    }

    async fn linearizable(&self) -> Result<Arc<View>, Unavailable> {
        Ok(self.view())
    }

    async fn propose(&self, transaction: Transaction) -> Result<Result<Applied, Refusal>, ProposeError> {
        self.apply(Writer::Client, self.redraw(transaction))
    }

    fn watch(&self, _resource: &ResourceName, _after: Revision) -> Result<WatchStream, Expired> {
        Ok(Box::pin(stream::empty()))
    }
}

/// No node answers: logs are no part of this world.
#[derive(Clone)]
pub struct NoNodes;

impl Nodes for NoNodes {
    async fn logs(
        &self,
        _node: &str,
        _pod_uid: &str,
        _options: LogOptions,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, NodeError> {
        Err::<stream::Empty<io::Result<Bytes>>, _>(NodeError::NotFound("there are no logs".to_owned()))
    }
}
