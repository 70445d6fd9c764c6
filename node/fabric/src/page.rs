//! A page of text for those who may read it: what monitoring reads of a node. Over TLS, by bearer tokens (RFC 6750), of which
//! somebody else judges.

mod secured;

use crate::door::{Arrival, Door};
use crate::error::FabricError;
use crate::fabric::{Fabric, listen};
use arc_swap::ArcSwap;
use coracle_proto::metrics;
use coracle_wasi_host::descriptors::Purpose;
use coracle_wasi_host::net::{HttpBody, full_body};
use coracle_wasi_host::serving::{self, Bounds, text_answer};
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use rustls::ServerConfig;
use secured::Secured;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Those who ask are few and known.
const BOUNDS: Bounds = Bounds {
    connections_max: 64,
    connections_per_source_max: 64,
    requests_max: 16,
    requests_per_source_max: 16,
};

/// How long a client has for TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the page is.
const PATH: &str = "/metrics";

/// What is served, and to whom.
pub struct Page {
    /// The certificate that is shown, as it is when a client connects. Clients need none.
    pub tls: Arc<ArcSwap<ServerConfig>>,
    /// Judges of a token. Asked for each request, whatever that is for.
    pub judge: Box<dyn Fn(String) -> BoxFuture<'static, Verdict> + Send + Sync>,
    /// Writes the page.
    pub write: Box<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>,
}

/// What is said of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Who has it may read the page.
    Allowed,
    /// Who has it may not.
    Forbidden,
    /// Nobody has it, or has it any more.
    Unknown,
    /// Nobody can say so now.
    Unanswered,
}

impl Fabric {
    /// Serves the page at `/metrics` of this address until the fabric is shut down. Where it listens.
    pub async fn serve_page(&self, address: SocketAddr, page: Page) -> Result<SocketAddr, FabricError> {
        let listener = listen(address, "metrics")?;
        let bound = listener.local_addr().unwrap_or(address);
        let inner = self.inner();
        let mut door = Door::new(listener, BOUNDS, inner.descriptors().clone(), Purpose::Clients);
        let (page, stopped) = (Arc::new(page), inner.stopped().clone());
        tokio::spawn(async move {
            loop {
                let arrival = tokio::select! {
                    arrival = door.next() => arrival,
                    () = stopped.cancelled() => return,
                };
                let (page, stopped) = (page.clone(), stopped.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve_connection(arrival, page) => {}
                        () = stopped.cancelled() => {}
                    }
                });
            }
        });
        Ok(bound)
    }
}

async fn serve_connection(arrival: Arrival, page: Arc<Page>) {
    let Arrival { stream, client, place, descriptor } = arrival;
    place.hold(descriptor);
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_TIMEOUT, page.acceptor().accept(stream)) => shaken,
        () = place.lost() => return,
    };
    let Ok(Ok(stream)) = shaken else {
        return tracing::debug!(%client, "connection for metrics refused: it does not speak TLS");
    };
    let respond = move |request: Request<HttpBody>| {
        let page = page.clone();
        async move { page.answer(request).await }
    };
    if let Err(error) = serving::serve(Secured(stream), place, pending(), respond).await {
        tracing::debug!(%client, %error, "connection for metrics ended");
    }
}

impl Page {
    /// With the certificate of this moment.
    fn acceptor(&self) -> TlsAcceptor {
        let mut config = ServerConfig::clone(&self.tls.load());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    async fn answer(&self, request: Request<HttpBody>) -> Response<HttpBody> {
        let verdict = match bearer(request.headers()) {
            Some(token) => (self.judge)(token.to_owned()).await,
            None => return challenge(StatusCode::UNAUTHORIZED, "Bearer", "show the token of a reader"),
        };
        match verdict {
            Verdict::Allowed => self.answer_reader(request).await,
            Verdict::Forbidden => {
                let why = "this token is not for reading; make one with `coracle token create --role reader`";
                challenge(StatusCode::FORBIDDEN, "Bearer error=\"insufficient_scope\"", why)
            }
            Verdict::Unknown => {
                let why = "this token is not known, or not any more";
                challenge(StatusCode::UNAUTHORIZED, "Bearer error=\"invalid_token\"", why)
            }
            Verdict::Unanswered => {
                let why = "no control node can be asked about this token now";
                text_answer(StatusCode::SERVICE_UNAVAILABLE, why)
            }
        }
    }

    async fn answer_reader(&self, request: Request<HttpBody>) -> Response<HttpBody> {
        if request.uri().path() != PATH {
            return text_answer(StatusCode::NOT_FOUND, "there is only /metrics");
        }
        if request.method() != Method::GET {
            return text_answer(StatusCode::METHOD_NOT_ALLOWED, "only GET");
        }
        let mut response = Response::new(full_body((self.write)().await));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
        response
    }
}

/// The token that a request shows.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// A refusal that says what is wanted. Source: RFC 6750, 3.
fn challenge(status: StatusCode, wanted: &'static str, why: &str) -> Response<HttpBody> {
    let mut response = text_answer(status, why);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(wanted));
    response
}
