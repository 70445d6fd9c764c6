//! What one user can do to everybody else: each hostile act runs against real processes, a control node and a node, while
//! another user writes, reads and calls a pod all the time.
//!
//! Both users show the same certificate, so the shares of users do not help the other one here.

mod acts;
mod bystander;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::sleep;

use self::{
    acts::{ALL, Act, Stage},
    bystander::{Bystander, Latency},
};
use crate::{
    client::Rest,
    cluster::Cluster,
    process::{Running, Usage, free_port},
};

/// How long each of the three looks takes, at least.
const LOOK: Duration = Duration::from_secs(4);
/// From the act to the end of the second look, at least, and one look after it has ended; what it made is deleted then.
const DURING: Duration = Duration::from_secs(10);
/// An act that takes longer is given up, and so is the deletion of what it made.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the processes' use of the machine.
const POLL: Duration = Duration::from_millis(100);
/// The pod of the other user.
const POD: &str = "bystander";

pub async fn run(only: &[String]) -> Result<()> {
    println!(
        "| act | answer | control node, MiB | node, MiB | node, threads | node, open files | log entries a second | writes, p99 (worst) ms | reads, p99 (worst) ms | calls of a pod, p99 (worst) ms | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let wanted = |act: &&Act| only.is_empty() || only.iter().any(|part| act.name.contains(part.as_str()));
    for act in ALL.iter().filter(wanted) {
        // Each has a cluster of its own: what the one before left behind shall not count.
        let mut bench = Bench::start().await?;
        bench.suffer(act).await.with_context(|| format!("while suffering {}", act.name))?;
    }
    Ok(())
}

struct Bench {
    cluster: Cluster,
    node: Running,
    stage: Stage,
    rest: Rest,
    bystander: Bystander,
}

/// What a look saw.
#[derive(Clone, Copy, Default)]
struct Look {
    control: Usage,
    node: Usage,
    /// Entries of raft's log a second, without those of the other user's writes.
    entries: f64,
    writes: Latency,
    reads: Latency,
    calls: Latency,
    failed: usize,
}

impl Bench {
    async fn start() -> Result<Self> {
        let cluster = Cluster::start(1).await?;
        let gateway = format!("127.0.0.1:{}", free_port()?);
        let mut command = std::process::Command::new(cluster.binary());
        let data_dir = cluster.path().join("node");
        command.args(["--log", "error", "node", "--name", "n1", "--data-dir"]).arg(&data_dir);
        command.args(["--fabric", "127.0.0.1:0", "--gateway", &gateway, "--join", cluster.address(0)]);
        let token = cluster.cli(&["token", "create", "--role", "node"])?;
        command.env("CORACLE_TOKEN", token.trim());
        let node = Running::start_until(&mut command, "gateway http")?;
        let wasm = coracle_sample_artifacts::wasm("hello-http");
        let wasm = wasm.to_str().context("the path of the sample is not UTF-8")?;
        cluster.cli(&["deploy", wasm, "--name", POD])?;
        // The image is the registry's now, for the acts too.
        cluster.cli(&["push", wasm, "hostile/http:1"])?;
        let client = cluster.client(0)?;
        let rest = client.rest().await?;
        let bystander = Bystander::start(&client, &gateway, POD).await?;
        let stage = Stage { client, namespace: "mallory".into() };
        let namespace =
            serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mallory"}});
        let (status, _) = rest.call("POST", "/api/v1/namespaces", namespace.to_string().into()).await?;
        ensure!(status == 201, "the namespace: HTTP {status}");
        Ok(Self { cluster, node, stage, rest, bystander })
    }

    async fn suffer(&mut self, act: &'static Act) -> Result<()> {
        sleep(LOOK).await;
        let before = self.look(LOOK, async { Ok(String::new()) }).await?.0;
        let stage = self.stage.clone();
        let acting =
            async move { tokio::time::timeout(PATIENCE, (act.run)(stage)).await.context("no end in time")? };
        let (during, answer) = self.look(DURING, acting).await?;
        let deleted = self.delete().await?;
        sleep(LOOK).await;
        let after = self.look(LOOK, async { Ok(String::new()) }).await?.0;
        let three = |of: fn(&Look) -> String| format!("{}, {}, {}", of(&before), of(&during), of(&after));
        println!(
            "| {} | {answer}{deleted} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            act.name,
            three(|look| look.control.mib.to_string()),
            three(|look| look.node.mib.to_string()),
            three(|look| look.node.threads.to_string()),
            three(|look| look.node.descriptors.to_string()),
            three(|look| format!("{:.1}", look.entries)),
            three(|look| look.writes.to_string()),
            three(|look| look.reads.to_string()),
            three(|look| look.calls.to_string()),
            three(|look| look.failed.to_string()),
        );
        Ok(())
    }

    /// Looks on for so long, and until `acting` has ended. Entries are counted from when it has.
    async fn look(
        &self,
        time: Duration,
        acting: impl Future<Output = Result<String>> + Send + 'static,
    ) -> Result<(Look, String)> {
        let begun = Instant::now();
        self.bystander.forget();
        let mut acting = tokio::spawn(acting);
        let mut answer = None;
        let mut look = Look::default();
        let mut rested = (begun, self.entries().await?);
        while begun.elapsed() < time || answer.is_none() || rested.0.elapsed() < LOOK {
            look.control =
                look.control.max(self.cluster.running(0).context("the control node runs")?.usage()?);
            look.node = look.node.max(self.node.usage()?);
            tokio::select! {
                said = &mut acting, if answer.is_none() => {
                    answer = Some(said.context("an act panicked")??);
                    rested = (Instant::now(), self.entries().await?);
                }
                () = sleep(POLL) => {}
            }
        }
        let seconds = rested.0.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let seen = self.bystander.seen();
        look.entries = (self.entries().await? - rested.1) as f64 / seconds;
        (look.writes, look.reads, look.calls, look.failed) =
            (seen.writes, seen.reads, seen.calls, seen.failed);
        Ok((look, answer.unwrap_or_default()))
    }

    /// Entries of the log that were not written by the other user.
    async fn entries(&self) -> Result<i64> {
        let (_, metrics) = self.rest.call("GET", "/metrics", Vec::new()).await?;
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        let line = metrics.lines().find_map(|line| line.strip_prefix("coracle_raft_commit_index "));
        let index: f64 = line.context("no commit index in /metrics")?.trim().parse()?;
        Ok(index as i64 - self.bystander.written() as i64)
    }

    /// Deletes what the act made: nothing, or what is wrong where that takes too long.
    async fn delete(&self) -> Result<String> {
        let path = format!("/api/v1/namespaces/{}", self.stage.namespace);
        self.rest.call("DELETE", &path, Vec::new()).await?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.rest.call("GET", &path, Vec::new()).await? {
                (404, _) => return Ok(String::new()),
                (200, _) => sleep(POLL).await,
                (status, _) => bail!("looking for the namespace: HTTP {status}"),
            }
        }
        Ok(format!("; its namespace is not gone after {} s", PATIENCE.as_secs()))
    }
}
