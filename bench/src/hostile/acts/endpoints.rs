//! Services whose endpoints never rest.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{Answers, CORE, LONG, Stage};

const SERVICES: usize = 50;
const ENDPOINTS: usize = 1000;
/// Who change them, and how often each does.
const CLIENTS: usize = 10;
const PERIOD: Duration = Duration::from_millis(100);
const SLICES: &str = "/apis/discovery.k8s.io/v1";

/// One endpoint's readiness, or for every fifth change the affinity of the Service itself: all that is known of either has
/// to go to the node and into its tables.
pub async fn changes(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    for number in 0..SERVICES {
        let name = format!("restless-{number}");
        let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        stage.post(&rest, CORE, "services", &service).await?;
        stage.post(&rest, SLICES, "endpointslices", &slice(&name, number)).await?;
    }
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (rest, stage) = (stage.client.rest().await?, stage.clone());
        clients.spawn(async move {
            let mut ticks = interval(PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut answers = Answers::default();
            let mut change = client;
            while begun.elapsed() < LONG {
                ticks.tick().await;
                let (path, patch) = patch(&stage, change);
                let changed = rest.send_as("application/json-patch+json", "PATCH", &path, patch.to_string());
                answers.add(changed.await.map(|it| it.0));
                change += CLIENTS;
            }
            answers
        });
    }
    let mut all = Answers::default();
    while let Some(answers) = clients.join_next().await {
        all.merge(answers?);
    }
    Ok(all.say())
}

fn slice(service: &str, number: usize) -> Value {
    let address = |endpoint: usize| format!("10.200.{}.{}", endpoint / 250, endpoint % 250 + 1);
    let endpoint = |endpoint| json!({"addresses": [address(endpoint)], "conditions": {"ready": true}});
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(endpoint).collect();
    let metadata = json!({"name": service, "labels": {"kubernetes.io/service-name": service}});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 80 + number}],
    })
}

/// Each change goes to the next Service; what one has changed the next one of the same Service changes back.
fn patch(stage: &Stage, change: usize) -> (String, Value) {
    let (service, round) = (change % SERVICES, change / SERVICES);
    if round % 5 == 4 {
        let affinity = ["ClientIP", "None"][round / 5 % 2];
        let path = stage.path(CORE, &format!("services/restless-{service}"));
        return (path, json!([{"op": "add", "path": "/spec/sessionAffinity", "value": affinity}]));
    }
    let step = round - round / 5;
    let ready = format!("/endpoints/{}/conditions/ready", step / 2 % ENDPOINTS);
    let path = stage.path(SLICES, &format!("endpointslices/restless-{service}"));
    (path, json!([{"op": "replace", "path": ready, "value": step % 2 == 1}]))
}
