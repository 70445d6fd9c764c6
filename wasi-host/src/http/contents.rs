//! What HTTP's entries of a store's table take of the host: header fields, bodies and heads of requests.

use std::any::Any;

use http::HeaderMap;
use wasmtime_wasi_http::{FieldMap, p2, p3};

/// Bytes of an outgoing body that one write of its guest hands over; the host keeps two of them.
pub(super) const BODY_CHUNK_BYTES: usize = 32 << 10;

/// The same where the host's memory is scarce.
pub(super) const BODY_CHUNK_BYTES_SQUEEZED: usize = 1 << 10;

/// Bytes that an outgoing body may keep on the host, its trailers aside.
const BODY_BYTES: u64 = 2 * BODY_CHUNK_BYTES as u64;

/// What a header field takes beside its name and value.
const FIELD_BYTES: usize = 72;

/// What an entry of the table takes beside its place, as far as a guest can make it large.
pub(super) fn content_bytes(entry: &dyn Any) -> u64 {
    if let Some(fields) = entry.downcast_ref::<FieldMap>() {
        return fields_bytes(fields);
    }
    if entry.is::<p2::body::HostOutgoingBody>() {
        return BODY_BYTES;
    }
    if let Some(response) = entry.downcast_ref::<p2::types::HostOutgoingResponse>() {
        return fields_bytes(&response.headers) + response.body.as_ref().map_or(0, |_| BODY_BYTES);
    }
    if let Some(request) = entry.downcast_ref::<p2::types::HostOutgoingRequest>() {
        let texts =
            [&request.authority, &request.path_with_query].map(|text| text.as_ref().map_or(0, String::len));
        let method = match &request.method {
            p2::bindings::http::types::Method::Other(name) => name.len(),
            _ => 0,
        };
        let body = request.body.as_ref().map_or(0, |_| BODY_BYTES);
        return fields_bytes(&request.headers) + (texts[0] + texts[1] + method) as u64 + body;
    }
    if let Some(response) = entry.downcast_ref::<p2::types::HostIncomingResponse>() {
        return fields_bytes(&response.headers);
    }
    if let Some(future) = entry.downcast_ref::<p2::types::HostFutureIncomingResponse>() {
        return match future {
            p2::types::HostFutureIncomingResponse::Ready(Ok((response, _))) => {
                fields_bytes(response.headers())
            }
            _ => 0,
        };
    }
    if let Some(trailers) = entry.downcast_ref::<p2::body::HostFutureTrailers>() {
        return match trailers {
            p2::body::HostFutureTrailers::Done(Ok(Some(trailers))) => fields_bytes(trailers),
            _ => 0,
        };
    }
    if let Some(request) = entry.downcast_ref::<p3::Request>() {
        let authority = request.authority.as_ref().map_or(0, |authority| authority.as_str().len());
        let path = request.path_with_query.as_ref().map_or(0, |path| path.as_str().len());
        let texts = authority + path + request.method.as_str().len();
        return fields_bytes(&request.headers) + texts as u64 + BODY_BYTES;
    }
    if let Some(response) = entry.downcast_ref::<p3::Response>() {
        return fields_bytes(&response.headers) + BODY_BYTES;
    }
    0
}

/// Bytes that header fields take.
pub(super) fn fields_bytes(fields: &HeaderMap) -> u64 {
    let bytes = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + FIELD_BYTES
    };
    fields.iter().map(bytes).sum::<usize>() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::http::outgoing::OutgoingHttp;
    use crate::ledger::{Ledger, NodeBounds};
    use crate::net::{Isolated, Namespace, NamespaceConfig, NetLimits};

    #[tokio::test]
    async fn whatever_a_guest_can_make_large_is_counted() {
        use http_body_util::{BodyExt, Empty};
        use p2::bindings::http::types::Method;
        use p2::body::{HostFutureTrailers, HostOutgoingBody, HyperOutgoingBody, StreamContext};
        use p2::types::{
            HostFutureIncomingResponse, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
        };

        let mut fields = FieldMap::new_mutable(64 << 10);
        let value = http::HeaderValue::from_bytes(&vec![b'x'; 8 << 10]).expect("a value");
        fields.append_raw(http::header::COOKIE, value.clone()).expect("within the limit");
        let map = HeaderMap::from_iter([(http::header::COOKIE, value)]);
        let (own, text) = (fields_bytes(&map), "x".repeat(1 << 10));
        assert!(own > 8 << 10);
        let empty = || -> HyperOutgoingBody { Empty::new().map_err(|never| match never {}).boxed_unsync() };
        let request = |body| HostOutgoingRequest {
            method: Method::Other(text.clone()),
            scheme: None,
            authority: Some(text.clone()),
            path_with_query: Some(text.clone()),
            headers: fields.clone(),
            body,
        };
        let mut received = http::Response::new(empty());
        *received.headers_mut() = map.clone();
        let received = (received, wasmtime_wasi::runtime::spawn(async {}));
        let (body, _taken) = HostOutgoingBody::new(StreamContext::Request, None, 1, BODY_CHUNK_BYTES);
        let config = NamespaceConfig {
            hostname: "pod".into(),
            tenant: "default".into(),
            addresses: Vec::new(),
            limits: NetLimits::default(),
        };
        let permits = Arc::new(tokio::sync::Semaphore::new(1));
        let namespace = Namespace::new(config, Arc::new(Isolated));
        let bounds = NodeBounds { memory: None, heap: 1 << 20, files: 0, files_guaranteed: 0 };
        let account = Ledger::new(bounds).pod(&"default".into(), None).container(None);
        let mut hooks = OutgoingHttp::new(namespace, permits, account);
        let (mut asked, _sent) = p3::Request::from_http(&mut hooks, http::Request::new(empty()));
        asked.headers = fields.clone();
        let (mut answer, _sent) = p3::Response::from_http(&mut hooks, http::Response::new(empty()));
        answer.headers = fields.clone();
        let status = http::StatusCode::OK;
        let outgoing =
            |body| Box::new(HostOutgoingResponse { status, headers: fields.clone(), body }) as Box<dyn Any>;
        let incoming = HostIncomingResponse { status: 200, headers: fields.clone(), body: None };
        let all: [(&str, Box<dyn Any>, u64); 11] = [
            ("fields", Box::new(fields.clone()), own),
            ("outgoing body", Box::new(body), BODY_BYTES),
            ("outgoing response", outgoing(None), own),
            ("outgoing response with a body", outgoing(Some(empty())), own + BODY_BYTES),
            ("outgoing request", Box::new(request(None)), own + (3 << 10)),
            ("outgoing request with a body", Box::new(request(Some(empty()))), own + (3 << 10) + BODY_BYTES),
            ("incoming response", Box::new(incoming), own),
            ("future response", Box::new(HostFutureIncomingResponse::Ready(Ok(received))), own),
            ("trailers", Box::new(HostFutureTrailers::Done(Ok(Some(map)))), own),
            ("request of 0.3", Box::new(asked), own + BODY_BYTES),
            ("response of 0.3", Box::new(answer), own + BODY_BYTES),
        ];
        for (name, entry, least) in &all {
            let bytes = content_bytes(&**entry);
            assert!((*least..*least + 64).contains(&bytes), "{name}: {bytes} and not {least}");
        }
        assert_eq!(content_bytes(&0_u8), 0);
    }
}
