//! Answers every request with a greeting: the smallest useful `wasi:http` 0.2 component.
//!
//! `GREETING` changes the greeting; `/env/NAME` answers with an environment variable; `/echo` returns the request's
//! body; anything else is the greeting and the pod's name.

use http_guest::{read_all, respond};
use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{IncomingRequest, ResponseOutparam},
};

struct Hello;

wasip2::http::proxy::export!(Hello);

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        if let Some(name) = path.strip_prefix("/env/") {
            return match std::env::var(name) {
                Ok(value) => respond(out, 200, format!("{value}\n").as_bytes()),
                Err(_) => respond(out, 404, b"no such variable\n"),
            };
        }
        if path.starts_with("/echo") {
            return match request
                .consume()
                .map_err(|()| "the body was taken already".into())
                .and_then(read_all)
            {
                Ok(body) => respond(out, 200, &body),
                Err(message) => respond(out, 400, message.as_bytes()),
            };
        }
        let greeting = std::env::var("GREETING").unwrap_or_else(|_| "hello from Coracle".into());
        let pod = std::env::var("HOSTNAME").unwrap_or_default();
        if pod.is_empty() {
            respond(out, 200, format!("{greeting}\n").as_bytes());
        } else {
            respond(out, 200, format!("{greeting}, served by {pod}\n").as_bytes());
        }
    }
}
