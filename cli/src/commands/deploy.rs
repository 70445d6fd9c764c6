//! `coracle deploy`: from a .wasm file to a URL that answers.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    args::DeployArgs,
    client::{Cluster, native_kind},
    commands::push::{push, read_wasm, split_name},
};

/// How long a deployment may take to become available.
const AVAILABLE_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Annotation of a Node: the host:port of its gateway.
pub const GATEWAY_ANNOTATION: &str = "coracle.dev/gateway-address";

pub async fn run(args: &DeployArgs) -> Result<()> {
    let cluster = Cluster::find_in(&args.namespaced)?;
    let (image, default_name) = image(&cluster, args).await?;
    let name = args.name.clone().unwrap_or(default_name);
    // A Service's name is the narrowest of the three.
    native_kind("services")?.object(&cluster.namespace, &name)?;
    let host = args.host.clone().unwrap_or_else(|| format!("{name}.localhost"));
    apply(&cluster, args, &name, &image, &host).await?;
    wait_available(&cluster, &name).await?;
    let gateway = gateway(&cluster).await?;
    let port = gateway.rsplit_once(':').map_or("80", |(_, port)| port);
    println!("http://{host}:{port}/");
    if !host.ends_with(".localhost") {
        eprintln!("(the gateway answers at {gateway} for the host {host})");
    }
    Ok(())
}

/// The image to run and the name that follows from it. A file is pushed under its digest, so that a changed file is
/// a changed image.
async fn image(cluster: &Cluster, args: &DeployArgs) -> Result<(String, String)> {
    let path = Path::new(&args.image);
    if !args.image.ends_with(".wasm") || args.image.contains("://") {
        let last = args.image.rsplit('/').next().unwrap_or(&args.image);
        return Ok((args.image.clone(), dns_label(last.split(':').next().unwrap_or(last))));
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).context("the file has no name")?;
    let name = args.name.clone().unwrap_or_else(|| dns_label(stem));
    let bytes = read_wasm(path)?;
    let tag = hex::encode(Sha256::digest(&bytes))[..12].to_string();
    let (repository, _) = split_name(&name)?;
    push(cluster, &repository, &tag, bytes).await?;
    Ok((format!("{repository}:{tag}"), name))
}

fn dns_label(text: &str) -> String {
    let label: String =
        text.to_ascii_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    label.trim_matches('-').chars().take(63).collect()
}

async fn apply(cluster: &Cluster, args: &DeployArgs, name: &str, image: &str, host: &str) -> Result<()> {
    let namespace = &cluster.namespace;
    let labels = json!({"app": name});
    let env: Vec<Value> = args.env.iter().map(|(key, value)| json!({"name": key, "value": value})).collect();
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": args.replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{
                    "name": name, "image": image, "env": env, "args": args.args,
                    "ports": [{"containerPort": args.port}],
                }]},
            },
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": args.port}]},
    });
    let ingress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "labels": labels},
        "spec": {"rules": [{"host": host, "http": {"paths": [{
            "path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": name, "port": {"number": 80}}},
        }]}}]},
    });
    cluster.apply(&format!("/apis/apps/v1/namespaces/{namespace}/deployments"), &deployment).await?;
    cluster.apply(&format!("/api/v1/namespaces/{namespace}/services"), &service).await?;
    cluster.apply(&format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses"), &ingress).await
}

/// Waits until the deployment's newest revision is available, showing how far it is.
pub async fn wait_available(cluster: &Cluster, name: &str) -> Result<()> {
    let path = format!("/apis/apps/v1/namespaces/{}/deployments/{name}", cluster.namespace);
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    let deadline = tokio::time::Instant::now() + AVAILABLE_WITHIN;
    loop {
        let deployment = cluster.get(&path).await?.with_context(|| format!("deployment {name} is gone"))?;
        let status = &deployment["status"];
        let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
        let count = |field: &str| status[field].as_i64().unwrap_or(0);
        let seen = status["observedGeneration"] == deployment["metadata"]["generation"];
        if seen && count("updatedReplicas") == wanted && count("availableReplicas") == wanted {
            spinner.finish_and_clear();
            return Ok(());
        }
        spinner.set_message(format!("{name}: {} of {wanted} pods available", count("availableReplicas")));
        if tokio::time::Instant::now() > deadline {
            spinner.finish_and_clear();
            bail!("{name} did not become available: {}", why_not(cluster, name).await?);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The first reason that a pod of the deployment gives for not running.
async fn why_not(cluster: &Cluster, name: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/{}/pods?labelSelector=app%3D{name}", cluster.namespace);
    let pods = cluster.get(&path).await?.unwrap_or_default();
    for pod in pods["items"].as_array().into_iter().flatten() {
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let waiting = &status["state"]["waiting"];
            if let Some(reason) = waiting["reason"].as_str() {
                let message = waiting["message"].as_str().unwrap_or_default();
                return Ok(format!(
                    "pod {} is in {reason}: {message}",
                    pod["metadata"]["name"].as_str().unwrap_or("?")
                ));
            }
        }
        for condition in pod["status"]["conditions"].as_array().into_iter().flatten() {
            if condition["type"] == "PodScheduled" && condition["status"] == "False" {
                return Ok(condition["message"]
                    .as_str()
                    .unwrap_or("its pods cannot be scheduled")
                    .to_string());
            }
        }
    }
    Ok("its pods say nothing; see `coracle get pods` and `kubectl describe`".into())
}

/// The host:port of a gateway of the cluster.
pub async fn gateway(cluster: &Cluster) -> Result<String> {
    let nodes = cluster.get("/api/v1/nodes").await?.unwrap_or_default();
    let addresses = nodes["items"].as_array().into_iter().flatten().filter_map(|node| {
        node["metadata"]["annotations"][GATEWAY_ANNOTATION].as_str().filter(|address| !address.is_empty())
    });
    let mut addresses: Vec<&str> = addresses.collect();
    addresses.sort_unstable();
    let first = addresses.first().context("no node has a gateway: start one with --gateway ADDR")?;
    Ok((*first).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_become_dns_labels() {
        assert_eq!(dns_label("hello_http"), "hello-http");
        assert_eq!(dns_label("_My App_"), "my-app");
    }
}
