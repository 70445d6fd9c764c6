//! `coracle doctor`: what is wrong with this machine or the cluster, and the mend.

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    args::DoctorArgs,
    client::{Body, Cluster},
    output,
};

/// Mappings that ten thousand live instances and the process itself take.
const MAP_COUNT_WANTED: u64 = 262_144;
/// Mappings for each live instance that a node admits, see `wasi-host/src/engine.rs`.
const MAPS_PER_INSTANCE: u64 = 14;
/// Planners of a cluster that is well are never behind for so long, in seconds.
const PLANNING_LAG_S_MAX: f64 = 10.0;
/// Open files for a node with many connections.
const OPEN_FILES_WANTED: u64 = 8_192;

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
    let mut findings = machine();
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
            count.saturating_sub(3_000) / MAPS_PER_INSTANCE
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
    let confinement = coracle_wasi_host::Confinement::of_this_kernel();
    findings.push(if confinement.is_whole() {
        Fine(format!("components are compiled in a process confined by {confinement}"))
    } else {
        Better(format!(
            "this kernel confines the process that compiles components with {confinement}: limits of memory and time hold, \
             but on a node with strangers' pods use a kernel of 5.13 or newer that has both"
        ))
    });
    findings
}

async fn cluster_findings(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = vec![Fine(format!("kubeconfig {}", cluster.kubeconfig.display()))];
    findings.push(match &cluster.access.certificate {
        Some(user) => certificate(&user.pem),
        None => {
            Better("the kubeconfig's user has a token only: administration takes a client certificate".into())
        }
    });
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
    findings.extend(planning_findings(cluster).await);
    match cluster.get("/api/v1/pods").await {
        Ok(pods) => findings.extend(pod_findings(&pods.unwrap_or_default())),
        Err(error) => findings.push(Wrong(format!("{error:#}"))),
    }
    findings
}

/// How the controllers of the control node that answers fare: of the leader, if it is that one.
async fn planning_findings(cluster: &Cluster) -> Vec<Finding> {
    let request = http::Request::get("/metrics").body(Body::default());
    let Ok(request) = request else { return Vec::new() };
    match cluster.send(request).await {
        Ok((_, page)) => planning(&String::from_utf8_lossy(&page)),
        Err(error) => vec![Better(format!("the metrics of the control node cannot be read: {error:#}"))],
    }
}

fn planning(page: &str) -> Vec<Finding> {
    let metric = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<f64>().ok())
    };
    if metric("coracle_server_is_leader") != Some(1.0) {
        return vec![Better("controllers are checked at the leader, which is another control node".into())];
    }
    let mut findings = Vec::new();
    for (planner, verb, keep) in [("controllers", "have", "keep"), ("scheduler", "has", "keeps")] {
        let lag = metric(&format!("coracle_planning_lag_seconds{{planner=\"{planner}\"}}")).unwrap_or(0.0);
        findings.push(if lag > PLANNING_LAG_S_MAX {
            Wrong(format!(
                "the {planner} {verb} been behind for {lag:.0} s: look for what makes it so much work (most events, largest \
                 namespace), or for a control node that is short of CPU"
            ))
        } else {
            Fine(format!("the {planner} {keep} up"))
        });
    }
    let unreadable = metric("coracle_planning_objects_unreadable").unwrap_or(0.0);
    if unreadable > 0.0 {
        findings.push(Wrong(format!(
            "{unreadable} objects cannot be read: `kubectl get events -A --field-selector reason=Unreadable` names them"
        )));
    }
    let restless = metric("coracle_planning_tasks_restless").unwrap_or(0.0);
    findings.push(if restless > 0.0 {
        Wrong(format!(
            "{restless} tasks of controllers write again and again though nothing else happens, by a fault of Coracle; they \
             are slowed down: `kubectl get events -A --field-selector reason=Restless` names their objects"
        ))
    } else {
        Fine("no controller writes for ever".into())
    });
    let panics = metric("coracle_planning_panics_total").unwrap_or(0.0);
    if panics > 0.0 {
        findings.push(Wrong(format!(
            "controllers or the scheduler have panicked {panics} times, by a fault of Coracle: the control node's log names \
             the tasks and pods"
        )));
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
    fn planners_that_are_behind_are_wrong() {
        let page = "coracle_server_is_leader 1\ncoracle_planning_lag_seconds{planner=\"controllers\"} 31.5\n\
                    coracle_planning_lag_seconds{planner=\"scheduler\"} 0\ncoracle_planning_objects_unreadable 2\n\
                    coracle_planning_tasks_restless 1\n";
        let findings = planning(page);
        assert!(matches!(&findings[..], [Wrong(lag), Fine(_), Wrong(unreadable), Wrong(restless)]
            if lag.contains("behind for 32 s") && unreadable.starts_with("2 objects cannot be read")
                && restless.starts_with("1 tasks of controllers write again")));
        assert!(matches!(&planning("coracle_server_is_leader 0\n")[..], [Better(_)]));
    }

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
