//! Core modules for WASI preview 1, of each language that makes some.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::programs::compile;
use super::*;
use crate::ledger::{Charge, Holding};
use crate::net::Conn;
use crate::{Exit, Mount, Volume};

const PORT: u16 = 8080;

/// On a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A container of the module that sees a folder as `/data`.
async fn start(bench: &Bench, pod: &Pod, wasm: &Path, args: &[&str]) -> Container {
    let artifact = bench.host.prepare(wasm, "default").await.expect("runnable");
    let data = bench.dir.path().join("data");
    std::fs::create_dir_all(&data).expect("made");
    let mut spec = bench.spec(artifact);
    spec.args = [&["guest"], args].concat().into_iter().map(str::to_owned).collect();
    spec.env = vec![("COLOR".to_owned(), "green".to_owned())];
    let volume = Some(Volume { dir: data.clone(), bytes_max: None });
    spec.mounts = vec![Mount { host: data, pin: None, guest: "/data".to_owned(), read_only: false, volume }];
    spec.listen_ports = vec![PORT];
    spec.stdin = Stdin::UntilStop;
    pod.start(spec).expect("started")
}

async fn connect(pod: &Pod) -> Conn {
    let (client, server) = (([10, 128, 9, 9], 4000).into(), ([10, 128, 0, 7], PORT).into());
    pod.namespace().deliver_when_room(client, server).await.expect("taken in")
}

/// A program of `tests/programs`, made by the first of the compilers that is on this machine with its library: it is where
/// it makes a probe. `None` where none is.
///
/// # Panics
/// Where the program does not compile; where none is and `CORACLE_REQUIRE_CLIENTS` is set: `.ci/clients` installs one.
fn made(bench: &Bench, of: &str, probe: &str, compilers: &[fn() -> Command]) -> Option<PathBuf> {
    let folder = bench.dir.path();
    let probed = folder.join(format!("probe-{of}"));
    std::fs::write(&probed, probe).expect("written");
    let is_there = |compiler: &&fn() -> Command| match built(compiler(), &probed, &folder.join("probe.wasm"))
    {
        Ok(()) => true,
        Err(error) => {
            eprintln!("no compiler of {of}: {error}");
            false
        }
    };
    let Some(compiler) = compilers.iter().find(is_there) else {
        let required = std::env::var_os("CORACLE_REQUIRE_CLIENTS").is_some();
        assert!(!required, "a compiler of {of} is required and not installed: .ci/clients installs one");
        eprintln!("skipped: {of} has no compiler here (to install one: .ci/clients)");
        return None;
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(of);
    let output = folder.join(format!("{of}.wasm"));
    built(compiler(), &source, &output).unwrap_or_else(|error| panic!("{of} does not compile: {error}"));
    Some(output)
}

/// Runs a compiler; what it says where it fails.
fn built(mut compiler: Command, source: &Path, output: &Path) -> Result<(), String> {
    let name = compiler.get_program().to_string_lossy().into_owned();
    let done = compiler.arg("-o").arg(output).arg(source).output();
    let done = done.map_err(|error| format!("{name}: {error}"))?;
    let said = || format!("{name}: {}", String::from_utf8_lossy(&done.stderr));
    done.status.success().then_some(()).ok_or_else(said)
}

fn go(bench: &Bench) -> Option<PathBuf> {
    let go = || {
        let mut go = Command::new("go");
        go.env("GOOS", "wasip1").env("GOARCH", "wasm").args(["build", "-ldflags=-s -w"]);
        go
    };
    made(bench, "preview1.go", "package main\n\nfunc main() {}\n", &[go])
}

fn c(bench: &Bench) -> Option<PathBuf> {
    let clang = || {
        let mut clang = Command::new("clang");
        clang.args(["--target=wasm32-wasi", "-O1"]);
        clang
    };
    let zig = || {
        let mut zig = Command::new("zig");
        zig.args(["cc", "-target", "wasm32-wasi", "-O1"]);
        zig
    };
    made(bench, "preview1.c", "#include <stdio.h>\n\nint main(void) { return puts(\"\"); }\n", &[clang, zig])
}

#[tokio::test]
async fn a_module_has_all_of_its_memory_to_itself() {
    let bench = Bench::new(1);
    // As TinyGo and Go: what lies behind the data is the heap, as far as the memory goes.
    let check = "(local $at i32)
        (local.set $at (global.get $heap))
        (loop $fill
            (i32.store (local.get $at) (local.get $at))
            (local.set $at (i32.add (local.get $at) (i32.const 4)))
            (br_if $fill (i32.lt_u (local.get $at) (i32.mul (memory.size) (i32.const 65536)))))
        (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 21))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (drop (call $args_sizes (i32.const 12) (i32.const 16)))
        (drop (call $environ (i32.const 20) (i32.const 100)))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
        (if (i32.ne (memory.size) (i32.const 3)) (then (call $exit (i32.const 3))))
        (local.set $at (global.get $heap))
        (loop $look
            (if (i32.ne (i32.load (local.get $at)) (local.get $at)) (then (call $exit (i32.const 4))))
            (local.set $at (i32.add (local.get $at) (i32.const 4)))
            (br_if $look (i32.lt_u (local.get $at) (i32.mul (memory.size) (i32.const 65536)))))
        (if (i32.ne (memory.grow (i32.const 1)) (i32.const 3)) (then (call $exit (i32.const 5))))";
    let text = module(check).replace(
        r#"(memory (export "memory") 1)"#,
        r#"(memory (export "memory") 3) (global $heap (export "__heap_base") i32 (i32.const 2048))"#,
    );
    let container = bench.start(bench.prepare(&text).await);
    assert_eq!(container.wait().await, Exit::Completed { code: 0 });
    assert_eq!(bench.stdout.text(), "hello from preview 1\n");
}

#[tokio::test]
async fn programs_end_with_their_own_codes() {
    let bench = Bench::new(1);
    for (given, told) in [(0, 0), (1, 1), (42, 42), (126, 126), (255, 255), (256, 0), (-1, 255)] {
        let container =
            bench.start(bench.prepare(&module(&format!("(call $exit (i32.const {given}))"))).await);
        assert_eq!(container.wait().await, Exit::Completed { code: told }, "{given}");
    }
}

#[tokio::test]
async fn go_programs_run() {
    let bench = Bench::new(2);
    let Some(wasm) = go(&bench) else { return };
    let container = start(&bench, &bench.pod(PodLimits::default()), &wasm, &["7"]).await;
    let exit = container.wait().await;
    assert_eq!(exit, Exit::Completed { code: 7 }, "{}{}", bench.stdout.text(), bench.stderr.text());
    assert_eq!(bench.stdout.text(), "Go: 2 arguments, green\n");
}

#[tokio::test]
async fn go_programs_serve_http_on_the_socket_that_they_find() {
    let bench = Bench::new(2);
    let Some(wasm) = go(&bench) else { return };
    let pod = bench.pod(PodLimits::default());
    let container = start(&bench, &pod, &wasm, &["serve"]).await;
    // Connections that say nothing keep no other from being served.
    let silent = [connect(&pod).await, connect(&pod).await];
    for path in ["/one", "/two"] {
        let mut conn = connect(&pod).await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
        conn.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, conn.read_to_string(&mut answer)).await;
        assert!(matches!(read, Ok(Ok(_))), "{}", bench.stdout.text());
        assert!(answer.ends_with(&format!("Go serves {path}, 1 socket\n")), "{answer}");
    }
    drop(silent);
    container.stop();
    let ended = tokio::time::timeout(PATIENCE, container.wait()).await;
    assert_eq!(ended, Ok(Exit::Completed { code: 0 }), "{}", bench.stderr.text());
    assert_eq!(bench.stdout.text(), "served: true\n");
}

#[tokio::test]
async fn c_programs_run() {
    let bench = Bench::new(2);
    let Some(wasm) = c(&bench) else { return };
    let container = start(&bench, &bench.pod(PodLimits::default()), &wasm, &["200"]).await;
    let exit = container.wait().await;
    assert_eq!(exit, Exit::Completed { code: 200 }, "{}", bench.stderr.text());
    assert_eq!(bench.stdout.text(), "C: 2 arguments, green\n");
    let note = std::fs::read_to_string(bench.dir.path().join("data/note")).expect("written");
    assert_eq!(note, "written by C\n");
}

#[tokio::test]
async fn a_rust_program_serves_on_the_socket_that_it_finds_until_it_is_stopped() {
    let bench = Bench::new(2);
    let wasm = compile("listener", Some("wasm32-wasip1"), bench.dir.path());
    let pod = bench.pod(PodLimits::default());
    let container = start(&bench, &pod, &wasm, &[]).await;
    for size in [1, 100_000] {
        let conn = connect(&pod).await;
        let sent = vec![b'x'; size];
        let (mut reading, mut writing) = tokio::io::split(conn);
        let write = async {
            writing.write_all(&sent).await.expect("sent");
            writing.shutdown().await.expect("ended");
        };
        let mut echoed = Vec::new();
        let (_, read) = tokio::join!(write, reading.read_to_end(&mut echoed));
        read.expect("to the end");
        assert!(echoed == sent, "{} bytes of {size} came back", echoed.len());
    }
    container.stop();
    assert_eq!(container.wait().await, Exit::Completed { code: 0 }, "{}", bench.stderr.text());
    assert_eq!(bench.stdout.text(), "Ok(\"1\") sockets\n0 entries of /data\nno more\n");
    drop(container);
    assert_eq!(pod.namespace().sockets(), 0, "an ended module holds no socket");
}

#[tokio::test]
async fn of_two_containers_with_one_port_the_second_is_told_of_the_first() {
    let bench = Bench::new(1);
    let pod = bench.pod(PodLimits::default());
    let listening = |name: &str, guest: &Arc<Artifact>| {
        let mut spec = bench.spec(Arc::clone(guest));
        spec.name = name.to_owned();
        (spec.listen_ports, spec.http_port) = (vec![PORT], Some(PORT));
        spec.stdin = Stdin::UntilStop;
        pod.start(spec)
    };
    let (module, component) = (bench.prepare(&waiter()).await, bench.sample("hello-http").await);
    let first = listening("default/shop/web", &module).expect("started");
    for guest in [&module, &component] {
        let refused = listening("default/shop/api", guest).expect_err("the port is taken");
        assert_eq!(
            refused.to_string(),
            "cannot listen on port 8080 of the pod: its container default/shop/web does, and the containers of a pod share \
             one set of ports: give one of the two another containerPort"
        );
    }
    first.kill();
    assert_eq!(first.wait().await, Exit::Killed);
    listening("default/shop/api", &module).expect("the port is free");
}

/// A module that opens its own directory again and again, and exits with the last error.
fn opener() -> String {
    module(
        "(local $errno i32)
        (loop $again
            (local.set $errno (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 1)
                (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))
            (br_if $again (i32.eqz (local.get $errno))))
        (call $exit (local.get $errno))",
    )
    .replace("hello from preview 1\\n", ".")
    .replace(
        "(memory (",
        r#"(import "wasi_snapshot_preview1" "path_open" (func $open
            (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory ("#,
    )
}

#[tokio::test]
async fn what_a_module_has_open_is_bounded_and_given_back() {
    let bench = Bench::new(1);
    let path = bench.write("opener.wasm", &opener());
    let pod = bench.pod(PodLimits::default());
    let artifact = bench.host.prepare(&path, "default").await.expect("runnable");
    let mut spec = bench.spec(artifact);
    let host = bench.dir.path().to_owned();
    spec.mounts = vec![Mount { host, pin: None, guest: "/".to_owned(), read_only: true, volume: None }];
    let Exit::Completed { code } = pod.start(spec).expect("started").wait().await else {
        panic!("it is told, and not ended")
    };
    // Out of open files, or of places for them.
    assert!([41, 48].contains(&code), "errno {code}");
    while pod.account().held(Holding::Files) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(pod.account().held(Holding::Heap), 0);
}

/// A module that waits for as long a time in so many subscriptions again and again, and exits with the error.
fn poller(subscriptions: u32, nanoseconds: u64) -> String {
    const FROM: u32 = 4096;
    const EVENTS: u32 = 32_768;
    let end = FROM + subscriptions * 48;
    assert!(end <= EVENTS && EVENTS + subscriptions * 32 <= 65_536, "they overlap");
    module(&format!(
        "(local $at i32) (local $errno i32)
        (local.set $at (i32.const {FROM}))
        (loop $fill
            (i64.store offset=24 (local.get $at) (i64.const {nanoseconds}))
            (local.set $at (i32.add (local.get $at) (i32.const 48)))
            (br_if $fill (i32.lt_u (local.get $at) (i32.const {end}))))
        (loop $again
            (local.set $errno
                (call $poll (i32.const {FROM}) (i32.const {EVENTS}) (i32.const {subscriptions}) (i32.const 8)))
            (br_if $again (i32.eqz (local.get $errno))))
        (call $exit (local.get $errno))"
    ))
    .replace(
        "(memory (",
        r#"(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory ("#,
    )
}

#[tokio::test]
async fn what_a_module_waits_for_is_on_its_account() {
    const MANY: u32 = 500;
    let bench = Bench::new(1);
    let heap = |pod: &Pod| pod.account().held(Holding::Heap);
    let pod = bench.pod(PodLimits::default());
    let waits = pod.start(bench.spec(bench.prepare(&poller(MANY, 1 << 60)).await)).expect("started");
    // A store without them takes far less.
    let charged = async {
        while heap(&pod) < u64::from(MANY) * 500 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, charged).await.expect("they are charged");
    waits.kill();
    assert_eq!(waits.wait().await, Exit::Killed);
    assert_eq!(heap(&pod), 0);
    // Where there is no room for them it is told so; a few have room in any case.
    let [many, few] = [MANY, 1].map(|subscriptions| poller(subscriptions, 0));
    let [many, few] = [bench.prepare(&many).await, bench.prepare(&few).await]
        .map(|guest| pod.start(bench.spec(guest)).expect("started"));
    let mut others = Charge::nothing(pod.account(), Holding::Heap);
    others.set_held(pod.account().limit(Holding::Heap));
    let told = tokio::time::timeout(PATIENCE, many.wait()).await;
    assert_eq!(told, Ok(Exit::Completed { code: 48 }));
    assert_eq!(few.exit(), None);
}

#[tokio::test]
async fn memory_beyond_the_limit_ends_a_module_as_out_of_memory() {
    let bench = Bench::new(1);
    let artifact =
        bench.prepare(&module("(loop $more (drop (memory.grow (i32.const 16))) (br $more))")).await;
    let mut spec = bench.spec(artifact);
    spec.limits.memory_bytes = Some(4 << 20);
    let container = bench.pod(PodLimits::default()).start(spec).expect("started");
    assert!(container.wait().await.is_out_of_memory());
}

#[tokio::test]
async fn a_module_that_spins_or_waits_is_killed_and_one_that_sleeps_takes_no_time() {
    let bench = Bench::new(1);
    let sleeps = poller(1, 1 << 60);
    for text in [spinner(), sleeps, waiter()] {
        let mut spec = bench.spec(bench.prepare(&text).await);
        spec.stdin = Stdin::UntilStop;
        let container = bench.pod(PodLimits::default()).start(spec).expect("started");
        let early = tokio::time::timeout(Duration::from_millis(50), container.wait()).await;
        assert!(early.is_err(), "it goes on");
        container.kill();
        assert_eq!(container.wait().await, Exit::Killed);
    }
}

/// What lies outside of the memory is a fault that is told, and ends nobody else.
#[tokio::test]
async fn pointers_out_of_the_memory_are_faults() {
    let bench = Bench::new(1);
    for call in [
        "(call $write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 8))",
        "(call $write (i32.const 1) (i32.const 65532) (i32.const 1) (i32.const 8))",
        "(call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const -1))",
    ] {
        let exits = module(&format!("(call $exit {call})"));
        let container = bench.start(bench.prepare(&exits).await);
        assert_eq!(container.wait().await, Exit::Completed { code: 21 }, "{call}");
    }
    // Without a memory there is nothing to read.
    let text = r#"(module
        (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
        (func (export "_start") (drop (call $close (i32.const 0)))))"#;
    let exit = bench.start(bench.prepare(text).await).wait().await;
    assert!(matches!(&exit, Exit::Trapped { message } if message.contains("exports no memory")), "{exit}");
}
