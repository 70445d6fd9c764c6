//! Clients that break the protocol: they are cut off, and held back where they go on.

use super::*;

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
