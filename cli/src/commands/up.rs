//! `coracle up`: a whole cluster in this process, until Ctrl-C.

use std::time::Instant;

use anyhow::Result;
use indicatif::ProgressBar;

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
        () = stop_asked() => None,
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
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return INTERRUPTED;
    };
    tokio::select! {
        _ = terminate.recv() => TERMINATED,
        _ = tokio::signal::ctrl_c() => INTERRUPTED,
    }
}
