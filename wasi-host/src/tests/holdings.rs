//! What guests have the host hold: it is bounded, it is the pod's, and it is given back.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use super::*;
use crate::Exit;
use crate::ledger::{Account, Charge, HEAP_GUARANTEED, Holding};
use crate::net::{HttpError, NetError, empty_body, full_body};

const PORT: u16 = 8080;

/// What is said where a small pod holds all that it may.
const POD_HEAP: &str = " of the 33554432 bytes that it may";

/// What pods as small as this may have the host hold is the least that any may.
pub(super) const SMALL: PodLimits =
    PodLimits { cpu_weight: 0, cpu_quota: None, memory_bytes: Some(16 << 20), memory_requested: 0 };

/// Takes all that the account may have.
fn exhaust(account: &Arc<Account>) -> Charge {
    let mut charge = Charge::nothing(account, Holding::Heap);
    let mut piece = 1 << 30;
    while piece > 0 {
        if charge.grow(piece).is_err() {
            piece /= 2;
        }
    }
    charge
}

pub(super) async fn none_is_held(pod: &Pod) {
    let gone = async {
        while pod.usage().host_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
    assert!(gone.is_ok(), "{} bytes are held for nobody", pod.usage().host_bytes);
}

/// The most that the pod has the host hold until the container ends, and the end.
pub(super) async fn most_held(pod: &Pod, container: &Container) -> (u64, Exit) {
    let mut most = 0;
    loop {
        most = most.max(pod.usage().host_bytes);
        match tokio::time::timeout(Duration::from_millis(1), container.wait()).await {
            Ok(exit) => return (most, exit),
            Err(_) => continue,
        }
    }
}

/// A program that makes header fields of 60 KiB until it is refused, and exits with 0 then; with 1 after 2,000 of them.
const FIELDS: &str = r#"(component
    (import "wasi:http/types@0.2.0" (instance $types
        (export "fields" (type $fields (sub resource)))
        (type $why (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
        (export "header-error" (type $error (eq $why)))
        (export "[constructor]fields" (func (result (own $fields))))
        (export "[method]fields.append" (func
            (param "self" (borrow $fields)) (param "name" string) (param "value" (list u8))
            (result (result (error $error)))))))
    (core module $libc (memory (export "memory") 2))
    (core instance $libc (instantiate $libc))
    (alias core export $libc "memory" (core memory $memory))
    (core func $new (canon lower (func $types "[constructor]fields")))
    (core func $append (canon lower (func $types "[method]fields.append") (memory $memory)))
    (core module $m
        (import "host" "memory" (memory 2))
        (import "host" "new" (func $new (result i32)))
        (import "host" "append" (func $append (param i32 i32 i32 i32 i32 i32)))
        (func (export "run") (result i32)
            (local $count i32)
            (memory.fill (i32.const 0) (i32.const 120) (i32.const 65536))
            (loop $again
                (call $append (call $new)
                    (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 61440) (i32.const 100000))
                (if (i32.load8_u (i32.const 100000)) (then (return (i32.const 0))))
                (local.set $count (i32.add (local.get $count) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $count) (i32.const 2000))))
            (i32.const 1)))
    (core instance $i (instantiate $m (with "host" (instance
        (export "memory" (memory $memory))
        (export "new" (func $new)) (export "append" (func $append))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#;

#[tokio::test]
async fn header_fields_are_refused_where_they_would_be_too_many() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let container = pod.start(bench.spec(bench.prepare(FIELDS).await)).expect("started");
    let (most, exit) = most_held(&pod, &container).await;
    assert_eq!(exit, Exit::Completed { code: 0 }, "refused with an error, and not ended");
    assert!(most <= 33 << 20, "{most} bytes were held");
    none_is_held(&pod).await;
}

/// A program that writes bodies of requests, which nobody reads, until little of one is taken, and exits with 0 then; with 1
/// after 256 MiB.
const BODIES: &str = r#"(component
    (import "wasi:io/error@0.2.0" (instance $errors (export "error" (type (sub resource)))))
    (alias export $errors "error" (type $error))
    (import "wasi:io/streams@0.2.0" (instance $streams
        (alias outer 1 $error (type $outer))
        (export "error" (type $error (eq $outer)))
        (export "output-stream" (type $out (sub resource)))
        (type $why (variant (case "last-operation-failed" (own $error)) (case "closed")))
        (export "stream-error" (type $failed (eq $why)))
        (export "[method]output-stream.check-write" (func
            (param "self" (borrow $out)) (result (result u64 (error $failed)))))
        (export "[method]output-stream.write" (func
            (param "self" (borrow $out)) (param "contents" (list u8)) (result (result (error $failed)))))))
    (alias export $streams "output-stream" (type $stream))
    (import "wasi:http/types@0.2.0" (instance $types
        (alias outer 1 $stream (type $outer))
        (export "output-stream" (type $out (eq $outer)))
        (export "fields" (type $fields (sub resource)))
        (export "headers" (type $headers (eq $fields)))
        (export "outgoing-request" (type $request (sub resource)))
        (export "outgoing-body" (type $body (sub resource)))
        (export "[constructor]fields" (func (result (own $fields))))
        (export "[constructor]outgoing-request" (func (param "headers" (own $headers)) (result (own $request))))
        (export "[method]outgoing-request.body" (func
            (param "self" (borrow $request)) (result (result (own $body)))))
        (export "[method]outgoing-body.write" (func
            (param "self" (borrow $body)) (result (result (own $out)))))))
    (core module $libc (memory (export "memory") 40))
    (core instance $libc (instantiate $libc))
    (alias core export $libc "memory" (core memory $memory))
    (core func $new (canon lower (func $types "[constructor]fields")))
    (core func $request (canon lower (func $types "[constructor]outgoing-request")))
    (core func $body (canon lower (func $types "[method]outgoing-request.body") (memory $memory)))
    (core func $stream (canon lower (func $types "[method]outgoing-body.write") (memory $memory)))
    (core func $check (canon lower (func $streams "[method]output-stream.check-write") (memory $memory)))
    (core func $write (canon lower (func $streams "[method]output-stream.write") (memory $memory)))
    (core module $m
        (import "host" "memory" (memory 40))
        (import "host" "new" (func $new (result i32)))
        (import "host" "request" (func $request (param i32) (result i32)))
        (import "host" "body" (func $body (param i32 i32)))
        (import "host" "stream" (func $stream (param i32 i32)))
        (import "host" "check" (func $check (param i32 i32)))
        (import "host" "write" (func $write (param i32 i32 i32 i32)))
        (func (export "run") (result i32)
            (local $stream i32) (local $permit i32) (local $total i32)
            (loop $again
                (call $body (call $request (call $new)) (i32.const 0))
                (call $stream (i32.load (i32.const 4)) (i32.const 16))
                (local.set $stream (i32.load (i32.const 20)))
                (call $check (local.get $stream) (i32.const 32))
                (local.set $permit (i32.wrap_i64 (i64.load (i32.const 40))))
                (if (i32.lt_u (local.get $permit) (i32.const 4096)) (then (return (i32.const 0))))
                (call $write (local.get $stream) (i32.const 65536) (local.get $permit) (i32.const 64))
                (local.set $total (i32.add (local.get $total) (local.get $permit)))
                (br_if $again (i32.lt_u (local.get $total) (i32.const 268435456))))
            (i32.const 1)))
    (core instance $i (instantiate $m (with "host" (instance
        (export "memory" (memory $memory)) (export "new" (func $new)) (export "request" (func $request))
        (export "body" (func $body)) (export "stream" (func $stream)) (export "check" (func $check))
        (export "write" (func $write))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#;

#[tokio::test]
async fn bodies_that_nobody_reads_are_small_where_they_are_many() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let container = pod.start(bench.spec(bench.prepare(BODIES).await)).expect("started");
    let (most, exit) = most_held(&pod, &container).await;
    assert_eq!(exit, Exit::Completed { code: 0 });
    assert!(most <= 33 << 20, "{most} bytes were held");
    none_is_held(&pod).await;
}

/// A program that asks for handles for ever.
const HANDLES: &str = r#"(component
    (import "wasi:http/types@0.2.0" (instance $types
        (export "fields" (type $fields (sub resource)))
        (export "[constructor]fields" (func (result (own $fields))))))
    (core func $new (canon lower (func $types "[constructor]fields")))
    (core module $m
        (import "host" "new" (func $new (result i32)))
        (func (export "run") (result i32) (loop $again (drop (call $new)) (br $again)) (i32.const 0)))
    (core instance $i (instantiate $m (with "host" (instance (export "new" (func $new))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#;

#[tokio::test]
async fn handles_are_charged_and_a_trap_says_whose_bound_it_was() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let artifact = bench.prepare(HANDLES).await;
    let mut left = exhaust(pod.account());
    left.shrink(100 << 10);
    let container = pod.start(bench.spec(artifact)).expect("there is room for one");
    let (most, exit) = most_held(&pod, &container).await;
    assert!(most <= 32 << 20, "{most} bytes were held");
    let Exit::Trapped { message } = &exit else { panic!("{exit}") };
    assert!(message.contains(POD_HEAP), "{message}");
    drop(left);
    none_is_held(&pod).await;
}

/// A program of WASI 0.3 that makes so many streams, and waits for an hour then.
fn streams(count: u32) -> String {
    format!(
        r#"(component
    (import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
        (export "wait-for" (func async (param "how-long" u64)))))
    (type $stream (stream u8))
    (core func $new (canon stream.new $stream))
    (core func $wait (canon lower (func $clock "wait-for")))
    (core module $m
        (import "host" "new" (func $new (result i64)))
        (import "host" "wait" (func $wait (param i64)))
        (func (export "run") (result i32)
            (local $left i32)
            (local.set $left (i32.const {count}))
            (loop $again
                (drop (call $new))
                (local.set $left (i32.sub (local.get $left) (i32.const 1)))
                (br_if $again (local.get $left)))
            (call $wait (i64.const 3600000000000))
            (i32.const 0)))
    (core instance $i (instantiate $m (with "host" (instance
        (export "new" (func $new)) (export "wait" (func $wait))))))
    (func $run async (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.3.0" (instance $r)))"#
    )
}

#[tokio::test]
async fn streams_of_0_3_are_charged_and_a_trap_says_whose_bound_it_was() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let artifact = bench.prepare(&streams(1_000)).await;
    let container = pod.start(bench.spec(Arc::clone(&artifact))).expect("started");
    // A stream is three places: its two ends, and what is between them.
    let charged = async {
        while pod.usage().host_bytes < 3 * 1_000 * 512 {
            assert!(container.exit().is_none(), "{:?}", container.exit());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let charged = tokio::time::timeout(Duration::from_secs(60), charged).await;
    assert!(charged.is_ok(), "{} bytes are charged", pod.usage().host_bytes);
    container.kill();
    container.wait().await;
    none_is_held(&pod).await;

    let mut left = exhaust(pod.account());
    left.shrink(1 << 20);
    let container = pod.start(bench.spec(artifact)).expect("there is room for one");
    let Exit::Trapped { message } = container.wait().await else { panic!("{:?}", container.exit()) };
    assert!(message.contains(POD_HEAP), "{message}");
    drop(left);
    none_is_held(&pod).await;
}

fn serve(bench: &Bench, pod: &Pod, artifact: Arc<Artifact>) -> Container {
    let mut spec = bench.spec(artifact);
    spec.http_port = Some(PORT);
    pod.start(spec).expect("started")
}

async fn call(pod: &Pod, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), HttpError> {
    let body = if body.is_empty() { empty_body() } else { full_body(body) };
    let request = Request::post(path).body(body).expect("a request");
    let service = pod.namespace().http_service(PORT).expect("served");
    let response = service.call(request).await.map_err(|unanswered| unanswered.error)?;
    let status = response.status();
    Ok((status, response.into_body().collect().await.expect("a whole body").to_bytes()))
}

#[tokio::test]
async fn a_neighbour_that_holds_all_stops_no_request() {
    let bench = Bench::new(1);
    let neighbours: Vec<Pod> =
        (0..60).map(|at| bench.pod_of(&format!("greedy-{at}"), PodLimits::default())).collect();
    let held: Vec<Charge> = neighbours.iter().map(|pod| exhaust(pod.account())).collect();
    assert!(held.iter().all(|charge| charge.amount() >= HEAP_GUARANTEED));
    for sample in ["hello-http", "hello-http-p3"] {
        let pod = bench.pod(PodLimits::default());
        let _container = serve(&bench, &pod, bench.sample(sample).await);
        let (status, _) = call(&pod, "/", Bytes::new()).await.expect("answered");
        assert_eq!(status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_pod_that_holds_all_it_may_refuses_and_recovers() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let container = serve(&bench, &pod, bench.sample("hello-http").await);
    let held = exhaust(pod.account());
    let refused = call(&pod, "/", Bytes::new()).await.expect_err("there is no room for an instance");
    let text = refused.to_string();
    assert!(text.contains(POD_HEAP), "{text}");
    let address = (pod.namespace().addresses()[0], PORT).into();
    assert_eq!(pod.namespace().connect(address).await.err(), Some(NetError::TooManySockets));
    drop(held);
    // Bodies that are not collected for want of room come all the same.
    let mut held = exhaust(pod.account());
    held.shrink(350 << 10);
    let sent = Bytes::from(vec![b'x'; 1 << 20]);
    let (status, body) = call(&pod, "/echo", sent.clone()).await.expect("answered");
    assert_eq!((status, body == sent), (StatusCode::OK, true));
    drop(held);
    assert!(call(&pod, "/", Bytes::new()).await.is_ok());
    container.kill();
    none_is_held(&pod).await;
}

#[tokio::test]
async fn an_instance_that_holds_all_that_it_may_takes_no_further_request() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let container = serve(&bench, &pod, bench.sample("hello-http-p3").await);
    let service = pod.namespace().http_service(PORT).expect("served");
    let (mut waiting, mut held) = (Vec::new(), None);
    for _ in 0..2 {
        // As many instances as there may be before they are shared, each with a request more that it keeps.
        for _ in 0..4 {
            let request = Request::get("/wait").header("x", "y").body(empty_body()).expect("a request");
            waiting.push(tokio::spawn(service.call(request)));
        }
        while bench.stderr.text().matches("waiting").count() < waiting.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // There is no room for the second of each.
        held.get_or_insert_with(|| exhaust(pod.account()));
    }
    let refused =
        call(&pod, "/", Bytes::new()).await.expect_err("what they keep is more than there is room for");
    assert!(matches!(refused, HttpError::Unavailable { .. }), "{refused}");
    drop(held);
    assert!(call(&pod, "/", Bytes::new()).await.is_ok());
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    container.kill();
    for waiting in waiting {
        assert!(waiting.await.expect("no panic").is_err());
    }
    none_is_held(&pod).await;
}

#[tokio::test]
async fn what_waits_in_pipes_is_the_pods_and_little_where_memory_is_scarce() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let net = pod.namespace();
    let listener = net.listen("0.0.0.0:7".parse().expect("an address")).expect("free");
    let mut conn = net.connect("127.0.0.1:7".parse().expect("an address")).await.expect("accepted");
    let before = pod.usage().host_bytes;
    assert!(before >= 3 * 2048, "a listener and two ends: {before}");
    conn.write_all(&vec![0; 100 << 10]).await.expect("written");
    let buffered = pod.usage().host_bytes - before;
    assert!((100 << 10..=120 << 10).contains(&buffered), "{buffered}");
    let held = exhaust(pod.account());
    let other = net.connect("127.0.0.1:7".parse().expect("an address")).await;
    assert_eq!(other.err(), Some(NetError::TooManySockets));
    assert_eq!(conn.try_write(&[0; 1 << 10]).err(), Some(NetError::WouldBlock), "a pipe has a few KiB now");
    drop(held);
    assert!(conn.try_write(&[0; 1 << 10]).is_ok());
    drop((conn, listener));
    none_is_held(&pod).await;
}

#[tokio::test]
async fn every_instance_is_charged_its_copy_of_the_environment() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let artifact = bench.prepare(&spinner()).await;
    let mut spec = bench.spec(artifact);
    spec.env = vec![("LARGE".to_owned(), "x".repeat(1 << 20))];
    let container = pod.start(spec).expect("started");
    assert!(pod.usage().host_bytes > 1 << 20);
    container.kill();
    container.wait().await;
    none_is_held(&pod).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_the_pods() {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let container = serve(&bench, &pod, bench.sample("hello-http").await);
    let before = pod.usage().host_bytes;
    let address = (pod.namespace().addresses()[0], PORT).into();
    let conn = pod.namespace().connect(address).await.expect("accepted");
    // What serves it, beside its two ends.
    let counted = async {
        while pod.usage().host_bytes < before + (8 << 10) + 2 * (2 << 10) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(10), counted).await;
    assert!(counted.is_ok(), "{} and {before} before", pod.usage().host_bytes);
    drop(conn);
    container.kill();
    none_is_held(&pod).await;
}

#[tokio::test]
async fn a_response_that_is_read_and_kept_is_the_pods() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let container = serve(&bench, &pod, bench.sample("hello-http").await);
    let sent = Bytes::from(vec![b'x'; 4 << 20]);
    let request = Request::post("/echo").body(full_body(sent.clone())).expect("a request");
    let service = pod.namespace().http_service(PORT).expect("served");
    let mut body =
        service.call(request).await.map_err(|unanswered| unanswered.error).expect("answered").into_body();
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        kept.extend(frame.expect("a frame").into_data());
    }
    assert_eq!(kept.iter().map(Bytes::len).sum::<usize>(), sent.len());
    container.kill();
    container.wait().await;
    drop(body);
    assert!(pod.usage().host_bytes > 3 << 20, "{}", pod.usage().host_bytes);
    drop(kept);
    none_is_held(&pod).await;
}

/// A program that asks for so many random bytes at once, and exits with 0.
fn random(bytes: u64) -> String {
    format!(
        r#"(component
    (import "wasi:random/random@0.2.0" (instance $random
        (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
    (core module $libc
        (memory (export "memory") 64)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
    (core instance $libc (instantiate $libc))
    (alias core export $libc "memory" (core memory $memory))
    (alias core export $libc "realloc" (core func $realloc))
    (core func $get (canon lower (func $random "get-random-bytes") (memory $memory) (realloc $realloc)))
    (core module $m
        (import "host" "get" (func $get (param i64 i32)))
        (func (export "run") (result i32) (call $get (i64.const {bytes}) (i32.const 0)) (i32.const 0)))
    (core instance $i (instantiate $m (with "host" (instance (export "get" (func $get))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#
    )
}

#[tokio::test]
async fn random_bytes_come_a_mebibyte_at_a_time_at_most() {
    let bench = Bench::new(1);
    let exit = |bytes| {
        let bench = &bench;
        async move { bench.start(bench.prepare(&random(bytes)).await).wait().await }
    };
    assert_eq!(exit(1 << 20).await, Exit::Completed { code: 0 });
    let refused = exit((1 << 20) + 1).await;
    assert!(matches!(refused, Exit::Trapped { .. }), "{refused}");
}

#[tokio::test]
async fn a_neighbour_that_holds_all_takes_no_socket_and_no_file_that_is_certain() {
    let bench = Bench::new(1);
    let neighbours: Vec<Pod> =
        (0..60).map(|at| bench.pod_of(&format!("greedy-{at}"), PodLimits::default())).collect();
    let _held: Vec<Charge> = neighbours.iter().map(|pod| exhaust(pod.account())).collect();
    let mut files = Vec::new();
    for pod in &neighbours {
        let mut charge = Charge::nothing(pod.account(), Holding::Files);
        while charge.grow(1).is_ok() {}
        files.push(charge);
    }
    let pod = bench.pod(PodLimits::default());
    let any = "0.0.0.0:0".parse().expect("an address");
    let sockets: Vec<_> = std::iter::from_fn(|| pod.namespace().bind_udp(any).ok()).collect();
    assert!(sockets.len() >= 256, "2 KiB each of what is certain: {}", sockets.len());
    assert!(pod.account().charge(Holding::Files, pod.account().files_guaranteed()).is_ok());
}
