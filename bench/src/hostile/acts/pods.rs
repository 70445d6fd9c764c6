//! What the specs of pods do to their node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use super::{
    APPS, CORE, FLOOD, LONG, POLL, Stage,
    guests::{PROGRAM, container},
    workload,
};
use crate::hostile::NODE;

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
    let (path, begun) = (stage.path(CORE, "pods"), Instant::now());
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

/// And one that mounts one more than a container can.
pub async fn sub_paths(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let deep = "/d".repeat(63);
    for (name, mounts) in (0..16).map(|number| (format!("p{number}"), 64)).chain([("wide".into(), 65)]) {
        let mount = |number| {
            let (path, sub_path) = (format!("/m{number}"), format!("{number}{deep}"));
            json!({"name": "data", "mountPath": path, "subPath": sub_path})
        };
        let mut container = container(&["grow", "1"]);
        container["volumeMounts"] = (0..mounts).map(mount).collect();
        stage.start(&rest, &name, container).await?;
    }
    sleep(2 * FLOOD).await;
    Ok(stage.summary(&rest).await? + &stage.refusal(&rest).await?)
}

/// The names of their images are long, and so is what is said of each; one pod is so large that no status fits beside its
/// spec. The answer is how large a status came to be, and whether the node's link was there whenever it was looked for.
pub async fn statuses(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    for (number, letters) in [9000, 4500, 4500, 4500].into_iter().enumerate() {
        let image = "x".repeat(letters);
        let container = |number| json!({"name": format!("c{number}"), "image": image});
        let containers: Vec<Value> = (0..150).map(container).collect();
        let pod = json!({"metadata": {"name": format!("p{number}")}, "spec": {"containers": containers}});
        stage.post(&rest, CORE, "pods", &pod).await?;
    }
    let (begun, mut looks, mut linked) = (Instant::now(), 0, 0);
    while begun.elapsed() < 2 * FLOOD {
        looks += 1;
        linked += usize::from(rest.metric("coracle_node_links").await? >= 1.0);
        sleep(POLL).await;
    }
    let pods = rest.get(&stage.path(CORE, "pods")).await?;
    let statuses = pods["items"].as_array().context("a list of pods")?.iter().map(|pod| &pod["status"]);
    let largest = statuses.map(|status| status.to_string().len()).max().unwrap_or_default();
    let summary = stage.summary(&rest).await?;
    Ok(format!("{summary}; a status of {} kB, the node linked at {linked} of {looks} looks", largest / 1000))
}

/// Pods that are short to write and long to keep.
pub async fn fat(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let variables: Vec<Value> = (0..2400).map(|number| json!({"name": format!("A{number}")})).collect();
    let containers: Vec<Value> = (0..20)
        .map(|number| json!({"name": format!("c{number}"), "image": "hostile/http:1", "env": variables}))
        .collect();
    let mut object = workload("ReplicaSet", "fat", 60);
    object["spec"]["template"]["spec"]["containers"] = json!(containers);
    stage.post(&rest, APPS, "replicasets", &object).await?;
    sleep(LONG).await;
    let pods = rest.get(&stage.path(CORE, "pods")).await?;
    let pods = pods["items"].as_array().context("a list of pods")?;
    let withheld = pods.iter().filter(|pod| pod["status"]["reason"] == "Withheld").count();
    Ok(format!("{} pods, {withheld} of them withheld", pods.len()))
}

/// What is stored once becomes many files.
pub async fn multiplied(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let config_map = json!({"metadata": {"name": "large"}, "data": {"a": "x".repeat(1_000_000)}});
    stage.post(&rest, CORE, "configmaps", &config_map).await?;
    let items: Vec<Value> = (0..60).map(|number| json!({"key": "a", "path": format!("f{number}")})).collect();
    let mut object = workload("ReplicaSet", "many", 20);
    let spec = &mut object["spec"]["template"]["spec"];
    spec["containers"] = json!([{"name": "c", "image": "hostile/http:1",
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "large", "items": items}}]);
    stage.post(&rest, APPS, "replicasets", &object).await?;
    sleep(LONG).await;
    Ok(stage.summary(&rest).await? + &stage.refusal(&rest).await?)
}

/// As volumes, all of which the node has to be sent.
pub async fn config_maps(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let data = json!({"a": "x".repeat(1_000_000)});
    let mut volumes = vec![json!({"name": "data", "emptyDir": {}})];
    for number in 0..200 {
        let name = format!("large-{number}");
        stage.post(&rest, CORE, "configmaps", &json!({"metadata": {"name": name}, "data": data})).await?;
        volumes.push(json!({"name": name, "configMap": {"name": name}}));
    }
    let spec = json!({
        "nodeSelector": {"kubernetes.io/hostname": NODE}, "containers": [container(&["grow", "1"])],
        "volumes": volumes,
    });
    let pod = json!({"metadata": {"name": "wide"}, "spec": spec});
    stage.post(&rest, CORE, "pods", &pod).await?;
    sleep(LONG).await;
    Ok(stage.summary(&rest).await? + &stage.refusal(&rest).await?)
}
