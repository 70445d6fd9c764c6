//! What belongs to HTTP/2: streams, resets, bodies, pings.

use http_body_util::Empty;
use hyper::client::conn::http2;

use super::*;

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
