//! The store's own gRPC door, for control nodes and administrators: thin over [`ReplicatedStorage`].

use std::{ops::Bound, pin::Pin, sync::Arc};

use coracle_api::{ProposeError, Storage, WatchItem, WatchStream};
use coracle_objects::{
    CLUSTER_INFO_KEPT, Event, EventKind, Object, ObjectKey, ObjectName, Revision, View, Write, by_resource,
    is_cluster_info,
};
use coracle_proto::store::{
    Event as WireEvent, EventType, Object as WireObject, RangeRequest, RangeResponse, TxnRequest,
    TxnResponse, WatchRequest, WatchResponse, store_server::Store,
};
use coracle_storage::{ReplicatedStorage, encryption, forgotten};
use coracle_store::{decode_transaction, encode_outcome, level_of};
use futures::{FutureExt, Stream, StreamExt, stream};
use tonic::{Request, Response, Status, async_trait};

use crate::identity::administrators_only;

/// Bytes of objects in one answer, about: half of what a message may have.
const ANSWER_BYTES: usize = coracle_proto::MESSAGE_BYTES_MAX / 2;

/// Ready events that travel together, at most, and their bytes, about.
const EVENTS_TOGETHER: usize = 512;
const EVENTS_BYTES: usize = 256 * 1024;

pub struct StoreService {
    pub storage: ReplicatedStorage,
}

#[async_trait]
impl Store for StoreService {
    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        administrators_only(&request)?;
        let encoded = request.into_inner().transaction;
        let request = decode_transaction(&encoded, self.storage.level().known())
            .map_err(|error| Status::invalid_argument(format!("transaction: {error}")))?;
        request.transaction.writes.iter().try_for_each(|write| known(write_resource(write)))?;
        if request.transaction.writes.iter().any(|write| is_cluster_info(write.key())) {
            return Err(Status::permission_denied(CLUSTER_INFO_KEPT));
        }
        // A retry must carry the same bytes, and sealing is random: this door cannot give both.
        if encryption::concerns(&request.transaction) {
            return Err(Status::invalid_argument(
                "Secrets are written through the Kubernetes API, which seals them",
            ));
        }
        let outcome = self.storage.propose_request(request).await.map_err(|error| match error {
            ProposeError::Unavailable(_) => Status::unavailable(error.to_string()),
            ProposeError::Unknown(_) => Status::unknown(error.to_string()),
            ProposeError::NoSpace => Status::resource_exhausted(error.to_string()),
            ProposeError::TooLarge { .. } | ProposeError::Denied(_) => {
                Status::invalid_argument(error.to_string())
            }
        })?;
        let clock = self.storage.clock();
        match outcome {
            Some(outcome) => {
                let outcome = encode_outcome(&outcome, level_of(&encoded));
                Ok(Response::new(TxnResponse { outcome, clock }))
            }
            None => Err(forgotten(clock)),
        }
    }

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        administrators_only(&request)?;
        let request = request.into_inner();
        known(&request.resource)?;
        let view = match request.serializable {
            true => self.storage.view(),
            false => {
                self.storage.linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?
            }
        };
        if !request.name.is_empty() {
            return Ok(Response::new(one(&view, &request)));
        }
        // It may be long: other calls of the connection do not wait for it.
        let listed = tokio::spawn(async move { list(&view, &request) }).await;
        listed.map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        administrators_only(&request)?;
        let request = request.into_inner();
        known(&request.resource)?;
        let after = self.watch_start(request.after).await?;
        let items = self
            .storage
            .watch(&request.resource.as_str().into(), after)
            .map_err(|expired| Status::out_of_range(expired.to_string()))?;
        let start = request.after.is_none().then_some(after);
        let watcher = Watcher { items, namespace: request.namespace, start, stage: Stage::Open };
        let answers = stream::unfold(watcher, |mut watcher| async move {
            let answer = watcher.next().await?;
            Some((answer, watcher))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl StoreService {
    /// The revision behind which a watch begins. This member has it: of a later one it would give events that the
    /// watcher has seen already.
    async fn watch_start(&self, after: Option<Revision>) -> Result<Revision, Status> {
        if let Some(after) = after.filter(|after| *after <= self.storage.view().revision) {
            return Ok(after);
        }
        let view = self.storage.linearizable().await;
        let now = view.map_err(|error| Status::unavailable(error.to_string()))?.revision;
        match after {
            Some(after) if after > now => Err(Status::failed_precondition(format!(
                "after: the store is at revision {now}, and has not had {after} yet"
            ))),
            after => Ok(after.unwrap_or(now)),
        }
    }
}

fn write_resource(write: &Write) -> &str {
    write.key().resource.as_str()
}

#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
fn known(resource: &str) -> Result<(), Status> {
    match by_resource(resource) {
        Some(_) => Ok(()),
        None => Err(Status::invalid_argument(format!(
            "resource: there is no {resource:?}; it is the plural with its group, as in \"deployments.apps\""
        ))),
    }
}

fn one(view: &View, request: &RangeRequest) -> RangeResponse {
    let found = view.get(&ObjectKey::new(&request.resource, &request.namespace, &request.name));
    let objects = found.filter(|_| !request.count_only).map(|object| to_wire(object));
    RangeResponse {
        revision: view.revision,
        objects: objects.into_iter().collect(),
        more: false,
        count: found.is_some().into(),
    }
}

fn list(view: &View, request: &RangeRequest) -> RangeResponse {
    let namespace = Some(request.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let mut answer = RangeResponse { revision: view.revision, ..RangeResponse::default() };
    answer.count = match namespace {
        None => view.count(&request.resource),
        Some(_) => view.list(&request.resource, namespace).count(),
    } as u64;
    let Some(table) = view.tables.get(request.resource.as_str()).filter(|_| !request.count_only) else {
        return answer;
    };
    let start = match request.after.split_once('/') {
        Some((namespace, name)) => Bound::Excluded(ObjectName::new(namespace, name)),
        None => namespace.map_or(Bound::Unbounded, |name| Bound::Included(ObjectName::new(name, ""))),
    };
    let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    let mut bytes = 0;
    for (_, object) in table.range((start, Bound::Unbounded)) {
        if namespace.is_some_and(|namespace| object.namespace() != namespace) {
            break;
        }
        if answer.objects.len() == limit || bytes > ANSWER_BYTES {
            answer.more = true;
            break;
        }
        bytes += object.json.len();
        answer.objects.push(to_wire(object));
    }
    answer
}

fn to_wire(object: &Object) -> WireObject {
    WireObject {
        namespace: object.namespace().to_owned(),
        name: object.name().to_owned(),
        revision: object.revision,
        json: object.json.clone(),
    }
}

struct Watcher {
    items: WatchStream,
    namespace: String,
    /// The revision at which a watch from now on begins, until it is said.
    start: Option<Revision>,
    stage: Stage,
}

enum Stage {
    Open,
    /// The reader was too slow, which it is told behind the events that it still got.
    Overflowed,
    Ended,
}

impl Watcher {
    /// What is ready, together; None ends the stream.
    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        match self.stage {
            Stage::Ended => return None,
            Stage::Overflowed => return self.overflow(),
            Stage::Open => {}
        }
        let mut answer = WatchResponse::default();
        if let Some(start) = self.start.take() {
            answer.progress = start;
            return Some(Ok(answer));
        }
        let mut bytes = 0;
        while answer.progress == 0 && answer.events.len() < EVENTS_TOGETHER && bytes < EVENTS_BYTES {
            let item = match answer.events.is_empty() {
                true => match self.items.next().await {
                    Some(item) => item,
                    None => return self.leaderless(),
                },
                false => match self.items.next().now_or_never() {
                    Some(Some(item)) => item,
                    Some(None) | None => break,
                },
            };
            match item {
                WatchItem::Event(event) => {
                    if self.namespace.is_empty() || event.object.namespace() == self.namespace {
                        bytes += event.object.json.len();
                        answer.events.push(event_to_wire(&event));
                    }
                }
                WatchItem::Progress(revision) => answer.progress = revision,
                WatchItem::Overflow if answer.events.is_empty() => return self.overflow(),
                WatchItem::Overflow => {
                    self.stage = Stage::Overflowed;
                    break;
                }
            }
        }
        Some(Ok(answer))
    }

    fn leaderless(&mut self) -> Option<Result<WatchResponse, Status>> {
        self.stage = Stage::Ended;
        Some(Err(Status::unavailable("this member hears no leader: watch from another one")))
    }

    fn overflow(&mut self) -> Option<Result<WatchResponse, Status>> {
        self.stage = Stage::Ended;
        Some(Err(Status::out_of_range("the watch fell too far behind: read again, and watch from there")))
    }
}

fn event_to_wire(event: &Arc<Event>) -> WireEvent {
    let kind = match event.kind {
        EventKind::Added => EventType::Added,
        EventKind::Modified => EventType::Modified,
        EventKind::Deleted => EventType::Deleted,
    };
    WireEvent { r#type: kind.into(), object: Some(to_wire(&event.object)) }
}
