//! The gateway: HTTP from the outside to services. A listener (here) hands each request on, a route
//! ([`router`]) says which service it is for, and a backend ([`backend`]) answers it. Nothing is retried but what never
//! reached an endpoint.

mod access_log;
mod backend;
mod demand;
mod forward;
mod function_meter;
mod headers;
mod meter;
mod pool;
mod router;
mod upgrade;

pub use access_log::AccessLog;
pub use demand::Asked as AskedOfFunction;
pub(crate) use demand::Demand;
pub(crate) use meter::Meter;
pub(crate) use pool::Pool;
pub(crate) use router::Router;

use crate::door::{Arrival, Door};
use crate::fabric::Inner;
use coracle_wasi_host::net::HttpBody;
use coracle_wasi_host::serving;
use forward::Forwarder;
use http::Request;
use std::future::pending;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The gateway of one node.
pub(crate) struct Gateway {
    forwarder: Arc<Forwarder>,
}

impl Gateway {
    pub(crate) fn new(fabric: Arc<Inner>) -> Self {
        Self { forwarder: Arc::new(Forwarder::new(fabric)) }
    }

    /// Serves until `stopped` is cancelled.
    pub(crate) async fn serve(self, mut door: Door, stopped: CancellationToken) {
        loop {
            let arrival = tokio::select! {
                arrival = door.next() => arrival,
                () = stopped.cancelled() => return,
            };
            let (forwarder, stopped) = (self.forwarder.clone(), stopped.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = serve_connection(arrival, forwarder) => {}
                    () = stopped.cancelled() => {}
                }
            });
        }
    }
}

async fn serve_connection(arrival: Arrival, forwarder: Arc<Forwarder>) {
    let Arrival { stream, client, place, descriptor } = arrival;
    let respond = move |request: Request<HttpBody>| {
        let forwarder = forwarder.clone();
        async move { forwarder.serve(client, request).await }
    };
    place.hold(descriptor);
    if let Err(error) = serving::serve(stream, place, pending(), respond).await {
        tracing::debug!(%client, %error, "gateway connection ended");
    }
}
