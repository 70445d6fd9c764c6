//! The gateway: hosts, paths, errors, failover, upgrades.

use super::cluster::{Cluster, Pod, ingress, named, pod};
use coracle_proto::metrics::Text;
use coracle_wasi_host::net::{
    Client, HttpBody, HttpError, HttpService, RequestId, UNSEEN, Unanswered, full_body,
};
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A component that says what it was asked.
pub(super) struct Component(pub(super) &'static str);

impl HttpService for Component {
    fn call(&self, request: Request<HttpBody>) -> BoxFuture<'static, Result<Response<HttpBody>, Unanswered>> {
        let name = self.0;
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // Clients share what serves them.
            assert_eq!(head.extensions.get(), Some(&Client([127, 0, 0, 1].into())));
            let header =
                |name| head.headers.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
            let (from, host, connection) = (header("x-forwarded-for"), header("host"), header("connection"));
            let path = head.uri.to_string();
            let body = body.collect().await.unwrap().to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            Ok(Response::new(full_body(format!("{name} {path} {host} {from} {connection} {body}"))))
        })
    }
}

/// Serves HTTP over the pod's port 8080, as a command with std::net would; counts its connections.
fn serve_http(pod: &Pod, name: &'static str) -> Arc<AtomicUsize> {
    let listener = pod.listen();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((conn, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(move |request: Request<Incoming>| async move {
                let path = request.uri().path().to_owned();
                let body = request.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let text = format!("{name} {path} {}", String::from_utf8_lossy(&body));
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(conn), service));
        }
    });
    connections
}

/// A component behind the host hello.local, and a connection to the gateway of its node.
async fn hello() -> (Cluster, Pod, TcpStream) {
    let mut cluster = Cluster::new().await;
    let near = pod(&cluster.a, "10.128.1.2");
    near.net.serve_http(8080, Arc::new(Component("component")));
    cluster.state.services = vec![named("hello", &[&near])];
    cluster.state.routes = vec![ingress(&[("hello.local", "/", "hello")])];
    cluster.tell();
    let stream = TcpStream::connect(cluster.a.gateway_address().unwrap()).await.unwrap();
    (cluster, near, stream)
}

pub(super) async fn get(gateway: SocketAddr, host: &str, path: &str) -> (StatusCode, String) {
    let stream = TcpStream::connect(gateway).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(path).header("host", host).body(Full::new(Bytes::from("body"))).unwrap();
    read(sender.send_request(request).await.unwrap()).await
}

async fn read(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn requests_reach_components_and_pods_by_host_and_path() {
    let mut cluster = Cluster::new().await;
    let (near, far) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    near.net.serve_http(8080, Arc::new(Component("component")));
    let connections = serve_http(&far, "command");
    cluster.state.services = vec![named("hello", &[&near]), named("shop", &[&far])];
    cluster.state.routes = vec![ingress(&[
        ("hello.local", "/", "hello"),
        ("*.shops.local", "/cart", "shop"),
        ("lost.local", "/", "none"),
    ])];
    cluster.tell();
    let gateway = cluster.a.gateway_address().unwrap();
    let (status, text) = get(gateway, "hello.local", "/x?y=1").await;
    assert_eq!((status, &*text), (StatusCode::OK, "component /x?y=1 hello.local 127.0.0.1 - body"));
    for _ in 0..10 {
        let (status, text) = get(gateway, "a.shops.local:8080", "/cart/7").await;
        assert_eq!((status, &*text), (StatusCode::OK, "command /cart/7 body"));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "connections to pods are kept");
    for (host, path, status) in
        [("a.shops.local", "/other", 404), ("unknown", "/", 404), ("lost.local", "/", 503)]
    {
        assert_eq!(get(gateway, host, path).await.0, status, "{host}{path}");
    }
    let mut figures = Text::default();
    cluster.a.write_gateway(&mut figures);
    let figures = figures.finish();
    for line in [
        "coracle_gateway_requests_total{code=\"2xx\"} 11",
        "coracle_gateway_requests_total{code=\"4xx\"} 2",
        "coracle_gateway_requests_total{code=\"5xx\"} 1",
        "coracle_gateway_request_duration_seconds_count 14",
    ] {
        assert!(figures.lines().any(|found| found == line), "{line} is not in\n{figures}");
    }
}

#[tokio::test]
async fn endpoints_that_are_away_are_passed_over() {
    let mut cluster = Cluster::new().await;
    let (up, down) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    up.net.serve_http(8080, Arc::new(Component("up")));
    cluster.state.services = vec![named("hello", &[&down, &up])];
    cluster.state.routes = vec![ingress(&[("hello.local", "/", "hello")])];
    cluster.tell();
    let gateway = cluster.a.gateway_address().unwrap();
    for _ in 0..20 {
        assert_eq!(get(gateway, "hello.local", "/").await.0, StatusCode::OK);
    }
    cluster.state.services = vec![named("hello", &[&down])];
    cluster.tell();
    assert_eq!(get(gateway, "hello.local", "/").await.0, StatusCode::BAD_GATEWAY, "it refuses");
    cluster.state.services = vec![named("hello", &[])];
    cluster.tell();
    assert_eq!(get(gateway, "hello.local", "/").await.0, StatusCode::SERVICE_UNAVAILABLE, "none is ready");
}

/// A component that stops: it hands back what it is asked.
struct Stopping;

impl HttpService for Stopping {
    fn call(&self, request: Request<HttpBody>) -> BoxFuture<'static, Result<Response<HttpBody>, Unanswered>> {
        let error = HttpError::Unavailable { reason: "the container is stopping".into() };
        let id = RequestId::random();
        Box::pin(async move { Err(Unanswered { error, id, request: Some(Box::new(request)) }) })
    }
}

#[tokio::test]
async fn what_a_component_hands_back_is_tried_elsewhere() {
    let mut cluster = Cluster::new().await;
    let (near, far) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    near.net.serve_http(8080, Arc::new(Stopping));
    serve_http(&far, "far");
    cluster.state.services = vec![named("hello", &[&near, &far])];
    cluster.state.routes = vec![ingress(&[("hello.local", "/", "hello")])];
    cluster.tell();
    let gateway = cluster.a.gateway_address().unwrap();
    for _ in 0..20 {
        let (status, text) = get(gateway, "hello.local", "/x").await;
        assert_eq!((status, &*text), (StatusCode::OK, "far /x body"), "with its body, which nobody has read");
    }
    cluster.state.services = vec![named("hello", &[&near])];
    cluster.tell();
    assert_eq!(get(gateway, "hello.local", "/").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_endpoint_whose_answer_begins_with_a_head_without_end_is_given_up() {
    let mut cluster = Cluster::new().await;
    let pod = pod(&cluster.a, "10.128.1.2");
    let listener = pod.listen();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut conn, _)) = listener.accept().await {
            // What comes before the request is no answer to it.
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(conn.read_u8().await.unwrap());
            }
            let head = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(200 << 10));
            let _ = conn.write_all(head.as_bytes()).await;
            held.push(conn);
        }
    });
    cluster.state.services = vec![named("hello", &[&pod])];
    cluster.state.routes = vec![ingress(&[("hello.local", "/", "hello")])];
    cluster.tell();
    let asked = get(cluster.a.gateway_address().unwrap(), "hello.local", "/");
    let answered = tokio::time::timeout(std::time::Duration::from_secs(10), asked).await;
    assert_eq!(answered.expect("at once").0, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn what_no_guest_of_another_node_has_seen_is_tried_elsewhere() {
    let mut cluster = Cluster::new().await;
    let (near, far) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let (listener, asked) = (far.listen(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((conn, _)) = listener.accept().await {
            let count = count.clone();
            let service = service_fn(move |_: Request<Incoming>| {
                count.fetch_add(1, Ordering::SeqCst);
                let refused = Response::builder().status(503).header(UNSEEN, "true");
                async { Ok::<_, Infallible>(refused.body(Empty::<Bytes>::new()).unwrap()) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(conn), service));
        }
    });
    near.net.serve_http(8080, Arc::new(Component("near")));
    cluster.state.services = vec![named("hello", &[&near, &far])];
    cluster.state.routes = vec![ingress(&[("hello.local", "/", "hello")])];
    cluster.tell();
    let gateway = cluster.a.gateway_address().unwrap();
    let post = async || {
        let stream = TcpStream::connect(gateway).await.unwrap();
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.unwrap();
        tokio::spawn(connection);
        let request = Request::post("/x").header("host", "hello.local").body(Empty::<Bytes>::new()).unwrap();
        sender.send_request(request).await.unwrap()
    };
    while asked.load(Ordering::SeqCst) < 3 {
        assert_eq!(post().await.status(), StatusCode::OK);
    }
    cluster.state.services = vec![named("hello", &[&far])];
    cluster.tell();
    let refused = post().await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key(UNSEEN)), (503, false));
}

#[tokio::test]
async fn a_get_keeps_its_body() {
    let mut cluster = Cluster::new().await;
    let (near, far) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    near.net.serve_http(8080, Arc::new(Component("near")));
    serve_http(&far, "far");
    cluster.state.services = vec![named("near", &[&near]), named("far", &[&far])];
    cluster.state.routes = vec![ingress(&[("near.local", "/", "near"), ("far.local", "/", "far")])];
    cluster.tell();
    let gateway = cluster.a.gateway_address().unwrap();
    for (host, heard) in [("near.local", "near /q near.local 127.0.0.1 - body"), ("far.local", "far /q body")]
    {
        for (coding, sent) in
            [("transfer-encoding: chunked", "2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"), ("content-length: 4", "body")]
        {
            let mut stream = TcpStream::connect(gateway).await.unwrap();
            let head = format!("GET /q HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{coding}\r\n\r\n");
            stream.write_all((head + sent).as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with(heard), "{host}, {coding}: {answer}");
        }
    }
}

#[tokio::test]
async fn the_gateway_opens_no_tunnels() {
    let cluster = Cluster::new().await;
    let mut stream = TcpStream::connect(cluster.a.gateway_address().unwrap()).await.unwrap();
    stream.write_all(b"CONNECT a.local:22 HTTP/1.1\r\nhost: a.local\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 405");
}

#[tokio::test]
async fn http2_without_tls_is_spoken() {
    let (_cluster, _pod, stream) = hello().await;
    let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = client.await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://hello.local/two").body(Empty::<Bytes>::new()).unwrap();
    let (status, text) = read(sender.send_request(request).await.unwrap()).await;
    assert_eq!((status, &*text), (StatusCode::OK, "component /two hello.local 127.0.0.1 - "));
}

#[tokio::test]
async fn upgraded_connections_pass_through() {
    let mut cluster = Cluster::new().await;
    let far = pod(&cluster.b, "10.128.2.2");
    let listener = far.listen();
    cluster.state.services = vec![named("chat", &[&far])];
    cluster.state.routes = vec![ingress(&[("chat.local", "/", "chat")])];
    cluster.tell();
    tokio::spawn(async move {
        let (mut conn, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(conn.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        let agreed = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        conn.write_all(agreed).await.unwrap();
        let mut word = [0; 4];
        conn.read_exact(&mut word).await.unwrap();
        conn.write_all(&word).await.unwrap();
    });
    let mut stream = TcpStream::connect(cluster.a.gateway_address().unwrap()).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: chat.local\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"echo").await.unwrap();
    let mut word = [0; 4];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"echo");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_dropped() {
    let cluster = Cluster::new().await;
    for begun in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HT"] {
        let mut stream = TcpStream::connect(cluster.a.gateway_address().unwrap()).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        // The clock goes to the end of a step where nobody has anything to do, also while bytes are on their way.
        let step = Duration::from_millis(100);
        let begin = tokio::time::Instant::now();
        while !matches!(tokio::time::timeout(step, stream.read_u8()).await, Ok(Err(_))) {
            let waited = begin.elapsed();
            assert!(waited < Duration::from_secs(120), "{begun:?} is waited for without end");
        }
    }
}
