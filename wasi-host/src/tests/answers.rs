//! What a component's port answers in its place: an id that a log has too, with the reason, and nothing of the inside.

use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::log::Log;
use super::serving::{handler, looping_handler};
use super::*;
use crate::net::empty_body;

const PORT: u16 = 8080;

struct Served {
    bench: Bench,
    pod: Pod,
    container: Container,
}

impl Served {
    async fn new(text: &str, timeout: Option<Duration>) -> Served {
        let bench = Bench::new(1);
        let pod = bench.pod(PodLimits::default());
        let mut spec = bench.spec(bench.prepare(text).await);
        (spec.http_port, spec.http_timeout) = (Some(PORT), timeout);
        spec.limits.memory_bytes = Some(4 << 20);
        let container = pod.start(spec).expect("started");
        Served { bench, pod, container }
    }

    /// What a client of the port is answered, by HTTP/1.1 and by HTTP/2.
    async fn ask(&self, is_http2: bool, id: Option<&str>) -> Answer {
        let (client, server) = (([10, 128, 9, 9], 4000).into(), ([10, 128, 0, 7], PORT).into());
        let conn = self.pod.namespace().deliver_when_room(client, server).await.expect("taken in");
        let request = if is_http2 {
            Request::get("http://pod/secret")
        } else {
            Request::get("/secret").header("host", "pod")
        };
        let request = id.into_iter().fold(request, |request, id| request.header("x-request-id", id));
        let request = request.body(empty_body()).expect("a request");
        let response = if is_http2 {
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(conn)).await;
            let (mut sender, connection) = handshake.expect("a connection");
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) = http1::handshake(TokioIo::new(conn)).await.expect("a connection");
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        Answer::read(response.expect("answered")).await
    }

    /// The line of the container's log that has the id, which comes a moment later than the answer.
    async fn line(&self, id: &str) -> String {
        let start = format!("request {id} failed: ");
        let come = async {
            loop {
                if let Some(line) = self.bench.stderr.text().lines().find(|line| line.starts_with(&start)) {
                    return line.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), come).await.expect("it is told in the container's log")
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub id: String,
    pub text: String,
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Answer {
        let id = response.headers().get("x-request-id").expect("an id").to_str().expect("text").to_owned();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        Answer { status, id, text: String::from_utf8_lossy(&body).into_owned() }
    }
}

#[tokio::test]
async fn a_component_that_does_not_answer_is_told_of_in_its_log_alone() {
    let hungry = handler("(loop $again (drop (memory.grow (i32.const 16))) (br $again))");
    let short = Some(Duration::from_millis(50));
    for (text, timeout, status, words, reason) in [
        (looping_handler(), short, 504, "the request was not answered in time", "no response within 50ms"),
        (handler("unreachable"), None, 502, "the request could not be answered", "unreachable"),
        (handler(""), None, 502, "the request could not be answered", "returned without a response"),
        (hungry, None, 502, "the request could not be answered", "limit of memory"),
    ] {
        for (is_http2, given) in [(false, None), (true, None), (false, Some("mine")), (true, Some("mine"))] {
            let served = Served::new(&text, timeout).await;
            let answer = served.ask(is_http2, given).await;
            assert_eq!(answer.status, status, "{reason}: {answer:?}");
            assert_eq!(answer.text, format!("{status} {words}; its id is {}\n", answer.id));
            match given {
                Some(given) => assert_eq!(answer.id, given),
                None => assert_eq!(answer.id.len(), 16, "{answer:?}"),
            }
            let line = served.line(&answer.id).await;
            assert!(line.contains(reason), "{line}");
        }
    }
}

#[tokio::test]
async fn a_refusal_of_the_host_is_told_in_the_nodes_log_alone() {
    let log = Log::keep();
    let served = Served::new(&handler(""), None).await;
    let service = served.pod.namespace().http_service(PORT).expect("served");
    served.container.kill();
    served.container.wait().await;
    let request = Request::get("/secret").body(empty_body()).expect("a request");
    let unanswered = service.call(request).await.expect_err("nobody serves");
    let lines = log.lines(&unanswered.id.to_string());
    assert!(matches!(&*lines, [line] if line.contains("the container has ended")), "{lines:?}");
    assert_eq!(served.bench.stderr.text(), "");
}
