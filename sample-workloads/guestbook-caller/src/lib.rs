//! Calls another service by its name: fetches `TARGET` (by default `http://guestbook/`) with `wasi:http` and passes
//! the answer on.

use http_guest::{read_all, respond};
use wasip2::{
    exports::http::incoming_handler::Guest,
    http::{
        outgoing_handler,
        types::{Fields, IncomingRequest, OutgoingRequest, ResponseOutparam, Scheme},
    },
};

struct Caller;

wasip2::http::proxy::export!(Caller);

impl Guest for Caller {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let target = std::env::var("TARGET").unwrap_or_else(|_| "http://guestbook/".into());
        match fetch(&target) {
            Ok((status, text)) => respond(out, status, text.as_bytes()),
            Err(message) => respond(out, 502, format!("calling {target} failed: {message}\n").as_bytes()),
        }
    }
}

fn fetch(target: &str) -> Result<(u16, String), String> {
    let rest = target.strip_prefix("http://").ok_or("only http:// is called")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "bad scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "bad authority")?;
    request.set_path_with_query(Some(&format!("/{path}"))).map_err(|()| "bad path")?;
    let future = outgoing_handler::handle(request, None).map_err(|code| format!("{code:?}"))?;
    future.subscribe().block();
    let response = future
        .get()
        .ok_or("no response")?
        .map_err(|()| "the response was taken already")?
        .map_err(|code| format!("{code:?}"))?;
    let status = response.status();
    let bytes = read_all(response.consume().map_err(|()| "no body")?)?;
    Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
}
