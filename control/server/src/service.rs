//! Sends each request where it belongs: gRPC, the registry, metrics, or the Kubernetes API.

use std::{
    convert::Infallible,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::{Router, body::Body, response::IntoResponse};
use coracle_raft::RaftSender;
use futures::FutureExt;
use http::{Request, Response, StatusCode};
use hyper::body::Body as _;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, service::Routes};
use tower::ServiceExt;

use crate::{
    identity::{Caller, former_member},
    listener::NetworkBody,
    membership,
    telemetry::Telemetry,
};

/// All gRPC services have paths of this form.
const GRPC_PREFIX: &str = "/coracle.";

/// See [`is_light`].
const LIGHT_PREFIXES: [&str; 3] = [RAFT_PREFIX, "/coracle.cluster.v1.Leader/", "/coracle.store.v1.Store/"];

/// A request with a larger body may take long.
const LIGHT_BODY_BYTES_MAX: u64 = 16 * 1024;

/// Raft's messages, which only members may send.
const RAFT_PREFIX: &str = "/coracle.raft.";

/// Everything that is served on the port.
pub struct Front {
    pub api: Router,
    pub registry: Router,
    pub grpc: Routes,
    pub telemetry: Arc<Telemetry>,
}

/// The service of one connection.
#[derive(Clone)]
pub struct Service {
    pub front: Arc<Front>,
    pub caller: Caller,
    /// The connection's requests share one task: what may take long runs in another.
    pub shares_task: bool,
}

impl tower::Service<Request<NetworkBody>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<NetworkBody>) -> Self::Future {
        let (front, caller) = (self.front.clone(), self.front.now(&self.caller));
        if let Caller::Client(identity) = &caller {
            request.extensions_mut().insert(identity.clone());
        }
        request.extensions_mut().insert(caller.clone());
        let apart = self.shares_task && !is_light(&request);
        let answer = async move { front.answer(request, &caller).await };
        if !apart {
            return Box::pin(answer.map(Ok));
        }
        let answer = AbortOnDropHandle::new(tokio::spawn(answer));
        Box::pin(answer.map(|answer| {
            Ok(answer.unwrap_or_else(|ended| match ended.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => {
                    (StatusCode::SERVICE_UNAVAILABLE, "this control node is stopping\n").into_response()
                }
            }))
        }))
    }
}

/// Whether a request takes so little time that others of its connection may wait for it: what control nodes ask of each
/// other and of the store, and what concerns one object.
fn is_light(request: &Request<NetworkBody>) -> bool {
    let path = request.uri().path();
    let small = request.body().size_hint().upper().is_some_and(|bytes| bytes <= LIGHT_BODY_BYTES_MAX);
    LIGHT_PREFIXES.iter().any(|prefix| path.starts_with(prefix))
        || (small && coracle_api::names_one_object(path))
}

impl Front {
    /// The caller of a connection as of this call: a member may have been removed since it began.
    fn now(&self, caller: &Caller) -> Caller {
        match caller {
            Caller::Member(id) if membership::is_former(&self.telemetry.storage, *id) => {
                Caller::FormerMember(*id)
            }
            caller => caller.clone(),
        }
    }

    async fn answer(&self, mut request: Request<NetworkBody>, caller: &Caller) -> Response<Body> {
        let began = Instant::now();
        let path = request.uri().path().to_owned();
        let path = path.as_str();
        if is_grpc(path) {
            if path.starts_with(RAFT_PREFIX) {
                match *caller {
                    Caller::Member(id) => request.extensions_mut().insert(RaftSender(id)),
                    Caller::FormerMember(id) => return former_member(id).into_http::<Body>(),
                    _ => {
                        let reason = "only control nodes may call this";
                        return Status::permission_denied(reason).into_http::<Body>();
                    }
                };
            }
            let service = self.telemetry.requests.grpc_began(path);
            let response = infallible(self.grpc.clone().oneshot(request).await).map(Body::new);
            self.telemetry.requests.grpc_answered(service, began.elapsed());
            return response;
        }
        if path == "/v2" || path.starts_with("/v2/") {
            let method = request.method().clone();
            let response = infallible(self.registry.clone().oneshot(request.map(Body::new)).await);
            let code = response.status().as_u16();
            self.telemetry.requests.registry_answered(method.as_str(), code, began.elapsed());
            response
        } else if path == "/metrics" {
            self.metrics(caller).await
        } else {
            infallible(self.api.clone().oneshot(request.map(Body::new)).await)
        }
    }

    async fn metrics(&self, caller: &Caller) -> Response<Body> {
        match caller {
            caller if caller.is_master() => self.telemetry.scrape().await.into_response(),
            Caller::Anonymous => {
                (StatusCode::UNAUTHORIZED, "metrics need a client certificate\n").into_response()
            }
            _ => (StatusCode::FORBIDDEN, "metrics are for administrators\n").into_response(),
        }
    }
}

fn is_grpc(path: &str) -> bool {
    path.starts_with(GRPC_PREFIX)
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}
