//! Answers that break off where only the end of the connection tells their end.

use std::io;
use std::task::Poll;

use futures::stream;
use hyper::body::Frame;

use super::*;

/// A body that fails behind its first piece, after so many polls that have nothing.
pub(super) fn broken(mut pending: usize) -> HttpBody {
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"so far")))]);
    let fails = stream::poll_fn(move |context| {
        if pending > 0 {
            pending -= 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(io::Error::other("it breaks off").into())))
    });
    StreamBody::new(first.chain(fails)).boxed_unsync()
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_http_1_0_is_reset_whenever_it_breaks_off() {
    for pending in 0..5 {
        let server = Server::new();
        let mut conn = server.connect(1);
        let path = format!("/broken/{}", "-".repeat(pending));
        conn.write_all(format!("GET {path} HTTP/1.0\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut read = Vec::new();
        let ended = conn.read_to_end(&mut read).await;
        let read = String::from_utf8_lossy(&read);
        assert!(ended.is_err() && read.ends_with("\r\n\r\nso far"), "{pending}: {ended:?} {read}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_client_does_not_take_is_not_ended_in_order() {
    let server = Server::new();
    let mut conn = server.connect(1);
    conn.write_all(b"GET /large HTTP/1.0\r\nhost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(CLIENT_PATIENCE * 2).await;
    let mut read = Vec::new();
    assert!(conn.read_to_end(&mut read).await.is_err(), "{} bytes came", read.len());
}
