//! Row 9: binary size, time from start to Ready, resident memory of an idle `coracle up`.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::process::{Running, coracle};

/// How long the cluster idles before its memory is read.
const IDLE: Duration = Duration::from_secs(10);

pub async fn run() -> Result<()> {
    let binary = coracle()?;
    let size = std::fs::metadata(&binary)?.len() as f64 / 1e6;
    println!("row 9  binary                      {size:.1} MB (target 60)");
    let folder = tempfile::tempdir().context("making a data dir")?;
    for start in ["first start", "resume"] {
        let begun = Instant::now();
        let mut up = up(&binary, folder.path())?;
        println!("row 9  up to Ready, {start:<12}   {} ms (target 1000)", begun.elapsed().as_millis());
        if start == "resume" {
            tokio::time::sleep(IDLE).await;
            let (rss, pss) = up.memory_mib()?;
            println!("row 9  idle RSS of up              {rss:.0} MiB (PSS {pss:.0}; target 120)");
        }
        up.stop();
    }
    for (count, label) in [("0", "control node alone"), ("1", "control node and node")] {
        let folder = tempfile::tempdir()?;
        let mut up = up_at(&binary, folder.path(), "127.0.0.1:0", &["--nodes", count])?;
        tokio::time::sleep(IDLE).await;
        let (rss, pss) = up.memory_mib()?;
        println!("row 9  idle RSS, {label:<22} {rss:.0} MiB (PSS {pss:.0})");
        up.stop();
    }
    Ok(())
}

/// `coracle up` on free ports, until it says that it is up.
pub fn up(binary: &Path, data_dir: &Path) -> Result<Running> {
    up_at(binary, data_dir, "127.0.0.1:0", &[])
}

/// The same with its API at an address, and with further options.
pub fn up_at(binary: &Path, data_dir: &Path, address: &str, more: &[&str]) -> Result<Running> {
    let mut command = Command::new(binary);
    command.args(["up", "--listen", address, "--gateway", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
    Running::start_until(command.args(more), "The cluster is up")
}
