//! A page of text for whoever asks at an address of the machine's own: what its monitoring reads.

use crate::door::{Arrival, Door};
use crate::error::FabricError;
use crate::fabric::{Fabric, listen};
use coracle_wasi_host::descriptors::Purpose;
use coracle_wasi_host::net::{HttpBody, full_body};
use coracle_wasi_host::serving::{self, Bounds, text_answer};
use http::{Method, Request, Response, StatusCode};
use std::future::{Future, pending};
use std::net::SocketAddr;

/// Those who ask are few and known.
const BOUNDS: Bounds = Bounds {
    connections_max: 64,
    connections_per_source_max: 64,
    requests_max: 8,
    requests_per_source_max: 8,
};

/// Where the page is.
const PATH: &str = "/metrics";

impl Fabric {
    /// Serves `page` at `/metrics` of this address, to anybody, until the fabric is shut down. Where it listens.
    pub async fn serve_metrics<P, F>(&self, address: SocketAddr, page: P) -> Result<SocketAddr, FabricError>
    where
        P: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = String> + Send + 'static,
    {
        let listener = listen(address, "metrics")?;
        let bound = listener.local_addr().unwrap_or(address);
        let inner = self.inner();
        let mut door = Door::new(listener, BOUNDS, inner.descriptors().clone(), Purpose::Clients);
        let stopped = inner.stopped().clone();
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

async fn serve_connection<P, F>(arrival: Arrival, page: P)
where
    P: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = String> + Send + 'static,
{
    let Arrival { stream, client, place, descriptor } = arrival;
    place.hold(descriptor);
    let respond = move |request: Request<HttpBody>| {
        let page = page.clone();
        async move { answer(request, page).await }
    };
    if let Err(error) = serving::serve(stream, place, pending(), respond).await {
        tracing::debug!(%client, %error, "connection for metrics ended");
    }
}

async fn answer<F: Future<Output = String>>(
    request: Request<HttpBody>,
    page: impl FnOnce() -> F,
) -> Response<HttpBody> {
    let (is_get, is_there) = (request.method() == Method::GET, request.uri().path() == PATH);
    match (is_there, is_get) {
        (true, true) => Response::new(full_body(page().await)),
        (true, false) => text_answer(StatusCode::METHOD_NOT_ALLOWED, "only GET"),
        (false, _) => text_answer(StatusCode::NOT_FOUND, "there is only /metrics"),
    }
}
