//! Row 4: how many pods a node takes, and what each costs it: HTTP components that nobody calls, and programs that wait in
//! accept.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::replicas::Replicas;

/// Without one more that is Ready for so long a node is full.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before memory is read.
const SETTLE: Duration = Duration::from_secs(3);
/// Where it is read on the way, in parts of all.
const STEPS: &[(usize, usize)] = &[(1, 10), (1, 2), (1, 1)];

pub struct Settings {
    pub pods: usize,
    /// As `coracle node --max-instances`.
    pub max_instances: u32,
}

pub async fn run(settings: &Settings) -> Result<()> {
    let kinds: [(&str, &str, &[&str], f64); 2] = [
        ("idle HTTP pods", "hello-http", &["hello-http:1"], 50.0),
        ("live command pods in accept", "churn", &["churn:1", "hold"], 120.0),
    ];
    for (what, image, words, target) in kinds {
        // The limit is the kernel's too: `sysctl vm.max_map_count`.
        let more =
            ["--pods", &settings.pods.to_string(), "--max-instances", &settings.max_instances.to_string()];
        let bench = Replicas::start(&[image], &more.map(str::to_owned)).await?;
        // The component is compiled and in memory before anything is counted.
        bench.deployments.make("pods", words, 1).await?;
        bench.deployments.ready("pods", 1, PATIENCE).await?;
        sleep(SETTLE).await;
        let before = bench.node.running.memory_mib()?.0;
        for (part, of) in STEPS {
            let wanted = settings.pods * part / of;
            bench.deployments.scale("pods", wanted).await?;
            let ready = bench.deployments.ready("pods", wanted, PATIENCE).await?;
            sleep(SETTLE).await;
            let usage = bench.node.running.usage()?;
            let memory = bench.node.running.memory_mib()?.0;
            let each = (memory - before) * 1024.0 / (ready.saturating_sub(1).max(1)) as f64;
            println!(
                "row 4  {what:<28} {ready:>6} of {wanted} Ready  {each:>6.1} KiB each (target {target:.0} KB)  node {memory:.0} MiB, \
                 {} threads, {} open files, control node {:.0} MiB",
                usage.threads,
                usage.descriptors,
                bench.cluster.running(0).map_or(Ok((0.0, 0.0)), |control| control.memory_mib())?.0,
            );
            if ready < wanted {
                break;
            }
        }
    }
    Ok(())
}
