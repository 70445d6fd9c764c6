//! The greeting as a `wasi:http` 0.3 component: asynchronous, many requests in one instance.

use wasip3::{
    http::types::{ErrorCode, Fields, Request, Response},
    wit_future, wit_stream,
};

struct Hello;

wasip3::http::service::export!(Hello);

impl wasip3::exports::http::handler::Guest for Hello {
    async fn handle(_request: Request) -> Result<Response, ErrorCode> {
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
        });
        Ok(response)
    }
}
