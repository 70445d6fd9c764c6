//! Connections over pipes in memory.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{client::conn::http2 as client, service::service_fn};
use hyper_util::rt::TokioExecutor;
use tokio::{
    io::{AsyncReadExt, DuplexStream, duplex},
    sync::{Semaphore, oneshot},
    time::sleep,
};

use super::*;

/// More than h2 keeps back: it flushes behind such a frame.
const ANSWER_BYTES: usize = 600;

/// The server's end of a connection.
struct Counted {
    stream: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Relaxed);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

struct Served {
    client: client::SendRequest<Empty<Bytes>>,
    writes: Arc<AtomicUsize>,
    /// Shuts the server down, and waits until the connection has ended.
    close: oneshot::Sender<oneshot::Sender<()>>,
}

impl Served {
    async fn get(&self, path: &str) -> hyper::Result<Bytes> {
        let request = Request::get(format!("http://server{path}")).body(Empty::new()).unwrap();
        let answer = self.client.clone().send_request(request).await?;
        Ok(answer.into_body().collect().await?.to_bytes())
    }
}

/// A client of a connection whose requests are answered by `answer`.
async fn served<F>(answer: impl Fn(String) -> F + Send + 'static) -> Served
where
    F: Future<Output = Vec<u8>> + Send + 'static,
{
    let (server, client) = duplex(4096);
    let writes = Arc::<AtomicUsize>::default();
    let server = Counted { stream: server, writes: writes.clone() };
    let service = service_fn(move |request: Request<Incoming>| {
        let body = answer(request.uri().path().to_owned());
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body.await)))) }
    });
    let (close, closing) = oneshot::channel::<oneshot::Sender<()>>();
    tokio::spawn(async move {
        let mut connection = Multiplexed::new(server, service, |_| {});
        let ended = tokio::select! {
            _ = &mut connection => return,
            Ok(ended) = closing => ended,
        };
        connection.graceful_shutdown();
        connection.await.unwrap();
        ended.send(()).unwrap();
    });
    let io = TokioIo::new(client);
    let (client, connection) = client::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    Served { client, writes, close }
}

#[tokio::test]
async fn answers_that_are_ready_together_leave_in_one_write() {
    let (arrived, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let server = {
        let (arrived, go) = (arrived.clone(), go.clone());
        served(move |_| {
            let (arrived, go) = (arrived.clone(), go.clone());
            async move {
                arrived.add_permits(1);
                go.acquire().await.unwrap().forget();
                vec![7; ANSWER_BYTES]
            }
        })
        .await
    };
    let released = async {
        arrived.acquire_many(4).await.unwrap().forget();
        let before = server.writes.load(Relaxed);
        go.add_permits(4);
        before
    };
    let (before, answers) = tokio::join!(released, join_all((0..4).map(|_| server.get("/"))));
    assert!(answers.into_iter().all(|answer| answer.unwrap() == vec![7; ANSWER_BYTES]));
    assert_eq!(server.writes.load(Relaxed) - before, 1);
}

#[tokio::test]
async fn a_panic_ends_its_request_only() {
    let server = served(async |path| match path.as_str() {
        "/slow" => {
            sleep(Duration::from_millis(50)).await;
            b"slow".to_vec()
        }
        _ => panic!("this is a test"),
    })
    .await;
    let (slow, broken) = tokio::join!(server.get("/slow"), server.get("/broken"));
    broken.unwrap_err();
    assert_eq!(slow.unwrap(), "slow");
    assert_eq!(server.get("/slow").await.unwrap(), "slow");
}

#[tokio::test]
async fn requests_under_way_are_answered_before_the_connection_ends() {
    let arrived = Arc::new(Semaphore::new(0));
    let server = {
        let arrived = arrived.clone();
        served(move |_| {
            arrived.add_permits(1);
            async {
                sleep(Duration::from_millis(50)).await;
                b"late".to_vec()
            }
        })
        .await
    };
    let (ended, has_ended) = oneshot::channel();
    let (client, close) = (server.client.clone(), server.close);
    let server = Served { client, writes: server.writes, close: oneshot::channel().0 };
    let closed = async {
        arrived.acquire().await.unwrap().forget();
        close.send(ended).unwrap();
    };
    let (answer, ()) = tokio::join!(server.get("/"), closed);
    assert_eq!(answer.unwrap(), "late");
    has_ended.await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_gets_all_of_a_large_answer() {
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|at| at as u8).collect();
    let answer = bytes.clone();
    let server = served(move |_| std::future::ready(answer.clone())).await;
    let (one, other) = tokio::join!(server.get("/"), server.get("/"));
    assert!(one.unwrap() == bytes && other.unwrap() == bytes);
}

#[tokio::test]
async fn what_is_gathered_for_who_does_not_read_has_a_bound() {
    let (server, mut client) = duplex(1024);
    let outlet = Outlet { stream: server, gathered: Vec::new(), written: 0, refused: None };
    let outlet = Arc::new(Mutex::new(outlet));
    let mut gathering = Gathering(outlet.clone());
    let alarm = Arc::<Alarm>::default();
    let waker = Waker::from(alarm.clone());
    let mut context = Context::from_waker(&waker);
    let mut taken = 0;
    while Pin::new(&mut gathering).poll_write(&mut context, &[7; 1000]).is_ready() {
        taken += 1000;
        assert!(taken < GATHERED_BYTES_MAX + 3000, "{taken} bytes were taken");
    }
    let mut read = vec![0; taken];
    let drained = std::future::poll_fn(|context| outlet.lock().poll_flush(context));
    let (drained, all) = tokio::join!(drained, client.read_exact(&mut read));
    drained.unwrap();
    all.unwrap();
    assert!(alarm.rung.load(SeqCst), "who was refused is told that there is room");
    assert!(Pin::new(&mut gathering).poll_write(&mut context, &[7]).is_ready());
}

#[tokio::test]
async fn requests_that_were_not_polled_end_with_their_connection() {
    let (server, mut client) = duplex(4096);
    let alive = Arc::new(());
    let held = alive.clone();
    let service = service_fn(move |_: Request<Incoming>| {
        let held = held.clone();
        async move {
            let _held = held;
            std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
        }
    });
    // SETTINGS, a GET, and a CONNECT with a body, at which hyper ends the connection though a request has just arrived.
    let mut flight = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec();
    flight.extend(b"\x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x86\x84\x01\x01a");
    flight.extend(b"\x00\x00\x10\x01\x04\x00\x00\x00\x03\x02\x07CONNECT\x01\x01a\x0f\x0d\x015");
    tokio::io::AsyncWriteExt::write_all(&mut client, &flight).await.unwrap();
    Multiplexed::new(server, service, |_| {}).await.unwrap();
    assert_eq!(Arc::strong_count(&alive), 1);
}
