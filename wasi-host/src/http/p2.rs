//! `wasi:http/incoming-handler` of 0.2: a fresh instance for each request.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;

use super::delivery::Deliveries;
use super::{Answer, Call, Handover, HttpError, NoResponse, Server, ended, unavailable};
use crate::artifact::Pre;
use crate::executor::{JoinError, JoinHandle};
use crate::exit;
use crate::net::{HttpBody, RequestId};
use crate::sandbox::StartError;
use crate::seats::NoSeat;

type Served = Result<(), HttpError>;

/// Serves one request by an instance of its own and waits for the response's head.
pub(super) async fn call(
    server: &Arc<Server>,
    (id, call): (RequestId, Call),
    response: oneshot::Receiver<Answer>,
    deadline: Instant,
) -> Result<http::Response<HttpBody>, NoResponse> {
    let sandbox = &server.sandbox;
    let serving = Arc::clone(server);
    let task = sandbox
        .host
        .executor
        .spawn(&sandbox.group, Some(deadline), async move { serve(&serving, id, call).await });
    let mut task = GiveUp { task: Some(task) };
    let response = match tokio::time::timeout_at(deadline.into(), response).await {
        Err(_) => return Err(HttpError::TimedOut.into()),
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Err(task.outcome(server, id, deadline).await.into()),
    };
    // From here on the guest goes on by itself: it may have work to do after its response.
    task.task = None;
    response
}

/// Ends the guest when nobody waits for the response any more.
struct GiveUp {
    task: Option<JoinHandle<Served>>,
}

impl GiveUp {
    /// Why there was no response.
    async fn outcome(&mut self, server: &Server, id: RequestId, deadline: Instant) -> HttpError {
        let Some(task) = self.task.take() else {
            return ended();
        };
        match task.await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => {
                server.log_failure(&[id], "it returned without a response");
                HttpError::Failed
            }
            Err(JoinError::Aborted) if Instant::now() >= deadline => HttpError::TimedOut,
            Err(JoinError::Aborted) => ended(),
            Err(error @ JoinError::Panicked(_)) => {
                tracing::error!(container = server.sandbox.name, %error, "host panicked serving a request");
                server.log_failure(&[id], "the host failed");
                HttpError::Failed
            }
        }
    }
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn serve(server: &Server, id: RequestId, call: Call) -> Served {
    let failed = |error: wasmtime::Error| server.failed(&error, &[id]).told();
    let Pre::HttpP2(pre) = &server.sandbox.artifact.pre else {
        return Err(unavailable("not an HTTP component of WASI 0.2"));
    };
    // Until there is an instance the request may still be served elsewhere.
    let share = &server.sandbox.share;
    let seat = match (call.is_probe(), server.leaves_first()) {
        // The caller does not wait longer than it has time.
        (true, _) => Ok(share.take_when_free().await),
        (false, true) => share.take_beside_first(),
        (false, false) => share.take(),
    };
    let seat = seat.inspect_err(|NoSeat(refused)| server.sandbox.account.note(*refused));
    let mut store = match seat.map_err(StartError::from).and_then(|seat| server.sandbox.store(seat)) {
        Ok(store) => store,
        Err(error) => {
            call.refuse(HttpError::Unavailable { reason: error.to_string() });
            return Ok(());
        }
    };
    if let Err(refused) = store.data_mut().hold_head(call.head_bytes()) {
        call.refuse(HttpError::Unavailable { reason: refused.to_string() });
        return Ok(());
    }
    let proxy = match pre.instantiate_async(&mut store).await {
        Ok(proxy) => proxy,
        Err(error) => {
            call.refuse(failed(error));
            return Ok(());
        }
    };
    let Some(Handover { request, is_head, reply, permit: _permit, .. }) = call.hand_over() else {
        return Ok(());
    };
    let deliveries = Arc::new(Deliveries::new(&server.sandbox.account));
    let refused = Arc::new(Mutex::new(None));
    let (delivered, refusal) = (Arc::clone(&deliveries), Arc::clone(&refused));
    let mut view = store.data_mut().http();
    let request = view.new_incoming_request(Scheme::Http, request).map_err(failed)?;
    let response = view
        .new_response_outparam_from_callback(move |response| match response {
            Ok(response) => delivered.begin(response.map(|body| body), is_head, reply),
            Err(code) => *refusal.lock() = Some(exit::truncate(format!("{code:?}"))),
        })
        .map_err(failed)?;
    let handler = proxy.wasi_http_incoming_handler();
    let returned = deliveries.drive(handler.call_handle(&mut store, request, response)).await;
    if let Some(reason) = refused.lock().take() {
        server.log_failure(&[id], &format!("it answered with the error {reason}"));
        return Err(HttpError::Failed);
    }
    returned.map_err(failed)
}
