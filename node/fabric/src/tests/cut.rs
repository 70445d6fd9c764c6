//! Answers that break off: a client of the gateway is told so, whichever way they came to it.

use super::cluster::{Cluster, Pod, ingress, named, pod};
use coracle_wasi_host::net::{BoxError, HttpBody, HttpService, Unanswered};
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A body that breaks off after its first part.
fn broken() -> HttpBody {
    let error: BoxError = "as a guest that traps".into();
    let frames = [Ok(Frame::data(Bytes::from_static(b"so far"))), Err(error)];
    // As if it took its time: what came before goes out first.
    StreamBody::new(stream::iter(frames).then(|frame| async {
        tokio::task::yield_now().await;
        frame
    }))
    .boxed_unsync()
}

fn answer(path: &str) -> Response<HttpBody> {
    let response = Response::builder();
    let response = if path == "/announced" { response.header("content-length", 12) } else { response };
    response.body(broken()).unwrap()
}

struct Component;

impl HttpService for Component {
    fn call(&self, request: Request<HttpBody>) -> BoxFuture<'static, Result<Response<HttpBody>, Unanswered>> {
        Box::pin(async move { Ok(answer(request.uri().path())) })
    }
}

/// The same behind a connection to the pod.
fn serve(pod: &Pod) {
    let listener = pod.listen();
    tokio::spawn(async move {
        while let Ok((conn, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(answer(request.uri().path()))
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(conn), service),
            );
        }
    });
}

fn get(host: &str, path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{host}{path}")).header("host", host).body(Empty::new()).unwrap()
}

/// What was read of a body, and whether it was whole.
async fn read<B: Body<Data = Bytes> + Unpin>(mut body: B) -> (String, bool) {
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return (text, false) };
        text += &String::from_utf8_lossy(frame.data_ref().unwrap());
    }
    (text, true)
}

async fn over_http1(gateway: SocketAddr, host: &str, path: &str) -> (String, bool) {
    let stream = TcpStream::connect(gateway).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    read(sender.send_request(get(host, path)).await.unwrap().into_body()).await
}

/// Whether an answer over HTTP/2 was whole. A stream that is reset may lose what was not sent yet.
async fn is_whole_over_http2(gateway: SocketAddr, host: &str, path: &str) -> bool {
    let stream = TokioIo::new(TcpStream::connect(gateway).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    match sender.send_request(get(host, path)).await {
        Ok(response) => read(response.into_body()).await.1,
        Err(_) => false,
    }
}

/// The end of the connection is all that this version has to tell the end.
async fn over_http1_0(gateway: SocketAddr, host: &str, path: &str) -> (String, bool) {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let ended = stream.read_to_end(&mut read).await;
    let read = String::from_utf8_lossy(&read).into_owned();
    (read.split_once("\r\n\r\n").unwrap().1.to_owned(), ended.is_ok())
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_at_the_client_too() {
    let mut cluster = Cluster::new().await;
    let (near, far) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    near.net.serve_http(8080, Arc::new(Component));
    serve(&far);
    cluster.state.services = vec![named("near", &[&near]), named("far", &[&far])];
    cluster.state.routes = vec![ingress(&[("near", "/", "near"), ("far", "/", "far")])];
    cluster.tell();
    let gateway = cluster.a.gateway_address().unwrap();
    for host in ["near", "far"] {
        for path in ["/", "/announced"] {
            let cut = ("so far".to_owned(), false);
            assert_eq!(over_http1(gateway, host, path).await, cut, "{host}{path}");
            assert!(!is_whole_over_http2(gateway, host, path).await, "{host}{path}");
            assert_eq!(over_http1_0(gateway, host, path).await, cut, "{host}{path}");
        }
    }
}
