//! The measurements: ours, the peer's and the ratio, from one run on one machine.
//!
//! `cargo run --release -p coracle-bench -- http|functions|density|rollout|store|failover|footprint|links|scale|roll|soak|hostile|churn`. Peers are found on
//! the PATH, or named by environment variables; what is missing is said and skipped. `cargo build --release` must have made
//! the binary.

mod churn;
mod client;
mod cluster;
mod density;
mod failover;
mod footprint;
mod functions;
mod hostile;
mod http_row;
mod links;
mod load;
mod node;
mod process;
mod replicas;
mod roll;
mod rollout;
mod scale;
mod soak;
mod store;

use std::{path::PathBuf, time::Duration};

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
    /// Row 2: functions at rest on one node, and how long a request takes that wakes one.
    Functions {
        #[arg(long, default_value_t = 1_000)]
        functions: usize,
    },
    /// Row 4: pods that a node takes, and what each costs it.
    Density {
        /// Of each kind.
        #[arg(long, default_value_t = 10_000)]
        pods: usize,
        /// Live instances that the node makes room for; 0 is what it finds room for by itself. Many need
        /// `sysctl vm.max_map_count`.
        #[arg(long, default_value_t = 0)]
        max_instances: u32,
    },
    /// Row 5: a Deployment on one node, from its apply until all its pods are Ready.
    Rollout {
        #[arg(long, default_value_t = 1_000)]
        pods: usize,
        #[arg(long, default_value_t = 3)]
        rounds: u32,
    },
    /// Row 7: replicated writes, linearizable reads and watch events of three voters, against etcd ($ETCD).
    Store {
        /// How often ours and the peer's run in turn, each for the given seconds.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Closed-loop clients, one run each.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 256])]
        clients: Vec<usize>,
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = store::Load::ALL)]
        loads: Vec<store::Load>,
    },
    /// Row 8: a leader killed until the next write, against etcd; a node killed until its pods are Ready elsewhere.
    Failover {
        /// How often.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// Row 9: binary size, resident memory of `coracle up`, time to Ready.
    Footprint,
    /// Links of nodes: what an event of a pod costs by how many nodes are linked, and what an idle link holds.
    Links {
        #[arg(long, default_value_t = 100_000)]
        pods: usize,
        /// Real links to a control node, over TLS.
        #[arg(long, default_value_t = 1_000)]
        real: usize,
    },
    /// Many objects and watches on one control node: memory, LIST, restart, snapshot.
    Scale {
        #[arg(long, default_value_t = 100_000)]
        objects: usize,
        #[arg(long, default_value_t = 1_000)]
        watches: usize,
    },
    /// A cluster grows to three and five voters, each is replaced, it shrinks and restarts, all under load.
    Roll {
        /// The binary of another build, of which the cluster is until its members restart: a rolling upgrade.
        #[arg(long)]
        from: Option<PathBuf>,
    },
    /// What one user can do to others: each hostile act beside a user who writes, reads and calls a pod all the time.
    /// Memory, threads, open files and the other user's throughput and latency before, during and after.
    Hostile {
        #[command(flatten)]
        choice: hostile::Choice,
    },
    /// A day's worth of pods on two nodes, and what is left of them in each process: nothing, or the command fails.
    Churn {
        #[arg(long, default_value_t = 100_000)]
        pods: usize,
        /// Pods at a time.
        #[arg(long, default_value_t = 96)]
        alive: usize,
        /// Instead: the memory of `coracle up` after bursts, 40 of 1,000 pods and one of 3,000.
        #[arg(long)]
        bursts: bool,
        /// Bursts of 1,000 pods.
        #[arg(long, default_value_t = 40, requires = "bursts")]
        rounds: usize,
        /// Minutes after the last pod.
        #[arg(long, default_value_t = 10, requires = "bursts")]
        minutes: u64,
    },
    /// Three control processes in network namespaces under random faults, and a checker of what clients saw. Needs
    /// root, iproute2 and nftables.
    Soak {
        /// How long faults go on.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Further seconds.
        #[arg(long = "and-seconds", default_value_t = 0)]
        and_seconds: u64,
        /// Repeats the faults of an earlier run; random otherwise.
        #[arg(long)]
        seed: Option<u64>,
        /// Size of the third member's data directory in MB, a tmpfs that is filled now and then; 0 for the real disk
        /// and no full disk.
        #[arg(long, default_value_t = 64)]
        small_mb: u64,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{}", machine());
    runtime.block_on(async {
        let time = Duration::from_secs(cli.seconds);
        match cli.row {
            Row::Http => http_row::run(time).await,
            Row::Functions { functions } => functions::run(functions.max(1), time).await,
            Row::Store { rounds, clients, loads } => store::run(time, rounds.max(1), &clients, &loads).await,
            Row::Failover { rounds } => failover::run(rounds.max(1)).await,
            Row::Footprint => footprint::run().await,
            Row::Links { pods, real } => links::run(pods, real).await,
            Row::Roll { from } => roll::run(from).await,
            Row::Soak { minutes, and_seconds, seed, small_mb } => {
                let time = Duration::from_secs(minutes * 60 + and_seconds);
                let seed = seed.unwrap_or_else(rand::random);
                soak::run(soak::Settings { time, seed, small_mb: Some(small_mb).filter(|mb| *mb > 0) }).await
            }
            Row::Hostile { choice } => hostile::run(&choice).await,
            Row::Density { pods, max_instances } => {
                density::run(&density::Settings { pods: pods.max(10), max_instances }).await
            }
            Row::Rollout { pods, rounds } => rollout::run(pods.max(1), rounds.max(1)).await,
            Row::Churn { bursts: true, rounds, minutes, .. } => {
                churn::bursts::run(rounds.max(1), Duration::from_secs(60 * minutes)).await
            }
            Row::Churn { pods, alive, .. } => {
                churn::run(churn::Settings { pods: pods.max(10), alive: alive.max(1) }).await
            }
            Row::Scale { objects, watches } => scale::run(objects.max(1), watches).await,
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
