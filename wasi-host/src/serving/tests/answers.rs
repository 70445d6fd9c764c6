//! What is refused before anybody is asked: an id that the log has too, with the reason, and nothing of the inside.

use futures::future::BoxFuture;
use hyper::client::conn::http2;

use super::*;
use crate::tests::answers::Answer;
use crate::tests::log::Log;

const BOUNDS: Bounds = Bounds {
    connections_max: 64,
    connections_per_source_max: 64,
    requests_max: 4,
    requests_per_source_max: 2,
};

/// A request of a client that is on its way.
async fn begin(
    server: &Server,
    client: u8,
    is_http2: bool,
    request: Request<HttpBody>,
) -> BoxFuture<'static, hyper::Result<Response<Incoming>>> {
    let conn = TokioIo::new(server.connect(client));
    if is_http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), conn).await.unwrap();
        tokio::spawn(connection);
        Box::pin(async move { sender.send_request(request).await })
    } else {
        let (mut sender, connection) = http1::handshake(conn).await.unwrap();
        tokio::spawn(connection);
        Box::pin(async move { sender.send_request(request).await })
    }
}

fn get(is_http2: bool, id: Option<&str>) -> Request<HttpBody> {
    let request =
        if is_http2 { Request::get("http://a/never") } else { Request::get("/never").header("host", "a") };
    let request = id.into_iter().fold(request, |request, id| request.header("x-request-id", id));
    request.body(empty_body()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_too_many_is_refused_under_an_id() {
    let (log, server) = (Log::keep(), Server::within(BOUNDS));
    for client in [1, 1, 2, 2] {
        tokio::spawn(begin(&server, client, false, get(false, None)).await);
    }
    while server.working.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    let too_many = "the request came while too many of its client's are under way";
    for (client, status, words, reason) in [
        (1, 429, too_many, "hold 2 of 4"),
        (3, 503, "the request cannot be answered now", "all callers of this port hold 4 of its 4"),
    ] {
        for (is_http2, given) in [(false, None), (true, None), (false, Some("mine")), (true, Some("mine"))] {
            let refused = begin(&server, client, is_http2, get(is_http2, given)).await.await;
            let refused = refused.expect("answered");
            assert!(refused.headers().contains_key("retry-after"));
            let answer = Answer::read(refused).await;
            assert_eq!((answer.status, answer.id.len()), (status, given.map_or(16, str::len)));
            assert_eq!(answer.text, format!("{status} {words}; its id is {}\n", answer.id));
            let lines = log.lines(&answer.id);
            assert!(lines.last().is_some_and(|line| line.contains(reason)), "{lines:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_request_has_an_id_too() {
    let (log, server) = (Log::keep(), Server::new());
    let mut conn = server.connect(1);
    conn.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n").await.unwrap();
    let (_, told) = until_closed(&mut conn).await;
    let (_, id) = told.split_once("x-request-id: ").expect("an id");
    let lines = log.lines(&id[..16]);
    assert!(matches!(&*lines, [line] if line.contains("more than one Host header")), "{lines:?}");
}
