//! Clients of a component's port whose requests do not end: what they leave to others, and to the node.

use std::net::SocketAddr;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::answers::Answer;
use super::log::Log;
use super::*;
use crate::net::{Conn, HttpBody, Known, empty_body};

const PORT: u16 = 8080;

/// The namespace of the component, as [`Known`] has it.
const OWN: u8 = 0;

/// A component with its clients.
struct Port {
    bench: Bench,
    pod: Pod,
    _container: Container,
}

/// A request that goes on, until it is dropped.
enum Held {
    Unanswered { _answer: BoxFuture<'static, hyper::Result<Response<Incoming>>> },
    Answered { _response: Response<Incoming> },
}

impl Port {
    async fn of(sample: &str) -> Port {
        let bench = Bench::new(2);
        let config = NamespaceConfig {
            hostname: "pod-1".to_owned(),
            tenant: OWN.to_string().into(),
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 128, 0, 7))],
            limits: NetLimits::default(),
        };
        let pod = bench.host.pod(PodLimits::default(), Namespace::new(config, Arc::new(Known)));
        let mut spec = bench.spec(bench.sample(sample).await);
        spec.http_port = Some(PORT);
        let container = pod.start(spec).expect("started");
        Port { bench, pod, _container: container }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.pod.namespace().addresses()[0], PORT)
    }

    async fn connect(&self, namespace: u8, pod: u8) -> Conn {
        let client = SocketAddr::from(([10, 128, namespace, pod], 4000));
        self.pod.namespace().deliver_when_room(client, self.address()).await.expect("taken in")
    }

    /// From a node, for a client in the outside.
    async fn connect_for(&self, client: u8) -> Conn {
        let node = SocketAddr::from(([10, 128, 3, 1], 4000));
        let client = IpAddr::from([192, 0, 2, client]);
        self.pod.namespace().deliver_for(client, node, self.address()).await.expect("taken in")
    }

    /// One more request that does not end; none where it is refused.
    async fn hold(&self, conn: Conn, request: Request<HttpBody>) -> Option<Held> {
        let free = self.bench.host.instances_free();
        let mut answer = send(conn, request).await.boxed();
        loop {
            if let Some(answered) = (&mut answer).now_or_never() {
                let response = answered.expect("answered");
                return (response.status() == StatusCode::OK)
                    .then_some(Held::Answered { _response: response });
            }
            // A component of an instance for each request answers when it has the whole.
            if self.bench.host.instances_free() < free {
                return Some(Held::Unanswered { _answer: answer });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// All that the pods of a namespace can hold.
    async fn fill(&self, namespace: u8, pods: u8, request: fn() -> Request<HttpBody>) -> Vec<Held> {
        let mut held = Vec::new();
        for pod in 1..=pods {
            while let Some(one) = self.hold(self.connect(namespace, pod).await, request()).await {
                held.push(one);
            }
        }
        held
    }
}

async fn send(
    conn: Conn,
    request: Request<HttpBody>,
) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(conn)).await.expect("a connection");
    tokio::spawn(connection);
    async move { sender.send_request(request).await }
}

fn get(path: &str) -> Request<HttpBody> {
    Request::get(path).header("host", "web").body(empty_body()).expect("a request")
}

/// A response that never ends, of the component of WASI 0.3.
fn endless() -> Request<HttpBody> {
    get("/endless")
}

/// A body that never ends, for the component of WASI 0.2.
fn unfinished() -> Request<HttpBody> {
    let body = StreamBody::new(futures::stream::pending()).boxed_unsync();
    Request::post("/echo").header("host", "web").body(body).expect("a request")
}

#[tokio::test]
async fn whose_bound_it_was_is_told_to_the_pods_owner_and_not_to_who_is_refused() {
    let log = Log::keep();
    for (sample, request) in [("hello-http-p3", endless as fn() -> _), ("hello-http", unfinished)] {
        let port = Port::of(sample).await;
        let _greedy = port.fill(9, 1, request).await;
        let refused = send(port.connect(9, 1).await, request()).await.await.expect("answered");
        let Answer { status, id, text } = Answer::read(refused).await;
        assert_eq!(status, 503, "{sample}");
        assert_eq!(text, format!("503 the request cannot be answered now; its id is {id}\n"), "{sample}");
        let expected = "requests under way: the caller, or the pods of its namespace, hold ";
        let lines = log.lines(&id);
        assert!(matches!(&*lines, [line] if line.contains(expected)), "{sample}: {lines:?}");
        let told = port.bench.host.refusals().next().await;
        assert_eq!(&told[0].holder, port.pod.namespace().holder());
        assert!(told.iter().any(|told| told.to_string().starts_with(expected)), "{sample}: {told:?}");
    }
}

#[tokio::test]
async fn the_pods_of_another_namespace_leave_half_to_the_others() {
    let port = Port::of("hello-http-p3").await;
    let greedy = port.fill(9, 10, endless).await;
    let second = port.fill(8, 10, endless).await;
    let own = port.fill(OWN, 10, endless).await;
    let counts = (greedy.len(), second.len(), own.len());
    assert!(greedy.len() > 16, "more than one instance serves: {counts:?}");
    assert!(greedy.len() <= second.len() + own.len() + 1, "half for one namespace: {counts:?}");
    assert!(second.len() <= own.len() + 1, "half of the rest for another: {counts:?}");
}

#[tokio::test]
async fn clients_that_one_node_speaks_for_have_each_a_part() {
    let port = Port::of("hello-http-p3").await;
    let fill = async |client: u8| {
        let mut held = Vec::new();
        while let Some(one) = port.hold(port.connect_for(client).await, endless()).await {
            held.push(one);
        }
        held
    };
    let (first, second) = (fill(1).await, fill(2).await);
    assert!(second.len() + 1 >= first.len() / 2, "half of the rest: {} and {}", first.len(), second.len());
    assert!(first.len() > 16, "{}", first.len());
}

#[tokio::test]
async fn what_clients_hold_fails_no_probe() {
    for (sample, request) in [("hello-http-p3", endless as fn() -> _), ("hello-http", unfinished)] {
        let port = Port::of(sample).await;
        let node = SocketAddr::from(([10, 128, 0, 1], 1));
        let probe = async || {
            let conn = port.pod.namespace().deliver_probe(node, port.address()).await.expect("taken in");
            let answered = tokio::time::timeout(Duration::from_secs(60), send(conn, get("/")).await).await;
            answered.expect("in time").expect("answered").status()
        };
        assert_eq!(probe().await, StatusCode::OK);
        // The instance that answered goes a moment later where each request has its own.
        while sample == "hello-http" && port.bench.host.instances_free() < INSTANCES as usize {
            tokio::task::yield_now().await;
        }
        let mut held = Vec::new();
        for namespace in 10..40 {
            held.extend(port.fill(namespace, 1, request).await);
        }
        assert!(held.len() > 3, "{sample} serves {} at once", held.len());
        // Nobody else is served, whatever his address is.
        for namespace in [OWN, 50] {
            let conn = port.connect(namespace, 1).await;
            assert!(port.hold(conn, get("/")).await.is_none(), "{sample} is full");
        }
        // More of them at once than the one instance that is kept where each request has its own.
        let probes = futures::future::join_all((0..3).map(|_| probe())).await;
        assert_eq!(probes, [StatusCode::OK; 3], "{sample}");
    }
}
