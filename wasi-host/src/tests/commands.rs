//! Programs: their arguments and output, their ends, and the limits on them.

use std::time::Duration;

use super::*;
use crate::refusals::Bound;
use crate::{Entry, Exit, Mount, StartError};

#[tokio::test]
async fn a_preview_1_module_writes_and_exits_with_its_code() {
    let bench = Bench::new(1);
    let body = "(i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 21))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $exit (i32.const 1))";
    let artifact = bench.prepare(&module(body)).await;
    assert_eq!(artifact.entry(), Entry::Command);
    let container = bench.start(artifact);
    assert_eq!(container.wait().await, Exit::Completed { code: 1 });
    assert_eq!(bench.stdout.text(), "hello from preview 1\n");
    assert_eq!(container.wait().await.code(), 1);
    assert_eq!(container.usage().memory_bytes, 0);
}

#[tokio::test]
async fn a_module_may_have_several_tables_and_memories() {
    let bench = Bench::new(4);
    let body =
        "(call_indirect $b (type $nothing) (i32.const 0)) (i32.store $second (i32.const 0) (i32.const 7))
        (if (i32.ne (i32.load $second (i32.const 0)) (i32.const 7)) (then unreachable))";
    let more = "(type $nothing (func)) (func $called) (memory $second 1)
        (table $a 1 funcref) (table $b 2 funcref) (elem (table $b) (i32.const 0) func $called)
        (data (i32.const 1024)";
    let container = bench.start(bench.prepare(&module(body).replace("(data (i32.const 1024)", more)).await);
    assert_eq!(container.wait().await, Exit::Completed { code: 0 });
}

#[tokio::test]
async fn a_component_exits_with_its_code() {
    let bench = Bench::new(1);
    let text = r#"(component
        (import "wasi:cli/exit@0.2.12" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
        (core func $e (canon lower (func $exit "exit-with-code")))
        (core module $m
            (import "host" "exit" (func $exit (param i32)))
            (func (export "run") (result i32) (call $exit (i32.const 42)) (i32.const 0)))
        (core instance $i (instantiate $m (with "host" (instance (export "exit" (func $e))))))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $r (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $r)))"#;
    let container = bench.start(bench.prepare(text).await);
    assert_eq!(container.wait().await, Exit::Completed { code: 42 });
}

#[tokio::test]
async fn a_guest_sees_its_own_arguments_and_environment_and_nothing_else() {
    let bench = Bench::new(1);
    // Writes the strings of its arguments, then those of its environment, as they lie in memory.
    let body = "(drop (call $args (i32.const 100) (i32.const 2048)))
        (drop (call $environ (i32.const 200) (i32.const 4096)))
        (i32.store (i32.const 0) (i32.const 2048)) (i32.store (i32.const 4) (i32.const 64))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 80)))
        (i32.store (i32.const 0) (i32.const 4096)) (i32.store (i32.const 4) (i32.const 64))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 80)))";
    let artifact = bench.prepare(&module(body)).await;
    let mut spec = bench.spec(artifact);
    spec.args = vec!["guest".to_owned(), "--five".to_owned()];
    spec.env = vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "two".to_owned())];
    let container = bench.pod(PodLimits::default()).start(spec).expect("started");
    assert_eq!(container.wait().await, Exit::Completed { code: 0 });
    let text = bench.stdout.text();
    let strings: Vec<_> = text.split('\0').filter(|string| !string.is_empty()).collect();
    assert_eq!(strings, ["guest", "--five", "A=1", "B=two"]);
}

#[tokio::test]
async fn a_trap_says_what_and_where() {
    let bench = Bench::new(1);
    let text = module("(call $deep)").replace("(memory", "(func $deep unreachable) (memory");
    let container = bench.start(bench.prepare(&text).await);
    let Exit::Trapped { message } = container.wait().await else { unreachable!("the guest traps") };
    assert!(message.contains("unreachable") && message.contains("deep"), "{message}");
}

#[tokio::test]
async fn a_panic_is_told_by_the_programs_own_functions() {
    let bench = Bench::new(1);
    for target in ["wasm32-wasip1", "wasm32-wasip2"] {
        let wasm = programs::compile("panics", Some(target), bench.dir.path());
        let container = bench.start(bench.host.prepare(&wasm, "default").await.expect("runnable"));
        let Exit::Trapped { message } = container.wait().await else { unreachable!("the guest traps") };
        let mut frames = message.lines().filter_map(|line| line.strip_prefix("    at "));
        let (first, second) = (frames.next().unwrap_or_default(), frames.next().unwrap_or_default());
        assert!(first.ends_with("order::total") && second.ends_with("panics::main"), "{target}: {message}");
        assert!(
            !message.contains("panicking") && bench.stderr.text().contains("index out of bounds"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn deep_recursion_is_a_trap_of_the_guest_alone() {
    let bench = Bench::new(1);
    let text = module("(call $deep)").replace("(memory", "(func $deep (call $deep) (call $deep)) (memory");
    let container = bench.start(bench.prepare(&text).await);
    let Exit::Trapped { message } = container.wait().await else { unreachable!("the guest traps") };
    assert!(message.contains("call stack exhausted"), "{message}");
}

#[tokio::test]
async fn rust_programs_run_and_their_panics_end_them() {
    let bench = Bench::new(2);
    let job = bench.start(bench.sample("pi-job").await);
    assert_eq!(job.wait().await, Exit::Completed { code: 0 });
    assert!(bench.stdout.text().contains("3.14159"), "{}", bench.stdout.text());
    let legacy = bench.start(bench.sample("pi-legacy").await);
    assert_eq!(legacy.wait().await, Exit::Completed { code: 0 });
    let crash = bench.start(bench.sample("crash").await);
    assert!(!crash.wait().await.is_success());
}

#[tokio::test]
async fn memory_beyond_the_limit_ends_the_container_as_out_of_memory() {
    let bench = Bench::new(1);
    let hog = bench.sample("memory-hog").await;
    let mut spec = bench.spec(hog.clone());
    spec.limits.memory_bytes = Some(16 << 20);
    let container = bench.pod(PodLimits::default()).start(spec).expect("started");
    let exit = container.wait().await;
    assert!(exit.is_out_of_memory() && exit.code() == 137, "{exit}");
    // The limit of the pod holds as well, and what ended gave its memory back.
    let pod = bench.pod(PodLimits { memory_bytes: Some(8 << 20), ..PodLimits::default() });
    let container = pod.start(bench.spec(hog)).expect("started");
    assert!(container.wait().await.is_out_of_memory());
    assert_eq!(pod.usage().memory_bytes, 0);
}

#[tokio::test]
async fn standard_input_ends_when_the_container_is_stopped() {
    let bench = Bench::new(1);
    let body = "(i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 8))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
        (call $exit (i32.add (i32.const 0) (i32.load (i32.const 16))))";
    let artifact = bench.prepare(&module(body)).await;
    let mut spec = bench.spec(artifact.clone());
    spec.stdin = Stdin::UntilStop;
    let container = bench.pod(PodLimits::default()).start(spec).expect("started");
    let early = tokio::time::timeout(Duration::from_millis(30), container.wait()).await;
    assert!(early.is_err(), "it waits for input");
    container.stop();
    assert_eq!(container.wait().await, Exit::Completed { code: 0 });
    // Closed, it is at its end from the start.
    assert_eq!(bench.start(artifact).wait().await, Exit::Completed { code: 0 });
}

#[tokio::test]
async fn a_program_that_cannot_see_that_it_is_to_stop_is_ended() {
    let bench = Bench::new(1);
    let artifact = bench.prepare(&spinner()).await;
    for (stdin, ports, is_ended) in
        [(Stdin::AtEnd, vec![], true), (Stdin::UntilStop, vec![], false), (Stdin::AtEnd, vec![8080], false)]
    {
        let mut spec = bench.spec(artifact.clone());
        (spec.stdin, spec.listen_ports) = (stdin, ports);
        let container = bench.pod(PodLimits::default()).start(spec).expect("started");
        container.stop();
        let patience = Duration::from_millis(if is_ended { 30_000 } else { 50 });
        let ended = tokio::time::timeout(patience, container.wait()).await;
        assert_eq!(ended.ok(), is_ended.then_some(Exit::Killed));
    }
}

#[tokio::test]
async fn a_full_host_and_a_missing_mount_are_refused_with_the_reason() {
    let bench = Bench::new(1);
    let artifact = bench.prepare(&spinner()).await;
    let pod = bench.pod(PodLimits::default());
    let mut spec = bench.spec(artifact.clone());
    let host = bench.dir.path().join("nowhere");
    let mount = Mount { host, pin: None, guest: "/data".to_owned(), read_only: true, volume: None };
    spec.mounts = vec![mount];
    let refused = pod.start(spec).expect_err("there is no such directory");
    assert!(matches!(refused, StartError::Mount { .. }), "{refused}");
    let mut containers = Vec::new();
    let refused = loop {
        match pod.start(bench.spec(artifact.clone())) {
            Ok(container) => containers.push(container),
            Err(refused) => break refused,
        }
    };
    // Half of what containers may have, so that others find some too.
    assert_eq!(containers.len(), 14);
    let StartError::NoSeat(full) = refused else { unreachable!("it has too many: {refused}") };
    assert_eq!((full.0.bound, full.0.all), (Bound::PodShare, INSTANCES.into()));
    assert!(full.to_string().contains("spread its containers over several pods"), "{full}");
    // Dropping the handles kills them and makes room.
    drop(containers);
    while bench.host.instances_free() < INSTANCES as usize {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_sent_to_a_program_is_its_input_until_the_other_end_closes() {
    let bench = Bench::new(1);
    let nowhere: std::net::SocketAddr = "0.0.0.0:0".parse().expect("an address");
    // Reads until the end, and exits with how many bytes there were.
    let body = "(local $all i32)
        (i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 8))
        (loop $more
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
            (local.set $all (i32.add (local.get $all) (i32.load (i32.const 16))))
            (br_if $more (i32.load (i32.const 16))))
        (call $exit (local.get $all))";
    let artifact = bench.prepare(&module(body)).await;
    let mut spec = bench.spec(artifact);
    let (near, mut far) = crate::net::Conn::pair(nowhere, nowhere, 64);
    spec.stdin = Stdin::Sent(Arc::new(near));
    let container = bench.pod(PodLimits::default()).start(spec).expect("started");
    for piece in [&b"some"[..], &[7; 100], b"more"] {
        tokio::io::AsyncWriteExt::write_all(&mut far, piece).await.expect("it is read");
    }
    let early = tokio::time::timeout(Duration::from_millis(30), container.wait()).await;
    assert!(early.is_err(), "it waits for more");
    drop(far);
    assert_eq!(container.wait().await, Exit::Completed { code: 108 });
}
