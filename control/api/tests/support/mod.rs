//! A storage in memory that stands in for the replicated one, and requests to the router.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{io, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode, header},
};
use bytes::Bytes;
use coracle_api::{
    Admission, ApiConfig, Expired, NodeError, Nodes, ProposeError, Storage, Unavailable, UserInfo, WatchItem,
    WatchStream,
};
use coracle_objects::{
    Applied, Event, EventKind, LogOptions, Object, ObjectKey, Refusal, ResourceName, Revision, Transaction,
    View, Write,
};
use futures::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tower::ServiceExt;

/// Items that a slow watcher may be behind.
const BEHIND_MAX: usize = 1024;

struct State {
    view: Arc<View>,
    events: Vec<Arc<Event>>,
    /// Events up to this revision are forgotten.
    compacted: Revision,
    /// What this member shows though the others are further.
    stale: Option<Arc<View>>,
    /// Whether a leader is heard.
    led: bool,
    /// How many transactions were proposed.
    proposals: usize,
    sender: broadcast::Sender<WatchItem>,
}

/// The store's semantics over one map.
#[derive(Clone)]
pub struct Memory(Arc<Mutex<State>>);

impl Memory {
    pub fn new() -> Self {
        let (sender, _) = broadcast::channel(BEHIND_MAX);
        let state = State {
            view: Arc::default(),
            events: Vec::new(),
            compacted: 0,
            stale: None,
            led: true,
            proposals: 0,
            sender,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Forgets all events so far.
    pub fn compact(&self) {
        let mut state = self.0.lock();
        state.compacted = state.view.revision;
        state.events.clear();
    }

    /// The local state stays as it is now.
    pub fn fall_behind(&self) {
        let mut state = self.0.lock();
        state.stale = Some(state.view.clone());
    }

    pub fn set_led(&self, led: bool) {
        self.0.lock().led = led;
    }

    pub fn proposals(&self) -> usize {
        self.0.lock().proposals
    }

    /// Tells all watchers how far they are.
    pub fn progress(&self) {
        let state = self.0.lock();
        let _ = state.sender.send(WatchItem::Progress(state.view.revision));
    }

    /// Puts an object as the control plane itself does.
    pub fn put(&self, resource: &str, namespace: &str, name: &str, object: Value) {
        let key = ObjectKey::new(resource, namespace, name);
        let mut object = object;
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
        }
        let write = Write::Put { key, draft: object.to_string().into() };
        let transaction = Transaction { preconditions: Vec::new(), writes: vec![write] };
        self.apply(transaction).unwrap();
    }

    fn apply(&self, transaction: Transaction) -> Result<Applied, Refusal> {
        let mut state = self.0.lock();
        transaction.check(&state.view)?;
        let mut view = View::clone(&state.view);
        let revision = view.revision + 1;
        let (mut revisions, mut events) = (Vec::new(), Vec::new());
        for write in transaction.writes {
            let key = write.key().clone();
            let previous = view.get(&key).cloned();
            let (kind, object) = match write {
                Write::Put { draft, .. } => {
                    if let Some(same) = previous.as_ref().filter(|previous| previous.draft() == draft) {
                        revisions.push(same.revision);
                        continue;
                    }
                    let object = Object::from_draft(key.clone(), &draft, revision)
                        .map_err(|error| Refusal::BadDraft { key: key.clone(), reason: error.to_string() })?;
                    let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
                    (kind, Arc::new(object))
                }
                Write::Delete { .. } => {
                    let previous = previous.as_ref().ok_or(Refusal::NotFound { key: key.clone() })?;
                    (EventKind::Deleted, Arc::new(previous.at_revision(revision)))
                }
            };
            let table = view.tables.entry(key.resource.clone()).or_default();
            if kind == EventKind::Deleted {
                table.remove(&key.name);
            } else {
                table.insert(key.name.clone(), object.clone());
            }
            revisions.push(revision);
            events.push(Arc::new(Event { kind, object, previous }));
        }
        if !events.is_empty() {
            view.revision = revision;
            state.view = Arc::new(view);
            for event in events {
                state.events.push(event.clone());
                let _ = state.sender.send(WatchItem::Event(event));
            }
            let _ = state.sender.send(WatchItem::Progress(revision));
        }
        Ok(Applied { revision: state.view.revision, revisions })
    }
}

impl Storage for Memory {
    fn view(&self) -> Arc<View> {
        let state = self.0.lock();
        state.stale.as_ref().unwrap_or(&state.view).clone()
    }

    async fn linearizable(&self) -> Result<Arc<View>, Unavailable> {
        let state = self.0.lock();
        if !state.led {
            return Err(Unavailable("no leader is known".into()));
        }
        Ok(state.view.clone())
    }

    fn view_at(&self, resource: &ResourceName, revision: Revision) -> Option<Arc<View>> {
        let state = self.0.lock();
        if revision < state.compacted || revision > state.view.revision {
            return None;
        }
        let mut table = state.view.tables.get(resource).cloned().unwrap_or_default();
        let since =
            |event: &&Arc<Event>| event.object.key.resource == *resource && event.object.revision > revision;
        for event in state.events.iter().rev().filter(since) {
            match &event.previous {
                Some(previous) => table.insert(event.object.key.name.clone(), previous.clone()),
                None => table.remove(&event.object.key.name),
            };
        }
        Some(Arc::new(View { revision, tables: [(resource.clone(), table)].into_iter().collect() }))
    }

    fn is_led(&self) -> bool {
        self.0.lock().led
    }

    async fn propose(&self, transaction: Transaction) -> Result<Result<Applied, Refusal>, ProposeError> {
        self.0.lock().proposals += 1;
        Ok(self.apply(transaction))
    }

    fn watch(&self, resource: &ResourceName, after: Revision) -> Result<WatchStream, Expired> {
        let state = self.0.lock();
        if after < state.compacted {
            return Err(Expired { oldest: state.compacted });
        }
        let past: Vec<WatchItem> = state
            .events
            .iter()
            .filter(|event| event.object.revision > after && event.object.key.resource == *resource)
            .cloned()
            .map(WatchItem::Event)
            .collect();
        let resource = resource.clone();
        let live = BroadcastStream::new(state.sender.subscribe()).filter_map(move |item| {
            std::future::ready(match item {
                Ok(WatchItem::Event(event)) if event.object.key.resource != resource => None,
                Ok(item) => Some(item),
                Err(_) => Some(WatchItem::Overflow),
            })
        });
        Ok(Box::pin(stream::iter(past).chain(live)))
    }
}

/// Nodes whose pods have all written the same.
#[derive(Clone)]
pub struct Talkative;

impl Nodes for Talkative {
    async fn logs(
        &self,
        node: &str,
        _pod_uid: &str,
        options: LogOptions,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, NodeError> {
        if node == "lost" {
            return Err(NodeError::Unreachable { node: node.to_owned(), reason: "no link".to_owned() });
        }
        let first = format!("{}: one\n", options.container);
        Ok(stream::iter([Ok(Bytes::from(first)), Ok(Bytes::from_static(b"two\n"))]))
    }
}

/// A router over an empty cluster with the namespace `default`.
pub fn cluster() -> (Memory, Router) {
    let memory = Memory::new();
    for name in ["default", "kube-system"] {
        memory.put(
            "namespaces",
            "",
            name,
            serde_json::json!({
                "kind": "Namespace", "apiVersion": "v1",
                "metadata": { "name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" },
            }),
        );
    }
    let router = member(&memory);
    (memory, router)
}

/// The API of another member over the same objects.
pub fn member(memory: &Memory) -> Router {
    coracle_api::router(memory.clone(), Talkative, Admission::new(ApiConfig::new("test", "0.0.0")))
}

pub fn admin() -> UserInfo {
    UserInfo::new("admin", &["system:masters"])
}

/// A request in the making.
pub struct Ask {
    method: Method,
    uri: String,
    headers: Vec<(header::HeaderName, String)>,
    body: Vec<u8>,
    identity: Option<UserInfo>,
}

pub fn ask(method: &str, uri: &str) -> Ask {
    Ask {
        method: method.parse().unwrap(),
        uri: uri.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
        identity: Some(admin()),
    }
}

impl Ask {
    pub fn header(mut self, name: header::HeaderName, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn json(self, body: Value) -> Self {
        self.body("application/json", body.to_string())
    }

    pub fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header(header::CONTENT_TYPE, content_type)
    }

    pub fn by(mut self, identity: Option<UserInfo>) -> Self {
        self.identity = identity;
        self
    }

    pub async fn send(self, router: &Router) -> Response<Body> {
        let mut request = Request::builder().method(self.method).uri(self.uri);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let mut request = request.body(Body::from(self.body)).unwrap();
        if let Some(identity) = self.identity {
            request.extensions_mut().insert(identity);
        }
        router.clone().oneshot(request).await.unwrap()
    }

    /// The answer's code and JSON.
    pub async fn value(self, router: &Router) -> (StatusCode, Value) {
        let response = self.send(router).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
        (status, value)
    }

    /// As [`Ask::value`], of an answer that must be a success.
    pub async fn ok(self, router: &Router) -> Value {
        let (status, value) = self.value(router).await;
        assert!(status.is_success(), "{status}: {value}");
        value
    }

    /// Code and message of an answer that must be a failure.
    pub async fn fail(self, router: &Router) -> (u16, String) {
        let (status, value) = self.value(router).await;
        assert!(!status.is_success(), "{status}: {value}");
        (status.as_u16(), value["message"].as_str().unwrap_or("").to_owned())
    }
}

/// The lines of a watch.
pub struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    pub async fn open(ask: Ask, router: &Router) -> Self {
        let response = ask.send(router).await;
        assert_eq!(response.status(), StatusCode::OK);
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event; None at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    /// The next event's type and its object's name.
    pub async fn event(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

/// Sets the value that a JSON pointer names, in an object that is there.
pub fn set(target: &mut Value, pointer: &str, value: Value) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    target.pointer_mut(parent).unwrap()[field] = value;
}
