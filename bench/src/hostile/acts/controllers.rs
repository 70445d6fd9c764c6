//! What makes controllers work.

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{APPS, Answers, CORE, FLOOD, Stage, workload};

pub async fn owner_circle(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let mut uids = Vec::new();
    for name in ["a", "b", "c"] {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let made = stage.post(&rest, CORE, "configmaps", &object).await?;
        uids.push(made["metadata"]["uid"].as_str().context("a uid")?.to_owned());
    }
    for (name, (owner, uid)) in [("a", ("c", &uids[2])), ("b", ("a", &uids[0])), ("c", ("b", &uids[1]))] {
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": uid, "blockOwnerDeletion": true});
        let patch = json!({"metadata": {"ownerReferences": [owner]}}).to_string();
        let path = stage.path(CORE, &format!("configmaps/{name}"));
        let (status, _) = rest.send_as("application/merge-patch+json", "PATCH", &path, patch).await?;
        anyhow::ensure!(status == 200, "the owner of {name}: HTTP {status}");
    }
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"});
    let (status, _) =
        rest.call("DELETE", &stage.path(CORE, "configmaps/a"), options.to_string().into()).await?;
    Ok(status.to_string())
}

/// Each ConfigMap is owned by all.
pub async fn dense_owners(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let mut owners = Vec::new();
    for number in 0..300 {
        let name = format!("w{number}");
        let object = json!({"metadata": {"name": name, "labels": {"w": "w"}}});
        let made = stage.post(&rest, CORE, "configmaps", &object).await?;
        let uid = &made["metadata"]["uid"];
        owners.push(json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true}));
    }
    let patch = Bytes::from(json!({"metadata": {"ownerReferences": owners}}).to_string());
    for number in 0..300 {
        let path = stage.path(CORE, &format!("configmaps/w{number}"));
        rest.send_as("application/merge-patch+json", "PATCH", &path, patch.clone())
            .await?
            .1
            .collect()
            .await?;
    }
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"});
    let path = format!("{}?labelSelector=w%3Dw", stage.path(CORE, "configmaps"));
    let (status, _) = rest.call("DELETE", &path, options.to_string().into()).await?;
    Ok(status.to_string())
}

pub async fn nulls(stage: Stage) -> Result<String> {
    let mut object = workload("ReplicaSet", "nulls", 1);
    for field in ["tolerations", "initContainers", "hostname", "nodeName", "volumes"] {
        object["spec"]["template"]["spec"][field] = Value::Null;
    }
    let rest = stage.client.rest().await?;
    stage.post(&rest, APPS, "replicasets", &object).await?;
    sleep(FLOOD).await;
    let pods = rest.get(&stage.path(CORE, "pods")).await?;
    Ok(format!("201, {} pod", pods["items"].as_array().context("pods")?.len()))
}

pub async fn absent_node(stage: Stage) -> Result<String> {
    let mut object = workload("Deployment", "ghost", 20);
    object["spec"]["template"]["spec"]["nodeName"] = "ghost".into();
    let rest = stage.client.rest().await?;
    stage.post(&rest, APPS, "deployments", &object).await?;
    Ok("201".into())
}

pub async fn too_large(stage: Stage) -> Result<String> {
    let mut object = workload("Deployment", "fat", 1);
    let template = &mut object["spec"]["template"];
    for number in 0..2600 {
        template["metadata"]["labels"][format!("l{number:04}.example.com/{}", "k".repeat(40))] =
            "v".repeat(60).into();
    }
    template["spec"]["containers"][0]["env"] = json!([{"name": "P", "value": "x".repeat(950_000)}]);
    let rest = stage.client.rest().await?;
    let (status, _) = rest.call("POST", &stage.path(APPS, "deployments"), object.to_string().into()).await?;
    Ok(status.to_string())
}

pub async fn rotating_conditions(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let name = "r".repeat(200);
    let mut object = workload("ReplicaSet", &name, 1);
    object["spec"]["template"]["metadata"]["labels"] = json!({"app": "r"});
    object["spec"]["selector"]["matchLabels"] = json!({"app": "r"});
    object["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "E", "value": "x".repeat(1_571_450)}]);
    let mut answers = Answers::default();
    answers.add(
        rest.call("POST", &stage.path(APPS, "replicasets"), object.to_string().into()).await.map(|it| it.0),
    );
    let condition = |time: &str| json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "m", "lastTransitionTime": time});
    let both = json!([condition("2020-01-01T00:00:00Z"), condition("2021-01-01T00:00:00Z")]);
    let patch = json!([{"op": "add", "path": "/status/conditions", "value": both}]).to_string();
    let path = stage.path(APPS, &format!("replicasets/{name}/status"));
    answers.add(rest.send_as("application/json-patch+json", "PATCH", &path, patch).await.map(|it| it.0));
    Ok(answers.say())
}

pub async fn template_hash(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let mut answers = Answers::default();
    for number in 0..80 {
        let object = workload("ReplicaSet", &format!("one-{number}"), 0);
        answers.add(
            rest.call("POST", &stage.path(APPS, "replicasets"), object.to_string().into())
                .await
                .map(|it| it.0),
        );
    }
    let mut object = workload("Deployment", "hash", 1);
    for part in ["/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
        object.pointer_mut(part).context("labels")?["pod-template-hash"] = "x".into();
    }
    answers.add(
        rest.call("POST", &stage.path(APPS, "deployments"), object.to_string().into()).await.map(|it| it.0),
    );
    Ok(answers.say())
}

pub async fn wide_selectors(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let mut labels = serde_json::Map::new();
    for number in 0..14_000 {
        labels.insert(format!("label-{number}"), "v".into());
    }
    let mut answers = Answers::default();
    let spec = json!({"containers": [{"name": "c", "image": "hostile/none:1"}]});
    let pod = json!({"metadata": {"name": "wide", "labels": labels}, "spec": spec});
    answers.add(rest.call("POST", &stage.path(CORE, "pods"), pod.to_string().into()).await.map(|it| it.0));
    for number in 0..60 {
        labels.insert("one-more".into(), number.to_string().into());
        let spec = json!({"clusterIP": "None", "selector": labels, "ports": [{"port": 80}]});
        let service = json!({"metadata": {"name": format!("wide-{number}")}, "spec": spec});
        answers.add(
            rest.call("POST", &stage.path(CORE, "services"), service.to_string().into()).await.map(|it| it.0),
        );
    }
    for number in 0..20 {
        let patch = json!({"metadata": {"annotations": {"a": number.to_string()}}}).to_string();
        let path = stage.path(CORE, "pods/wide");
        answers.add(rest.send_as("application/merge-patch+json", "PATCH", &path, patch).await.map(|it| it.0));
    }
    Ok(answers.say())
}
