//! The heads of requests: what is a request, and how much room heads have.

use super::*;

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
