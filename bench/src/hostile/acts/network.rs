//! Guests and the network.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{APPS, CORE, FLOOD, INGRESSES, Stage, guests::container, web::Web};
use crate::{
    client::Rest,
    hostile::{HARMLESS, POD, SECOND_NODE, surroundings::SILENT_ZONE},
};

/// How long the other user's lookups may take.
const LOOKUPS: Duration = Duration::from_secs(15);

pub async fn outside(stage: Stage) -> Result<String> {
    let sink = stage.outside.as_ref().context("a machine outside")?.sink.to_string();
    stage.crowd(4, &["connect", &sink, "10000"]).await
}

/// To a Service of the hostile user: each port is a flow.
pub async fn flows(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let ports = json!([{"port": 53, "protocol": "UDP"}]);
    let service = json!({"metadata": {"name": "udp"}, "spec": {"selector": {"app": "p0"}, "ports": ports}});
    let made = stage.post(&rest, CORE, "services", &service).await?;
    let address = made["spec"]["clusterIP"].as_str().context("an address")?;
    stage.crowd(8, &["flows", &format!("{address}:53"), "8000"]).await
}

/// Connections to a pod on the other node that reads nothing.
pub async fn tunnels(stage: Stage) -> Result<String> {
    let sink = far_sink(&stage).await?;
    stage.crowd(8, &["connect", &sink, "5000"]).await
}

/// Datagrams to a pod on the other node that receives nothing.
pub async fn far_flows(stage: Stage) -> Result<String> {
    let sink = far_sink(&stage).await?;
    stage.crowd(8, &["flows", &sink, "8000"]).await
}

async fn far_sink(stage: &Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    stage.start_on(&rest, "sink", container(&["sink", "7"]), SECOND_NODE).await?;
    Ok(format!("{}:7", stage.address(&rest, "sink").await?))
}

/// The answer is what another namespace found meanwhile.
pub async fn silent_zone(stage: Stage) -> Result<String> {
    let hostile = stage.crowd(64, &["lookup", SILENT_ZONE, "64"]).await?;
    let other = Stage { namespace: "default".into(), ..stage };
    let found = other.to_the_end("names", &["names", "known.example", "20"], LOOKUPS).await?;
    let rest = other.client.rest().await?;
    rest.call("DELETE", &other.path(CORE, "pods/names"), Vec::new()).await?;
    Ok(format!("{hostile}; the other user: {found}"))
}

/// As the loopback, the other user's pod, the node's gateway and a service, to the other user's pod.
pub async fn claims(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    let other = pod_of(&rest, POD).await?;
    let mut said = Vec::new();
    for (number, from) in ["127.0.0.1", &other, "10.96.0.1", "198.18.77.1"].into_iter().enumerate() {
        let arguments = ["claim", from, &format!("{other}:80")];
        let heard = stage.to_the_end(&format!("claim-{number}"), &arguments, FLOOD).await?;
        said.push(heard.trim_start_matches("Succeeded; ").to_owned());
    }
    Ok(said.join("; "))
}

/// The answer is what another pod of that user got from its server meanwhile.
pub async fn floods(stage: Stage) -> Result<String> {
    let other = Stage { namespace: "default".into(), ..stage.clone() };
    let rest = other.client.rest().await?;
    other.start(&rest, "echo", container(&["echo", "7"])).await?;
    let echo = format!("{}:7", other.address(&rest, "echo").await?);
    let flooding = tokio::spawn({
        let (stage, echo) = (stage.clone(), echo.clone());
        async move { stage.crowd(8, &["flood", &echo]).await }
    });
    let pinged = other.to_the_end("ping", &["ping", &echo, "400"], LOOKUPS).await?;
    let hostile = flooding.await??;
    for pod in ["ping", "echo"] {
        rest.call("DELETE", &other.path(CORE, &format!("pods/{pod}?gracePeriodSeconds=0")), Vec::new())
            .await?;
    }
    Ok(format!("{hostile}; the other user: {pinged}"))
}

/// The answer is what the gateway's clients get of that pod meanwhile.
pub async fn crowds(stage: Stage) -> Result<String> {
    let other = Stage { namespace: "default".into(), ..stage.clone() };
    let rest = other.client.rest().await?;
    let small = Web::of(
        &other,
        json!({
            "name": "c", "image": HARMLESS, "ports": [{"containerPort": 80}],
            "resources": {"limits": {"memory": "16Mi"}},
        }),
    )
    .await?;
    let pods = rest.get(&other.path(CORE, "pods?labelSelector=app=web")).await?;
    let address = pods["items"][0]["status"]["podIP"].as_str().context("the small pod's address")?;
    let hostile = tokio::spawn({
        let (stage, address) = (stage.clone(), format!("{address}:80"));
        async move { stage.crowd(8, &["silent", &address, "2000"]).await }
    });
    let asked = small.asked().await;
    let hostile = hostile.await??;
    for (group, thing) in [(APPS, "deployments/web"), (CORE, "services/web"), (INGRESSES, "ingresses/web")] {
        rest.call("DELETE", &other.path(group, thing), Vec::new()).await?;
    }
    Ok(format!("{hostile}; the gateway's clients: {asked}"))
}

async fn pod_of(rest: &Rest, app: &str) -> Result<String> {
    let pods = rest.get(&format!("{CORE}/namespaces/default/pods?labelSelector=app={app}")).await?;
    let address = |pods: &Value| Some(pods["items"][0]["status"]["podIP"].as_str()?.to_owned());
    address(&pods).with_context(|| format!("no pod of {app} has an address"))
}
