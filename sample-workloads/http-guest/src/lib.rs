//! What the HTTP samples share: reading a whole body and answering with a short text.

use wasip2::{
    http::types::{Fields, IncomingBody, OutgoingBody, OutgoingResponse, ResponseOutparam},
    io::streams::StreamError,
};

/// Reads a body to its end.
pub fn read_all(body: IncomingBody) -> Result<Vec<u8>, String> {
    let stream = body.stream().map_err(|()| "the stream was taken already".to_string())?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 * 1024) {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(StreamError::Closed) => return Ok(bytes),
            Err(error) => return Err(format!("reading the body failed: {error:?}")),
        }
    }
}

/// Answers with a status and a plain text. A caller that went away is no error.
pub fn respond(out: ResponseOutparam, status: u16, text: &[u8]) {
    let headers = Fields::new();
    let _ = headers.append("content-type", b"text/plain");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("a valid status code");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("the stream is taken once");
    for chunk in text.chunks(4096) {
        if stream.blocking_write_and_flush(chunk).is_err() {
            return;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}
