//! Row 1: an HTTP component through the gateway against the same component under `wasmtime serve`, loaded by wrk.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    footprint::up,
    process::{Running, coracle, free_port, peer, wait_port},
};

/// How long the gateway may take until it has a route.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections of wrk, on one thread.
const CONNECTIONS: u32 = 32;

/// `wasmtime serve` with its pool tuned by flags.
const TUNED: &[&str] = &[
    "-O",
    "pooling-allocator=y",
    "-O",
    "pooling-memory-keep-resident=262144",
    "-O",
    "pooling-table-keep-resident=65536",
    "-O",
    "pooling-pagemap-scan=auto",
];

struct Load {
    per_second: f64,
    p50: String,
    p99: String,
}

pub async fn run(time: Duration) -> Result<()> {
    let Some(wrk) = peer("WRK", "wrk", "apt-get install wrk") else { return Ok(()) };
    let wasmtime = peer("WASMTIME", "wasmtime", "cargo install wasmtime-cli --version 48");
    let folder = tempfile::tempdir()?;
    let binary = coracle()?;
    let cluster = up(&binary, folder.path())?;
    for (name, label) in
        [("hello-http", "0.2, fresh instance a request"), ("hello-http-p3", "0.3, reused instances")]
    {
        let wasm = coracle_sample_artifacts::wasm(name);
        let url = deploy(&binary, folder.path(), name, &wasm)?;
        wait_route(&url)?;
        let ours = load(&wrk, &url, time)?;
        print(label, "coracle, gateway", &ours, None);
        let Some(wasmtime) = &wasmtime else { continue };
        for (flags, peer) in [(&[][..], "wasmtime serve"), (TUNED, "wasmtime serve, tuned")] {
            let theirs = serve(wasmtime, &wrk, &wasm, flags, time)?;
            print(label, peer, &theirs, Some(ours.per_second / theirs.per_second));
        }
    }
    drop(cluster);
    Ok(())
}

fn deploy(binary: &Path, data_dir: &Path, name: &str, wasm: &Path) -> Result<String> {
    let output = Command::new(binary)
        .args(["deploy", "--name", name, "--kubeconfig"])
        .arg(data_dir.join("kubeconfig"))
        .arg(wasm)
        .output()
        .context("running coracle deploy")?;
    if !output.status.success() {
        bail!("deploying {name} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_string())
}

/// Waits until the gateway has heard of the pods, which is somewhat later than the Deployment.
fn wait_route(url: &str) -> Result<()> {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let port = host.rsplit_once(':').map_or("80", |(_, port)| port);
    let deadline = Instant::now() + ROUTE_TIMEOUT;
    loop {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}"))?;
        stream
            .write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        // What is no text is no 200 either.
        let _ = stream.read_to_string(&mut answer);
        if answer.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{url} does not answer: {answer}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn serve(wasmtime: &Path, wrk: &Path, wasm: &Path, flags: &[&str], time: Duration) -> Result<Load> {
    let port = free_port()?;
    let mut command = Command::new(wasmtime);
    command.arg("serve").args(["-S", "cli", "-S", "p3", "-W", "component-model-async"]).args(flags);
    command.args(["--addr", &format!("127.0.0.1:{port}")]).arg(wasm);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let _peer = Running::start(&mut command)?;
    wait_port(port)?;
    load(wrk, &format!("http://127.0.0.1:{port}/"), time)
}

fn load(wrk: &Path, url: &str, time: Duration) -> Result<Load> {
    // `NAME.localhost` is the loopback; wrk's resolver does not know that everywhere.
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let port = host.rsplit_once(':').map_or("80", |(_, port)| port);
    let warm_up = Duration::from_secs(1);
    let mut text = String::new();
    for seconds in [warm_up, time] {
        let begun = Instant::now();
        let output = Command::new(wrk)
            .args(["-t1", "--latency", "-H", &format!("Host: {host}")])
            .arg(format!("-c{CONNECTIONS}"))
            .arg(format!("-d{}s", seconds.as_secs()))
            .arg(format!("http://127.0.0.1:{port}/"))
            .output()
            .context("running wrk")?;
        text = String::from_utf8_lossy(&output.stdout).into_owned();
        if begun.elapsed() < seconds / 2 || text.contains("Non-2xx") {
            bail!("wrk did not get good answers from {url}:\n{text}");
        }
    }
    let field = |name: &str| {
        let line = text.lines().map(str::trim).find(|line| line.starts_with(name));
        line.map(|line| line[name.len()..].trim().to_string())
            .with_context(|| format!("no {name} in wrk's output"))
    };
    Ok(Load { per_second: field("Requests/sec:")?.parse()?, p50: field("50%")?, p99: field("99%")? })
}

fn print(label: &str, who: &str, load: &Load, ratio: Option<f64>) {
    let ratio = ratio.map(|ratio| format!("ours is {ratio:.2} x")).unwrap_or_default();
    println!(
        "row 1  {label:<30} {who:<22} {:>8.0}/s  p50 {:>8}  p99 {:>8}  {ratio}",
        load.per_second, load.p50, load.p99
    );
}
