//! What the specs of pods do to their node.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use super::{APPS, CORE, FLOOD, Stage, guests::PROGRAM, workload};

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

/// 8 Secrets of 1 MB in each of 24 pods.
pub async fn secrets(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let mut volumes = vec![json!({"name": "data", "emptyDir": {}})];
    let mut mounts = Vec::new();
    for number in 0..8 {
        let name = format!("large-{number}");
        let secret = json!({"metadata": {"name": name}, "data": {"a": "eHh4".repeat(250_000)}});
        stage.post(&rest, CORE, "secrets", &secret).await?;
        volumes.push(json!({"name": name, "secret": {"secretName": name}}));
        mounts.push(json!({"name": name, "mountPath": format!("/{name}")}));
    }
    let mut template = workload("ReplicaSet", "large", 24);
    let container = json!({"name": "c", "image": "hostile/http:1", "volumeMounts": mounts});
    let spec = &mut template["spec"]["template"]["spec"];
    (spec["containers"], spec["volumes"]) = (json!([container]), json!(volumes));
    stage.post(&rest, APPS, "replicasets", &template).await?;
    sleep(FLOOD).await;
    stage.summary(&rest).await
}

/// Made and forced away at once, by many.
pub async fn forced(stage: Stage) -> Result<String> {
    let (path, begun) = (stage.path(CORE, "pods"), std::time::Instant::now());
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let (stage, path, rest) = (stage.clone(), path.clone(), stage.client.rest().await?);
        clients.spawn(async move {
            let mut times = 0;
            while begun.elapsed() < FLOOD {
                let name = format!("forced-{client}-{times}");
                stage.start(&rest, &name, json!({"name": "c", "image": "hostile/http:1"})).await?;
                sleep(Duration::from_millis(50)).await;
                let path = format!("{path}/{name}?gracePeriodSeconds=0");
                rest.call("DELETE", &path, Vec::new()).await?;
                times += 1;
            }
            anyhow::Ok(times)
        });
    }
    let mut times = 0;
    while let Some(each) = clients.join_next().await {
        times += each??;
    }
    Ok(format!("{times} times"))
}

/// Pods that end as soon as they have begun.
pub async fn crashes(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let mut object = workload("ReplicaSet", "crash", 1000);
    object["spec"]["template"]["spec"]["containers"] =
        json!([{"name": "c", "image": PROGRAM, "args": ["crash"]}]);
    stage.post(&rest, APPS, "replicasets", &object).await?;
    sleep(2 * FLOOD).await;
    stage.summary(&rest).await
}
