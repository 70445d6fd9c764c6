//! What a pod does to its node, and clients to a pod.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{APPS, Answers, CORE, FLOOD, Stage, workload};
use crate::hostile::bystander::ask;

pub async fn environment(stage: Stage) -> Result<String> {
    let mut variables = vec![json!({"name": "v0", "value": "x".repeat(500)})];
    for (number, times) in [(1, 2000), (2, 200)] {
        variables.push(
            json!({"name": format!("v{number}"), "value": format!("$(v{})", number - 1).repeat(times)}),
        );
    }
    pod_with(&stage, json!(variables)).await
}

pub async fn unclosed(stage: Stage) -> Result<String> {
    pod_with(&stage, json!([{"name": "A", "value": "$(".repeat(300_000)}])).await
}

/// The reason for which such a pod waits, or its phase.
async fn pod_with(stage: &Stage, variables: Value) -> Result<String> {
    let rest = stage.client.rest().await?;
    let container = json!({"name": "c", "image": "hostile/http:1", "env": variables});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bomb"}, "spec": {"containers": [container]}});
    let (status, _) = rest.call("POST", &stage.path(CORE, "pods"), pod.to_string().into()).await?;
    if status != 201 {
        return Ok(status.to_string());
    }
    sleep(FLOOD).await;
    let pod = rest.get(&stage.path(CORE, "pods/bomb")).await?;
    let waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
    Ok(format!("201, {}", waiting.or(pod["status"]["phase"].as_str()).unwrap_or("no status")))
}

/// To a Deployment of the hostile user; he asks it himself meanwhile.
pub async fn silent_connections(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let mut object = workload("Deployment", "web", 1);
    object["spec"]["template"]["spec"]["containers"][0] =
        json!({"name": "c", "image": "hostile/http:1", "ports": [{"containerPort": 80}]});
    stage.post(&rest, APPS, "deployments", &object).await?;
    let spec = json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80}]});
    let service = json!({"metadata": {"name": "web"}, "spec": spec});
    let made = stage.post(&rest, CORE, "services", &service).await?;
    let port = made["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")? as u16;
    sleep(Duration::from_secs(2)).await;
    let mut open = Vec::new();
    for _ in 0..1500 {
        open.extend(TcpStream::connect(("127.0.0.1", port)).await);
    }
    let (mut answers, address) = (Answers::default(), format!("127.0.0.1:{port}"));
    let begun = std::time::Instant::now();
    while begun.elapsed() < FLOOD {
        let asked = timeout(Duration::from_secs(1), ask(&address, "web"));
        answers.add(asked.await.context("no answer").and_then(|it| it));
    }
    Ok(answers.say())
}
