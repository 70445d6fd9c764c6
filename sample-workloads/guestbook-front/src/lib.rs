//! The guestbook's face: HTTP outside, the store's line protocol over the pod's loopback inside.
//!
//! `GET /` lists the entries, `POST /` adds the body as an entry.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use http_guest::{read_all, respond};
use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{IncomingRequest, Method, ResponseOutparam},
};

/// The store is another container of the same pod.
const STORE: &str = "127.0.0.1:6379";

struct Front;

wasip2::http::proxy::export!(Front);

impl Guest for Front {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let answer = match request.method() {
            Method::Get => ask("LIST"),
            Method::Post => ask(&format!("ADD {}", body_line(&request))),
            _ => return respond(out, 405, b"use GET or POST\n"),
        };
        match answer {
            Ok(text) => respond(out, 200, text.as_bytes()),
            Err(error) => respond(out, 502, format!("the store does not answer: {error}\n").as_bytes()),
        }
    }
}

fn ask(request: &str) -> io::Result<String> {
    let mut store = TcpStream::connect(STORE)?;
    writeln!(store, "{request}")?;
    let mut answer = String::new();
    store.read_to_string(&mut answer)?;
    Ok(answer)
}

fn body_line(request: &IncomingRequest) -> String {
    let bytes = request.consume().ok().and_then(|body| read_all(body).ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace(['\n', '\r'], " ")
}
