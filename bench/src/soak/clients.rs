//! Clients of the cluster under faults: writers, readers and watchers, who write down what they saw.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use coracle_objects::{Expect, ObjectKey, Transaction, Write as StoreWrite};
use coracle_proto::store::{RangeRequest, RangeResponse};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::{
    checker::{Change, Moment, Outcome, Read, Register, Revision, Seen, Watched, Write},
    members::MEMBERS,
};
use crate::client::{Client, Rest, Store, new_request};

/// Objects that are written and read.
pub const REGISTERS: usize = 16;
/// Until a call must be answered; then its outcome is unknown.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries of a write, each at another member, under one identity.
const TRIES: usize = 4;
/// Between two calls of one client, in milliseconds.
const THINK_MS: std::ops::Range<u64> = 2..12;

const RESOURCE: &str = "configmaps";
const NAMESPACE: &str = "default";
pub const COLLECTION: &str = "/api/v1/namespaces/default/configmaps";

/// What all clients share.
pub struct Shared {
    pub clients: Vec<Client>,
    pub begun: Instant,
    pub stop: AtomicBool,
    /// Where watchers end, once it is known.
    pub target: AtomicU64,
    pub seen: Mutex<Seen>,
    pub values: AtomicU64,
}

impl Shared {
    pub fn now(&self) -> Moment {
        self.begun.elapsed().as_nanos() as u64
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn note_watched(&self, watched: Watched) {
        self.seen.lock().expect("no client panics").watched.push(watched);
    }

    fn note_write(&self, write: Write) {
        self.seen.lock().expect("no client panics").writes.push(write);
    }

    fn note_read(&self, read: Read) {
        self.seen.lock().expect("no client panics").reads.push(read);
    }
}

/// `soak-7` and the value of an object.
#[derive(Deserialize)]
pub struct Content {
    metadata: Name,
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Name {
    name: String,
    #[serde(default)]
    resource_version: String,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    value: String,
}

impl Content {
    /// None where the object is none of ours.
    pub fn register(&self) -> Option<Register> {
        self.metadata.name.strip_prefix("soak-")?.parse().ok()
    }

    pub fn value(&self) -> Option<u64> {
        self.data.value.parse().ok()
    }

    pub fn revision(&self) -> Option<Revision> {
        self.metadata.resource_version.parse().ok()
    }
}

pub fn name(register: Register) -> String {
    format!("soak-{register}")
}

fn draft(register: Register, value: u64) -> Vec<u8> {
    let name = name(register);
    format!(
        r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"{NAMESPACE}","uid":"00000000-0000-4000-8000-{register:012}","creationTimestamp":"2026-01-01T00:00:00Z"}},"data":{{"value":"{value}"}}}}"#
    )
    .into_bytes()
}

/// Writes at the gRPC door: puts, deletes, and puts that expect a revision; each retried under one identity, or not.
pub async fn grpc_writer(shared: Arc<Shared>, seed: u64, retries: bool) {
    let mut rng = StdRng::seed_from_u64(seed);
    let stores: Vec<Store> = shared.clients.iter().map(Client::store).collect();
    let client: u64 = rand::random();
    let mut known: [Option<Revision>; REGISTERS] = [None; REGISTERS];
    while !shared.stopped() {
        let register = rng.random_range(0..REGISTERS);
        let (change, expected) = match rng.random_range(0..10) {
            0 => (Change::Delete, None),
            1..3 => (Change::Put(shared.value()), known[register]),
            _ => (Change::Put(shared.value()), None),
        };
        let key = ObjectKey::new(RESOURCE, NAMESPACE, &name(register));
        let write = match change {
            Change::Put(value) => StoreWrite::Put { key: key.clone(), draft: draft(register, value).into() },
            Change::Delete => StoreWrite::Delete { key: key.clone() },
        };
        let mut transaction = Transaction { preconditions: vec![], writes: vec![write] };
        if let Some(revision) = expected {
            transaction = transaction.expecting(key, Expect::Revision(revision));
        }
        let id = new_request(client);
        let invoked = shared.now();
        let mut outcome = Outcome::Unknown;
        for _ in 0..if retries { TRIES } else { 1 } {
            let store = &stores[rng.random_range(0..MEMBERS)];
            let tried = store.txn(id, transaction.clone());
            match timeout(CALL_TIMEOUT, tried).await {
                Ok(Ok(Ok(applied))) => outcome = Outcome::Done(applied.revisions[0]),
                Ok(Ok(Err(_))) => outcome = Outcome::Refused,
                Ok(Err(_)) | Err(_) => continue,
            }
            break;
        }
        known[register] = match outcome {
            Outcome::Done(revision) if change != Change::Delete => Some(revision),
            _ => None,
        };
        let completed = shared.now();
        shared.note_write(Write { register, change, expected, invoked, completed, outcome });
        sleep(Duration::from_millis(rng.random_range(THINK_MS))).await;
    }
}

/// Writes at the REST door, each write tried once.
pub async fn rest_writer(shared: Arc<Shared>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rest = Connections::default();
    while !shared.stopped() {
        let (member, register, value) =
            (rng.random_range(0..MEMBERS), rng.random_range(0..REGISTERS), shared.value());
        let path = format!("{COLLECTION}/{}", name(register));
        let invoked = shared.now();
        let outcome = match rest.call(&shared, member, "PUT", &path, draft(register, value)).await {
            Some((200 | 201, body)) => {
                let written: Option<Content> = serde_json::from_slice(&body).ok();
                written.and_then(|written| written.revision()).map_or(Outcome::Unknown, Outcome::Done)
            }
            // The object is not there, or was changed meanwhile.
            Some((404 | 409, _)) => Outcome::Refused,
            _ => Outcome::Unknown,
        };
        let (completed, change) = (shared.now(), Change::Put(value));
        shared.note_write(Write { register, change, expected: None, invoked, completed, outcome });
        sleep(Duration::from_millis(rng.random_range(THINK_MS))).await;
    }
}

/// Reads one object at the gRPC door.
pub async fn grpc_reader(shared: Arc<Shared>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let stores: Vec<Store> = shared.clients.iter().map(Client::store).collect();
    while !shared.stopped() {
        let register = rng.random_range(0..REGISTERS);
        let mut store = stores[rng.random_range(0..MEMBERS)].clone();
        let invoked = shared.now();
        let request = RangeRequest { name: name(register), ..range() };
        if let Ok(Ok(answer)) = timeout(CALL_TIMEOUT, store.client.range(request)).await {
            let answer = answer.into_inner();
            let found = answer.objects.first().and_then(|object| {
                let content: Content = serde_json::from_slice(&object.json).ok()?;
                Some((content.value()?, object.revision))
            });
            let (completed, revision) = (shared.now(), Some(answer.revision));
            shared.note_read(Read { register, invoked, completed, revision, found });
        }
        sleep(Duration::from_millis(rng.random_range(THINK_MS))).await;
    }
}

/// Reads one object at the REST door.
pub async fn rest_reader(shared: Arc<Shared>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rest = Connections::default();
    while !shared.stopped() {
        let (member, register) = (rng.random_range(0..MEMBERS), rng.random_range(0..REGISTERS));
        let path = format!("{COLLECTION}/{}", name(register));
        let invoked = shared.now();
        let found = match rest.call(&shared, member, "GET", &path, Vec::new()).await {
            Some((200, body)) => serde_json::from_slice::<Content>(&body)
                .ok()
                .and_then(|content| Some(Some((content.value()?, content.revision()?)))),
            Some((404, _)) => Some(None),
            _ => None,
        };
        if let Some(found) = found {
            let completed = shared.now();
            shared.note_read(Read { register, invoked, completed, revision: None, found });
        }
        sleep(Duration::from_millis(rng.random_range(THINK_MS))).await;
    }
}

fn range() -> RangeRequest {
    RangeRequest { resource: RESOURCE.into(), namespace: NAMESPACE.into(), ..RangeRequest::default() }
}

/// All objects, by a linearizable read at one member; notes a read of each register.
pub async fn read_all(shared: &Shared, member: usize) -> Result<RangeResponse> {
    let mut store = shared.clients[member].store();
    let invoked = shared.now();
    let answer = timeout(CALL_TIMEOUT, store.client.range(range())).await.context("no answer in time")??;
    let (answer, completed) = (answer.into_inner(), shared.now());
    for register in 0..REGISTERS {
        let found = answer.objects.iter().find(|object| object.name == name(register)).and_then(|object| {
            let content: Content = serde_json::from_slice(&object.json).ok()?;
            Some((content.value()?, object.revision))
        });
        shared.note_read(Read { register, invoked, completed, revision: Some(answer.revision), found });
    }
    Ok(answer)
}

/// A put at one member, tried once.
pub async fn put_at(shared: &Shared, member: usize, register: Register) -> Result<Revision> {
    let value = shared.value();
    let key = ObjectKey::new(RESOURCE, NAMESPACE, &name(register));
    let writes = vec![StoreWrite::Put { key, draft: draft(register, value).into() }];
    let id = new_request(rand::random());
    let invoked = shared.now();
    let store = shared.clients[member].store();
    let tried = timeout(CALL_TIMEOUT, store.txn(id, Transaction { preconditions: vec![], writes })).await;
    let outcome = match &tried {
        Ok(Ok(Ok(applied))) => Outcome::Done(applied.revisions[0]),
        Ok(Ok(Err(_))) => Outcome::Refused,
        _ => Outcome::Unknown,
    };
    let (completed, change) = (shared.now(), Change::Put(value));
    shared.note_write(Write { register, change, expected: None, invoked, completed, outcome });
    match outcome {
        Outcome::Done(revision) => Ok(revision),
        _ => anyhow::bail!("{tried:?}"),
    }
}

/// A connection to each member, made anew when it is broken.
#[derive(Default)]
pub struct Connections([Option<Rest>; MEMBERS]);

impl Connections {
    /// The status and the body; None where there was none in time.
    async fn call(
        &mut self,
        shared: &Shared,
        member: usize,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Option<(u16, bytes::Bytes)> {
        let rest = match self.0[member].take() {
            Some(rest) => rest,
            None => timeout(CALL_TIMEOUT, shared.clients[member].rest()).await.ok()?.ok()?,
        };
        let answer = timeout(CALL_TIMEOUT, rest.call(method, path, body)).await.ok()?.ok()?;
        self.0[member] = Some(rest);
        Some(answer)
    }
}
