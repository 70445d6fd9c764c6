//! Clients that are slow, silent or hostile, each against the bound that is theirs.

mod answers;
mod cut;
mod heads;
mod hostile;
mod streams;
mod under_way;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::net::{Conn, PIPE_CAPACITY, empty_body, full_body};

/// A server of a few places, on connections in memory.
struct Server {
    places: Places,
    stop: CancellationToken,
    /// Responses that are being made.
    working: Arc<AtomicUsize>,
}

/// One that counts as long as it is there.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Server {
    fn new() -> Self {
        Self::within(Bounds {
            connections_max: 8,
            connections_per_source_max: 4,
            requests_max: 8,
            requests_per_source_max: 4,
        })
    }

    fn within(bounds: Bounds) -> Self {
        Self { places: Places::new(bounds), stop: CancellationToken::new(), working: Arc::default() }
    }

    /// A connection of the client 10.0.0.`client`.
    fn connect(&self, client: u8) -> Conn {
        let peer = SocketAddr::new([10, 0, 0, client].into(), 4000);
        let (outer, inner) = Conn::pair(peer, SocketAddr::new([10, 0, 0, 99].into(), 80), PIPE_CAPACITY);
        let Some(place) = self.places.enter(peer.ip()) else {
            inner.reset();
            return outer;
        };
        let (stop, working) = (self.stop.clone(), self.working.clone());
        let respond = move |request: Request<HttpBody>| {
            working.fetch_add(1, Ordering::SeqCst);
            let counted = Counted(working.clone());
            async move {
                let _counted = counted;
                respond(request).await
            }
        };
        tokio::spawn(async move { drop(serve(inner, place, stop.cancelled(), respond).await) });
        outer
    }
}

async fn respond(request: Request<HttpBody>) -> Response<HttpBody> {
    match request.uri().path() {
        "/never" => std::future::pending().await,
        "/unread" => text_answer(StatusCode::OK, "enough"),
        "/endless" => {
            let first = futures::stream::iter([Ok(hyper::body::Frame::data(Bytes::from_static(b"so far")))]);
            let body = StreamBody::new(first.chain(futures::stream::pending()));
            Response::new(body.boxed_unsync())
        }
        path if path.starts_with("/broken/") => Response::new(cut::broken(path["/broken/".len()..].len())),
        "/large" => Response::new(full_body(vec![b'x'; 8 << 20])),
        _ => match request.into_body().collect().await {
            Ok(body) => Response::new(full_body(format!("{} bytes", body.to_bytes().len()))),
            Err(error) => text_answer(StatusCode::REQUEST_TIMEOUT, &error.to_string()),
        },
    }
}

/// Reads until the connection ends, and says how long that took and what came.
async fn until_closed(conn: &mut Conn) -> (u64, String) {
    let begun = Instant::now();
    let mut read = Vec::new();
    // In order or not: it is over.
    let _ = tokio::time::timeout(Duration::from_secs(3600), conn.read_to_end(&mut read))
        .await
        .expect("the connection ends");
    (begun.elapsed().as_secs(), String::from_utf8_lossy(&read).into_owned())
}

async fn ask(conn: &mut Conn, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    conn.write_all(request.as_bytes()).await.expect("a place");
    until_closed(conn).await.1
}

#[tokio::test(start_paused = true)]
async fn silent_connections_keep_nobody_out() {
    let server = Server::new();
    // Of one client and of many, in any state of saying nothing of use.
    let silent: Vec<Conn> = (0..100).map(|client| server.connect(client / 50)).collect();
    for (at, conn) in silent.iter().enumerate() {
        let begun: [&[u8]; 4] = [b"", b"GET / HT", b"PRI * HTTP/2.0\r\n", b"\r\n"];
        // Some have been closed already.
        let _ = conn.try_write(begun[at % 4]);
        assert!(server.places.connections() <= 8);
    }
    for client in [0, 1, 7] {
        let answer = ask(&mut server.connect(client), "/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{client}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_whole_is_cut_off() {
    let server = Server::new();
    for begun in
        ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nhost: a\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut conn = server.connect(1);
        conn.write_all(begun.as_bytes()).await.unwrap();
        assert_eq!(until_closed(&mut conn).await.0, HEAD_TIMEOUT.as_secs(), "{begun:?}");
    }
    // A head that comes byte by byte has no longer.
    let mut conn = server.connect(1);
    let begun = Instant::now();
    while conn.write_all(b"G").await.is_ok() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(begun.elapsed() < HEAD_TIMEOUT + Duration::from_secs(5));
    }
    // Between requests there is more time, and not without end.
    let mut conn = server.connect(1);
    conn.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (waited, answer) = until_closed(&mut conn).await;
    assert!(answer.contains("0 bytes"), "{answer}");
    assert_eq!(waited, IDLE_TIMEOUT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn bodies_that_hardly_come_are_given_up() {
    let server = Server::new();
    let head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 100000\r\n\r\n";
    let mut conn = server.connect(1);
    conn.write_all(head).await.unwrap();
    let dripping = async {
        // A byte a second comes on, and is not enough.
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = conn.try_write(b"x");
        }
    };
    dripping.await;
    let (_, answer) = until_closed(&mut conn).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("too slowly"), "{answer}");
    // One that is slow and comes on is served, however long it takes.
    let mut conn = server.connect(1);
    conn.write_all(head).await.unwrap();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        conn.write_all(&[b'x'; 2000]).await.unwrap();
    }
    let (_, answer) = until_closed(&mut conn).await;
    assert!(answer.contains("100000 bytes"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_take_its_response_is_cut_off() {
    let server = Server::new();
    let mut conn = server.connect(1);
    conn.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(CLIENT_PATIENCE + Duration::from_secs(5)).await;
    assert_eq!(server.places.connections(), 0);
    let (_, answer) = until_closed(&mut conn).await;
    assert!(answer.len() < 1 << 20, "{}", answer.len());
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_body_that_nobody_reads_is_heard() {
    let server = Server::new();
    let post = |how: &str| format!("POST /unread HTTP/1.1\r\nhost: a\r\n{how}\r\n\r\n").into_bytes();
    let body = vec![b'b'; 3 << 20];
    let chunked =
        [format!("{:x}\r\n", body.len()).into_bytes(), body.clone(), b"\r\n0\r\n\r\n".to_vec()].concat();
    let whole = [post(&format!("content-length: {}", body.len())), body.clone()].concat();
    let asking = |other: &str| {
        let fields = format!("content-length: {}\r\nconnection: upgrade\r\nupgrade: {other}", body.len());
        [post(&fields), body.clone()].concat()
    };
    let (web_socket, h2c) = (asking("websocket"), asking("h2c"));
    for request in [whole, [post("transfer-encoding: chunked"), chunked].concat(), web_socket, h2c] {
        let (begun, mut conn) = (Instant::now(), server.connect(1));
        conn.write_all(&request).await.expect("all of it is taken");
        let mut answer = Vec::new();
        conn.read_to_end(&mut answer).await.expect("no reset");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("enough\n"), "{answer}");
        assert!(begun.elapsed().as_secs() < 1, "nobody waits when all has come");
    }
    // Not for ever, and not without end.
    let mut conn = server.connect(1);
    conn.write_all(&post("content-length: 1000000")).await.expect("a place");
    assert!(until_closed(&mut conn).await.0 <= 5);
    let mut conn = server.connect(1);
    conn.write_all(&post("content-length: 1000000000000")).await.expect("a place");
    let (piece, mut taken) = (vec![b'b'; 1 << 20], 0);
    while conn.write_all(&piece).await.is_ok() {
        taken += 1;
        assert!(taken < 100);
    }
    assert!(taken >= 60, "{taken} MiB");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_never_ends_is_ended() {
    let server = Server::new();
    let mut conn = server.connect(1);
    conn.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (waited, answer) = until_closed(&mut conn).await;
    assert!(answer.contains("so far"), "{answer}");
    assert_eq!(waited, RESPONSE_PATIENCE.as_secs());
    tokio::task::yield_now().await;
    assert_eq!(server.places.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_response_under_way_keeps_its_place() {
    let server = Server::new();
    let mut conn = server.connect(1);
    conn.write_all(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut read = [0; 1024];
    while !String::from_utf8_lossy(&read).contains("so far") {
        assert!(conn.read(&mut read).await.unwrap() > 0);
    }
    let _newcomers: Vec<Conn> = (0..10).map(|_| server.connect(1)).collect();
    let ended = tokio::time::timeout(Duration::from_secs(1), conn.read(&mut read)).await;
    assert!(ended.is_err(), "it goes on: {ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_what_is_idle_and_not_what_is_at_work() {
    let server = Server::new();
    let (mut idle, mut open) = (server.connect(1), server.connect(2));
    let (mut sender, connection) = http1::handshake(TokioIo::new(server.connect(3))).await.unwrap();
    tokio::spawn(connection);
    let working = tokio::spawn(
        sender.send_request(Request::get("/never").header("host", "a").body(empty_body()).unwrap()),
    );
    open.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    while server.working.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    server.stop.cancel();
    assert!(until_closed(&mut idle).await.0 <= CLOSE_TIMEOUT.as_secs());
    assert!(until_closed(&mut open).await.0 <= CLOSE_TIMEOUT.as_secs());
    tokio::time::sleep(3 * CLOSE_TIMEOUT).await;
    assert!(!working.is_finished());
}

#[test]
fn who_is_refused_for_now_is_told_when_to_ask_again() {
    let told = |status| text_answer(status, "").headers().contains_key("retry-after");
    assert!(told(StatusCode::SERVICE_UNAVAILABLE) && told(StatusCode::TOO_MANY_REQUESTS));
    assert!(!told(StatusCode::BAD_GATEWAY));
}
