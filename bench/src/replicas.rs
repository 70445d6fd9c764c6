//! Deployments: made, scaled, waited for.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{client::Rest, cluster::Cluster, node::Node};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const POLL: Duration = Duration::from_millis(5);

/// A control node and one node, and Deployments on it.
pub struct Replicas {
    pub cluster: Cluster,
    pub node: Node,
    pub deployments: Deployments,
}

impl Replicas {
    pub async fn start(images: &[&str], more: &[String]) -> Result<Self> {
        let cluster = Cluster::start(1).await?;
        for name in images {
            crate::node::push(&cluster, &coracle_sample_artifacts::wasm(name), &format!("{name}:1"))?;
        }
        let node = Node::start(&cluster, "n1", "127.0.0.1", more)?;
        let rest = cluster.client(0)?.rest().await?;
        Ok(Self { cluster, node, deployments: Deployments { rest } })
    }
}

/// Deployments in the namespace `default`.
pub struct Deployments {
    pub rest: Rest,
}

impl Deployments {
    pub async fn make(&self, name: &str, words: &[&str], replicas: usize) -> Result<()> {
        let labels = json!({"app": name});
        let container = json!({"name": "c", "image": words[0], "args": words[1..]});
        let spec = json!({"terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "containers": [container]});
        let template = json!({"metadata": {"labels": labels}, "spec": spec});
        let spec = json!({"replicas": replicas, "selector": {"matchLabels": labels}, "template": template});
        let object = json!({"metadata": {"name": name}, "spec": spec});
        let (status, body) = self.rest.call("POST", DEPLOYMENTS, object.to_string().into()).await?;
        ensure!(status == 201, "the Deployment: HTTP {status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    }

    pub async fn scale(&self, name: &str, replicas: usize) -> Result<()> {
        let patch = json!({"spec": {"replicas": replicas}}).to_string();
        let path = format!("{DEPLOYMENTS}/{name}");
        let (status, body) = self.rest.send_as("application/merge-patch+json", "PATCH", &path, patch).await?;
        body.collect().await?;
        ensure!(status == 200, "scaling {name}: HTTP {status}");
        Ok(())
    }

    /// Waits until so many are Ready, as long as there are more of them than `patience` ago: how many there are then.
    pub async fn ready(&self, name: &str, wanted: usize, patience: Duration) -> Result<usize> {
        let (mut most, mut since) = (0, Instant::now());
        loop {
            let object = self.rest.get(&format!("{DEPLOYMENTS}/{name}")).await?;
            let ready = number(&object["status"]["readyReplicas"]);
            if ready > most {
                (most, since) = (ready, Instant::now());
            }
            if ready >= wanted || since.elapsed() > patience {
                return Ok(ready);
            }
            sleep(POLL).await;
        }
    }

    /// Deletes it, and waits until its pods are gone.
    pub async fn delete(&self, name: &str, patience: Duration) -> Result<()> {
        self.rest.call("DELETE", &format!("{DEPLOYMENTS}/{name}"), Vec::new()).await?;
        let begun = Instant::now();
        let path = "/api/v1/namespaces/default/pods?limit=1";
        while self.rest.get(path).await?["items"].as_array().is_some_and(|pods| !pods.is_empty()) {
            ensure!(begun.elapsed() < patience, "the pods of {name} are not gone");
            sleep(POLL * 10).await;
        }
        Ok(())
    }
}

fn number(value: &Value) -> usize {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
}
