//! The greeting as a `wasi:http` 0.3 component: asynchronous, many requests in one instance.
//!
//! `/trap` works for a moment and ends the instance: what does that cost those who wait for it? `/endless` answers with a
//! body that never ends, and `/wait` keeps its request and does not answer.

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
