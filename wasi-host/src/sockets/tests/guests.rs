//! Programs with `std::net` as guests.

use crate::net::{Isolated, Namespace, NamespaceConfig, NetLimits};
use crate::tests::programs::{build, compile};
use crate::tests::{Beside, beside_others};
use crate::{ContainerLimits, ContainerSpec, Exit, Host, HostConfig, LogSink, Pod, PodLimits, Stdin};
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 128, 0, 7));

/// Keeps what a guest wrote.
#[derive(Default)]
struct Kept(Mutex<String>);

impl LogSink for Kept {
    fn write(&self, line: &[u8]) -> usize {
        self.0.lock().push_str(&String::from_utf8_lossy(line));
        line.len()
    }
}

struct Bench {
    host: Host,
    pod: Pod,
    net: Namespace,
    dir: tempfile::TempDir,
    _turn: Beside,
}

impl Bench {
    fn new() -> Self {
        let turn = beside_others();
        let dir = tempfile::tempdir().unwrap();
        let cache_dir = dir.path().join("cache");
        let config = HostConfig { cache_dir, guest_threads: 2, max_instances: 8, compiler: None };
        let host = Host::new(config).unwrap();
        let config = NamespaceConfig {
            hostname: "guest".into(),
            tenant: "default".into(),
            addresses: vec![POD],
            limits: NetLimits::default(),
        };
        let net = Namespace::new(config, Arc::new(Isolated));
        let pod = host.pod(PodLimits::default(), net.clone());
        Self { host, pod, net, dir, _turn: turn }
    }

    async fn start(&self, wasm: &Path, args: &[&str]) -> (crate::Container, Arc<Kept>) {
        let output = Arc::new(Kept::default());
        let spec = ContainerSpec {
            name: "guest".into(),
            artifact: self.host.prepare(wasm, "default").await.unwrap(),
            args: [&["guest"], args].concat().into_iter().map(str::to_owned).collect(),
            env: Vec::new(),
            mounts: Vec::new(),
            limits: ContainerLimits::default(),
            http_port: None,
            listen_ports: Vec::new(),
            http_timeout: None,
            working_dir: None,
            stdin: Stdin::AtEnd,
            stdout: output.clone(),
            stderr: output.clone(),
        };
        (self.pod.start(spec).unwrap(), output)
    }
}

#[tokio::test]
async fn a_pod_behaves_as_linux_does() {
    let bench = Bench::new();
    let native = Command::new(compile("sockets", None, bench.dir.path())).output().unwrap();
    let native = String::from_utf8(native.stdout).unwrap();
    assert!(native.contains("bind to a taken port: AddrInUse"), "{native}");
    let wasm = compile("sockets", Some("wasm32-wasip2"), bench.dir.path());
    let (guest, output) = bench.start(&wasm, &[]).await;
    let exit = guest.wait().await;
    let output = output.0.lock().clone();
    assert!(matches!(exit, Exit::Completed { code: 0 }), "{exit:?}\n{output}");
    assert_eq!(output, native);
    drop(guest);
    assert_eq!(bench.net.sockets(), 0, "an ended guest holds no socket");
}

#[tokio::test]
async fn echo_server_is_reached_from_outside_and_inside() {
    const TOTAL: usize = 8 * 1024 * 1024;
    let bench = Bench::new();
    let wasm = coracle_sample_artifacts::wasm("tcp-echo");
    let (server, output) = bench.start(&wasm, &["7777"]).await;
    let to = SocketAddr::new(POD, 7777);
    let conn = loop {
        match bench.net.deliver("10.128.9.9:4000".parse().unwrap(), to) {
            Ok(conn) => break conn,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let (mut read, mut write) = tokio::io::split(conn);
    let writer = tokio::spawn(async move {
        write.write_all(&vec![42; TOTAL]).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut echoed = Vec::new();
    read.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(echoed.len(), TOTAL);
    writer.await.unwrap();
    drop(read);

    let (client, answer) = bench.start(&wasm, &["--connect", "localhost:7777", "hello", "there"]).await;
    assert!(matches!(client.wait().await, Exit::Completed { code: 0 }));
    assert_eq!(&*answer.0.lock(), "hello there\n");
    assert!(output.0.lock().contains("10.128.9.9:4000: 8388608 bytes"), "{}", output.0.lock());
    server.kill();
    assert!(matches!(server.wait().await, Exit::Killed));
    drop(server);
    assert_eq!(
        bench.net.deliver("10.128.9.9:4001".parse().unwrap(), to).unwrap_err(),
        crate::net::NetError::ConnectionRefused
    );
}

const P3_OUTPUT: &str = "\
listening: true
connected: Ok(())
peers agree: true
sent all but 0 and it ended Ok(())
received 3145728 and it ended Ok(())
answered (0, Ok(())): answer, Ok(())
a second receive: Err(ErrorCode::InvalidState)
connect to a closed port: Err(ErrorCode::ConnectionRefused)
bind to a taken port: Err(ErrorCode::AddressInUse)
hop limit of zero: Err(ErrorCode::InvalidArgument)
to a peer that is gone, something is left: true, and it ended Err(ErrorCode::ConnectionBroken)
datagram Ok(()): hello
answer: Ok([98, 97, 99, 107])
to a closed port: Ok(()), then Err(ErrorCode::ConnectionRefused)
localhost: Ok([IpAddress::Ipv4((127, 0, 0, 1))])
nobody: Err(ErrorCode::NameUnresolvable)
";

#[tokio::test]
async fn sockets_of_wasi_03_serve_streams_and_datagrams() {
    let bench = Bench::new();
    let (guest, output) = bench.start(&build("sockets-p3"), &[]).await;
    let exit = guest.wait().await;
    let output = output.0.lock().clone();
    assert!(matches!(exit, Exit::Completed { code: 0 }), "{exit:?}\n{output}");
    assert_eq!(output, P3_OUTPUT);
    drop(guest);
    assert_eq!(bench.net.sockets(), 0, "an ended guest holds no socket");
}
