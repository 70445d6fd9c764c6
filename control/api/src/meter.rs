//! The boundary to whoever counts requests, and the labels that a request is counted under.

use std::{sync::Arc, time::Duration};

use coracle_objects::{Endpoint, Kind, kinds};
use http::Method;

use crate::{options::Query, path::Target};

/// The verbs that requests are counted under, as kube-apiserver's metrics name them. The last is any other method.
pub const METRIC_VERBS: &[&str] = &[
    "GET",
    "LIST",
    "WATCH",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "DELETECOLLECTION",
    "APPLY",
    "CONNECT",
    "OTHER",
];

/// Media type of a server-side apply.
const APPLY: &[u8] = b"application/apply-patch+yaml";

/// What a request asks, as far as it is counted. Numbers, so that a counter is found without a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Into [`METRIC_VERBS`].
    pub verb: usize,
    /// Into [`kinds`]. None for paths that name no resource, and for kinds that are declared: how many of them there are is
    /// up to users.
    pub kind: Option<usize>,
}

impl Asked {
    pub fn verb_name(&self) -> &'static str {
        METRIC_VERBS[self.verb]
    }

    /// Goes on after its answer has begun: it has no duration.
    pub fn is_long_running(&self) -> bool {
        matches!(self.verb_name(), "WATCH" | "CONNECT")
    }

    pub fn is_read_only(&self) -> bool {
        matches!(self.verb_name(), "GET" | "LIST" | "WATCH" | "CONNECT")
    }

    pub(crate) fn of(parts: &http::request::Parts, target: &Target) -> Self {
        let (kind, name) = match target {
            Target::Resource(path) => {
                let kind = index(&path.kind);
                let verb = verb(parts, path.name.is_some(), path.subresource);
                (kind, verb)
            }
            _ => (None, verb(parts, true, None)),
        };
        let verb = METRIC_VERBS.iter().position(|verb| *verb == name);
        Self { verb: verb.unwrap_or(METRIC_VERBS.len() - 1), kind }
    }
}

fn verb(parts: &http::request::Parts, named: bool, subresource: Option<Endpoint>) -> &'static str {
    match parts.method {
        Method::GET | Method::HEAD => match subresource {
            Some(Endpoint::Log) => "CONNECT",
            _ if watches(parts) => "WATCH",
            _ if named => "GET",
            _ => "LIST",
        },
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => {
            let media = parts.headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
            if media.is_some_and(|media| media.starts_with(APPLY)) { "APPLY" } else { "PATCH" }
        }
        Method::DELETE if named => "DELETE",
        Method::DELETE => "DELETECOLLECTION",
        _ => "OTHER",
    }
}

/// Where a kind of this binary is in [`kinds`].
fn index(kind: &Arc<Kind>) -> Option<usize> {
    kinds().iter().position(|known| Arc::ptr_eq(known, kind))
}

pub(crate) fn watches(parts: &http::request::Parts) -> bool {
    let query = parts.uri.query().unwrap_or("");
    query.contains("watch=") && Query::parse(&parts.uri).is_ok_and(|query| query.flag("watch") == Some(true))
}

/// Who counts requests. Called on the hot path: it must neither wait nor allocate.
pub trait Meter: Send + Sync + 'static {
    /// A request is being answered.
    fn began(&self, _asked: Asked) {}

    /// The answer's head is there.
    fn answered(&self, _asked: Asked, _code: u16, _took: Duration) {}

    /// A request that was begun is gone, whether it was answered or its client has left.
    fn ended(&self, _asked: Asked) {}

    /// A watch of a kind (an index into [`kinds`]) begins.
    fn watch_began(&self, _kind: usize) {}

    /// A watch sent events or bookmarks.
    fn watch_sent(&self, _kind: usize, _events: u64) {}

    fn watch_ended(&self, _kind: usize) {}
}

/// Counts nothing.
pub(crate) struct Unmetered;

impl Meter for Unmetered {}

/// A request under way: ends with its handle, also where the client goes away before the answer.
pub(crate) struct UnderWay<'a> {
    pub meter: &'a dyn Meter,
    pub asked: Asked,
}

impl<'a> UnderWay<'a> {
    pub fn begin(meter: &'a dyn Meter, asked: Asked) -> Self {
        meter.began(asked);
        Self { meter, asked }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.meter.ended(self.asked);
    }
}

/// One watch, while it lasts.
pub(crate) struct Watching {
    meter: Arc<dyn Meter>,
    /// None of a declared kind, which is not counted.
    kind: Option<usize>,
}

impl Watching {
    pub fn begin(meter: Arc<dyn Meter>, kind: &Arc<Kind>) -> Self {
        let kind = index(kind);
        if let Some(kind) = kind {
            meter.watch_began(kind);
        }
        Self { meter, kind }
    }

    pub fn sent(&self, events: u64) {
        if let Some(kind) = self.kind {
            self.meter.watch_sent(kind, events);
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(kind) = self.kind {
            self.meter.watch_ended(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::Catalog;

    use super::*;
    use crate::{path, served::Served};

    fn asked(method: &str, uri: &str) -> (&'static str, Option<&'static str>) {
        let request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let asked = Asked::of(&parts, &path::parse(&Served::of(Catalog::native().clone()), parts.uri.path()));
        (asked.verb_name(), asked.kind.map(|kind| &*kinds()[kind].plural))
    }

    #[test]
    fn requests_are_counted_under_kubernetes_verbs() {
        let pods = "/api/v1/namespaces/default/pods";
        assert_eq!(asked("GET", pods), ("LIST", Some("pods")));
        assert_eq!(asked("GET", &format!("{pods}?limit=1&watch=true")), ("WATCH", Some("pods")));
        assert_eq!(asked("GET", &format!("{pods}/a?labelSelector=watch%3Dx")), ("GET", Some("pods")));
        assert_eq!(asked("GET", &format!("{pods}/a/log")), ("CONNECT", Some("pods")));
        assert_eq!(asked("DELETE", pods), ("DELETECOLLECTION", Some("pods")));
        assert_eq!(asked("PUT", "/apis/apps/v1/namespaces/a/deployments/b"), ("PUT", Some("deployments")));
        assert_eq!(asked("GET", "/readyz"), ("GET", None));
        assert_eq!(asked("BREW", "/nonsense"), ("OTHER", None));
    }
}
