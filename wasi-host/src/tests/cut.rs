//! Answers that their component does not bring to an end: whoever asked is told so.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::net::{Conn, HttpBody, empty_body};

const PORT: u16 = 8080;

/// The components of both versions, and how each answers in part.
const CUTS: [(&str, &[&str]); 2] = [
    ("hostile-http", &["trap", "late", "exit", "forget", "drop", "short"]),
    ("hello-http-p3", &["trap", "late", "forget", "error", "short"]),
];

/// A component that is served, with the bench and the pod that it is on.
async fn serve(component: &str) -> (Bench, Pod, Container) {
    let bench = Bench::new(2);
    let pod = bench.pod(PodLimits::default());
    let mut spec = bench.spec(bench.sample(component).await);
    spec.http_port = Some(PORT);
    let container = pod.start(spec).expect("started");
    (bench, pod, container)
}

async fn connect(pod: &Pod) -> Conn {
    let (client, server) = (([10, 128, 9, 9], 4000).into(), ([10, 128, 0, 7], PORT).into());
    pod.namespace().deliver_when_room(client, server).await.expect("taken in")
}

async fn http1<B>(pod: &Pod) -> http1::SendRequest<B>
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(connect(pod).await)).await.expect("begun");
    tokio::spawn(connection);
    sender
}

async fn http2(pod: &Pod) -> http2::SendRequest<Empty<Bytes>> {
    let io = TokioIo::new(connect(pod).await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("begun");
    tokio::spawn(connection);
    sender
}

fn get(how: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://pod/cut/{how}")).header("host", "pod").body(Empty::new()).expect("a request")
}

/// What was read of a body, and whether it was whole.
async fn read<B: hyper::body::Body<Data = Bytes> + Unpin>(mut body: B) -> (String, bool) {
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return (text, false) };
        text += &String::from_utf8_lossy(frame.data_ref().unwrap_or(&Bytes::new()));
    }
    (text, true)
}

async fn over_http1(pod: &Pod, how: &str) -> (String, bool) {
    read(http1(pod).await.send_request(get(how)).await.expect("a head").into_body()).await
}

async fn over_http2(pod: &Pod, how: &str) -> (String, bool) {
    match http2(pod).await.send_request(get(how)).await {
        Ok(response) => read(response.into_body()).await,
        // A stream that is reset may lose what was not sent yet.
        Err(_) => ("so far".to_owned(), false),
    }
}

/// As it is on the wire: asks for what the path names, and reads until the connection ends, in order or not.
async fn on_the_wire(pod: &Pod, path: &str, version: &str) -> (io::Result<usize>, String) {
    let mut conn = connect(pod).await;
    let request = format!("GET {path} HTTP/{version}\r\nhost: pod\r\n\r\n");
    conn.write_all(request.as_bytes()).await.expect("sent");
    let mut read = Vec::new();
    let ended = conn.read_to_end(&mut read).await;
    (ended, String::from_utf8_lossy(&read).into_owned())
}

#[tokio::test]
async fn an_answer_that_is_not_brought_to_an_end_is_seen_to_be_cut() {
    for (component, cuts) in CUTS {
        let (_bench, pod, container) = serve(component).await;
        let service = pod.namespace().http_service(PORT).expect("served");
        for how in cuts {
            let request = get(how).map(|_| -> HttpBody { empty_body() });
            let body = service.call(request).await.expect("a head").into_body();
            let cut = ("so far".to_owned(), false);
            assert_eq!(read(body).await, cut, "{component} {how}, called directly");
            assert_eq!(over_http1(&pod, how).await, cut, "{component} {how}");
            assert_eq!(over_http2(&pod, how).await, cut, "{component} {how}");
        }
        let whole = ("so far so on".to_owned(), true);
        assert_eq!(over_http1(&pod, "whole").await, whole, "{component}");
        assert_eq!(over_http2(&pod, "whole").await, whole, "{component}");
        assert_eq!(container.exit(), None);
    }
}

#[tokio::test]
async fn over_http_1_1_the_last_chunk_is_missing_and_the_connection_ends() {
    for (component, cuts) in CUTS {
        let (_bench, pod, _container) = serve(component).await;
        for how in cuts {
            let (_, read) = on_the_wire(&pod, &format!("/cut/{how}"), "1.1").await;
            assert!(read.starts_with("HTTP/1.1 200"), "{component} {how}: {read}");
            let (head, body) = read.split_once("\r\n\r\n").expect("a head");
            let expected = if *how == "short" { "so far" } else { "6\r\nso far\r\n" };
            assert_eq!(body, expected, "{component} {how}");
            assert_eq!(head.contains("content-length: 12"), *how == "short", "{component} {how}: {head}");
        }
    }
}

/// A client of HTTP/1.0 sees the end by that of the connection alone.
#[tokio::test]
async fn over_http_1_0_the_connection_is_reset() {
    for (component, cuts) in CUTS {
        let (_bench, pod, _container) = serve(component).await;
        for how in cuts {
            let (ended, read) = on_the_wire(&pod, &format!("/cut/{how}"), "1.0").await;
            assert!(ended.is_err(), "{component} {how}: {read}");
            assert!(read.ends_with("\r\n\r\nso far"), "{component} {how}: {read}");
        }
        let (ended, _) = on_the_wire(&pod, "/", "1.0").await;
        ended.expect("what is whole ends in order");
    }
}

#[tokio::test]
async fn a_container_that_is_killed_cuts_its_answers() {
    for (component, _) in CUTS {
        let (_bench, pod, container) = serve(component).await;
        let service = pod.namespace().http_service(PORT).expect("served");
        let request = get("stop").map(|_| -> HttpBody { empty_body() });
        let mut direct = service.call(request).await.expect("a head").into_body();
        let first = direct.frame().await.expect("some").expect("a frame").into_data().expect("data");
        assert_eq!(first, "so far");
        let mut conn = connect(&pod).await;
        conn.write_all(b"GET /cut/stop HTTP/1.1\r\nhost: pod\r\n\r\n").await.expect("sent");
        let mut read = vec![0; 1];
        conn.read_exact(&mut read).await.expect("begun");
        container.kill();
        assert!(direct.frame().await.is_some_and(|frame| frame.is_err()), "{component}");
        let _ = conn.read_to_end(&mut read).await;
        assert!(!String::from_utf8_lossy(&read).contains("\r\n0\r\n"), "{component}");
    }
}

#[tokio::test]
async fn heads_that_are_asked_for_alone_are_whole() {
    let (_bench, pod, _container) = serve("hostile-http").await;
    let mut request = get("short");
    *request.method_mut() = http::Method::HEAD;
    let response = http2(&pod).await.send_request(request).await.expect("a head");
    assert_eq!(response.headers()["content-length"], "12");
    assert_eq!(read(response.into_body()).await, (String::new(), true));
}

/// What a guest was given and hands on is nothing that it leaves unfinished.
#[tokio::test]
async fn a_body_that_is_handed_on_outlives_its_instance() {
    let (_bench, pod, _container) = serve("hello-http-p3").await;
    let mut sender = http1(&pod).await;
    let (frames, body) = futures::channel::mpsc::unbounded::<Result<_, Infallible>>();
    let send = |text: &'static str| {
        frames
            .unbounded_send(Ok(hyper::body::Frame::data(Bytes::from_static(text.as_bytes()))))
            .expect("read");
    };
    send("one ");
    let body = http_body_util::StreamBody::new(body);
    let request = Request::post("http://pod/echo").header("host", "pod").body(body).expect("a request");
    let mut body = sender.send_request(request).await.expect("a head").into_body();
    let first = body.frame().await.expect("some").expect("a frame").into_data().expect("data");
    assert_eq!(first, "one ");
    // The instance goes, as it does when others have ended it.
    while over_http1(&pod, "trap").await.1 {}
    send("two");
    drop(frames);
    assert_eq!(read(body).await, ("two".to_owned(), true));
}
