//! HTTP components, called directly and over the pod's network.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::Exit;
use crate::net::{Conn, HttpBody, HttpError, NetError, empty_body, full_body};

const PORT: u16 = 8080;

fn serve(bench: &Bench, pod: &Pod, artifact: Arc<Artifact>) -> Container {
    let mut spec = bench.spec(artifact);
    spec.http_port = Some(PORT);
    spec.env = vec![("HOSTNAME".to_owned(), "pod-1".to_owned())];
    pod.start(spec).expect("started")
}

fn get(path: &str) -> Request<HttpBody> {
    Request::get(path).body(empty_body()).expect("a request")
}

async fn call(pod: &Pod, request: Request<HttpBody>) -> Result<(StatusCode, Option<u64>, Bytes), HttpError> {
    let service = pod.namespace().http_service(PORT).expect("served");
    let answered: Result<Response<HttpBody>, _> = service.call(request).await;
    let response = answered.map_err(|unanswered| unanswered.error)?;
    let length = response.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let status = response.status();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    Ok((status, length, body))
}

#[tokio::test]
async fn a_0_2_component_answers_with_a_length_and_echoes_bodies() {
    let bench = Bench::new(2);
    let pod = bench.pod(PodLimits::default());
    let container = serve(&bench, &pod, bench.sample("hello-http").await);
    let (status, length, body) = call(&pod, get("/")).await.expect("answered");
    assert_eq!((status, length), (StatusCode::OK, Some(body.len() as u64)));
    assert_eq!(body, "hello from Coracle, served by pod-1\n");
    let sent = vec![b'x'; 1 << 20];
    let request = Request::post("/echo").body(full_body(sent.clone())).expect("a request");
    let (_, _, echoed) = call(&pod, request).await.expect("answered");
    assert!(echoed == sent, "{} bytes came back", echoed.len());
    assert!(container.usage().cpu_ns > 0);
    container.stop();
    assert_eq!(container.wait().await, Exit::Completed { code: 0 });
    assert!(pod.namespace().http_service(PORT).is_none());
}

#[tokio::test]
async fn a_0_3_component_serves_many_requests_by_few_instances() {
    let bench = Bench::new(2);
    let pod = bench.pod(PodLimits::default());
    let container = serve(&bench, &pod, bench.sample("hello-http-p3").await);
    // More than one instance's share, so that some are replaced.
    for _ in 0..50 {
        let all = futures::future::join_all((0..8).map(|_| call(&pod, get("/")))).await;
        for answer in all {
            let (status, length, body) = answer.expect("answered");
            assert_eq!((status, length), (StatusCode::OK, Some(body.len() as u64)));
            assert_eq!(body, "hello from Coracle on WASI 0.3, served by pod-1\n");
        }
    }
    assert!(bench.host.instances_free() > INSTANCES as usize / 2);
    let service = pod.namespace().http_service(PORT).expect("served");
    container.kill();
    assert_eq!(container.wait().await, Exit::Killed);
    assert!(pod.namespace().http_service(PORT).is_none());
    let ended = service.call(get("/x?y")).await.expect_err("nobody serves");
    assert!(matches!(ended.error, HttpError::Unavailable { .. }), "{}", ended.error);
    let back = ended.request.expect("no guest had it: it may be sent elsewhere");
    assert_eq!(back.uri(), "/x?y");
}

#[tokio::test]
async fn who_only_waited_for_an_instance_that_trapped_is_served_by_another() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let container = serve(&bench, &pod, bench.sample("hello-http-p3").await);
    let service = pod.namespace().http_service(PORT).expect("served");
    // As many as there may be before they are shared.
    let trapping: Vec<_> = (0..4).map(|_| tokio::spawn(service.call(get("/trap")))).collect();
    while bench.stderr.text().matches("trapping").count() < trapping.len() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting = futures::future::join_all((0..8).map(|_| call(&pod, get("/")))).await;
    for answer in waiting {
        let (status, _, body) = answer.expect("answered");
        assert_eq!(status, StatusCode::OK, "{body:?}");
    }
    for trapped in trapping {
        let unanswered = trapped.await.expect("no panic").expect_err("it trapped");
        assert!(unanswered.request.is_none(), "a guest had it: {}", unanswered.error);
        assert!(matches!(unanswered.error, HttpError::Failed), "{}", unanswered.error);
        let id = unanswered.id.to_string();
        let is_logged = |line: &str| line.contains(&id) && line.contains(" failed: trapped");
        while !bench.stderr.text().lines().any(is_logged) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert_eq!(container.exit(), None);
}

#[tokio::test]
async fn a_response_that_never_ends_is_ended_when_its_time_is_over() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let mut spec = bench.spec(bench.sample("hello-http-p3").await);
    spec.http_port = Some(PORT);
    spec.http_timeout = Some(Duration::from_secs(1));
    let _container = pod.start(spec).expect("started");
    let service = pod.namespace().http_service(PORT).expect("served");
    let response = service.call(get("/endless")).await.expect("begun");
    let ended = tokio::time::timeout(Duration::from_secs(60), response.into_body().collect()).await;
    assert!(ended.expect("its time is over").is_err());
    while bench.host.instances_free() < INSTANCES as usize {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn silent_connections_do_not_take_a_component_off_the_network() {
    let bench = Bench::new(2);
    let pod = bench.pod(PodLimits::default());
    let container = serve(&bench, &pod, bench.sample("hello-http").await);
    let connect = |client: &str| {
        let server = "10.128.0.7:8080".parse().expect("an address");
        pod.namespace().deliver_when_room(client.parse().expect("an address"), server)
    };
    let mut silent: Vec<Conn> = Vec::new();
    for _ in 0..1500 {
        silent.push(connect("10.128.9.9:4000").await.expect("taken in"));
    }
    for client in ["10.128.9.9:4001", "10.128.9.8:4001"] {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(connect(client).await.expect("taken in")))
                .await
                .expect("a connection");
        tokio::spawn(connection);
        let request = Request::get("/").header("host", "web").body(empty_body()).expect("a request");
        let answered = tokio::time::timeout(Duration::from_secs(30), sender.send_request(request)).await;
        assert_eq!(answered.expect("in time").expect("answered").status(), StatusCode::OK);
    }
    container.kill();
    assert_eq!(container.wait().await, Exit::Killed);
}

#[tokio::test]
async fn the_pods_network_reaches_the_component_too() {
    let bench = Bench::new(2);
    let pod = bench.pod(PodLimits::default());
    let container = serve(&bench, &pod, bench.sample("hello-http").await);
    let client: SocketAddr = "10.128.9.9:4000".parse().expect("an address");
    let conn =
        pod.namespace().deliver(client, "10.128.0.7:8080".parse().expect("an address")).expect("listening");
    let (mut sender, connection) = http1::handshake(TokioIo::new(conn)).await.expect("a connection");
    let connection = tokio::spawn(connection);
    for _ in 0..2 {
        let request =
            Request::get("/env/HOSTNAME").header("host", "web").body(empty_body()).expect("a request");
        let response = sender.send_request(request).await.expect("answered");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(body, "pod-1\n");
    }
    // A graceful stop ends the idle connection and then the container.
    container.stop();
    assert_eq!(container.wait().await, Exit::Completed { code: 0 });
    connection.await.expect("no panic").expect("closed in order");
}

#[tokio::test]
async fn streams_outlive_another_clients_disconnect_and_a_stop() {
    let bench = Bench::new(2);
    let pod = bench.pod(PodLimits::default());
    // Longer than what is collected, so that it is streamed.
    let greeting = "x".repeat(1 << 20);
    let mut spec = bench.spec(bench.sample("hello-http-p3").await);
    spec.http_port = Some(PORT);
    spec.env = vec![("GREETING".to_owned(), greeting.clone())];
    let container = pod.start(spec).expect("started");
    let service = pod.namespace().http_service(PORT).expect("served");
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(service.call(get("/")).await.expect("answered").into_body());
    }
    // Four instances are busy, so that this one shares one of them; it goes away at once, on a busy machine with its answer.
    drop(service.call(get("/")).now_or_never());
    container.stop();
    assert!(pod.namespace().http_service(PORT).is_none());
    let early = tokio::time::timeout(Duration::from_millis(50), container.wait()).await;
    assert!(early.is_err(), "responses are still on their way");
    for stream in streams {
        let body = stream.collect().await.expect("a whole body").to_bytes();
        assert_eq!(body.len(), greeting.len() + 1);
    }
    assert_eq!(container.wait().await, Exit::Completed { code: 0 });
}

#[tokio::test]
async fn connections_that_came_before_the_stop_are_served() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let container = serve(&bench, &pod, bench.sample("hello-http").await);
    let client: SocketAddr = "10.128.9.9:4000".parse().expect("an address");
    let server = "10.128.0.7:8080".parse().expect("an address");
    let mut conn = pod.namespace().deliver(client, server).expect("listening");
    conn.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.expect("room");
    container.stop();
    let mut answer = String::new();
    conn.read_to_string(&mut answer).await.expect("closed in order");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello from Coracle"), "{answer}");
    assert_eq!(container.wait().await, Exit::Completed { code: 0 });
    assert_eq!(pod.namespace().deliver(client, server).map(drop), Err(NetError::ConnectionRefused));
}

#[tokio::test]
async fn a_component_that_loops_is_ended_by_its_time_limit() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let mut spec = bench.spec(bench.prepare(&looping_handler()).await);
    spec.http_port = Some(PORT);
    spec.http_timeout = Some(Duration::from_millis(50));
    let container = pod.start(spec).expect("started");
    let timed_out = call(&pod, get("/")).await;
    assert!(matches!(timed_out, Err(HttpError::TimedOut)), "{timed_out:?}");
    while bench.host.instances_free() < INSTANCES as usize {
        tokio::task::yield_now().await;
    }
    assert_eq!(container.exit(), None);
}

#[tokio::test]
async fn a_port_that_is_taken_is_refused() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let artifact = bench.sample("hello-http").await;
    let _first = serve(&bench, &pod, artifact.clone());
    let mut spec = bench.spec(artifact);
    spec.http_port = Some(PORT);
    let refused = pod.start(spec).expect_err("taken");
    assert!(refused.to_string().contains("8080"), "{refused}");
}

#[tokio::test]
async fn a_component_that_takes_too_much_memory_ends_as_out_of_memory_and_its_port_is_free() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let hungry = handler("(loop $again (drop (memory.grow (i32.const 16))) (br $again))");
    let mut spec = bench.spec(bench.prepare(&hungry).await);
    spec.http_port = Some(PORT);
    spec.limits.memory_bytes = Some(4 << 20);
    let container = pod.start(spec.clone()).expect("started");
    assert!(call(&pod, get("/")).await.is_err());
    let ended = tokio::time::timeout(Duration::from_secs(60), container.wait()).await;
    assert!(ended.expect("it ends").is_out_of_memory());
    assert!(bench.stderr.text().contains("limit of memory"), "{}", bench.stderr.text());
    let again = pod.start(spec.clone()).expect("the port is free");
    again.kill();
    assert_eq!(again.wait().await, Exit::Killed);
    pod.start(spec).expect("the port is free");
}

/// What a client of the pod's port reads.
async fn ask(pod: &Pod) -> String {
    let (client, server) = (([10, 128, 9, 9], 4000).into(), ([10, 128, 0, 7], PORT).into());
    let mut conn = pod.namespace().deliver_when_room(client, server).await.expect("taken in");
    conn.write_all(b"GET / HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut told = String::new();
    conn.read_to_string(&mut told).await.expect("answered");
    told
}

#[tokio::test]
async fn a_trap_fails_its_request_and_no_other() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let mut spec = bench.spec(bench.prepare(&handler("unreachable")).await);
    spec.http_port = Some(PORT);
    let container = pod.start(spec).expect("started");
    let service = pod.namespace().http_service(PORT).expect("served");
    for _ in 0..2 {
        let failed = service.call(get("/")).await.expect_err("it traps");
        assert!(matches!(failed.error, HttpError::Failed), "{}", failed.error);
        let log = bench.stderr.text();
        let line = log.lines().find(|line| line.starts_with(&format!("request {} failed: ", failed.id)));
        assert!(line.is_some_and(|line| line.contains("unreachable")), "{log}");
    }
    let told = ask(&pod).await;
    assert!(told.starts_with("HTTP/1.1 502 ") && !told.contains("unreachable"), "{told}");
    let (_, id) = told.split_once("x-request-id: ").expect("an id");
    let id = &id[..16];
    assert!(told.ends_with(&format!("502 the request could not be answered; its id is {id}\n")), "{told}");
    assert!(bench.stderr.text().contains(&format!("request {id} failed: ")), "{}", bench.stderr.text());
    assert_eq!(container.exit(), None);
    let mut spec = bench.spec(bench.prepare(&handler("")).await);
    spec.http_port = Some(PORT + 1);
    let silent = pod.start(spec).expect("started");
    let service = pod.namespace().http_service(PORT + 1).expect("served");
    let failed = service.call(get("/")).await.expect_err("it is silent");
    assert!(matches!(failed.error, HttpError::Failed), "{}", failed.error);
    let line = format!("request {} failed: it returned without a response\n", failed.id);
    assert!(bench.stderr.text().contains(&line), "{}", bench.stderr.text());
    assert_eq!(bench.host.totals().failed_requests, 4);
    drop(silent);
}

/// A 0.2 handler that never returns.
pub fn looping_handler() -> String {
    handler("(loop $again (br $again))")
}

/// A 0.2 handler with this body.
pub fn handler(body: &str) -> String {
    r#"(component
        (import "wasi:http/types@0.2.0" (instance $types
            (export "incoming-request" (type (sub resource)))
            (export "response-outparam" (type (sub resource)))))
        (alias export $types "incoming-request" (type $request))
        (alias export $types "response-outparam" (type $out))
        (core module $m (memory 1) (func (export "handle") (param i32 i32) BODY))
        (core instance $i (instantiate $m))
        (func $handle (param "request" (own $request)) (param "response-out" (own $out))
            (canon lift (core func $i "handle")))
        (component $shape
            (import "request" (type $r (sub resource)))
            (import "out" (type $o (sub resource)))
            (import "handle" (func $f (param "request" (own $r)) (param "response-out" (own $o))))
            (export $er "incoming-request" (type $r))
            (export $eo "response-outparam" (type $o))
            (export "handle" (func $f)
                (func (param "request" (own $er)) (param "response-out" (own $eo)))))
        (instance $handler (instantiate $shape
            (with "request" (type $request)) (with "out" (type $out)) (with "handle" (func $handle))))
        (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#
        .replace("BODY", body)
}
