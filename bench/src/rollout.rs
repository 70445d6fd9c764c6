//! Row 5: a Deployment of many pods on one node, from its apply until all are Ready.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{load::ms, replicas::Replicas};

/// After this long something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(pods: usize, rounds: u32) -> Result<()> {
    let bench = Replicas::start(&["hello-http"], &[]).await?;
    // The component is compiled and in memory before anything is timed.
    bench.deployments.make("first", &["hello-http:1"], 1).await?;
    bench.deployments.ready("first", 1, PATIENCE).await?;
    bench.deployments.delete("first", PATIENCE).await?;
    let mut times = Vec::new();
    for round in 0..rounds {
        let name = format!("round-{round}");
        let begun = Instant::now();
        bench.deployments.make(&name, &["hello-http:1"], pods).await?;
        let ready = bench.deployments.ready(&name, pods, PATIENCE).await?;
        ensure!(ready == pods, "{ready} of {pods} pods are Ready, and no more");
        times.push(begun.elapsed());
        bench.deployments.delete(&name, PATIENCE * 5).await?;
    }
    times.sort_unstable();
    let (median, worst) = (ms(times[times.len() / 2]), ms(times[times.len() - 1]));
    println!(
        "row 5  {pods} pods on one node, apply -> all Ready  median {median:.0} ms  worst {worst:.0} ms of {rounds} (target 2000 for 1,000)"
    );
    Ok(())
}
