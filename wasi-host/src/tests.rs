//! Guests of every kind, run end to end: what they do, and what they cannot do to others.

pub mod answers;
mod artifacts;
mod clients;
mod code_store;
mod commands;
mod config;
mod cpu;
mod cut;
mod growing;
mod holdings;
pub mod log;
mod pods;
mod preview1;
pub mod programs;
mod refusals;
mod seats;
mod serving;
mod tally;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tempfile::TempDir;

use crate::logs::LogSink;
use crate::net::{Isolated, Namespace, NamespaceConfig, NetLimits};
use crate::{Artifact, Container, ContainerLimits, ContainerSpec, Host, HostConfig, Pod, PodLimits, Stdin};

/// Live instances of a test's host: its pools are made for each test anew.
const INSTANCES: u32 = 32;

/// Guests of tests run beside each other, but for those whose CPU time is measured.
static GUESTS: RwLock<()> = RwLock::new(());

/// The right to run guests beside those of other tests.
pub type Beside = RwLockReadGuard<'static, ()>;

pub fn beside_others() -> Beside {
    GUESTS.read()
}

/// Keeps what a guest wrote.
#[derive(Default)]
pub struct Lines(Mutex<String>);

impl LogSink for Lines {
    fn write(&self, line: &[u8]) -> usize {
        self.0.lock().push_str(&String::from_utf8_lossy(line));
        line.len()
    }
}

impl Lines {
    pub fn text(&self) -> String {
        self.0.lock().clone()
    }
}

/// A host with a directory of its own for its cache and its files.
struct Bench {
    host: Host,
    dir: TempDir,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    _turn: Turn,
}

/// Given up when its bench goes.
enum Turn {
    Beside { _right: Beside },
    Alone { _right: RwLockWriteGuard<'static, ()> },
}

impl Bench {
    fn new(guest_threads: usize) -> Bench {
        Bench::with(guest_threads, Turn::Beside { _right: beside_others() })
    }

    /// One beside which no other test runs guests.
    fn alone() -> Bench {
        Bench::with(1, Turn::Alone { _right: GUESTS.write() })
    }

    fn with(guest_threads: usize, turn: Turn) -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let host = host(&dir, guest_threads);
        Bench { host, dir, stdout: Arc::default(), stderr: Arc::default(), _turn: turn }
    }

    fn pod(&self, limits: PodLimits) -> Pod {
        self.host.pod(limits, namespace())
    }

    /// A pod of another Kubernetes namespace.
    fn pod_of(&self, tenant: &str, limits: PodLimits) -> Pod {
        self.host.pod(limits, namespace_of(tenant))
    }

    /// Writes a module or component in text form to a file.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, wat::parse_str(text).expect("valid text")).expect("written");
        path
    }

    async fn prepare(&self, text: &str) -> Arc<Artifact> {
        let path = self.write("guest.wasm", text);
        self.host.prepare(&path, "default").await.expect("a runnable artifact")
    }

    async fn sample(&self, name: &str) -> Arc<Artifact> {
        self.host
            .prepare(&coracle_sample_artifacts::wasm(name), "default")
            .await
            .expect("a runnable artifact")
    }

    fn spec(&self, artifact: Arc<Artifact>) -> ContainerSpec {
        ContainerSpec {
            name: "test".to_owned(),
            artifact,
            args: vec!["guest".to_owned()],
            env: Vec::new(),
            mounts: Vec::new(),
            limits: ContainerLimits::default(),
            http_port: None,
            listen_ports: Vec::new(),
            http_timeout: None,
            working_dir: None,
            stdin: Stdin::AtEnd,
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
        }
    }

    fn start(&self, artifact: Arc<Artifact>) -> Container {
        self.pod(PodLimits::default()).start(self.spec(artifact)).expect("started")
    }
}

fn host(dir: &TempDir, guest_threads: usize) -> Host {
    let cache_dir = dir.path().join("cache");
    let config = HostConfig { cache_dir, guest_threads, max_instances: INSTANCES, compiler: None };
    Host::new(config).expect("a host")
}

fn namespace() -> Namespace {
    namespace_of("default")
}

/// A pod's network in a Kubernetes namespace.
fn namespace_of(tenant: &str) -> Namespace {
    let config = NamespaceConfig {
        hostname: "pod-1".to_owned(),
        tenant: tenant.into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 128, 0, 7))],
        limits: NetLimits::default(),
    };
    Namespace::new(config, Arc::new(Isolated))
}

/// A preview 1 module whose `_start` is `body`, with what the tests need of WASI.
fn module(body: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 1024) "hello from preview 1\n")
            (func (export "_start") {body}))"#
    )
}

/// Waits for input, which comes to its end when it is stopped.
fn waiter() -> String {
    module(
        "(i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 8))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))",
    )
}

/// Loops for ever.
fn spinner() -> String {
    module("(loop $again (br $again))")
}
