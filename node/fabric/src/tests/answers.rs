//! Answers in place of a guest's: an id that the log has too, with the reason, and nothing of the inside.

use super::cluster::{Cluster, Pod, ingress, named, pod};
use super::log::Log;
use coracle_wasi_host::HTTP_TIMEOUT_DEFAULT;
use coracle_wasi_host::net::{
    HttpBody, HttpError, HttpService, RequestId, UNSEEN, Unanswered, empty_body, full_body,
};
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A component that has no answer: by its path it failed, took too long, was asked what cannot be meant, or could not be asked.
/// Keeps the ids under which it was asked.
#[derive(Default)]
struct Failing {
    named: Arc<Mutex<Vec<String>>>,
}

impl HttpService for Failing {
    fn call(&self, request: Request<HttpBody>) -> BoxFuture<'static, Result<Response<HttpBody>, Unanswered>> {
        let id = RequestId::of(request.headers());
        self.named.lock().push(id.to_string());
        let unavailable = |reason: &str| HttpError::Unavailable { reason: reason.to_owned() };
        let (error, is_seen) = match request.uri().path() {
            "/fine" => return Box::pin(async { Ok(Response::new(full_body("fine"))) }),
            "/late" => {
                return Box::pin(async move {
                    tokio::time::sleep(HTTP_TIMEOUT_DEFAULT + Duration::from_secs(1)).await;
                    Err(Unanswered { error: HttpError::TimedOut, id, request: None })
                });
            }
            "/failed" => (HttpError::Failed, true),
            "/slow" => (HttpError::TimedOut, true),
            "/malformed" => (HttpError::Malformed { reason: "the secret target" }, true),
            "/host" => (unavailable("wasmtime has a secret"), true),
            _ => (unavailable("secret bounds"), false),
        };
        let request = (!is_seen).then(|| Box::new(request));
        Box::pin(async move { Err(Unanswered { error, id, request }) })
    }
}

/// Hosts of node a that lead to all that can be wrong.
struct Broken {
    _cluster: Cluster,
    _pods: Vec<Pod>,
    gateway: SocketAddr,
    named: Arc<Mutex<Vec<String>>>,
}

impl Broken {
    async fn new() -> Self {
        let mut cluster = Cluster::new().await;
        let (failing, closing) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
        let away = pod(&cluster.b, "10.128.2.3");
        let component = Failing::default();
        let named_ids = component.named.clone();
        failing.net.serve_http(8080, Arc::new(component));
        close_at_once(&closing);
        cluster.state.services = vec![
            named("failing", &[&failing]),
            named("closing", &[&closing]),
            named("away", &[&away]),
            named("empty", &[]),
        ];
        let portless = cluster.state.services.last().cloned().map(|mut service| {
            service.name = "portless".into();
            service.ports.clear();
            service
        });
        cluster.state.services.extend(portless);
        cluster.state.routes = vec![ingress(&[
            ("failing", "/", "failing"),
            ("closing", "/", "closing"),
            ("away", "/", "away"),
            ("empty", "/", "empty"),
            ("portless", "/", "portless"),
            ("lost", "/", "none"),
        ])];
        cluster.tell();
        let gateway = cluster.a.gateway_address().unwrap();
        Self { _cluster: cluster, _pods: vec![failing, closing, away], gateway, named: named_ids }
    }
}

/// Takes requests and breaks off without an answer.
fn close_at_once(pod: &Pod) {
    let listener = pod.listen();
    tokio::spawn(async move {
        while let Ok((mut conn, _)) = listener.accept().await {
            let _ = conn.read_u8().await;
            conn.reset();
        }
    });
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    id: Option<String>,
    text: String,
}

impl Answer {
    async fn read(response: Response<Incoming>) -> Self {
        let id = response.headers().get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Self { status, id, text: String::from_utf8_lossy(&body).into_owned() }
    }

    /// Its id, where it is an answer of the host's own and says nothing but that.
    fn bland_id(&self, context: &str) -> &str {
        let Some(id) = &self.id else { panic!("{context}: no id: {self:?}") };
        let words = match self.status {
            400 => "the request names no host, or is malformed",
            404 => "the request is for nothing that is served here",
            405 => "the request's method is not served",
            502 => "the request could not be answered",
            503 => "the request cannot be answered now",
            504 => "the request was not answered in time",
            status => panic!("{context}: {status}"),
        };
        assert_eq!(self.text, format!("{} {words}; its id is {id}\n", self.status), "{context}");
        id
    }

    /// The same, where the id was made.
    fn made_id(&self, context: &str) -> &str {
        let id = self.bland_id(context);
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{context}: {id}");
        id
    }
}

#[derive(Debug, Clone, Copy)]
enum Version {
    Http1,
    Http2,
}

async fn ask(gateway: SocketAddr, version: Version, method: &str, url: &str, ids: &[&str]) -> Answer {
    let mut request = Request::builder().method(method);
    let (host, path) = url.split_at(url.find('/').unwrap());
    request = match version {
        Version::Http1 => request.uri(path).header("host", host),
        Version::Http2 => request.uri(format!("http://{url}")),
    };
    for id in ids {
        request = request.header("x-request-id", *id);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let stream = TokioIo::new(TcpStream::connect(gateway).await.unwrap());
    let response = match version {
        Version::Http1 => {
            let (mut sender, connection) = http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        }
        Version::Http2 => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        }
    };
    Answer::read(response.unwrap()).await
}

/// What a client reads that has sent these bytes.
async fn raw(gateway: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read).await;
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn whatever_is_wrong_the_client_gets_an_id_and_the_log_the_reason() {
    let (log, broken) = (Log::keep(), Broken::new().await);
    for (url, status, reason) in [
        ("unknown/secret", 404, "no ingress and no function has a rule for unknown/secret"),
        ("lost/", 503, "service default/none, which does not exist"),
        ("portless/", 503, "service default/portless has no such port"),
        ("empty/", 503, "service default/empty has no ready endpoint"),
        ("away/", 502, "service default/away cannot be reached: connection refused"),
        ("closing/", 502, "service default/closing cannot be reached: connection reset"),
        ("failing/failed", 502, "service default/failing: the component failed"),
        ("failing/slow", 504, "service default/failing: no response"),
        ("failing/malformed", 400, "service default/failing: the secret target"),
        ("failing/host", 503, "service default/failing: not serving: wasmtime has a secret"),
        ("failing/unseen", 503, "service default/failing: not serving: secret bounds"),
    ] {
        for version in [Version::Http1, Version::Http2] {
            let context = format!("{url} over {version:?}");
            let answer = ask(broken.gateway, version, "GET", url, &[]).await;
            assert_eq!(answer.status, status, "{context}: {answer:?}");
            let lines = log.lines(answer.made_id(&context));
            assert!(matches!(&*lines, [line] if line.contains(reason)), "{context}: {lines:?}");
        }
    }
    let posted = ask(broken.gateway, Version::Http1, "POST", "closing/", &[]).await;
    let lines = log.lines(posted.made_id("a request that may not be sent twice"));
    assert!(matches!(&*lines, [line] if line.contains("broke off")), "{lines:?}");
}

#[tokio::test]
async fn who_asks_for_no_host_for_a_tunnel_or_for_a_websocket_is_told_no_more() {
    let (log, broken) = (Log::keep(), Broken::new().await);
    let wish = "connection: upgrade, close\r\nupgrade: websocket\r\n";
    for (request, status, reason) in [
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), 400, "the request names no host"),
        (
            "CONNECT a:22 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_owned(),
            405,
            "the gateway opens no tunnels",
        ),
        (format!("GET / HTTP/1.1\r\nhost: empty\r\n{wish}\r\n"), 503, "no ready endpoint"),
        (format!("GET / HTTP/1.1\r\nhost: away\r\n{wish}\r\n"), 502, "connection refused"),
        (format!("GET / HTTP/1.1\r\nhost: closing\r\n{wish}\r\n"), 502, "broke off"),
    ] {
        let told = raw(broken.gateway, &request).await;
        let (head, text) = told.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!(" {status} ")), "{request:?}: {told}");
        let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).map(str::to_owned);
        let answer = Answer { status, id, text: text.to_owned() };
        let lines = log.lines(answer.made_id(&request));
        assert!(matches!(&*lines, [line] if line.contains(reason)), "{request:?}: {lines:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_504() {
    let mut cluster = Cluster::new().await;
    let pod = pod(&cluster.a, "10.128.1.2");
    let listener = pod.listen();
    cluster.state.services = vec![named("mute", &[&pod])];
    cluster.state.routes = vec![ingress(&[("mute", "/", "mute")])];
    cluster.tell();
    let (log, gateway) = (Log::keep(), cluster.a.gateway_address().unwrap());
    let asked = tokio::spawn(async move { ask(gateway, Version::Http1, "GET", "mute/", &[]).await });
    let (mut conn, _) = listener.accept().await.unwrap();
    conn.read_u8().await.unwrap();
    tokio::time::pause();
    let answer = asked.await.unwrap();
    assert_eq!(answer.status, 504, "{answer:?}");
    let lines = log.lines(answer.made_id("mute"));
    assert!(matches!(&*lines, [line] if line.contains("did not answer in time")), "{lines:?}");
}

#[tokio::test]
async fn of_a_component_that_takes_all_its_time_its_own_node_tells() {
    let broken = Broken::new().await;
    let gateway = broken.gateway;
    let asked = tokio::spawn(async move { ask(gateway, Version::Http1, "GET", "failing/late", &[]).await });
    while broken.named.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    let answer = asked.await.unwrap();
    assert_eq!(answer.status, 504, "{answer:?}");
    assert_eq!(*broken.named.lock(), [answer.made_id("late")]);
}

#[tokio::test]
async fn a_request_that_comes_with_an_id_keeps_it() {
    let (log, broken) = (Log::keep(), Broken::new().await);
    let longest = "x".repeat(64);
    for version in [Version::Http1, Version::Http2] {
        for url in ["empty/", "unknown/", "away/", "failing/failed", "failing/unseen"] {
            for id in ["0af7651916cd43dd8448eb211c80319c", "7d444840-9dc0-11d1-b245-5ffdce74fad2", &longest] {
                let answer = ask(broken.gateway, version, "GET", url, &[id]).await;
                assert_eq!(answer.bland_id(url), id);
                assert!(!log.lines(id).is_empty());
            }
        }
    }
    assert!(broken.named.lock().contains(&longest), "the component has the same");
}

#[tokio::test]
async fn an_id_that_is_not_fit_for_a_log_is_none() {
    let (log, broken) = (Log::keep(), Broken::new().await);
    let long = "x".repeat(65);
    for ids in [&[&*long][..], &["a b"], &["a\"b"], &["<b>"], &["a\tb"], &[""], &["twice", "named"]] {
        for (version, url) in [(Version::Http1, "empty/"), (Version::Http2, "failing/failed")] {
            let answer = ask(broken.gateway, version, "GET", url, ids).await;
            assert_eq!(log.lines(answer.made_id(url)).len(), 1, "{ids:?}");
        }
    }
}

#[tokio::test]
async fn what_a_guest_answers_is_as_it_was() {
    let broken = Broken::new().await;
    for version in [Version::Http1, Version::Http2] {
        let fine = Answer { status: 200, id: None, text: "fine".to_owned() };
        assert_eq!(ask(broken.gateway, version, "GET", "failing/fine", &[]).await, fine);
    }
}

/// Answers as the host of another node does for a component that failed, or one that no guest could be asked of.
fn refuse_as_a_host(pod: &Pod) -> Arc<Mutex<Vec<String>>> {
    let (listener, ids) = (pod.listen(), Arc::<Mutex<Vec<String>>>::default());
    let told = ids.clone();
    tokio::spawn(async move {
        while let Ok((conn, _)) = listener.accept().await {
            let ids = ids.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let id = RequestId::of(request.headers()).to_string();
                ids.lock().push(id.clone());
                let response = Response::builder().header("x-request-id", &id);
                let response = match request.uri().path() {
                    "/failed" => response
                        .status(502)
                        .body(full_body(format!("502 the request could not be answered; its id is {id}\n"))),
                    _ => response.status(503).header(UNSEEN, "true").body(empty_body()),
                };
                async { Ok::<_, Infallible>(response.unwrap()) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(conn), service),
            );
        }
    });
    told
}

#[tokio::test]
async fn an_id_that_another_node_has_made_is_kept() {
    let mut cluster = Cluster::new().await;
    let far = pod(&cluster.b, "10.128.2.2");
    let told = refuse_as_a_host(&far);
    cluster.state.services = vec![named("far", &[&far])];
    cluster.state.routes = vec![ingress(&[("far", "/", "far")])];
    cluster.tell();
    let (log, gateway) = (Log::keep(), cluster.a.gateway_address().unwrap());
    for version in [Version::Http1, Version::Http2] {
        for (url, status) in [("far/failed", 502), ("far/unseen", 503)] {
            let answer = ask(gateway, version, "GET", url, &[]).await;
            assert_eq!(answer.status, status);
            assert_eq!(told.lock().last().unwrap(), answer.made_id(url));
            let own = log.lines(answer.made_id(url));
            assert_eq!(own.len(), usize::from(status == 503), "of what is this node's answer: {own:?}");
            assert_eq!(ask(gateway, version, "GET", url, &["mine"]).await.bland_id(url), "mine");
        }
    }
}

#[tokio::test]
async fn a_request_that_is_tried_elsewhere_has_one_id() {
    let mut cluster = Cluster::new().await;
    let (near, far) = (pod(&cluster.a, "10.128.1.2"), pod(&cluster.b, "10.128.2.2"));
    let away = pod(&cluster.b, "10.128.2.3");
    let component = Failing::default();
    let near_ids = component.named.clone();
    near.net.serve_http(8080, Arc::new(component));
    let far_ids = refuse_as_a_host(&far);
    cluster.state.services = vec![named("web", &[&near, &far, &away])];
    cluster.state.routes = vec![ingress(&[("web", "/", "web")])];
    cluster.tell();
    let gateway = cluster.a.gateway_address().unwrap();
    // In any order, and whichever is the last.
    for _ in 0..20 {
        let answer = ask(gateway, Version::Http1, "GET", "web/unseen", &[]).await;
        let id = answer.made_id("web");
        assert_eq!(std::mem::take(&mut *near_ids.lock()), [id]);
        assert_eq!(std::mem::take(&mut *far_ids.lock()), [id]);
    }
}
