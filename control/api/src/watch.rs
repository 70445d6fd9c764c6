//! Watches: events as lines of JSON, filtered by selectors, with bookmarks and an end.

use std::{collections::VecDeque, future, pin::Pin, sync::Arc, time::Duration};

use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use coracle_objects::{Event, EventKind, Kind, Object, Revision, View};
use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};

use crate::{
    answer::{self, Form, Include, ListMeta},
    error::ApiError,
    meter::Watching,
    options::ListOptions,
    readable,
    request::{Context, Request},
    router::Api,
    sending::FRAME_BYTES,
    storage::{Nodes, Storage, WatchItem, WatchStream},
    table,
    verbs::list,
};

/// How often a client that asked for bookmarks gets one while nothing else happens.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(30);
/// A watch without timeoutSeconds lasts this long, and up to twice as long.
const TIMEOUT_SECONDS_DEFAULT: u64 = 1800;
/// A client cannot ask for more.
const TIMEOUT_SECONDS_MAX: u64 = 24 * 3600;

/// Answers a WATCH request: an endless body, one event a line.
pub async fn watch<S: Storage, N: Nodes>(
    api: &Api<S, N>,
    request: &Request,
    options: ListOptions,
    form: Form,
) -> Result<Response, ApiError> {
    let kind = request.kind();
    let resource = kind.storage_resource();
    if !api.storage.is_led() {
        // Nothing would be known of what such a watch does not show: it waits for a leader, or is refused.
        api.storage.linearizable().await?;
    }
    let initial =
        options.send_initial_events.unwrap_or(options.revision.is_none_or(|revision| revision == 0));
    let (start, objects) = if initial || options.revision.is_none_or(|revision| revision == 0) {
        let view = list::view_at_least(&api.storage, options.revision).await?;
        let objects = if initial { matching(&view, request, &options) } else { VecDeque::new() };
        objects.iter().try_for_each(|object| readable::check(object))?;
        (view.revision, objects)
    } else {
        let revision = options.revision.unwrap_or(0);
        list::view_at_least(&api.storage, Some(revision)).await?;
        (revision, VecDeque::new())
    };
    let stream = api.storage.watch(&resource, start).map_err(|expired| ApiError::Expired {
        message: format!("too old resource version: {start} ({})", expired.oldest),
        continuation: None,
    })?;
    let mut watcher = Watcher::new(request, options, form, start, objects, stream, api.config.now);
    let storage = api.storage.clone();
    watcher.is_led = Box::new(move || storage.is_led());
    watcher.watching = Some(Watching::begin(api.config.meter.clone(), kind));
    let frames = stream::unfold(watcher, |mut watcher| async move {
        let frame = watcher.next_frame().await?;
        watcher.count();
        Some((frame, watcher))
    });
    let Context { encoding, user, .. } = &request.context;
    encoding.stream(frames, &api.bounds, &user.name).await
}

fn matching(view: &View, request: &Request, options: &ListOptions) -> VecDeque<Arc<Object>> {
    view.list(request.kind().storage_resource().as_str(), request.path.namespace.as_deref())
        .filter(|object| options.selects(request.kind(), object))
        .cloned()
        .collect()
}

/// What a watcher sees of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    type_: &'static str,
    object: Arc<Object>,
}

/// Which objects a watcher sees.
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
    kind: Arc<Kind>,
    options: ListOptions,
}

impl Filter {
    fn matches(&self, object: &Object) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| namespace == object.namespace())
            && self.name.as_deref().is_none_or(|name| name == object.name())
            && self.options.selects(&self.kind, object)
    }

    /// An object that starts to match is added, one that stops to match is deleted, whatever really happened to it.
    fn see(&self, event: &Event) -> Option<Seen> {
        let before = event.previous.as_ref().filter(|previous| self.matches(previous));
        let after =
            Some(&event.object).filter(|object| event.kind != EventKind::Deleted && self.matches(object));
        let (type_, object) = match (before, after) {
            (None, Some(object)) => ("ADDED", object.clone()),
            (Some(_), Some(object)) => ("MODIFIED", object.clone()),
            (Some(_), None) if event.kind == EventKind::Deleted => ("DELETED", event.object.clone()),
            (Some(previous), None) => ("DELETED", Arc::new(previous.at_revision(event.object.revision))),
            (None, None) => {
                // A deletion may come without its previous state.
                let gone = event.kind == EventKind::Deleted && event.previous.is_none();
                return (gone && self.matches(&event.object))
                    .then(|| Seen { type_: "DELETED", object: event.object.clone() });
            }
        };
        Some(Seen { type_, object })
    }
}

struct Watcher {
    kind: Arc<Kind>,
    form: Form,
    filter: Filter,
    now: fn() -> Timestamp,
    /// Objects that are still to be announced as added.
    initial: VecDeque<Arc<Object>>,
    /// The revision of the bookmark that ends the initial events, while it is due.
    initial_end: Option<Revision>,
    /// Everything up to here has been given.
    progress: Revision,
    /// The revision of the last bookmark.
    marked: Revision,
    bookmarks: Option<Interval>,
    deadline: Pin<Box<Sleep>>,
    stream: WatchStream,
    /// Whether this member hears a leader: a bookmark says that the watch is alive and current.
    is_led: Box<dyn Fn() -> bool + Send>,
    columns_sent: bool,
    finished: bool,
    /// Lines that are not counted yet.
    lines: u64,
    watching: Option<Watching>,
}

impl Watcher {
    fn new(
        request: &Request,
        options: ListOptions,
        form: Form,
        start: Revision,
        initial: VecDeque<Arc<Object>>,
        stream: WatchStream,
        now: fn() -> Timestamp,
    ) -> Self {
        let seconds = options.timeout_seconds.filter(|seconds| *seconds > 0);
        let seconds = seconds.map_or_else(
            || rand::random_range(TIMEOUT_SECONDS_DEFAULT..=2 * TIMEOUT_SECONDS_DEFAULT),
            |seconds| seconds.min(TIMEOUT_SECONDS_MAX),
        );
        let bookmarks = options.bookmarks.then(|| {
            let mut interval =
                tokio::time::interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        let wants_end = options.send_initial_events == Some(true) && options.bookmarks;
        Self {
            kind: request.kind().clone(),
            form,
            filter: Filter {
                namespace: request.path.namespace.clone(),
                name: request.path.name.clone(),
                kind: request.kind().clone(),
                options,
            },
            now,
            initial,
            initial_end: wants_end.then_some(start),
            progress: start,
            marked: start,
            bookmarks,
            deadline: Box::pin(tokio::time::sleep(Duration::from_secs(seconds))),
            stream,
            is_led: Box::new(|| true),
            columns_sent: false,
            finished: false,
            lines: 0,
            watching: None,
        }
    }

    /// The next lines to send; None ends the watch.
    async fn next_frame(&mut self) -> Option<Bytes> {
        let mut frame = BytesMut::new();
        while let Some(object) = self.initial.pop_front() {
            self.line("ADDED", &object, &mut frame);
            if frame.len() >= FRAME_BYTES {
                return Some(frame.freeze());
            }
        }
        if let Some(revision) = self.initial_end.take() {
            self.bookmark(revision, true, &mut frame);
        }
        while frame.is_empty() {
            if self.finished {
                return None;
            }
            let tick = async {
                match &mut self.bookmarks {
                    Some(interval) => {
                        interval.tick().await;
                    }
                    None => future::pending().await,
                }
            };
            tokio::select! {
                item = self.stream.next() => self.take(item, &mut frame),
                () = self.deadline.as_mut() => {
                    self.finished = true;
                    if self.bookmarks.is_some() && self.progress > self.marked && (self.is_led)() {
                        self.bookmark(self.progress, false, &mut frame);
                    }
                }
                () = tick => if (self.is_led)() {
                    self.bookmark(self.progress, false, &mut frame);
                },
            }
        }
        while frame.len() < FRAME_BYTES && !self.finished {
            let Some(item) = self.stream.next().now_or_never() else { break };
            self.take(item, &mut frame);
        }
        Some(frame.freeze())
    }

    fn count(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if let Some(watching) = &self.watching {
            watching.sent(lines);
        }
    }

    fn take(&mut self, item: Option<WatchItem>, frame: &mut BytesMut) {
        match item {
            Some(WatchItem::Event(event)) => {
                // Other events of the same revision may follow: that one is not complete yet.
                self.progress = self.progress.max(event.object.revision.saturating_sub(1));
                let Some(seen) = self.filter.see(&event) else { return };
                match readable::check(&seen.object) {
                    Ok(()) => self.line(seen.type_, &seen.object, frame),
                    Err(error) => self.fail(&error, frame),
                }
            }
            Some(WatchItem::Progress(revision)) => self.progress = self.progress.max(revision),
            Some(WatchItem::Overflow) => {
                let expired = ApiError::Expired {
                    message: "the watch fell too far behind: list again and watch from there".to_owned(),
                    continuation: None,
                };
                self.fail(&expired, frame);
            }
            None => self.finished = true,
        }
    }

    /// Ends the watch with an error.
    fn fail(&mut self, error: &ApiError, frame: &mut BytesMut) {
        self.finished = true;
        put_line("ERROR", error.status().to_string().as_bytes(), frame);
    }

    fn line(&mut self, type_: &str, object: &Object, frame: &mut BytesMut) {
        self.lines += 1;
        let now = (self.now)();
        let bytes: Bytes = match self.form {
            Form::Table { version, include } => {
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                let meta = ListMeta::at(object.revision);
                table::render(&self.kind, &[object], include, version, now, &meta, with_columns).into()
            }
            form => answer::one(&self.kind, object, form, now),
        };
        put_line(type_, &bytes, frame);
    }

    /// A bookmark: everything up to the revision has been given.
    fn bookmark(&mut self, revision: Revision, ends_initial_events: bool, frame: &mut BytesMut) {
        self.lines += 1;
        self.marked = revision;
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if ends_initial_events {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.form {
            Form::Object => json!({
                "kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata,
            }),
            Form::Metadata { version } => json!({
                "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
            }),
            Form::Table { version, include } => {
                // The marked object stands in a row without cells, as its annotation has no place in a table.
                let object = json!({
                    "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": metadata,
                });
                let rows = match include {
                    Include::None => json!([]),
                    _ => json!([{ "cells": [], "object": object }]),
                };
                json!({
                    "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": { "resourceVersion": revision.to_string() },
                    "columnDefinitions": null, "rows": rows,
                })
            }
        };
        put_line("BOOKMARK", object.to_string().as_bytes(), frame);
    }
}

fn put_line(type_: &str, object: &[u8], frame: &mut BytesMut) {
    frame.reserve(object.len() + type_.len() + 24);
    frame.put_slice(b"{\"type\":\"");
    frame.put_slice(type_.as_bytes());
    frame.put_slice(b"\",\"object\":");
    frame.put_slice(object);
    frame.put_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use coracle_objects::ObjectKey;

    use super::*;
    use crate::options::Query;

    fn object(label: &str, revision: Revision) -> Arc<Object> {
        let draft = format!(r#"{{"metadata":{{"labels":{{"a":"{label}"}}}}}}"#);
        let key = ObjectKey::new("configmaps", "default", "x");
        Arc::new(Object::from_draft(key, draft.as_bytes(), revision).unwrap())
    }

    fn see(kind: EventKind, before: Option<&str>, after: &str) -> Option<(&'static str, Revision, String)> {
        let maps = coracle_objects::by_plural("", "v1", "configmaps").unwrap();
        let query = Query::parse(&"/x?labelSelector=a%3Dyes".parse().unwrap()).unwrap();
        let options = ListOptions::parse(maps, &query).unwrap();
        let filter = Filter { namespace: None, name: None, kind: maps.clone(), options };
        let event = Event { kind, object: object(after, 9), previous: before.map(|label| object(label, 4)) };
        filter
            .see(&event)
            .map(|seen| (seen.type_, seen.object.revision, seen.object.meta.labels["a"].clone()))
    }

    #[test]
    fn selectors_turn_events_into_others() {
        use EventKind::{Added, Deleted, Modified};
        let yes = |type_| Some((type_, 9, "yes".to_owned()));
        assert_eq!(see(Added, None, "yes"), yes("ADDED"));
        assert_eq!(see(Added, None, "no"), None);
        assert_eq!(see(Modified, Some("no"), "yes"), yes("ADDED"));
        assert_eq!(see(Modified, Some("yes"), "yes"), yes("MODIFIED"));
        assert_eq!(see(Modified, Some("yes"), "no"), yes("DELETED"));
        assert_eq!(see(Modified, Some("no"), "no"), None);
        assert_eq!(see(Deleted, Some("yes"), "yes"), yes("DELETED"));
        assert_eq!(see(Deleted, None, "yes"), yes("DELETED"));
        assert_eq!(see(Deleted, Some("no"), "no"), None);
    }
}
