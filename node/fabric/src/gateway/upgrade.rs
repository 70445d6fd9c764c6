//! Requests that turn their connection into something else, such as WebSocket.

use super::forward::Holding;
use crate::egress;
use crate::tables::OpenConnection;
use coracle_wasi_host::net::{BoxError, Conn, HttpBody, UNSEEN, announce_body, empty_body};
use coracle_wasi_host::serving::{self, InFlight};
use coracle_wasi_host::shares::Permit;
use http::header::{self, HeaderMap};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// The only protocol that connections are turned into: of another, such as h2c, the gateway could not say who may ask
/// for what on it.
const WEBSOCKET: &str = "websocket";

/// How long what came with a request for an upgrade, and with its answer, may wait for who is to take it.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);

/// What the client asks its connection to become, where that is WebSocket.
pub(super) fn wanted<B>(request: &Request<B>) -> Option<HeaderValue> {
    let names_upgrade = |headers: &HeaderMap| {
        let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
    };
    let mut wanted = request.headers().get_all(header::UPGRADE).iter();
    let websocket =
        |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(WEBSOCKET.as_bytes());
    let first = wanted.next().filter(|value| websocket(value))?;
    (wanted.next().is_none() && names_upgrade(request.headers())).then(|| first.clone())
}

/// A client's wish, until an endpoint has answered it.
pub(super) struct Upgrade {
    client: OnUpgrade,
    in_flight: Option<InFlight>,
    permit: Permit,
    stopped: CancellationToken,
}

impl Upgrade {
    /// Makes the request one that asks the endpoint for the same.
    pub(super) fn begin(
        request: &mut Request<HttpBody>,
        wanted: HeaderValue,
        permit: Permit,
        stopped: CancellationToken,
    ) -> Self {
        let client = hyper::upgrade::on(&mut *request);
        let in_flight = request.extensions_mut().remove::<InFlight>();
        // Put back what was stripped as belonging to one connection: here it belongs to both.
        request.headers_mut().insert(header::UPGRADE, wanted);
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        announce_body(request);
        Self { client, in_flight, permit, stopped }
    }

    /// What the client is answered. Where the endpoint agrees, joins the two connections until either ends or the gateway
    /// stops. They have the client's place as long as they last.
    pub(super) fn finish(
        self,
        mut response: Response<Incoming>,
        sender: SendRequest<HttpBody>,
        open: OpenConnection,
    ) -> Response<HttpBody> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // Between hosts only.
            response.headers_mut().remove(UNSEEN);
            let held = (open, self.permit, self.in_flight);
            return response.map(|body| {
                let body = body.map_err(BoxError::from).boxed_unsync();
                Holding { body, _held: held }.boxed_unsync()
            });
        }
        let endpoint = hyper::upgrade::on(&mut response);
        let Self { client, in_flight, permit, stopped } = self;
        tokio::spawn(async move {
            let joined = async {
                if let (Ok(client), Ok(endpoint)) = (client.await, endpoint.await) {
                    join(client, endpoint).await;
                }
            };
            tokio::select! {
                () = joined => {}
                () = stopped.cancelled() => {}
            }
            drop((open, permit, sender, in_flight));
        });
        response.map(|_| empty_body())
    }
}

/// Sends the request to an endpoint.
pub(super) async fn ask(
    mut sender: SendRequest<HttpBody>,
    request: Request<HttpBody>,
) -> Result<(Response<Incoming>, SendRequest<HttpBody>), hyper::Error> {
    Ok((sender.send_request(request).await?, sender))
}

/// Carries both ways as between any real connection and a pod's: a client that has vanished is noticed though the pod takes
/// nothing of what it sent.
async fn join(client: Upgraded, endpoint: Upgraded) {
    let (Ok((mut stream, ahead)), Ok(endpoint)) =
        (serving::reclaim::<TcpStream>(client), endpoint.downcast::<TokioIo<Conn>>())
    else {
        return;
    };
    let mut conn = endpoint.io.into_inner();
    // What came with the request, and with its answer.
    let first = async {
        conn.write_all(&ahead).await?;
        stream.write_all(&endpoint.read_buf).await
    };
    match tokio::time::timeout(FIRST_TIMEOUT, first).await {
        Ok(Ok(())) => egress::join(stream, conn).await,
        Ok(Err(_)) | Err(_) => conn.reset(),
    }
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
            assert_eq!(super::wanted(&request).is_some(), wanted, "{upgrade} {connection}");
        }
    }
}
