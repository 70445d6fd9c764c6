//! `coracle doctor`: what is wrong with this machine or the cluster, and the mend.

mod data_dir;
mod machine;
mod planning;

use std::time::Duration;

use anyhow::{Result, bail};
use coracle_proto::cluster::Alarm;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{args::DoctorArgs, client::Cluster, commands::cluster::status, output};

/// Until a check must have come to something: without a quorum a control node says so within 5 s.
const CHECK_TIMEOUT: Duration = Duration::from_secs(6);

enum Finding {
    Fine(String),
    Better(String),
    Wrong(String),
}

use Finding::{Better, Fine, Wrong};

impl Finding {
    fn parts(&self) -> (&'static str, &str) {
        match self {
            Fine(text) => ("ok", text),
            Better(text) => ("note", text),
            Wrong(text) => ("WRONG", text),
        }
    }

    fn line(&self) -> String {
        let (verdict, text) = self.parts();
        format!("{verdict:<7} {text}\n")
    }

    fn as_json(&self) -> Value {
        let (verdict, text) = self.parts();
        json!({ "verdict": verdict.to_lowercase(), "finding": text })
    }
}

pub async fn run(args: &DoctorArgs) -> Result<()> {
    let mut findings = machine::findings();
    findings.extend(data_dir::finding(args.data_dir.as_deref()));
    match Cluster::find(&args.connection) {
        Ok(cluster) => findings.extend(cluster_findings(&cluster).await),
        Err(error) => findings.push(Better(format!("{error:#}"))),
    }
    match args.format.output {
        None => output::text(&findings.iter().map(Finding::line).collect::<String>())?,
        Some(format) => output::value(&findings.iter().map(Finding::as_json).collect(), format)?,
    }
    let wrong = findings.iter().filter(|finding| matches!(finding, Wrong(_))).count();
    if wrong > 0 {
        bail!("{wrong} of {} checks failed", findings.len());
    }
    Ok(())
}

async fn cluster_findings(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = vec![Fine(format!("kubeconfig {}", cluster.kubeconfig.display()))];
    findings.push(match &cluster.access.certificate {
        Some(user) => certificate(&user.pem),
        None => {
            Better("the kubeconfig's user has a token only: administration takes a client certificate".into())
        }
    });
    findings.extend(member_findings(cluster).await);
    // All at once, so that what does not answer holds up nothing else.
    let (alarms, nodes, planning, pods) = tokio::join!(
        in_time("asking for alarms", alarm_findings(cluster)),
        in_time("asking for the nodes", node_findings(cluster)),
        in_time("asking for metrics", planning::findings(cluster)),
        in_time("asking for the pods", pod_findings(cluster)),
    );
    findings.extend([alarms, nodes, planning, pods].into_iter().flatten());
    findings
}

async fn in_time(what: &str, check: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    let late = || Wrong(format!("{what} came to nothing within {} s", CHECK_TIMEOUT.as_secs()));
    tokio::time::timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(|_| vec![late()])
}

/// Whether each control node of the kubeconfig is there and ready.
async fn member_findings(cluster: &Cluster) -> Vec<Finding> {
    let answers = cluster.readiness().await.into_iter();
    answers.map(|(address, answer)| member_finding(address, answer)).collect()
}

fn member_finding(address: &str, answer: Result<String>) -> Finding {
    let text = match answer {
        Ok(text) => text,
        Err(error) => {
            return Wrong(format!(
                "the control node at {address} does not answer ({error:#}): is it running? Start it, or replace it as \
                 docs/operations.md says"
            ));
        }
    };
    let failing: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
    match failing.is_empty() {
        true => Fine(format!("the control node at {address} is ready")),
        false => Wrong(format!("the control node at {address} is not ready: {}", failing.join("; "))),
    }
}

/// The alarms of `coracle cluster status`.
async fn alarm_findings(cluster: &Cluster) -> Vec<Finding> {
    if cluster.access.certificate.is_none() {
        return Vec::new();
    }
    match status(cluster).await {
        Ok(status) if status.alarms.is_empty() => vec![Fine("there are no alarms".into())],
        Ok(status) => status.alarms.iter().map(alarm).collect(),
        Err(error) => vec![Wrong(format!("the cluster's alarms cannot be read: {error:#}"))],
    }
}

fn alarm(alarm: &Alarm) -> Finding {
    let whose = if alarm.member_id == 0 { String::new() } else { format!(" of member {}", alarm.member_id) };
    Wrong(format!("{}{whose}: {}", alarm.reason, alarm.message))
}

/// What any control node knows suffices: it is told apart whether they have a quorum.
async fn list(cluster: &Cluster, path: &str) -> Result<Value> {
    Ok(cluster.get(&format!("{path}?resourceVersion=0")).await?.unwrap_or_default())
}

async fn node_findings(cluster: &Cluster) -> Vec<Finding> {
    let nodes = match list(cluster, "/api/v1/nodes").await {
        Ok(nodes) => nodes,
        Err(error) => return vec![Wrong(format!("{error:#}"))],
    };
    let mut findings = vec![Fine(format!("the API at {} answers", cluster.address()))];
    findings.extend(items(&nodes).iter().map(node_finding));
    if items(&nodes).is_empty() {
        findings.push(Wrong(
            "there is no node: pods stay Pending. Run `coracle token create` and start one with `coracle node`".into(),
        ));
    }
    findings
}

async fn pod_findings(cluster: &Cluster) -> Vec<Finding> {
    match list(cluster, "/api/v1/pods").await {
        Ok(pods) => failing_pods(&pods),
        Err(error) => vec![Wrong(format!("{error:#}"))],
    }
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn certificate(pem: &str) -> Finding {
    match expiry(pem) {
        Ok(expiry) if expiry < Timestamp::now().as_second() => Wrong(
            "the kubeconfig's certificate has expired: take a new one from a control node's data dir".into(),
        ),
        Ok(expiry) => {
            let days = (expiry - Timestamp::now().as_second()) / 86_400;
            Fine(format!("the kubeconfig's certificate is good for {days} days"))
        }
        Err(error) => Wrong(format!("the kubeconfig's certificate cannot be read: {error}")),
    }
}

/// When a PEM certificate ends, in seconds since the epoch.
fn expiry(pem: &str) -> Result<i64> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
    Ok(pem.parse_x509()?.validity().not_after.timestamp())
}

fn node_finding(node: &Value) -> Finding {
    let name = node["metadata"]["name"].as_str().unwrap_or("?");
    let ready = node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    match ready {
        Some(condition) if condition["status"] == "True" => Fine(format!("node {name} is Ready")),
        Some(condition) => Wrong(format!(
            "node {name} is not Ready: {} (is its `coracle node` running and able to reach a control node?)",
            condition["message"].as_str().unwrap_or("no reason given")
        )),
        None => Wrong(format!("node {name} has never reported")),
    }
}

fn failing_pods(pods: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pod in items(pods) {
        let name = format!(
            "{}/{}",
            pod["metadata"]["namespace"].as_str().unwrap_or("?"),
            pod["metadata"]["name"].as_str().unwrap_or("?")
        );
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let waiting = &status["state"]["waiting"];
            if let (Some(reason), Some(message)) = (waiting["reason"].as_str(), waiting["message"].as_str()) {
                findings.push(Wrong(format!("pod {name} is in {reason}: {message}")));
            }
        }
        for condition in pod["status"]["conditions"].as_array().into_iter().flatten() {
            if condition["reason"] == "Unschedulable" && condition["status"] == "False" {
                findings.push(Wrong(format!(
                    "pod {name} finds no node: {}",
                    condition["message"].as_str().unwrap_or("no reason given")
                )));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Fine(format!("{} pods, none failing", items(pods).len())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_control_node_that_is_not_ready_says_why() {
        let page = "[+]ping ok\n[-]raft-leader failed: no leader is known\n[-]storage failed: no quorum\nreadyz check failed\n";
        assert!(matches!(member_finding("a:1", Ok(page.into())), Wrong(text)
            if text.ends_with("is not ready: raft-leader failed: no leader is known; storage failed: no quorum")));
        assert!(matches!(member_finding("a:1", Ok("[+]ping ok\nreadyz check passed\n".into())), Fine(_)));
        assert!(matches!(member_finding("a:1", Err(anyhow::anyhow!("refused"))), Wrong(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_comes_to_nothing_is_wrong() {
        let found = in_time("asking", std::future::pending()).await;
        assert!(matches!(&found[..], [Wrong(text)] if text == "asking came to nothing within 6 s"));
    }

    #[test]
    fn a_failing_pod_is_named_with_its_reason() {
        let pods = json!({"items": [{
            "metadata": {"namespace": "default", "name": "a"},
            "status": {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]},
        }]});
        let findings = failing_pods(&pods);
        assert!(
            matches!(&findings[..], [Wrong(text)] if text == "pod default/a is in ErrImagePull: no such image")
        );
    }
}
