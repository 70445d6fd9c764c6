//! Waits until a Deployment's pods are available, and tells what they are at meanwhile.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::time::Instant;

use super::list;
use crate::{
    client::{Cluster, native_kind},
    commands::logs::last_lines,
    names::encode,
    output::plain,
};

const POLL: Duration = Duration::from_millis(50);
/// Between two looks at the pods.
const LOOK: Duration = Duration::from_millis(500);
/// For how long what may pass by itself is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Restarts after which a component that crashes is given up.
const RESTARTS_MAX: u64 = 2;
/// Pods that are told of at a look: each is asked for by itself.
const TOLD_MAX: usize = 10;
/// Lines of a log that are shown.
const LOG_LINES: u32 = 10;

/// What keeps a pod from being available.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    pod: String,
    container: String,
    reason: String,
    text: String,
    /// It will not pass by itself.
    hopeless: bool,
    /// It has ended, and its log may say why.
    ended: bool,
}

/// Waits until the Deployment's newest revision is available. `tell` is told what its pods are at, each thing once.
pub async fn wait_available(
    cluster: &Cluster,
    name: &str,
    timeout: Duration,
    tell: &mut impl FnMut(String),
) -> Result<()> {
    let path = native_kind("deployments")?.object(&cluster.namespace, name)?;
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    let deadline = Instant::now() + timeout;
    let mut watch = Watch::default();
    let mut look_at = Instant::now() + LOOK;
    loop {
        let deployment = cluster.get(&path).await?.with_context(|| format!("deployment {name} is gone"))?;
        let Some(available) = lacking(&deployment) else {
            spinner.finish_and_clear();
            return Ok(());
        };
        spinner.set_message(format!("{}: {available} pods available", plain(name)));
        if Instant::now() >= look_at {
            let found = watch.look(cluster, &deployment, &mut |line| spinner.suspend(|| tell(line))).await?;
            look_at = Instant::now() + LOOK;
            if let Some(trouble) = found {
                spinner.finish_and_clear();
                bail!("{name} does not become available: {}", with_log(cluster, &trouble).await);
            }
        }
        if Instant::now() > deadline {
            spinner.finish_and_clear();
            let seconds = timeout.as_secs();
            match watch.troubles.last() {
                Some(trouble) => {
                    bail!("{name} is not available after {seconds} s: {}", with_log(cluster, trouble).await)
                }
                None => bail!(
                    "{name} is not available after {seconds} s, and its pods say nothing: see `kubectl describe`"
                ),
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How many pods there are of how many; `None` where all are there.
fn lacking(deployment: &Value) -> Option<String> {
    let status = &deployment["status"];
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    let seen = status["observedGeneration"] == deployment["metadata"]["generation"];
    // While there are others, those of the revision before may be the ones that are available.
    let none_else = count("replicas") == count("updatedReplicas");
    let all = seen && none_else && count("updatedReplicas") == wanted && count("availableReplicas") == wanted;
    (!all).then(|| format!("{} of {wanted}", count("availableReplicas")))
}

async fn with_log(cluster: &Cluster, trouble: &Trouble) -> String {
    let mut text = format!("pod {} {}", trouble.pod, trouble.text);
    if trouble.ended {
        let log = match last_lines(cluster, &trouble.pod, &trouble.container, true, LOG_LINES).await {
            Ok(log) if !log.trim().is_empty() => log,
            _ => last_lines(cluster, &trouble.pod, &trouble.container, false, LOG_LINES)
                .await
                .unwrap_or_default(),
        };
        let lines: String = log.lines().map(|line| format!("\n  | {line}")).collect();
        text += if lines.is_empty() { "; it wrote nothing" } else { "; its last lines:" };
        text += &lines;
    }
    text
}

/// What was seen and told.
#[derive(Default)]
struct Watch {
    troubles: Vec<Trouble>,
    since: BTreeMap<(String, String), Instant>,
    told: Vec<String>,
}

impl Watch {
    /// Looks at the pods of the newest revision; the trouble that will not pass.
    async fn look(
        &mut self,
        cluster: &Cluster,
        deployment: &Value,
        tell: &mut impl FnMut(String),
    ) -> Result<Option<Trouble>> {
        let pods = newest_pods(cluster, deployment).await?;
        let now = Instant::now();
        self.troubles = pods.iter().filter_map(trouble).collect();
        let current: Vec<_> = self.troubles.iter().map(|one| (one.pod.clone(), one.reason.clone())).collect();
        self.since.retain(|key, _| current.contains(key));
        for trouble in &self.troubles {
            let since = *self.since.entry((trouble.pod.clone(), trouble.reason.clone())).or_insert(now);
            if trouble.hopeless || is_fault(&trouble.reason) && now - since > PATIENCE {
                return Ok(Some(trouble.clone()));
            }
        }
        for pod in pods.iter().filter(|pod| !is_ready(pod)).take(TOLD_MAX) {
            let line = match self.troubles.iter().find(|one| pod["metadata"]["name"] == *one.pod) {
                Some(trouble) => Some(format!("pod {} {}", trouble.pod, trouble.text)),
                None => under_way(cluster, pod).await,
            };
            if let Some(line) = line.filter(|line| !self.told.contains(line)) {
                tell(line.clone());
                self.told.push(line);
            }
        }
        Ok(None)
    }
}

/// Whether a reason is a fault that is seldom mended by waiting; other reasons are those of a slow cluster.
fn is_fault(reason: &str) -> bool {
    ["ErrImagePull", "ImagePullBackOff", "CreateContainerError", "CreateContainerConfigError"]
        .contains(&reason)
}

/// The pods of the Deployment's newest ReplicaSet.
async fn newest_pods(cluster: &Cluster, deployment: &Value) -> Result<Vec<Value>> {
    let labels = deployment["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
    let labels: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let query = format!("?labelSelector={}", encode(&labels.join(",")));
    let selected =
        async |kind: &str| list(cluster, &(native_kind(kind)?.collection(&cluster.namespace) + &query)).await;
    let is_of = |object: &Value, owner: &Value| {
        let owners = object["metadata"]["ownerReferences"].as_array();
        owners.into_iter().flatten().any(|one| one["uid"] == owner["metadata"]["uid"])
    };
    let revision = |set: &Value| {
        let text = set["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str();
        text.and_then(|text| text.parse::<u64>().ok())
    };
    let sets = selected("replicasets").await?;
    let Some(newest) = sets.iter().filter(|set| is_of(set, deployment)).max_by_key(|set| revision(set))
    else {
        return Ok(Vec::new());
    };
    Ok(selected("pods").await?.into_iter().filter(|pod| is_of(pod, newest)).collect())
}

/// What is wrong with a pod, as its status says.
fn trouble(pod: &Value) -> Option<Trouble> {
    let name = pod["metadata"]["name"].as_str()?.to_owned();
    for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
        let container = status["name"].as_str().unwrap_or_default().to_owned();
        let waiting = &status["state"]["waiting"];
        let message = waiting["message"].as_str().unwrap_or_default();
        let Some(reason) = waiting["reason"].as_str() else { continue };
        let restarts = status["restartCount"].as_u64().unwrap_or(0);
        let last = &status["lastState"]["terminated"];
        let (text, hopeless, ended) = match reason {
            "ContainerCreating" | "PodInitializing" => continue,
            "CrashLoopBackOff" if last["exitCode"] == 0 => {
                let text = "ended by itself with exit code 0: it computes and ends, and is no service. Run it as a pod with \
                            `kubectl run NAME --image IMAGE --restart Never`";
                (text.to_owned(), true, true)
            }
            "CrashLoopBackOff" => {
                let code = last["exitCode"].as_i64().unwrap_or(1);
                let why = last["reason"].as_str().unwrap_or("Error");
                let text = format!("crashes again and again (exit code {code}, {why}, {restarts} restarts)");
                (text, restarts >= RESTARTS_MAX, true)
            }
            "InvalidImageName" | "ErrImageNeverPull" => (format!("is in {reason}: {message}"), true, false),
            _ => (format!("is in {reason}: {message}"), false, false),
        };
        return Some(Trouble { pod: name, container, reason: reason.to_owned(), text, hopeless, ended });
    }
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut unplaced = conditions.filter(|one| one["type"] == "PodScheduled" && one["status"] == "False");
    let message = unplaced.next()?["message"].as_str().unwrap_or("no reason given").to_owned();
    let (container, reason) = (String::new(), "Unschedulable".to_owned());
    Some(Trouble {
        pod: name,
        container,
        reason,
        text: format!("finds no node: {message}"),
        hopeless: false,
        ended: false,
    })
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// What a pod is at that has no trouble and is not ready, by its newest event.
async fn under_way(cluster: &Cluster, pod: &Value) -> Option<String> {
    let name = pod["metadata"]["name"].as_str()?;
    let path = native_kind("events").ok()?.collection(&cluster.namespace);
    let query = format!("?fieldSelector={}", encode(&format!("involvedObject.name={name}")));
    let events = cluster.get(&(path + &query)).await.ok().flatten()?;
    let reasons = events["items"].as_array()?.iter().filter_map(|event| event["reason"].as_str());
    Some(format!("pod {name} {}", stage(&reasons.collect::<Vec<_>>())?))
}

fn stage(reasons: &[&str]) -> Option<&'static str> {
    let stages = [
        ("Started", "runs, and is not ready yet"),
        ("Pulled", "has its image, which is being compiled"),
        ("Pulling", "pulls its image"),
        ("Scheduled", "has a node"),
    ];
    stages.into_iter().find(|(reason, _)| reasons.contains(reason)).map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(waiting: Value, last: Value, restarts: u64) -> Value {
        json!({ "metadata": { "name": "p" }, "status": { "containerStatuses": [{
            "name": "c", "restartCount": restarts, "state": { "waiting": waiting }, "lastState": { "terminated": last },
        }] } })
    }

    #[test]
    fn what_will_not_pass_is_told_from_what_may() {
        let crash = |restarts, code| {
            let last = json!({ "exitCode": code, "reason": "Error" });
            trouble(&pod(json!({ "reason": "CrashLoopBackOff" }), last, restarts)).unwrap()
        };
        assert!(!crash(1, 1).hopeless && crash(2, 1).hopeless && crash(1, 1).ended);
        assert_eq!(crash(2, 137).text, "crashes again and again (exit code 137, Error, 2 restarts)");
        assert!(crash(1, 0).hopeless && crash(1, 0).text.contains("it computes and ends"));
        let waits = |reason: &str| trouble(&pod(json!({ "reason": reason, "message": "m" }), Value::Null, 0));
        assert_eq!(waits("ContainerCreating"), None);
        assert!(waits("InvalidImageName").unwrap().hopeless);
        let pull = waits("ErrImagePull").unwrap();
        assert_eq!(
            (pull.text.as_str(), pull.hopeless, is_fault(&pull.reason)),
            ("is in ErrImagePull: m", false, true)
        );
        let unplaced = json!({ "metadata": { "name": "p" }, "status": { "conditions": [
            { "type": "PodScheduled", "status": "False", "message": "0/1 nodes" },
        ] } });
        assert_eq!(trouble(&unplaced).unwrap().text, "finds no node: 0/1 nodes");
    }

    #[test]
    fn stages_follow_from_events() {
        assert_eq!(stage(&["Scheduled", "Pulling"]), Some("pulls its image"));
        assert_eq!(
            stage(&["Scheduled", "Pulling", "Pulled"]),
            Some("has its image, which is being compiled")
        );
        assert_eq!(stage(&[]), None);
    }

    #[test]
    fn available_is_all_of_the_newest_revision() {
        let of = |observed: u64, updated: u64, replicas: u64| {
            json!({ "metadata": { "generation": 2 }, "spec": { "replicas": 2 },
                    "status": { "observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated,
                        "availableReplicas": 2 } })
        };
        assert_eq!(lacking(&of(2, 2, 2)), None);
        for (observed, updated, replicas) in [(1, 2, 2), (2, 1, 2), (2, 2, 3)] {
            assert_eq!(lacking(&of(observed, updated, replicas)).unwrap(), "2 of 2");
        }
    }
}
