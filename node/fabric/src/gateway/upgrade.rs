//! Requests that turn their connection into something else, such as WebSocket.

use crate::tables::OpenConnection;
use coracle_wasi_host::net::{BoxError, HttpBody, empty_body};
use http::header::{self, HeaderMap};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

/// The only protocol that connections are turned into: of another, such as h2c, the gateway could not say who may ask
/// for what on it.
const WEBSOCKET: &str = "websocket";

/// Whether the client asks for WebSocket on its connection.
pub(super) fn is_wanted<B>(request: &Request<B>) -> bool {
    let names_upgrade = |headers: &HeaderMap| {
        let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
    };
    let mut wanted = request.headers().get_all(header::UPGRADE).iter();
    let websocket =
        |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(WEBSOCKET.as_bytes());
    wanted.next().is_some_and(websocket) && wanted.next().is_none() && names_upgrade(request.headers())
}

/// Sends the request on; where the endpoint agrees, joins the two connections for good.
pub(super) async fn forward(
    mut sender: SendRequest<HttpBody>,
    mut request: Request<Incoming>,
    wanted: Option<HeaderValue>,
    open: OpenConnection,
) -> Result<Response<HttpBody>, hyper::Error> {
    let client = hyper::upgrade::on(&mut request);
    ask(request.headers_mut(), wanted);
    let request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
    let mut response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()));
    }
    let endpoint = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        if let (Ok(client), Ok(endpoint)) = (client.await, endpoint.await) {
            join(client, endpoint).await;
        }
        drop((open, sender));
    });
    Ok(response.map(|_| empty_body()))
}

/// Puts back what was stripped as belonging to one connection: here it belongs to both.
fn ask(headers: &mut HeaderMap, wanted: Option<HeaderValue>) {
    if let Some(wanted) = wanted {
        headers.insert(header::UPGRADE, wanted);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

async fn join(client: Upgraded, endpoint: Upgraded) {
    // Whichever side breaks off, both are closed.
    let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(endpoint)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_websocket_is_an_upgrade() {
        for (upgrade, connection, wanted) in [
            ("websocket", "keep-alive, Upgrade", true),
            ("WebSocket", "upgrade", true),
            ("h2c", "Upgrade, HTTP2-Settings", false),
            ("websocket, h2c", "upgrade", false),
            ("websocket", "close", false),
        ] {
            let request = Request::get("/")
                .header(header::UPGRADE, upgrade)
                .header(header::CONNECTION, connection)
                .body(())
                .unwrap();
            assert_eq!(is_wanted(&request), wanted, "{upgrade} {connection}");
        }
    }
}
