//! The API as a client meets it: raw bytes in, a status and a body out, on a runtime of this thread.

use std::{cell::RefCell, sync::OnceLock};

use axum::{Router, body::Body};
use coracle_api::{Admission, UserInfo};
use http::{Request, header};
use serde_json::Value;
use tower::ServiceExt;

use super::storage::{MemoryStorage, NoNodes};

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

thread_local! {
    static RUNTIME: RefCell<Option<tokio::runtime::Runtime>> = const { RefCell::new(None) };
}

/// The real router over a storage.
pub struct Door {
    router: Router,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// The reason in the Status object of a refusal, for people.
    pub fn message(&self) -> String {
        let value: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let message = value["message"].as_str().unwrap_or_default();
        message.chars().take(300).collect()
    }
}

/// One request in bytes.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    pub method: &'static str,
    /// With the query.
    pub path: String,
    pub content_type: &'static str,
    pub accept: &'static str,
    pub body: Vec<u8>,
}

impl Door {
    pub fn new(storage: MemoryStorage, admission: Admission) -> Self {
        Self { router: coracle_api::router(storage, NoNodes, admission) }
    }

    /// Asks as an administrator. What panics in there comes out as a panic.
    pub fn ask(&self, ask: &Ask) -> Answer {
        let identity = UserInfo::new("admin", &["system:masters"]);
        let mut request = Request::builder().method(ask.method).uri(&ask.path).extension(identity);
        if !ask.content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, ask.content_type);
        }
        if !ask.accept.is_empty() {
            request = request.header(header::ACCEPT, ask.accept);
        }
        // A path that is no URI does not reach a server.
        let Ok(request) = request.body(Body::from(ask.body.clone())) else {
            return Answer { status: 400, body: vec![] };
        };
        let router = self.router.clone();
        block_on(async move {
            let Ok(response) = router.oneshot(request).await;
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await;
            Answer { status, body: body.map(Vec::from).unwrap_or_default() }
        })
    }

    pub fn get(&self, path: &str, accept: &'static str) -> Answer {
        self.ask(&Ask { method: "GET", path: path.to_owned(), accept, ..Ask::default() })
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with_borrow_mut(|runtime| {
        let runtime = runtime.get_or_insert_with(|| {
            let built = tokio::runtime::Builder::new_current_thread().enable_time().build();
            built.expect("a runtime of one thread needs nothing that could be missing")
        });
        runtime.block_on(future)
    })
}

/// The schemas of all served types, as the API publishes them: `io.k8s.api.core.v1.PodSpec` -> schema.
pub fn schemas() -> &'static serde_json::Map<String, Value> {
    static ALL: OnceLock<serde_json::Map<String, Value>> = OnceLock::new();
    ALL.get_or_init(|| {
        let door = Door::new(
            MemoryStorage::new(crate::rng::Rng::new(0), false),
            Admission::new(coracle_api::ApiConfig::new("", "")),
        );
        let mut all = serde_json::Map::new();
        let index: Value = door.get("/openapi/v3", "").value();
        for path in index["paths"].as_object().into_iter().flat_map(|paths| paths.keys()) {
            let document = door.get(&format!("/openapi/v3/{path}"), "application/json").value();
            if let Some(found) = document.pointer("/components/schemas").and_then(Value::as_object) {
                all.extend(found.clone());
            }
        }
        all
    })
}

impl Answer {
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}
