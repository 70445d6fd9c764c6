//! The greeting as a `wasi:http` 0.3 component: asynchronous, many requests in one instance.
//!
//! `/trap` works for a moment and ends the instance: what does that cost those who wait for it? `/endless` answers with a
//! body that never ends, `/wait` keeps its request and does not answer, `/cut/HOW` answers in part, and `/echo` hands on the
//! body that it was given.

use std::time::{Duration, Instant};

use wasip3::{
    clocks::monotonic_clock,
    http::types::{ErrorCode, Fields, Request, Response},
    wit_future, wit_stream,
};

/// How long `/trap` works.
const WORK_BEFORE_TRAP: Duration = Duration::from_millis(200);

struct Hello;

wasip3::http::service::export!(Hello);

impl wasip3::exports::http::handler::Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        if path == "/trap" {
            eprintln!("trapping");
            let begun = Instant::now();
            while begun.elapsed() < WORK_BEFORE_TRAP {}
            std::process::abort();
        }
        if path == "/wait" {
            eprintln!("waiting");
            monotonic_clock::wait_for(u64::MAX / 2).await;
        }
        if let Some(how) = path.strip_prefix("/cut/") {
            return Ok(cut(how));
        }
        if path == "/echo" {
            let (_, done) = wit_future::new(|| Ok(()));
            let (body, trailers) = Request::consume_body(request, done);
            return Ok(Response::new(Fields::new(), Some(body), trailers).0);
        }
        let greeting = std::env::var("GREETING").unwrap_or_else(|_| "hello from Coracle on WASI 0.3".into());
        let pod = std::env::var("HOSTNAME").unwrap_or_default();
        let text =
            if pod.is_empty() { format!("{greeting}\n") } else { format!("{greeting}, served by {pod}\n") };
        let headers = Fields::new();
        let _ = headers.append("content-type", b"text/plain");
        let (mut body, body_out) = wit_stream::new();
        let (trailers, trailers_out) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(headers, Some(body_out), trailers_out);
        drop(trailers);
        wit_bindgen::spawn_local(async move {
            body.write_all(text.into_bytes()).await;
            while path == "/endless" {
                monotonic_clock::wait_for(50_000_000).await;
                body.write_all(b"and so on\n".to_vec()).await;
            }
        });
        Ok(response)
    }
}

/// The first part of an answer, and no more of it: `trap` at once, `late` only once that was taken, `forget` the rest, end it
/// with an `error`, or be `short` of what was announced. `whole` has what `short` has not; `stop` waits to be ended.
fn cut(how: &str) -> Response {
    let headers = Fields::new();
    if matches!(how, "short" | "whole") {
        headers.append("content-length", b"12").expect("a valid field");
    }
    let (mut body, body_out) = wit_stream::new();
    let (trailers, trailers_out) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(body_out), trailers_out);
    let how = how.to_owned();
    wit_bindgen::spawn_local(async move {
        body.write_all(b"so far".to_vec()).await;
        match &*how {
            "late" => {
                monotonic_clock::wait_for(1_000_000_000).await;
                std::process::abort();
            }
            "forget" => std::mem::forget((body, trailers)),
            "error" => {
                drop(body);
                let _ = trailers.write(Err(ErrorCode::InternalError(Some("as asked".into())))).await;
            }
            "whole" => drop(body.write_all(b" so on".to_vec()).await),
            "short" => {}
            "stop" => monotonic_clock::wait_for(u64::MAX / 2).await,
            _ => std::process::abort(),
        }
    });
    response
}
