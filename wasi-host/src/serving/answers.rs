//! Answers of the host's own. Who reads one that stands for a guest's may be anybody: it says nothing of the inside, but what
//! the request is called in the log that has the reason.

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::net::{HttpBody, HttpError, RequestId, full_body};

/// An answer in words. One that may be another soon says when to ask again.
pub fn text_answer(status: StatusCode, text: &str) -> Response<HttpBody> {
    let mut response = Response::new(full_body(format!("{} {text}\n", status.as_u16())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The answer that stands for a guest's. Whoever gives it tells a log why, under the same id.
pub fn bland_answer(status: StatusCode, id: RequestId) -> Response<HttpBody> {
    let mut response = text_answer(status, &format!("{}; its id is {id}", words(status)));
    id.write_to(response.headers_mut());
    response
}

/// What a status means, whatever is behind it.
fn words(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "the request names no host, or is malformed",
        StatusCode::NOT_FOUND => "the request is for nothing that is served here",
        StatusCode::METHOD_NOT_ALLOWED => "the request's method is not served",
        StatusCode::TOO_MANY_REQUESTS => "the request came while too many of its client's are under way",
        StatusCode::SERVICE_UNAVAILABLE => "the request cannot be answered now",
        StatusCode::GATEWAY_TIMEOUT => "the request was not answered in time",
        _ => "the request could not be answered",
    }
}

/// The status that stands for a component that gave no response.
pub fn status_of(error: &HttpError) -> StatusCode {
    match error {
        HttpError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        HttpError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        HttpError::Failed => StatusCode::BAD_GATEWAY,
        HttpError::Malformed { .. } => StatusCode::BAD_REQUEST,
    }
}
