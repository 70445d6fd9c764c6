//! Seats in the pools: nobody takes them all, and what runs has its own.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};

use super::*;
use crate::ledger::{Charge, Holding};
use crate::net::{Client, HttpBody, HttpError, empty_body};
use crate::refusals::Bound;
use crate::{Exit, Mount, NoSeat, PrepareError, StartError};

const PORT: u16 = 8080;

fn pod_of(bench: &Bench, tenant: &str) -> Pod {
    bench.host.pod(PodLimits::default(), namespace_of(tenant))
}

fn wait_for_input(bench: &Bench, pod: &Pod, artifact: &Arc<Artifact>) -> Result<Container, NoSeat> {
    let mut spec = bench.spec(artifact.clone());
    spec.stdin = Stdin::UntilStop;
    pod.start(spec).map_err(|refused| match refused {
        StartError::NoSeat(full) => full,
        other => unreachable!("{other}"),
    })
}

fn serve(bench: &Bench, pod: &Pod, artifact: &Arc<Artifact>) -> Container {
    let mut spec = bench.spec(artifact.clone());
    spec.http_port = Some(PORT);
    pod.start(spec).expect("started")
}

async fn status(pod: &Pod) -> Result<StatusCode, HttpError> {
    let service = pod.namespace().http_service(PORT).expect("served");
    let request = Request::get("/").body(empty_body()).expect("a request");
    let response = service.call(request).await.map_err(|unanswered| unanswered.error)?;
    let status = response.status();
    response.into_body().collect().await.expect("a whole body");
    Ok(status)
}

/// A request whose body does not end, so that its instance stays.
fn unending(path: &str) -> Request<HttpBody> {
    let body = StreamBody::new(futures::stream::pending::<Result<http_body::Frame<Bytes>, _>>());
    Request::post(path).body(body.boxed_unsync()).expect("a request")
}

#[tokio::test]
async fn a_namespace_that_starts_all_it_can_leaves_room_for_another_to_start_and_serve() {
    let bench = Bench::new(2);
    let waiter = bench.prepare(&waiter()).await;
    let (mut running, mut pods) = (Vec::new(), vec![pod_of(&bench, "greedy")]);
    while let Ok(container) = wait_for_input(&bench, &pods[0], &waiter) {
        running.push(container);
    }
    assert_eq!(running.len(), 14, "one pod has at most half of what containers may have");
    let full = loop {
        let pod = pod_of(&bench, "greedy");
        match wait_for_input(&bench, &pod, &waiter) {
            Ok(container) => running.push(container),
            Err(full) => break full,
        }
        pods.push(pod);
    };
    assert_eq!((full.0.bound, full.0.all), (Bound::Namespace, INSTANCES.into()));
    assert_eq!(running.len(), bench.host.pods_max() as usize);

    let other = pod_of(&bench, "other");
    let program = wait_for_input(&bench, &other, &waiter).expect("there is room");
    for sample in ["hello-http", "hello-http-p3"] {
        let pod = pod_of(&bench, "other");
        let _container = serve(&bench, &pod, &bench.sample(sample).await);
        for _ in 0..3 {
            assert_eq!(status(&pod).await.expect("served"), StatusCode::OK);
        }
    }
    program.kill();
    // What ends makes room for who waits, who is told.
    let mut freed = bench.host.seats_freed();
    let last = running.pop().expect("there are many");
    last.stop();
    assert!(last.wait().await.is_success());
    while wait_for_input(&bench, &pod_of(&bench, "greedy"), &waiter).map(|one| running.push(one)).is_err() {
        let told = tokio::time::timeout(Duration::from_secs(60), freed.changed()).await;
        told.expect("who waits is told").expect("the host is there");
    }
    assert_eq!(running.len(), bench.host.pods_max() as usize);
}

/// Of this client.
fn of(client: u8, mut request: Request<HttpBody>) -> Request<HttpBody> {
    request.extensions_mut().insert(Client([10, 0, 0, client].into()));
    request
}

#[tokio::test]
async fn a_client_that_holds_all_it_can_leaves_other_clients_of_the_component_theirs() {
    let bench = Bench::new(2);
    for (sample, path) in [("hello-http", "/echo"), ("hello-http-p3", "/endless")] {
        let pod = pod_of(&bench, "default");
        let served = serve(&bench, &pod, &bench.sample(sample).await);
        let service = pod.namespace().http_service(PORT).expect("served");
        let mut held = tokio::task::JoinSet::new();
        let mut refused = 0;
        for _ in 0..300 {
            let calling = service.call(of(1, unending(path)));
            held.spawn(calling);
            // Each is begun before the next.
            tokio::task::yield_now().await;
        }
        let mut answers = Vec::new();
        while refused < 100 {
            match held.join_next().await.expect("many are refused").expect("no panic") {
                Err(unanswered) => {
                    assert!(matches!(unanswered.error, HttpError::Unavailable { .. }), "{unanswered:?}");
                    refused += 1;
                }
                Ok(answer) => answers.push(answer),
            }
        }
        for _ in 0..5 {
            let request = of(2, Request::get("/").body(empty_body()).expect("a request"));
            let answer = service.call(request).await.expect("another client is served");
            assert_eq!(answer.status(), StatusCode::OK);
            answer.into_body().collect().await.expect("a whole body");
        }
        drop((held, answers, served));
    }
}

#[tokio::test]
async fn requests_that_hold_instances_leave_others_theirs() {
    let bench = Bench::new(2);
    let waiter = bench.prepare(&waiter()).await;
    // One never has the request whole, the other's response never ends.
    for (sample, path) in [("hello-http", "/echo"), ("hello-http-p3", "/endless")] {
        let artifact = bench.sample(sample).await;
        let greedy: Vec<Pod> = (0..4).map(|_| pod_of(&bench, "greedy")).collect();
        let serving: Vec<Container> = greedy.iter().map(|pod| serve(&bench, pod, &artifact)).collect();
        let services: Vec<_> =
            greedy.iter().map(|pod| pod.namespace().http_service(PORT).expect("served")).collect();
        let calls = services.iter().cycle().take(160).map(|service| service.call(unending(path)));
        // Those that find no instance are refused, the others keep theirs.
        let held = tokio::spawn(futures::future::join_all(calls));
        while bench.host.instances_free() > 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // As long as that goes on, others start and serve: kept seats first, and each its own.
        let other = pod_of(&bench, "other");
        let program = wait_for_input(&bench, &other, &waiter).expect("there is room");
        let quick = pod_of(&bench, "other");
        let served = serve(&bench, &quick, &artifact);
        for _ in 0..20 {
            assert_eq!(status(&quick).await.expect("served"), StatusCode::OK);
        }
        assert!(bench.host.instances_free() <= 20, "what does not end keeps its instance");
        held.abort();
        drop(held);
        program.kill();
        drop((serving, served));
        while bench.host.instances_free() < INSTANCES as usize {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A program of WASI 0.3 that calls so many other components, each with this memory, in which all the calls wait at once.
fn composition(parts: usize, memory: &str) -> String {
    let each = |line: fn(usize) -> String| (0..parts).map(line).collect::<String>();
    let instances = each(|at| {
        format!(r#"(instance $p{at} (instantiate $part (with "wait-for" (func $clock "wait-for"))))"#)
    });
    let given = each(|at| format!(r#"(with "f{at}" (func $p{at} "f"))"#));
    let taken = each(|at| format!(r#"(import "f{at}" (func $p{at} async))"#));
    let lowered = each(|at| format!(r#"(core func $f{at} (canon lower (func $p{at}) async))"#));
    let imports = each(|at| format!(r#"(import "host" "f{at}" (func $f{at} (result i32)))"#));
    let calls = each(|at| format!("(drop (call $f{at}))"));
    let exports = each(|at| format!(r#"(export "f{at}" (func $f{at}))"#));
    format!(
        r#"(component
    (import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
        (export "wait-for" (func async (param "how-long" u64)))))
    (component $part
        (import "wait-for" (func $wait-for async (param "how-long" u64)))
        (core func $wait (canon lower (func $wait-for)))
        (core module $m
            (import "host" "wait" (func $wait (param i64)))
            {memory}
            (func (export "f") (call $wait (i64.const 10000000))))
        (core instance $i (instantiate $m (with "host" (instance (export "wait" (func $wait))))))
        (func (export "f") async (canon lift (core func $i "f"))))
    {instances}
    (component $main
        (import "wait-for" (func $wait-for async (param "how-long" u64)))
        {taken}
        {lowered}
        (core func $wait (canon lower (func $wait-for)))
        (core module $m
            {imports}
            (import "host" "wait" (func $wait (param i64)))
            (func (export "run") (result i32) {calls} (call $wait (i64.const 200000000)) (i32.const 0)))
        (core instance $i (instantiate $m (with "host" (instance {exports} (export "wait" (func $wait))))))
        (func (export "run") async (result (result)) (canon lift (core func $i "run"))))
    (instance $main (instantiate $main (with "wait-for" (func $clock "wait-for")) {given}))
    (instance $r (export "run" (func $main "run")))
    (export "wasi:cli/run@0.3.0" (instance $r)))"#
    )
}

#[tokio::test]
async fn calls_of_a_composition_wait_on_stacks_of_its_own_seats() {
    let bench = Bench::new(2);
    let artifact = bench.prepare(&composition(3, "(memory 1)")).await;
    assert_eq!(artifact.weight, 3);
    assert_eq!(bench.start(artifact).wait().await, Exit::Completed { code: 0 });
    let path = bench.write("many.wasm", &composition(100, ""));
    let refused = bench.host.prepare(&path, "default").await.expect_err("a hundred stacks in a seat");
    assert!(matches!(refused, PrepareError::Compile { .. }), "{refused}");
    assert!(refused.to_string().contains("in 101 of the components"), "{refused}");
}

#[tokio::test]
async fn a_wrong_mount_is_told_before_the_want_of_a_seat_and_the_want_of_files_after_it() {
    let bench = Bench::new(2);
    let waiter = bench.prepare(&waiter()).await;
    let pod = bench.pod(PodLimits::default());
    let mut running = Vec::new();
    while let Ok(container) = wait_for_input(&bench, &pod, &waiter) {
        running.push(container);
    }
    let mut files = Charge::nothing(pod.account(), Holding::Files);
    while files.grow(1).is_ok() {}
    let start = |dirs: &[PathBuf]| {
        let mount = |host: &PathBuf| Mount {
            host: host.clone(),
            pin: None,
            guest: host.display().to_string(),
            read_only: true,
            volume: None,
        };
        let mut spec = bench.spec(waiter.clone());
        spec.mounts = dirs.iter().map(mount).collect();
        pod.start(spec).expect_err("there is no seat, or no file")
    };
    let dirs: Vec<_> = (0..20).map(|number| bench.dir.path().join(format!("dir-{number}"))).collect();
    assert!(matches!(start(&dirs), StartError::Mount { .. }));
    dirs.iter().for_each(|dir| std::fs::create_dir(dir).expect("made"));
    assert!(matches!(start(&dirs), StartError::NoSeat(_)));
    running.pop();
    let refused = loop {
        match start(&dirs) {
            StartError::NoSeat(_) => tokio::task::yield_now().await,
            refused => break refused,
        }
    };
    assert!(matches!(refused, StartError::Exhausted(_)), "{refused}");
    assert_eq!(pod.account().held(Holding::Files), files.amount());
}

#[tokio::test]
async fn an_entry_of_0_2_runs_where_what_it_imports_is_of_0_3() {
    let text = r#"(component
        (import "wasi:clocks/monotonic-clock@0.3.0" (instance $clock
            (export "get-resolution" (func (result u64)))))
        (core func $resolution (canon lower (func $clock "get-resolution")))
        (core module $m
            (import "host" "resolution" (func $resolution (result i64)))
            (func (export "run") (result i32) (i64.eqz (call $resolution))))
        (core instance $i (instantiate $m (with "host" (instance (export "resolution" (func $resolution))))))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $r (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $r)))"#;
    let bench = Bench::new(1);
    let artifact = bench.prepare(text).await;
    assert_eq!(bench.start(artifact).wait().await, Exit::Completed { code: 0 });
}
