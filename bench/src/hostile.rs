//! What one user can do to everybody else: each hostile act runs against real processes, a control node and a node, while
//! another user writes, reads and calls a pod on that node all the time.
//!
//! Both users show the same certificate, so the shares of users do not help the other one here.

mod acts;
mod bystander;
mod look;
mod surroundings;

use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::time::sleep;

use self::{
    acts::{ALL, Act, Against, Needs, Stage, guests, web},
    bystander::Bystander,
    look::Look,
    surroundings::{NameServer, Outside, on_a_small_disk},
};
use crate::{
    client::Rest,
    cluster::Cluster,
    process::{Running, free_port},
};

/// How long each of the three looks takes, at least.
const LOOK: Duration = Duration::from_secs(4);
/// From the act to the end of the second look, at least, and one look after it has ended; what it made is deleted then.
const DURING: Duration = Duration::from_secs(10);
/// An act that takes longer is given up, and so is the deletion of what it made.
const PATIENCE: Duration = Duration::from_secs(180);
/// How much hostile clients give way to the processes that they attack.
const NICE: i32 = 19;
/// Between two looks at the processes' use of the machine.
const POLL: Duration = Duration::from_millis(100);
/// The pod of the other user, its node, and the other node where there is one.
const POD: &str = "bystander";
const NODE: &str = "n1";
const SECOND_NODE: &str = "n2";
/// The image of a pod that is harmless.
const HARMLESS: &str = "hostile/http:1";
/// Lets the pods of a namespace open connections to beyond the cluster.
const EGRESS: &str = "coracle.dev/egress";

/// Which acts.
#[derive(Debug, clap::Args)]
pub struct Choice {
    /// Only the acts whose names contain one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only the acts of guests, pods and clients against a node.
    #[arg(long, conflicts_with = "control")]
    node: bool,
    /// Only the acts against a control node.
    #[arg(long)]
    control: bool,
}

impl Choice {
    fn has(&self, act: &Act) -> bool {
        let named = self.only.is_empty() || self.only.iter().any(|part| act.name.contains(part.as_str()));
        let against = match act.against {
            Against::Control => !self.node,
            Against::Node => !self.control,
        };
        named && against
    }
}

/// Prints a table for each kind of act. An act that cannot be run here is told and passed over; one whose cluster fails
/// ends nothing but itself.
pub async fn run(choice: &Choice) -> Result<()> {
    let mut failed = Vec::new();
    for against in [Against::Control, Against::Node] {
        let mut acts = ALL.iter().filter(|act| act.against == against && choice.has(act)).peekable();
        if acts.peek().is_some() {
            println!("\n{}", look::head(against));
        }
        for act in acts {
            // Each has a cluster of its own: what the one before left behind shall not count.
            let suffered = async { Bench::start(act).await?.suffer(act).await }.await;
            if let Err(error) = suffered {
                eprintln!("not measured: {}: {error:#}", act.name);
                failed.push(act.name);
            }
        }
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join("; "));
    Ok(())
}

/// What is declared first ends first.
struct Bench {
    bystander: Bystander,
    node: Running,
    _second_node: Option<Running>,
    cluster: Cluster,
    stage: Stage,
    rest: Rest,
}

impl Bench {
    async fn start(act: &Act) -> Result<Self> {
        let outside = (act.needs == Needs::Outside).then(Outside::make).transpose()?.map(Arc::new);
        let cluster = Cluster::start(1).await?;
        let name_server = match act.needs {
            Needs::NameServer => Some(NameServer::start(cluster.path())?),
            _ => None,
        };
        let here = if outside.is_some() { Outside::here() } else { "127.0.0.1" };
        let gateway = format!("{here}:{}", free_port()?);
        let fabric = format!("127.0.0.1:{}", free_port()?);
        let node =
            start_node(&cluster, NODE, &gateway, &fabric, |command| match (&name_server, act.needs) {
                (Some(name_server), _) => Ok(name_server.within(command)),
                (None, Needs::SmallDisk) => on_a_small_disk(&cluster.path().join(NODE), command),
                (None, _) => Ok(command),
            })?;
        let wasm = coracle_sample_artifacts::wasm("hello-http");
        let path = wasm.to_str().context("the path of the sample is not UTF-8")?;
        cluster.cli(&["deploy", path, "--name", POD])?;
        let client = cluster.client(0)?;
        let rest = client.rest().await?;
        let stage = Stage {
            client: client.clone(),
            namespace: "mallory".into(),
            gateway: gateway.clone(),
            fabric,
            node: node.id(),
            node_dir: cluster.path().join(NODE),
            outside,
            binary: cluster.binary().to_owned(),
            kubeconfig: cluster.data_dir(0).join("kubeconfig"),
        };
        stage.push(HARMLESS, &std::fs::read(&wasm)?).await?;
        let goes_out = matches!(act.needs, Needs::Outside | Needs::NameServer);
        let labels = if goes_out { json!({EGRESS: "allow"}) } else { json!({}) };
        let metadata = json!({"name": stage.namespace, "labels": labels});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        let (status, _) = rest.call("POST", "/api/v1/namespaces", namespace.to_string().into()).await?;
        ensure!(status == 201, "the namespace: HTTP {status}");
        if goes_out {
            let patch = json!({"metadata": {"labels": {EGRESS: "allow"}}}).to_string();
            let kind = "application/merge-patch+json";
            let (status, _) = rest.send_as(kind, "PATCH", "/api/v1/namespaces/default", patch).await?;
            ensure!(status == 200, "the other namespace: HTTP {status}");
        }
        let on_node = act.against == Against::Node;
        if on_node {
            warm_up(&stage, &rest).await?;
        }
        // Only now, so that the other user's pod is on the first.
        let second_node = match act.needs {
            Needs::SecondNode => {
                let gateway = format!("127.0.0.1:{}", free_port()?);
                Some(start_node(&cluster, SECOND_NODE, &gateway, "127.0.0.1:0", Ok)?)
            }
            _ => None,
        };
        let starts = on_node.then_some((HARMLESS, NODE));
        let bystander = Bystander::start(&client, &gateway, POD, starts).await?;
        Ok(Self { bystander, node, _second_node: second_node, cluster, stage, rest })
    }

    async fn suffer(&mut self, act: &'static Act) -> Result<()> {
        sleep(LOOK).await;
        let before = self.look(LOOK, async { Ok(String::new()) }).await?.0;
        let stage = self.stage.clone();
        let (during, answer) = self.look(DURING, on_threads_of_its_own(act, stage)).await?;
        let deleted = self.delete().await?;
        sleep(LOOK).await;
        let after = self.look(LOOK, async { Ok(String::new()) }).await?.0;
        println!("{}", look::row(act, &format!("{answer}{deleted}"), [before, during, after]));
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
        let used = self.node.cpu_time()?;
        while begun.elapsed() < time || answer.is_none() || rested.0.elapsed() < LOOK {
            look.control =
                look.control.max(self.cluster.running(0).context("the control node runs")?.usage()?);
            look.node = look.node.max(self.node.usage().context("the node has ended")?);
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
        look.node_cores = (self.node.cpu_time()? - used).as_secs_f64() / begun.elapsed().as_secs_f64();
        look.calls_a_second = seen.called as f64 / begun.elapsed().as_secs_f64();
        look.seen = seen;
        Ok((look, answer.unwrap_or_default()))
    }

    /// Entries of the log that were not written by the other user.
    async fn entries(&self) -> Result<i64> {
        let index = self.rest.metric("coracle_raft_commit_index").await?;
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

/// The act, whose clients would be on other machines: they give way to what is measured, and share no thread with who
/// measures.
async fn on_threads_of_its_own(act: &'static Act, stage: Stage) -> Result<String> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let give_way = || {
        // Without the right to change it the default priority is kept.
        let _ = rustix::process::nice(NICE);
    };
    let runtime = builder.enable_all().on_thread_start(give_way).build()?;
    let acting = runtime.spawn(async move { tokio::time::timeout(PATIENCE, (act.run)(stage)).await });
    let said = acting.await;
    // What of it still runs ends with it.
    runtime.shutdown_background();
    said.context("an act panicked")?.unwrap_or_else(|_| Ok("no end in time".into()))
}

fn start_node(
    cluster: &Cluster,
    name: &str,
    gateway: &str,
    fabric: &str,
    within: impl FnOnce(Command) -> Result<Command>,
) -> Result<Running> {
    let mut command = Command::new(cluster.binary());
    command.args(["--log", "error", "node", "--name", name, "--data-dir"]).arg(cluster.path().join(name));
    command.args(["--fabric", fabric, "--gateway", gateway, "--join", cluster.address(0)]);
    let token = cluster.cli(&["token", "create", "--role", "node"])?;
    command.env("CORACLE_TOKEN", token.trim());
    Running::start_until(&mut within(command)?, "gateway http")
}

/// Brings the hostile images to the node, so that compiling them is no part of what is measured.
async fn warm_up(stage: &Stage, rest: &Rest) -> Result<()> {
    for (image, sample) in [(guests::PROGRAM, "hostile"), (web::SERVER, "hostile-http")] {
        stage.push(image, &std::fs::read(Path::new(&coracle_sample_artifacts::wasm(sample)))?).await?;
    }
    stage.start(rest, "program", guests::container(&["files", "/data", "1"])).await?;
    stage.start(rest, "server", json!({"name": "c", "image": web::SERVER})).await?;
    for (name, phase) in [("program", "Succeeded"), ("server", "Running")] {
        let pod = stage.until(rest, name, |pod| pod["status"]["phase"] == phase, PATIENCE).await?;
        ensure!(pod["status"]["phase"] == phase, "{name} is not {phase}: {}", pod["status"]);
        let path = format!("/api/v1/namespaces/{}/pods/{name}?gracePeriodSeconds=0", stage.namespace);
        rest.call("DELETE", &path, Vec::new()).await?;
    }
    Ok(())
}
