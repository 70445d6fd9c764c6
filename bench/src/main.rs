//! The measurements: ours, the peer's and the ratio, from one run on one machine.
//!
//! `cargo run --release -p coracle-bench -- http|store|footprint`. Peers are found on the PATH, or named by
//! environment variables; what is missing is said and skipped. `cargo build --release` must have made the binary.

mod footprint;
mod http_row;
mod load;
mod process;
mod store;

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Coracle's measurements, peers beside us")]
struct Cli {
    /// How long one load runs, in seconds.
    #[arg(long, default_value_t = 8, global = true)]
    seconds: u64,
    #[command(subcommand)]
    row: Row,
}

#[derive(Subcommand)]
enum Row {
    /// Row 1: HTTP components through the gateway, against `wasmtime serve` ($WASMTIME), loaded by wrk.
    Http,
    /// Row 7: replicated writes and linearizable reads of three voters, against etcd.
    Store,
    /// Row 9: binary size, resident memory of `coracle up`, time to Ready.
    Footprint,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{}", machine());
    runtime.block_on(async {
        let time = Duration::from_secs(cli.seconds);
        match cli.row {
            Row::Http => http_row::run(time).await,
            Row::Store => store::run(time).await,
            Row::Footprint => footprint::run().await,
        }
    })
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([' ', '\t', ':']);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    format!("machine: {cores} cores, {model}, Linux {kernel}")
}
