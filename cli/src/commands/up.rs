//! `coracle up`: a whole cluster in this process, until Ctrl-C.

use std::time::Instant;

use anyhow::Result;
use indicatif::ProgressBar;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    args::UpArgs,
    client::default_data_dir,
    local_cluster::{LocalCluster, Shape},
    service_manager,
};

/// What shells say of a program that Ctrl-C, or SIGTERM, has ended.
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

pub async fn run(args: &UpArgs) -> Result<()> {
    let begun = Instant::now();
    let shape = Shape {
        data_dir: args.data_dir.clone().unwrap_or_else(default_data_dir),
        control: args.control,
        nodes: args.nodes,
        listen: args.listen,
        gateway: args.gateway,
        access_log: args.access.open()?,
    };
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    spinner.set_message("starting the cluster");
    let cluster = LocalCluster::start(&shape).await?;
    let mut stop = StopSignals::listen();
    spinner.finish_and_clear();
    println!("The cluster is up ({} ms).", begun.elapsed().as_millis());
    println!("  API         https://{}", cluster.address());
    if let Some(gateway) = cluster.gateway() {
        println!("  gateway     http://{gateway}");
    }
    println!("  data        {}", shape.data_dir.display());
    println!("  kubeconfig  export KUBECONFIG={}", cluster.kubeconfig.display());
    println!("Ctrl-C stops it; the same command resumes it.");
    service_manager::ready();
    let reason = tokio::select! {
        _ = stop.next() => None,
        reason = cluster.failed() => Some(reason),
    };
    service_manager::stopping();
    stopping(cluster.shutdown()).await;
    reason.map_or(Ok(()), Err)
}

/// Waits until all has stopped: pods may take their grace to end. Whoever asks again does not want to wait.
pub async fn stopping(stop: impl Future<Output = ()>) {
    println!("Stopping. Ctrl-C again stops at once.");
    tokio::select! {
        () = stop => {}
        () = stop_asked() => {}
    }
}

/// Resolves at Ctrl-C or SIGTERM.
pub async fn stop_asked() {
    stop_signal().await;
}

/// As [`stop_asked`], with the code by which shells know a program that the signal has ended.
pub async fn stop_signal() -> u8 {
    StopSignals::listen().next().await
}

/// Ctrl-C and SIGTERM, heard from the moment at which this is made: before anybody is told that there is something to stop.
pub struct StopSignals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl StopSignals {
    pub fn listen() -> Self {
        let hear = |kind| signal(kind).ok();
        Self { interrupt: hear(SignalKind::interrupt()), terminate: hear(SignalKind::terminate()) }
    }

    /// The next one's code.
    pub async fn next(&mut self) -> u8 {
        async fn heard(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => drop(signal.recv().await),
                // One that cannot be heard does what it always does.
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = heard(&mut self.terminate) => TERMINATED,
            () = heard(&mut self.interrupt) => INTERRUPTED,
        }
    }
}
