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
use coracle_api::{ApiError, Attributes, Authorizer, Decision, Storage, asks_to_impersonate, impersonated};
use coracle_raft::RaftSender;
use futures::FutureExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Body as _;
use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, service::Routes};
use tower::ServiceExt;

use crate::{
    access::{self, Shape, is_grpc},
    authentication::{BadToken, authenticate},
    authorization::{Builtin, is_registry},
    identity::{Caller, Peer},
    inflow::{Inflow, Metered, NotRead, Reading, Share},
    lingering::Lingering,
    listener::NetworkBody,
    standing::{Judge, Lost},
    telemetry::Telemetry,
};

/// See [`is_light`].
const LIGHT_PREFIXES: [&str; 3] = [RAFT_PREFIX, "/coracle.cluster.v1.Leader/", "/coracle.store.v1.Store/"];

const METRICS_PATH: &str = "/metrics";

/// A request with a larger body may take long.
const LIGHT_BODY_BYTES_MAX: u64 = 16 * 1024;

/// More than any body may have that is read whole: objects and manifests have lower limits, which say so in their words.
const WHOLE_BYTES_MAX: usize = 4 * 1024 * 1024 + 64 * 1024;

/// Raft's messages, which only members may send.
const RAFT_PREFIX: &str = "/coracle.raft.";

/// Everything that is served on the port.
pub struct Front {
    pub api: Router,
    pub registry: Router,
    pub grpc: Routes,
    pub telemetry: Arc<Telemetry>,
    pub judge: Arc<Judge>,
}

/// The service of one connection.
#[derive(Clone)]
pub struct Service {
    pub front: Arc<Front>,
    pub peer: Arc<Peer>,
    /// Of the bytes of requests that are in flight.
    pub share: Share,
    pub inflow: Arc<Inflow>,
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

    fn call(&mut self, request: Request<NetworkBody>) -> Self::Future {
        let service = self.clone();
        let apart = self.shares_task && !is_light(&request);
        let answer = async move { service.front.answer(request, &service).await };
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
    async fn answer(
        &self,
        request: Request<NetworkBody>,
        Service { peer, share, inflow, .. }: &Service,
    ) -> Response<Body> {
        let began = Instant::now();
        let path = request.uri().path().to_owned();
        let path = path.as_str();
        // Streams of gRPC end as both sides know they may.
        let lingers = !is_grpc(path);
        let mut request = request.map(|body| Lingering::new(body, lingers));
        let judged = match self.judge.judge(peer) {
            Err(Lost::NodeGone(_)) => self.judge.judge_surely(peer).await,
            judged => judged,
        };
        let caller = match judged {
            Ok(caller) => caller,
            Err(lost) if is_grpc(path) => return Status::unauthenticated(lost.to_string()).into_http(),
            // Elsewhere anybody may see how the cluster does, and nothing else.
            Err(_) => Caller::Anonymous,
        };
        let view = || self.telemetry.storage.view();
        let caller = match authenticate(caller, path, request.headers(), view, Timestamp::now()) {
            Ok(caller) => caller,
            Err(BadToken) if is_grpc(path) => Caller::Anonymous,
            Err(BadToken) if is_registry(path) => return coracle_registry::unauthorized(),
            Err(BadToken) => return ApiError::Unauthorized.into_response(),
        };
        let (reading, bytes_max) = match admitted(path, request.method(), &caller) {
            Ok(reading) => reading,
            Err(refusal) => return refusal.into_http(),
        };
        if let Caller::Client(user) = &caller {
            request.extensions_mut().insert(user.clone());
        }
        if let Caller::Member(id) = &caller
            && path.starts_with(RAFT_PREFIX)
        {
            request.extensions_mut().insert(RaftSender(*id));
        }
        if let Some(bound_to) = peer.certificate.as_ref().and_then(|shown| shown.bound_to.clone()) {
            request.extensions_mut().insert(bound_to);
        }
        request.extensions_mut().insert(caller.clone());
        let (head, body) = request.into_parts();
        let hold = inflow.share_of(share, &caller).hold();
        let body = match Metered::new(body, hold.clone(), reading, bytes_max) {
            Ok(body) => body,
            Err(error) => return not_read(path, error),
        };
        let response = self.dispatch(Request::from_parts(head, body), &caller, began).await;
        if hold.refused() { not_read(path, NotRead::NoRoom) } else { response }
    }

    async fn dispatch(
        &self,
        request: Request<Metered<Lingering<NetworkBody>>>,
        caller: &Caller,
        began: Instant,
    ) -> Response<Body> {
        let path = request.uri().path();
        if is_grpc(path) && asks_to_impersonate(request.headers()) {
            Status::permission_denied("nobody acts as somebody else over gRPC").into_http()
        } else if is_grpc(path) {
            let service = self.telemetry.requests.grpc_began(path);
            let response = infallible(self.grpc.clone().oneshot(request).await).map(Body::new);
            self.telemetry.requests.grpc_answered(service, began.elapsed());
            response
        } else if is_registry(path) {
            let method = request.method().clone();
            let mut request = request;
            if !matches!(caller, Caller::Anonymous) {
                // Members as well, who are nobody to the REST API.
                match impersonated(&Builtin, caller.user(), request.headers()) {
                    Ok(user) => drop(request.extensions_mut().insert(user)),
                    Err(refused) => return refused.into_response(),
                }
            }
            let response = infallible(self.registry.clone().oneshot(request.map(Body::new)).await);
            let code = response.status().as_u16();
            self.telemetry.requests.registry_answered(method.as_str(), code, began.elapsed());
            response
        } else if path == METRICS_PATH {
            self.metrics(caller, request.headers()).await
        } else {
            infallible(self.api.clone().oneshot(request.map(Body::new)).await)
        }
    }

    async fn metrics(&self, caller: &Caller, headers: &HeaderMap) -> Response<Body> {
        let asked = Attributes::of_path(&Method::GET, METRICS_PATH);
        let user = match impersonated(&Builtin, caller.user(), headers) {
            Ok(user) => user,
            Err(refused) => return refused.into_response(),
        };
        match Builtin.authorize(&user, &asked) {
            Decision::Allowed => self.telemetry.scrape().await.into_response(),
            Decision::Denied(_) if matches!(caller, Caller::Anonymous) => {
                let how =
                    "metrics need a client certificate, or a token of `coracle token create --role reader`\n";
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], how).into_response()
            }
            Decision::Denied(_) => {
                (StatusCode::FORBIDDEN, "metrics are for administrators and readers\n").into_response()
            }
        }
    }
}

/// How the body of a request is read and how much of it, or why it is not read at all.
#[allow(clippy::result_large_err, reason = "the error type of tonic services")]
fn admitted(path: &str, method: &Method, caller: &Caller) -> Result<(Reading, usize), Status> {
    if is_grpc(path) {
        let Some((audience, shape)) = access::method(path) else {
            return Err(Status::unimplemented("there is no such method in this version"));
        };
        audience.admit(caller)?;
        let reading = if shape == Shape::Many { Reading::Messages } else { Reading::Message };
        return Ok((reading, audience.message_bytes_max()));
    }
    Ok(match caller {
        // The registry tells them how to log in, and reads nothing.
        Caller::Anonymous if is_registry(path) => (Reading::Through, usize::MAX),
        // Nothing that they may ask for takes a body.
        Caller::Anonymous => (Reading::Whole, access::JOIN_BYTES_MAX),
        // What is uploaded has bounds of its own, on the disk.
        _ if is_registry(path) && (path.contains("/blobs/uploads") || method == Method::GET) => {
            (Reading::Through, usize::MAX)
        }
        _ => (Reading::Whole, WHOLE_BYTES_MAX),
    })
}

/// The answer to a request whose body is not read.
fn not_read(path: &str, error: NotRead) -> Response<Body> {
    let message = error.to_string();
    match error {
        _ if is_grpc(path) => Status::resource_exhausted(message).into_http(),
        NotRead::NoRoom => {
            let wait = [(header::RETRY_AFTER, "1")];
            (StatusCode::TOO_MANY_REQUESTS, wait, message + "\n").into_response()
        }
        NotRead::TooLarge(limit) if !is_registry(path) => {
            ApiError::TooLarge { limit: limit as u64 }.into_response()
        }
        NotRead::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, message + "\n").into_response(),
        NotRead::Stalled => (StatusCode::REQUEST_TIMEOUT, message + "\n").into_response(),
    }
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}
