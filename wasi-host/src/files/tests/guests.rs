//! Guests that use files, and what others notice of them.

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use tempfile::TempDir;

use super::*;
use crate::net::{Isolated, Namespace, NamespaceConfig, NetLimits};
use crate::tests::programs::{build, compile};
use crate::tests::{Beside, Lines, beside_others};
use crate::{
    Container, ContainerLimits, ContainerSpec, Exit, Host, HostConfig, Mount, Pod, PodLimits, Stdin, Volume,
};

/// Longer than anything here takes on a busy machine, and shorter than a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Threads for what blocks that the test's runtime has: fewer than the calls that hang.
const RUNTIME_BLOCKING: usize = 4;

struct Bench {
    host: Host,
    wasm: PathBuf,
    dir: TempDir,
    _turn: Beside,
}

impl Bench {
    fn new(wasm: PathBuf) -> Bench {
        let turn = beside_others();
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("data")).expect("made");
        let cache_dir = dir.path().join("cache");
        let config = HostConfig { cache_dir, guest_threads: 1, max_instances: 400, compiler: None };
        let host = Host::new(config).expect("a host");
        Bench { host, wasm, dir, _turn: turn }
    }

    fn pool(&self) -> &Pool {
        self.host.files()
    }

    fn pod(&self, namespace: &str, last: u8) -> Pod {
        let config = NamespaceConfig {
            hostname: "guest".into(),
            tenant: namespace.into(),
            addresses: vec![IpAddr::from([10, 128, 0, last])],
            limits: NetLimits::default(),
        };
        self.host.pod(PodLimits::default(), Namespace::new(config, Arc::new(Isolated)))
    }

    /// Starts a container that sees the folder as `/data`.
    async fn start(&self, pod: &Pod, args: &[&str]) -> (Container, Arc<Lines>) {
        let (spec, output) = self.spec(args).await;
        (pod.start(spec).expect("started"), output)
    }

    async fn spec(&self, args: &[&str]) -> (ContainerSpec, Arc<Lines>) {
        let output = Arc::new(Lines::default());
        let mount = Mount {
            host: self.dir.path().join("data"),
            pin: None,
            guest: "/data".to_owned(),
            read_only: false,
            volume: Some(Volume { dir: self.dir.path().join("data"), bytes_max: None }),
        };
        let spec = ContainerSpec {
            name: "guest".into(),
            artifact: self.host.prepare(&self.wasm, "default").await.expect("runnable"),
            args: [&["files"], args].concat().into_iter().map(str::to_owned).collect(),
            env: Vec::new(),
            mounts: vec![mount],
            limits: ContainerLimits::default(),
            http_port: None,
            listen_ports: Vec::new(),
            http_timeout: None,
            working_dir: None,
            stdin: Stdin::AtEnd,
            stdout: output.clone(),
            stderr: output.clone(),
        };
        (spec, output)
    }

    /// Containers that open a pipe that nobody writes to.
    async fn hang(&self, pod: &Pod, count: usize) -> Vec<Container> {
        let mut stuck = Vec::new();
        for _ in 0..count {
            stuck.push(self.start(pod, &["open", "/data/pipe"]).await.0);
        }
        stuck
    }

    async fn done(&self, pod: &Pod, args: &[&str]) -> String {
        let (guest, output) = self.start(pod, args).await;
        let exit = guest.wait().await;
        assert!(matches!(exit, Exit::Completed { code: 0 }), "{exit:?}\n{}", output.text());
        output.text()
    }
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Runs a test on a runtime that ends with it, whatever hangs there.
fn on_runtime(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let builder = builder.worker_threads(2).max_blocking_threads(RUNTIME_BLOCKING).enable_all();
    let runtime = builder.build().expect("a runtime");
    let done = runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await });
    runtime.shutdown_background();
    done.expect("nothing hangs but what is to");
}

#[test]
fn files_that_hang_hold_up_their_own_pod_alone() {
    on_runtime(async {
        let wasm_dir = tempfile::tempdir().expect("a directory");
        let bench = Bench::new(compile("files", Some("wasm32-wasip2"), wasm_dir.path()));
        let pipe = bench.dir.path().join("data/pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("made");
        let (first, second) = (bench.pod("hostile", 1), bench.pod("hostile", 2));
        let other = bench.pod("other", 3);
        // A third, and the one that each has for certain.
        let of_pod = CALLS_MAX.div_ceil(3) + 1;
        let of_namespace = CALLS_MAX / 2 + 2;
        let stuck = bench.hang(&first, of_pod + 3).await;
        until(|| bench.pool().running() == of_pod && bench.pool().waiting() == 3).await;
        // The process' own work, and other pods' in that namespace and in others, does not notice.
        assert_eq!(tokio::task::spawn_blocking(|| 7).await.expect("done"), 7);
        tokio::fs::metadata(&pipe).await.expect("there");
        for pod in [&other, &second] {
            std::fs::create_dir(bench.dir.path().join("data/own")).expect("made");
            let told = bench.done(pod, &["/data/own"]).await;
            assert!(told.contains("300 entries"), "{told}");
            std::fs::remove_dir(bench.dir.path().join("data/own")).expect("empty");
        }
        // The kernel goes on with what is killed: a pod that takes its place gets what is left of the namespace.
        for container in &stuck {
            container.kill();
            container.wait().await;
        }
        until(|| bench.pool().waiting() == 0).await;
        assert_eq!(bench.pool().running(), of_pod);
        let again = bench.hang(&second, CALLS_MAX).await;
        until(|| bench.pool().running() == of_namespace).await;
        until(|| bench.pool().waiting() == CALLS_MAX + of_pod - of_namespace).await;
        assert!(bench.pool().threads() <= CALLS_MAX);
        assert_eq!(bench.done(&other, &["open", "/data"]).await, "opened: Ok(())\n");
        // A writer lets all readers go on.
        let _writer = File::options().read(true).write(true).open(&pipe).expect("open");
        for container in again {
            assert_eq!(container.wait().await, Exit::Completed { code: 0 });
        }
        until(|| bench.pool().running() == 0).await;
    });
}

#[tokio::test]
async fn files_of_a_pod_behave_as_on_linux() {
    let programs = tempfile::tempdir().expect("a directory");
    let data = programs.path().join("data");
    std::fs::create_dir(&data).expect("made");
    let native = Command::new(compile("files", None, programs.path())).arg(&data).output().expect("runs");
    let native = String::from_utf8_lossy(&native.stdout).into_owned();
    assert!(native.contains("left: 0"), "{native}");
    for target in ["wasm32-wasip1", "wasm32-wasip2"] {
        let bench = Bench::new(compile("files", Some(target), programs.path()));
        assert_eq!(bench.done(&bench.pod("default", 1), &["/data"]).await, native, "{target}");
        until(|| bench.pool().running() == 0).await;
    }
}

const P3_OUTPUT: &str = "\
mounted at /data
wrote 200000: Ok(())
appended: Ok(())
read 200003, end: [1, 101, 110, 100], Ok(())
size 200003, regular: true
from a place on: [101, 110, 100], Ok(())
a directory read: 0, Err(ErrorCode::IsDirectory)
written where it is read only: Err(ErrorCode::BadDescriptor)
200 entries, first 000, Ok(())
entries of a file: 0, Err(ErrorCode::NotDirectory)
not there: Err(ErrorCode::NoEntry)
renamed: Ok(())
removed: Ok(())
out of the directory: Err(ErrorCode::NotPermitted)
";

#[tokio::test]
async fn relative_paths_begin_in_the_working_directory() {
    let wasm_dir = tempfile::tempdir().expect("a directory");
    for target in ["wasm32-wasip1", "wasm32-wasip2"] {
        let bench = Bench::new(compile("files", Some(target), wasm_dir.path()));
        std::fs::create_dir(bench.dir.path().join("data/desk")).expect("made");
        std::fs::write(bench.dir.path().join("data/desk/note"), "").expect("written");
        let pod = bench.pod("default", 1);
        for (path, found) in
            [("note", true), ("./note", true), ("/data/desk/note", true), ("data/note", false)]
        {
            let (mut spec, output) = bench.spec(&["open", path]).await;
            spec.working_dir = Some("/data/desk".to_owned());
            let host = bench.dir.path().join("data/desk");
            spec.mounts.push(Mount { host, guest: ".".to_owned(), ..spec.mounts[0].clone() });
            let exit = pod.start(spec).expect("started").wait().await;
            assert!(exit.is_success(), "{exit:?}");
            let expected = if found { "opened: Ok(())\n" } else { "opened: Err(NotFound)\n" };
            assert_eq!(output.text(), expected, "{path} of {target}");
        }
    }
}

#[tokio::test]
async fn files_of_wasi_03_are_served() {
    let bench = Bench::new(build("files-p3"));
    let told = bench.done(&bench.pod("default", 1), &[]).await;
    assert_eq!(told, P3_OUTPUT);
    until(|| bench.pool().running() == 0).await;
}
