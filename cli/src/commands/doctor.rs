//! `coracle doctor`: what is wrong with this machine or the cluster, and the mend.

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use crate::{args::DoctorArgs, client::Cluster};

/// Mappings that ten thousand live instances and the process itself take.
const MAP_COUNT_WANTED: u64 = 262_144;
/// Open files for a node with many connections.
const OPEN_FILES_WANTED: u64 = 8_192;

enum Finding {
    Fine(String),
    Better(String),
    Wrong(String),
}

use Finding::{Better, Fine, Wrong};

pub async fn run(args: &DoctorArgs) -> Result<()> {
    let mut findings = machine();
    match Cluster::find(&args.connection).await {
        Ok(cluster) => findings.extend(cluster_findings(&cluster).await),
        Err(error) => findings.push(Better(format!("{error:#}"))),
    }
    let mut wrong = 0;
    for finding in &findings {
        match finding {
            Fine(text) => println!("ok      {text}"),
            Better(text) => println!("note    {text}"),
            Wrong(text) => {
                wrong += 1;
                println!("WRONG   {text}");
            }
        }
    }
    if wrong > 0 {
        bail!("{wrong} of {} checks failed", findings.len());
    }
    Ok(())
}

fn machine() -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut findings = vec![Fine(format!("{cores} cores"))];
    match std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
    {
        Some(count) if count >= MAP_COUNT_WANTED => {
            findings.push(Fine(format!("vm.max_map_count is {count}")))
        }
        Some(count) => findings.push(Better(format!(
            "vm.max_map_count is {count}: enough for about {} live instances; for more, run \
             `sysctl -w vm.max_map_count={MAP_COUNT_WANTED}`",
            count.saturating_sub(3_000) / 6
        ))),
        None => findings.push(Better("vm.max_map_count cannot be read".into())),
    }
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match files {
        Some(files) if files < OPEN_FILES_WANTED => findings.push(Better(format!(
            "this shell allows {files} open files: raise it with `ulimit -n {OPEN_FILES_WANTED}` for many connections"
        ))),
        _ => findings.push(Fine("enough open files are allowed".into())),
    }
    findings
}

async fn cluster_findings(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = vec![Fine(format!("kubeconfig {}", cluster.kubeconfig.display()))];
    findings.push(certificate(&cluster.access.certificate_pem));
    let nodes = match cluster.get("/api/v1/nodes").await {
        Ok(nodes) => nodes.unwrap_or_default(),
        Err(error) => {
            findings.push(Wrong(format!("{error:#}")));
            return findings;
        }
    };
    findings.push(Fine(format!("the API at {} answers", cluster.address())));
    for node in items(&nodes) {
        findings.push(node_finding(node));
    }
    if items(&nodes).is_empty() {
        findings.push(Wrong(
            "there is no node: pods stay Pending. Run `coracle token create` and start one with `coracle node`".into(),
        ));
    }
    match cluster.get("/api/v1/pods").await {
        Ok(pods) => findings.extend(pod_findings(&pods.unwrap_or_default())),
        Err(error) => findings.push(Wrong(format!("{error:#}"))),
    }
    findings
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

fn pod_findings(pods: &Value) -> Vec<Finding> {
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
    fn a_failing_pod_is_named_with_its_reason() {
        let pods = json!({"items": [{
            "metadata": {"namespace": "default", "name": "a"},
            "status": {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]},
        }]});
        let findings = pod_findings(&pods);
        assert!(
            matches!(&findings[..], [Wrong(text)] if text == "pod default/a is in ErrImagePull: no such image")
        );
    }
}
