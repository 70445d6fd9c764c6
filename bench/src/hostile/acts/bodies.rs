//! Bodies that are small to send.

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{APPS, Answers, CORE, Stage, repeat};

pub async fn deep_yaml(stage: Stage) -> Result<String> {
    let depth = 119;
    let body = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: deep}}\nspec:\n  selector: {{matchLabels: {{a: b}}}}\n  \
         template:\n    metadata: {{labels: {{a: b}}}}\n    spec:\n      containers:\n      - name: c\n        image: x:1\n        \
         env:\n        - name: E\n          valueFrom: {{resourceFieldRef: {{resource: limits.cpu, divisor: {}{}}}}}\n",
        "[".repeat(depth),
        "]".repeat(depth)
    );
    repeat(&stage, 100, "application/yaml", &stage.path(APPS, "deployments"), body).await
}

pub async fn aliases(stage: Stage) -> Result<String> {
    let n = 3000;
    let body = format!("a: &a [{}0]\nb: [{}*a]\n", "0,".repeat(n), "*a,".repeat(n));
    repeat(&stage, 50, "application/yaml", &stage.path(CORE, "configmaps"), body).await
}

pub async fn wide_services(stage: Stage) -> Result<String> {
    let port = |number: usize| json!({"name": format!("p{number}"), "port": number + 1});
    let ports: Vec<Value> = (0..20_000).map(port).collect();
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wide"}, "spec": {"ports": ports}});
    repeat(&stage, 20, "application/json", &stage.path(CORE, "services"), object.to_string()).await
}

pub async fn finalizers(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    stage.post(&rest, CORE, "configmaps", &json!({"metadata": {"name": "x"}})).await?;
    let finalizers: Vec<String> = (0..100_000).map(|number| format!("f{number}.example.com/x")).collect();
    let patch = Bytes::from(json!({"metadata": {"finalizers": finalizers}}).to_string());
    let path = stage.path(CORE, "configmaps/x");
    let mut answers = Answers::default();
    for _ in 0..20 {
        let answer =
            rest.send_as("application/strategic-merge-patch+json", "PATCH", &path, patch.clone()).await;
        answers.add(answer.map(|it| it.0));
    }
    let none = r#"{"metadata":{"finalizers":null}}"#;
    let (status, _) = rest.send_as("application/merge-patch+json", "PATCH", &path, none).await?;
    anyhow::ensure!(status == 200, "without finalizers: HTTP {status}");
    Ok(answers.say())
}

pub async fn wide_slices(stage: Stage) -> Result<String> {
    let ports: Vec<Value> =
        (0..15_000).map(|number| json!({"name": format!("p{number}"), "port": 1})).collect();
    let endpoints = vec![json!({"addresses": ["10.128.9.9"]}); 1000];
    let rest = stage.client.rest().await?;
    let mut answers = Answers::default();
    for number in 0..20 {
        let metadata =
            json!({"name": format!("fat-{number}"), "labels": {"kubernetes.io/service-name": "x"}});
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
        });
        let path = stage.path("/apis/discovery.k8s.io/v1", "endpointslices");
        answers.add(rest.call("POST", &path, object.to_string().into()).await.map(|it| it.0));
    }
    Ok(answers.say())
}

pub async fn empty_containers(stage: Stage) -> Result<String> {
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p"}},"spec":{{"containers":[{}{{}}]}}}}"#,
        "{},".repeat(1_000_000)
    );
    repeat(&stage, 4, "application/json", &stage.path(CORE, "pods"), body).await
}

pub async fn long_names(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    stage.post(&rest, CORE, "configmaps", &json!({"metadata": {"name": "x"}})).await?;
    let mut fields = serde_json::Map::new();
    for number in 0..100_000 {
        fields.insert(number.to_string(), 1.into());
    }
    let mut metadata = serde_json::Map::new();
    metadata.insert("k".repeat(1_000_000), fields.into());
    let patch = json!({"metadata": metadata}).to_string();
    let path = stage.path(CORE, "configmaps/x");
    let (status, _) = rest.send_as("application/strategic-merge-patch+json", "PATCH", &path, patch).await?;
    Ok(status.to_string())
}
