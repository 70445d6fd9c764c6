//! Pods of the hostile program, each with an emptyDir at `/data`, on the node of the other user's pod.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{APPS, Answers, CORE, FLOOD, POLL, Stage, workload};
use crate::{client::Rest, hostile::NODE};

/// The image of `sample-workloads/hostile`.
pub const PROGRAM: &str = "hostile/program:1";
/// Until pods that were asked for have to be there.
const PATIENCE: Duration = Duration::from_secs(40);
/// Letters of a line that are shown.
const SAID_MAX: usize = 120;

/// A container that does one act.
pub fn container(arguments: &[&str]) -> Value {
    json!({
        "name": "c", "image": PROGRAM, "args": arguments,
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    })
}

impl Stage {
    /// Starts a pod of one container.
    pub async fn start(&self, rest: &Rest, name: &str, container: Value) -> Result<()> {
        self.start_on(rest, name, container, NODE).await
    }

    pub async fn start_on(&self, rest: &Rest, name: &str, container: Value, node: &str) -> Result<()> {
        let spec = json!({
            "nodeSelector": {"kubernetes.io/hostname": node}, "restartPolicy": "Never",
            "containers": [container], "volumes": [{"name": "data", "emptyDir": {}}],
        });
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        self.post(rest, CORE, "pods", &pod).await.map(drop)
    }

    /// So many pods of one container, which is started again where it ends.
    pub async fn replicas(&self, rest: &Rest, name: &str, count: usize, container: Value) -> Result<()> {
        let mut object = workload("ReplicaSet", name, count);
        let spec = &mut object["spec"]["template"]["spec"];
        spec["containers"] = json!([container]);
        spec["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        self.post(rest, APPS, "replicasets", &object).await.map(drop)
    }

    /// So many pods of one act, for as long as a flood takes.
    pub async fn crowd(&self, count: usize, arguments: &[&str]) -> Result<String> {
        let rest = self.client.rest().await?;
        for number in 0..count {
            self.start(&rest, &format!("p{number}"), container(arguments)).await?;
        }
        sleep(FLOOD).await;
        self.summary(&rest).await
    }

    /// How many pods there are in each phase, and what one of them said last.
    pub async fn summary(&self, rest: &Rest) -> Result<String> {
        let pods = rest.get(&self.path(CORE, "pods")).await?;
        let pods = pods["items"].as_array().context("a list of pods")?;
        let mut phases = Answers::default();
        for pod in pods {
            let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
            phases.count(waiting.or(pod["status"]["phase"].as_str()).unwrap_or("no status"));
        }
        let last = pods.last().context("no pods")?;
        let said = self.said(rest, last["metadata"]["name"].as_str().context("a name")?).await?;
        Ok(format!("{}{said}", phases.say()))
    }

    /// What the first container that waits is said to wait for, or else the last warning of these pods, to be put behind
    /// something.
    pub async fn refusal(&self, rest: &Rest) -> Result<String> {
        let pods = rest.get(&self.path(CORE, "pods")).await?;
        let containers =
            |pod: &Value| pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let mut all = pods["items"].as_array().context("a list of pods")?.iter().flat_map(containers);
        let mut message = all.find_map(|it| Some(it["state"]["waiting"]["message"].as_str()?.to_owned()));
        if message.is_none() {
            let events = rest.get(&self.path(CORE, "events?fieldSelector=type%3DWarning")).await?;
            let last = events["items"].as_array().and_then(|events| events.last());
            message = last.and_then(|event| Some(event["message"].as_str()?.to_owned()));
        }
        Ok(message.map(|message| format!("; {}", shown(&message))).unwrap_or_default())
    }

    /// Waits until a pod is as wanted, or so long: the pod.
    pub async fn until(
        &self,
        rest: &Rest,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
        patience: Duration,
    ) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let pod = rest.get(&self.path(CORE, &format!("pods/{name}"))).await?;
            if wanted(&pod) || begun.elapsed() > patience {
                return Ok(pod);
            }
            sleep(POLL).await;
        }
    }

    /// Waits for a pod's address.
    pub async fn address(&self, rest: &Rest, name: &str) -> Result<String> {
        let runs = |pod: &Value| pod["status"]["phase"] == "Running" && pod["status"]["podIP"].is_string();
        let pod = self.until(rest, name, runs, PATIENCE).await?;
        Ok(pod["status"]["podIP"].as_str().with_context(|| format!("{name} does not run"))?.to_owned())
    }

    /// The last line of a pod's log, to be put behind something.
    pub async fn said(&self, rest: &Rest, name: &str) -> Result<String> {
        let path = self.path(CORE, &format!("pods/{name}/log?tailLines=1&limitBytes=200"));
        let (status, log) = rest.call("GET", &path, Vec::new()).await?;
        let log = shown(&String::from_utf8_lossy(&log));
        Ok(if status == 200 && !log.is_empty() { format!("; {log}") } else { String::new() })
    }

    /// Runs a pod to its end, or for so long: what it said.
    pub async fn to_the_end(&self, name: &str, arguments: &[&str], patience: Duration) -> Result<String> {
        let rest = self.client.rest().await?;
        self.start(&rest, name, container(arguments)).await?;
        let ended = |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let pod = self.until(&rest, name, ended, patience).await?;
        let phase = pod["status"]["phase"].as_str().unwrap_or("no status").to_owned();
        Ok(phase + &self.said(&rest, name).await?)
    }
}

/// The beginning of a text, as a cell of a table.
fn shown(text: &str) -> String {
    text.trim().replace('|', "/").replace('\n', " ").chars().take(SAID_MAX).collect()
}
