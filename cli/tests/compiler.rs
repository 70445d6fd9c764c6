//! The compiler's own process, as nodes start it: what it may, what it costs, and when it ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use coracle_wasi_host::{Confinement, Entry, Host, HostConfig, PrepareError};

const PATIENCE: Duration = Duration::from_secs(120);
/// Says to this test's own program that it is to be a node that dies.
const DYING_NODE: &str = "CORACLE_TEST_DYING_NODE";

/// Tests that start compilers from this process take turns: they look at each other's otherwise.
static COMPILERS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn host(dir: &Path) -> Host {
    let config = HostConfig {
        cache_dir: dir.join("cache"),
        guest_threads: 1,
        max_instances: 16,
        compiler: Some(PathBuf::from(env!("CARGO_BIN_EXE_coracle"))),
    };
    Host::new(config).unwrap()
}

fn leb(mut value: usize, out: &mut Vec<u8>) {
    while value > 0x7f {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn section(id: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(id);
    leb(content.len(), out);
    out.extend_from_slice(content);
}

/// A program of so many functions, each of which takes a compiler some milliseconds.
fn program(functions: usize) -> Vec<u8> {
    let mut body = vec![1, 64, 0x7f];
    for at in 0..400_u16 {
        let local = (at % 64) as u8;
        // block; local.get; br_if 0; local.get, local.get, i32.add, local.set; end
        body.extend([0x02, 0x40, 0x20, local, 0x0d, 0, 0x20, local, 0x20, (local + 7) % 64, 0x6a, 0x21]);
        body.extend([(local + 3) % 64, 0x0b]);
    }
    body.push(0x0b);
    let mut code = Vec::new();
    leb(functions, &mut code);
    for _ in 0..functions {
        leb(body.len(), &mut code);
        code.extend_from_slice(&body);
    }
    let mut types = Vec::new();
    leb(functions, &mut types);
    types.resize(types.len() + functions, 0);
    let mut exports = vec![2, 6];
    exports.extend(b"memory\x02\0\x06_start\0\0");
    let mut wasm = b"\0asm\x01\0\0\0".to_vec();
    section(1, &[1, 0x60, 0, 0], &mut wasm);
    section(3, &types, &mut wasm);
    section(5, &[1, 0, 1], &mut wasm);
    section(7, &exports, &mut wasm);
    section(10, &code, &mut wasm);
    wasm
}

/// The compilers that this process or one of `parent` has started.
fn compilers(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let processes = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains(&format!("compile-component\0{parent}\0"))
        })
        .collect()
}

async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for: {what}"))
}

/// A line of a process' status.
fn status(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}

/// Field 3 and the following of a process' stat.
fn stat(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compiler_is_confined_and_ends_when_nobody_waits_for_it() {
    let _turn = COMPILERS.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let path = dir.path().join("slow.wasm");
    fs::write(&path, program(10_000)).unwrap();
    let compiling = tokio::spawn(async move { host.prepare(&path, "default").await.map(drop) });
    let own = std::process::id();
    let pid = until("a compiler", || compilers(own).pop()).await;
    let confinement = Confinement::of_this_kernel();
    if confinement.seccomp {
        until("its filter", || status(pid, "Seccomp").filter(|mode| mode == "2")).await;
    }
    until("its rights", || status(pid, "NoNewPrivs").filter(|set| set == "1")).await;
    let fields = stat(pid);
    let nice: i32 = fields[16].parse().unwrap();
    let group: u32 = fields[2].parse().unwrap();
    assert!(nice >= 10 && group == pid, "{fields:?}");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "1000");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for name in ["Max cpu time", "Max file size", "Max data size", "Max address space", "Max open files"] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(!line.contains("unlimited"), "{line}");
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(
        environment.starts_with(b"MIMALLOC_") && environment.iter().filter(|byte| **byte == 0).count() == 1
    );
    for file in 0..=2 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{file}")).unwrap().display().to_string();
        assert!(target.starts_with("pipe:") || target.ends_with(".wasm.tmp (deleted)"), "{target}");
    }
    assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 1, "the key alone");
    compiling.abort();
    until("its end", || compilers(own).is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_makes_code_that_the_next_host_finds_and_says_what_is_wrong() {
    let _turn = COMPILERS.lock().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.wasm");
    fs::write(&path, program(50)).unwrap();
    let artifact = host(dir.path()).prepare(&path, "default").await.unwrap();
    assert_eq!(artifact.entry(), Entry::Command);
    let next = host(dir.path());
    next.prepare(&path, "default").await.unwrap();
    for name in ["hello-http", "hello-http-p3", "pi-legacy"] {
        next.prepare(&coracle_sample_artifacts::wasm(name), "default").await.unwrap();
    }
    assert_eq!(next.compiles().succeeded, 3);
    fs::write(&path, "#!/bin/sh").unwrap();
    assert!(matches!(next.prepare(&path, "default").await, Err(PrepareError::NotWasm { .. })));
    let mut cut = program(50);
    cut.truncate(cut.len() - 10);
    fs::write(&path, cut).unwrap();
    assert!(matches!(next.prepare(&path, "default").await, Err(PrepareError::Compile { .. })));
}

/// Runs the compiler by itself, with so much memory. Its verdict.
fn compile(wasm: &[u8], memory_bytes: u64, dir: &Path) -> String {
    let (input, output) = (dir.join("in.wasm"), dir.join("out"));
    fs::write(&input, wasm).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_coracle"))
        .args(["compile-component", &std::process::id().to_string(), &memory_bytes.to_string()])
        .env_clear()
        .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
        .stdin(fs::File::open(input).unwrap())
        .stdout(fs::File::create(output).unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    format!("{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr))
}

#[test]
fn its_memory_is_bounded() {
    let _turn = COMPILERS.blocking_lock();
    let dir = tempfile::tempdir().unwrap();
    let wasm = program(2_000);
    let said = compile(&wasm, 64 << 20, dir.path());
    assert!(!said.contains("made"), "{said}");
    let said = compile(&wasm, 2 << 30, dir.path());
    assert!(said.contains("made command p1 p2 "), "{said}");
}

/// Does nothing, unless it is told to be a node: then it compiles until it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed() {
    let Some(dir) = std::env::var_os(DYING_NODE) else { return };
    let dir = PathBuf::from(dir);
    let _ = host(&dir).prepare(&dir.join("slow.wasm"), "default").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compiler_ends_with_its_node_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("slow.wasm"), program(10_000)).unwrap();
    let mut node = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_node_that_is_killed"])
        .env(DYING_NODE, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = until("a compiler", || compilers(node.id()).pop()).await;
    until("its rights", || status(pid, "NoNewPrivs").filter(|set| set == "1")).await;
    node.kill().unwrap();
    node.wait().unwrap();
    until("its end", || compilers(node.id()).is_empty().then_some(())).await;
    assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 1, "the key alone");
}
