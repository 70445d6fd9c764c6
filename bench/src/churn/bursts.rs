//! What bursts of pods leave of the memory of a `coracle up`: 1,000 pods up and down, again and again, and once 3,000.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::time::sleep;

use crate::{
    client::Client,
    footprint,
    process::{Running, coracle, free_port},
    replicas::Deployments,
};

const PODS: usize = 1000;
const PEAK: usize = 3000;
/// What the process may have some minutes after the last pod.
const TARGET_MIB: f64 = 150.0;
/// Without one more pod that is Ready, or gone, for so long something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at the memory when all are gone.
const LOOK: Duration = Duration::from_secs(60);

pub async fn run(rounds: usize, rest: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let binary = coracle()?;
    let start = || footprint::up_at(&binary, folder.path(), &address, &["--nodes", "2"]);
    let mut up = start()?;
    let client = Client::of(&folder.path().join("kubeconfig"), &address)?;
    let deployments = Deployments { rest: client.rest().await? };
    push(&binary, folder.path())?;
    told("before", &up)?;
    for round in 1..=rounds {
        let took = burst(&deployments, PODS).await?;
        if round == 1 || round % 10 == 0 {
            told(&format!("{round} x {PODS} pods, {:.1} s", took.as_secs_f64()), &up)?;
        }
    }
    settle(&up, rest, &format!("after {rounds} x {PODS}")).await?;
    burst(&deployments, PEAK).await?;
    told(&format!("{PEAK} pods, then none"), &up)?;
    settle(&up, rest, &format!("after {PEAK}")).await?;
    drop(deployments);
    up.stop();
    up = start()?;
    sleep(LOOK.min(rest)).await;
    told("a restart", &up)
}

/// So many pods, until they are Ready, and until they are gone: how long that took.
async fn burst(deployments: &Deployments, pods: usize) -> Result<Duration> {
    let begun = Instant::now();
    deployments.make("burst", &["hello-http:1"], pods).await?;
    let ready = deployments.ready("burst", pods, PATIENCE).await?;
    ensure!(ready == pods, "{ready} of {pods} pods are Ready");
    deployments.delete("burst", PATIENCE).await?;
    Ok(begun.elapsed())
}

/// Looks on while nothing happens; fails where too much is left in the end.
async fn settle(up: &Running, rest: Duration, what: &str) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < rest {
        sleep(LOOK.min(rest)).await;
        told(&format!("{what}, {} s later", begun.elapsed().as_secs()), up)?;
    }
    let left = up.memory_mib()?.0;
    ensure!(left <= TARGET_MIB, "{what}: {left:.0} MiB are left, {TARGET_MIB:.0} may be");
    Ok(())
}

fn told(what: &str, up: &Running) -> Result<()> {
    let (rss, pss) = up.memory_mib()?;
    println!("bursts  {what:<40} {rss:>5.0} MiB (PSS {pss:.0}; target {TARGET_MIB:.0} at rest)");
    Ok(())
}

fn push(binary: &std::path::Path, data_dir: &std::path::Path) -> Result<()> {
    let status = std::process::Command::new(binary)
        .arg("push")
        .arg(coracle_sample_artifacts::wasm("hello-http"))
        .arg("hello-http:1")
        .arg("--kubeconfig")
        .arg(data_dir.join("kubeconfig"))
        .stdout(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "pushing hello-http: {status}");
    Ok(())
}
