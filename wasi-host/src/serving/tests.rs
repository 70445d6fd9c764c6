//! Clients that are slow, silent or hostile, each against the bound that is theirs.

mod under_way;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::{http1, http2};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::net::{Conn, PIPE_CAPACITY, empty_body};

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

/// Begins an HTTP/2 connection by hand.
async fn begun(server: &Server) -> Conn {
    let mut conn = server.connect(1);
    conn.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    conn
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_the_bounds_of_its_connection() {
    let server = Server::new();
    let mut conn = begun(&server).await;
    let mut head = [0; 9];
    conn.read_exact(&mut head).await.unwrap();
    assert_eq!((head[3], head[4]), (4, 0), "SETTINGS come first");
    let mut settings = vec![0; usize::from(head[2])];
    conn.read_exact(&mut settings).await.unwrap();
    let told = |id: u8| {
        let setting = settings.chunks(6).find(|setting| setting[..2] == [0, id]);
        setting.map(|setting| u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]))
    };
    assert_eq!(told(3), Some(STREAMS_MAX));
    let window = told(4).unwrap();
    assert!(window as usize * GATEWAY.requests_per_source_max <= 32 << 20, "{window}");
    assert_eq!(told(6), Some(HEAD_BYTES_MAX as u32));
}

#[tokio::test(start_paused = true)]
async fn a_request_names_one_host() {
    let server = Server::new();
    let ask = async |version: &str, hosts: &str| {
        let mut conn = server.connect(1);
        let head = format!("GET / HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
        conn.write_all(head.as_bytes()).await.expect("a place");
        until_closed(&mut conn).await.1
    };
    for (version, hosts) in [
        ("1.1", "host: a\r\nhost: b\r\n"),
        ("1.1", "host: a\r\nHost: a\r\n"),
        ("1.0", "host: a\r\nhost: b\r\n"),
        ("1.1", ""),
        ("1.1", "host: a b\r\n"),
        ("1.1", "host: a/b\r\n"),
    ] {
        let answer = ask(version, hosts).await;
        assert!(answer.contains(" 400 ") && answer.contains("Host header"), "{hosts:?}: {answer}");
    }
    for (version, hosts) in [
        ("1.1", "host: a\r\n"),
        ("1.1", "host: a:80\r\n"),
        ("1.1", "host:\r\n"),
        ("1.0", ""),
        ("1.1", "host: [::1]:8\r\n"),
    ] {
        let answer = ask(version, hosts).await;
        assert!(answer.contains(" 200 "), "{hosts:?}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_large_is_refused() {
    let server = Server::new();
    let mut conn = server.connect(1);
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX));
    // The rest is not taken.
    let _ = conn.write_all(head.as_bytes()).await;
    let (_, answer) = until_closed(&mut conn).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_reset_as_they_are_opened_end_the_connection() {
    let server = Server::new();
    let mut conn = begun(&server).await;
    let mut flood = Vec::new();
    for stream in (1..400_u32).step_by(2).map(u32::to_be_bytes) {
        // GET /never of the host a, and a reset of it.
        flood.extend([b"\0\0\x0d\x01\x05".as_slice(), &stream, b"\x82\x86\x04\x06/never\x41\x01a"].concat());
        flood.extend([b"\0\0\x04\x03\0".as_slice(), &stream, b"\0\0\0\x08"].concat());
    }
    assert_eq!(conn.try_write(&flood), Ok(flood.len()), "it comes in one piece");
    let begun = Instant::now();
    let (_, said) = until_closed(&mut conn).await;
    assert!(said.contains("too_many_resets") && begun.elapsed() < Duration::from_secs(1), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_nobody_reads_are_held_in_part_and_let_others_pass() {
    const PIECE: usize = 16 * 1024;
    const STUCK: usize = 12;
    let server = Server::within(GATEWAY);
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(server.connect(1))).await.unwrap();
    tokio::spawn(connection);
    let sent = Arc::new(AtomicUsize::new(0));
    let mut post = |path: &str, pieces: usize, sent: &Arc<AtomicUsize>| {
        let sent = sent.clone();
        let pieces = futures::stream::iter(0..pieces).map(move |_| {
            sent.fetch_add(PIECE, Ordering::SeqCst);
            Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from_static(&[b'x'; PIECE])))
        });
        let request = Request::post(format!("http://a{path}")).body(StreamBody::new(pieces).boxed_unsync());
        sender.send_request(request.unwrap())
    };
    let stuck: Vec<_> = (0..STUCK).map(|_| tokio::spawn(post("/never", 1 << 20, &sent))).collect();
    while server.working.load(Ordering::SeqCst) < STUCK {
        tokio::task::yield_now().await;
    }
    let answered = tokio::time::timeout(CLIENT_PATIENCE, post("/", 100, &Arc::default())).await;
    assert_eq!(answered.expect("it passes").unwrap().status(), StatusCode::OK);
    let held = sent.load(Ordering::SeqCst) / STUCK;
    assert!(held <= STREAM_WINDOW_BYTES_MAX as usize + 2 * PIECE, "{held} bytes of each");
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn one_client_does_not_have_all_requests() {
    let server = Server::new();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(server.connect(1))).await.unwrap();
    tokio::spawn(connection);
    let get = |path: &str| Request::get(format!("http://a{path}")).body(Empty::<Bytes>::new()).unwrap();
    let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(sender.send_request(get("/never")))).collect();
    while server.working.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    let refused = sender.send_request(get("/")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let answer = ask(&mut server.connect(2), "/").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    while server.working.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(sender.send_request(get("/")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_given_up_again_and_again_end_the_connection() {
    let server = Server::new();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(server.connect(1))).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut given_up = 0;
    while !connection.is_finished() {
        let request = Request::get("http://a/never").body(Empty::<Bytes>::new()).unwrap();
        let asked = tokio::spawn(sender.send_request(request));
        while server.working.load(Ordering::SeqCst) == 0 && !connection.is_finished() {
            tokio::task::yield_now().await;
        }
        asked.abort();
        while server.working.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        given_up += 1;
        assert!(given_up < 2 * GIVEN_UP_MAX, "it goes on and on");
    }
    assert!(given_up > GIVEN_UP_MAX / 2, "{given_up}");
}

#[tokio::test(start_paused = true)]
async fn large_heads_that_are_not_whole_leave_room_to_others() {
    const CONNECTIONS: usize = 40;
    let bounds = Bounds {
        connections_max: 64,
        connections_per_source_max: 64,
        requests_max: 64,
        requests_per_source_max: 64,
    };
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "x".repeat(60_000));
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let body = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n{}", "x".repeat(200_000));
    let kinds = [
        large.clone().into_bytes(),
        [request, &large].concat().into_bytes(),
        [&body, &large[..]].concat().into_bytes(),
        // A few bytes that may stand for many.
        [&begin[..], b"\0\0\0\x01\0\0\0\0\x01"].concat(),
    ];
    for (kind, begun) in kinds.iter().enumerate() {
        let server = Server::within(bounds);
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut conn = server.connect(1);
            // Those for which there is no room are closed.
            let _ = tokio::time::timeout(Duration::from_millis(1), conn.write_all(begun)).await;
            held.push(conn);
        }
        tokio::time::sleep(HEAD_TIMEOUT / 2).await;
        let stand = server.places.connections();
        assert!((2..=CONNECTIONS / 10).contains(&stand), "{kind}: {stand} stand");
        let all = server.places.head_bytes();
        assert!((1..=4 * HEAD_BYTES_MAX).contains(&all), "{kind}: {all}");
        // Heads of any size come in from others, and of the usual size from this one.
        let whole = [&large[..], "\r\nconnection: close\r\n\r\n"].concat();
        for (client, whole) in [(2, &*whole), (1, "GET / HTTP/1.0\r\n\r\n")] {
            let mut conn = server.connect(client);
            conn.write_all(whole.as_bytes()).await.unwrap();
            let answer = until_closed(&mut conn).await.1;
            assert!(answer.contains("200 OK"), "{kind} of {client}: {answer}");
        }
        drop(held);
        while server.places.connections() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.places.head_bytes(), 0, "{kind}: all is given back");
    }
    // What is whole is no head under way, and neither is a body, however large: nobody is closed for what has come before, and
    // who sends much at once is answered while there is no room for heads that are not whole.
    let server = Server::within(bounds);
    let whole = [&large[..], "\r\n\r\n"].concat();
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut conn = server.connect(1);
        for request in [&*whole, request, &whole, &body, &body] {
            conn.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 1024];
            let read = conn.read(&mut answer).await.unwrap();
            assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK"));
        }
        kept.push(conn);
    }
    tokio::time::sleep(HEAD_TIMEOUT / 4).await;
    assert_eq!((server.places.connections(), server.places.head_bytes()), (kept.len(), 0));
    let mut held = Vec::new();
    for client in 10..30 {
        let mut conn = server.connect(client);
        let _ = tokio::time::timeout(Duration::from_millis(1), conn.write_all(large.as_bytes())).await;
        held.push(conn);
    }
    for mut conn in kept {
        conn.write_all(body.as_bytes()).await.unwrap();
        let mut answer = [0; 1024];
        let read = conn.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK"));
    }
}

#[tokio::test(start_paused = true)]
async fn floods_of_control_frames_end_the_connection() {
    let server = Server::new();
    let mut conn = server.connect(1);
    conn.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let ping = b"\0\0\x08\x06\0\0\0\0\0pingping";
    let (mut reader, mut writer) = tokio::io::split(conn);
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        let _ = reader.read_to_end(&mut all).await;
    });
    let mut sent = 0;
    while writer.write_all(&ping.repeat(64)).await.is_ok() {
        sent += 64;
        assert!(sent < 100_000, "it goes on and on");
        tokio::task::yield_now().await;
    }
    drop(writer);
    reading.await.unwrap();
    // So does a head that never ends.
    let mut conn = server.connect(1);
    conn.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    conn.write_all(b"\0\0\0\x01\0\0\0\0\x01").await.unwrap();
    let mut sent = 0;
    while conn.write_all(b"\0\0\0\x09\0\0\0\0\x01").await.is_ok() {
        sent += 1;
        assert!(sent < 100_000, "it goes on and on");
        tokio::task::yield_now().await;
    }
}

/// What a client is cut off for.
async fn offend(conn: &mut Conn, kind: usize) {
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let pings = b"\0\0\x08\x06\0\0\0\0\0pingping".repeat(2000);
    // A head that goes on and on, one that cannot be, no HTTP at all.
    let heads = [b"\0\0\0\x01\0\0\0\0\x01".to_vec(), b"\0\0\0\x09\0\0\0\0\x01".repeat(2000)].concat();
    let offence = match kind {
        0 => [&begin[..], &pings].concat(),
        1 => [&begin[..], &heads].concat(),
        2 => [&begin[..], b"\0\0\x01\x01\x05\0\0\0\x02\x82"].concat(),
        _ => b"\x16\x03\x01 this is no HTTP\r\n\r\n".to_vec(),
    };
    let (mut reader, mut writer) = tokio::io::split(conn);
    let mut answer = Vec::new();
    let both = async { tokio::join!(reader.read_to_end(&mut answer), writer.write_all(&offence)) };
    // Neither has to succeed.
    let _ = tokio::time::timeout(Duration::from_secs(1), both).await.expect("cut off at once");
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_again_and_again_is_held_back_and_nobody_else() {
    for kind in 0..4 {
        let server = Server::new();
        let begun = Instant::now();
        for _ in 0..9 {
            offend(&mut server.connect(1), kind).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "{kind}");
        let answer = ask(&mut server.connect(2), "/").await;
        assert!(answer.starts_with("HTTP/1.1 200") && begun.elapsed() < HELD_BACK, "{kind}: {answer}");
        let answer = ask(&mut server.connect(1), "/").await;
        assert!(answer.starts_with("HTTP/1.1 200") && begun.elapsed() >= HELD_BACK, "{kind}: {answer}");
    }
    // Of those who are held back few wait: what they send is in the kernel's memory meanwhile.
    let bounds = Bounds {
        connections_max: 4 * HELD_BACK_MAX,
        connections_per_source_max: 4 * HELD_BACK_MAX,
        requests_max: 8,
        requests_per_source_max: 8,
    };
    let server = Server::within(bounds);
    for _ in 0..9 {
        offend(&mut server.connect(1), 0).await;
    }
    let begun = Instant::now();
    let mut many: Vec<Conn> = (0..2 * HELD_BACK_MAX).map(|_| server.connect(1)).collect();
    let answer = ask(&mut server.connect(2), "/").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!((server.places.connections(), begun.elapsed()), (HELD_BACK_MAX, Duration::ZERO));
    let answer = ask(&mut many[0], "/").await;
    assert!(answer.starts_with("HTTP/1.1 200") && begun.elapsed() >= HELD_BACK, "{answer}");
    let answer = ask(&mut server.connect(1), "/").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "they have had their time: {answer}");
    // Who goes away, in the middle of a request or not, is at no fault.
    let server = Server::new();
    let begun = Instant::now();
    for sent in ["", "GET / HT", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nx"].repeat(10) {
        let mut conn = server.connect(1);
        conn.write_all(sent.as_bytes()).await.unwrap();
        drop(conn);
        while server.places.connections() > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(ask(&mut server.connect(1), "/").await.starts_with("HTTP/1.1 200"));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_ping_is_gone() {
    let server = Server::new();
    let mut conn = server.connect(1);
    conn.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // GET /never of the host a, as HPACK has it.
    conn.write_all(b"\0\0\x0d\x01\x05\0\0\0\x01\x82\x86\x04\x06/never\x41\x01a").await.unwrap();
    while server.working.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let (waited, _) = until_closed(&mut conn).await;
    assert!(waited <= (PING_INTERVAL + PING_TIMEOUT).as_secs() + 1, "{waited}");
    while server.working.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
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
