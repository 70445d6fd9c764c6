//! Answers badly, each path in its way: `/never` and `/spin` not at all, `/endless` without an end, `/large` with 64 MiB,
//! `/fields` with 60 kB of header fields, `/hold` after it has written into bodies that nobody takes, `/read` once it has
//! the whole body, `/cut/HOW` in part; all else with a greeting.

use http_guest::{read_all, respond};
use wasip2::{
    clocks::monotonic_clock::subscribe_duration,
    exports::http::incoming_handler::Guest,
    http::types::{
        Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    },
};

struct Hostile;

wasip2::http::proxy::export!(Hostile);

const SECOND: u64 = 1_000_000_000;

impl Guest for Hostile {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match request.path_with_query().unwrap_or_default().as_str() {
            "/never" => wait(3600),
            "/spin" => loop {
                std::hint::black_box(());
            },
            "/endless" => body(out, usize::MAX, || wait(1)),
            "/large" => body(out, 64 << 10, || {}),
            "/fields" => fields(out),
            "/read" => match request.consume().map(read_all) {
                Ok(Ok(body)) => respond(out, 200, format!("{} bytes\n", body.len()).as_bytes()),
                Ok(Err(_)) | Err(()) => respond(out, 400, b"no whole body\n"),
            },
            "/hold" => hold(),
            path if path.starts_with("/cut/") => cut(out, &path["/cut/".len()..]),
            _ => respond(out, 200, b"hello\n"),
        }
    }
}

fn wait(seconds: u64) {
    subscribe_duration(seconds * SECOND).block();
}

/// So many pieces of 1 KiB with something between them.
fn body(out: ResponseOutparam, pieces: usize, between: impl Fn()) {
    let response = OutgoingResponse::new(Fields::new());
    let body = response.body().expect("taken once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("taken once");
    for _ in 0..pieces {
        if stream.blocking_write_and_flush(&[b'x'; 1024]).is_err() {
            return;
        }
        between();
    }
    drop(stream);
    // A caller that went away is no error.
    let _ = OutgoingBody::finish(body, None);
}

/// The first part of an answer, and no more of it: `trap` at once, `late` only once that was taken, `exit`, `forget` and
/// return, `drop` the rest, or be `short` of what was announced. `whole` has what `short` has not; `stop` waits to be ended.
fn cut(out: ResponseOutparam, how: &str) {
    let fields = Fields::new();
    if matches!(how, "short" | "whole") {
        fields.append("content-length", b"12").expect("a valid field");
    }
    let response = OutgoingResponse::new(fields);
    let body = response.body().expect("taken once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("taken once");
    stream.blocking_write_and_flush(b"so far").expect("it is taken");
    match how {
        "late" => {
            wait(1);
            unreachable!("as asked");
        }
        "exit" => std::process::exit(0),
        "forget" => std::mem::forget((stream, body)),
        "drop" => drop((stream, body)),
        "whole" => {
            stream.blocking_write_and_flush(b" so on").expect("it is taken");
            drop(stream);
            OutgoingBody::finish(body, None).expect("as long as announced");
        }
        "short" => {
            drop(stream);
            OutgoingBody::finish(body, None).expect_err("less than announced");
        }
        "stop" => wait(3600),
        _ => unreachable!("as asked"),
    }
}

fn fields(out: ResponseOutparam) {
    let fields = Fields::new();
    for number in 0..60 {
        let _ = fields.append(&format!("x-{number}"), &[b'x'; 1000]);
    }
    ResponseOutparam::set(out, Ok(OutgoingResponse::new(fields)));
}

/// Bodies of requests that are never sent, each as full as it gets, and fields.
fn hold() {
    let mut held = Vec::new();
    for _ in 0..1000 {
        let (request, fields) = (OutgoingRequest::new(Fields::new()), Fields::new());
        let body = request.body().expect("taken once");
        let stream = body.write().expect("taken once");
        if let Ok(room @ 1..) = stream.check_write() {
            let _ = stream.write(&vec![b'x'; room as usize]);
        }
        for number in 0..16 {
            let _ = fields.append(&format!("x-{number}"), &[b'x'; 4096]);
        }
        held.push((stream, body, request, fields));
    }
    wait(3600);
}
