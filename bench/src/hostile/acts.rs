//! The hostile acts, each with no more than a user of one namespace has.

mod bodies;
mod controllers;
mod floods;
mod pods;

use std::{collections::BTreeMap, future::Future, pin::Pin, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Client, Rest};

/// How long the acts that are floods go on.
const FLOOD: Duration = Duration::from_secs(6);
/// Connections of a flood.
const CONNECTIONS: usize = 32;

type Acting = Pin<Box<dyn Future<Output = Result<String>> + Send>>;

pub struct Act {
    pub name: &'static str,
    /// What was answered, in a few words.
    pub run: fn(Stage) -> Acting,
}

/// Where an act takes place.
#[derive(Clone)]
pub struct Stage {
    pub client: Client,
    pub namespace: String,
}

macro_rules! acts {
    ($($name:literal => $run:path),* $(,)?) => {
        pub const ALL: &[Act] = &[$(Act { name: $name, run: |stage| Box::pin($run(stage)) }),*];
    };
}

acts! {
    "nothing" => nothing,
    "a circle of three owners, deleted in the foreground" => controllers::owner_circle,
    "YAML nested 119 deep, 100 times" => bodies::deep_yaml,
    "null for lists in a ReplicaSet's template" => controllers::nulls,
    "a Deployment of 20 whose template names a node that is not there" => controllers::absent_node,
    "a ReplicaSet that would be too large" => controllers::too_large,
    "a selector on pod-template-hash beside 80 ReplicaSets" => controllers::template_hash,
    "15 kB of YAML aliases for 9 million values, 50 times" => bodies::aliases,
    "Services of 20,000 ports, 20 times" => bodies::wide_services,
    "a patch with 100,000 finalizers, 20 times" => bodies::finalizers,
    "slices of 1,000 endpoints and 15,000 ports, 20 times" => bodies::wide_slices,
    "an environment of 200 MB" => pods::environment,
    "300,000 unclosed references in an environment" => pods::unclosed,
    "32 connections that list everything" => floods::lists,
    "32 connections with bodies of 2 MB" => floods::large_bodies,
    "2,000 watches that read nothing" => floods::idle_watches,
    "300 ConfigMaps that own each other, deleted in the foreground" => controllers::dense_owners,
    "two ReplicaFailures in the status of a ReplicaSet whose pods are too large" => controllers::rotating_conditions,
    "1,000,000 empty containers" => bodies::empty_containers,
    "a strategic patch of 100,000 fields under a name of 1 MB" => bodies::long_names,
    "a pod with 14,000 labels and 60 Services that select them" => controllers::wide_selectors,
    "260 connections that list 8 MB and read nothing" => floods::unread_lists,
    "a page of a list after each rewrite of 40 MB, 8 times" => floods::pages,
    "1,500 silent connections to a node port" => pods::silent_connections,
    "64 connections without a certificate, bodies of 64 MB to the store's door" => floods::anonymous_bodies,
}

impl Stage {
    fn path(&self, group: &str, resource: &str) -> String {
        format!("{group}/namespaces/{}/{resource}", self.namespace)
    }

    async fn post(&self, rest: &Rest, group: &str, resource: &str, object: &Value) -> Result<Value> {
        let (status, body) =
            rest.call("POST", &self.path(group, resource), object.to_string().into()).await?;
        anyhow::ensure!(status == 201, "{resource}: HTTP {status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }
}

/// Statuses and how often each came.
#[derive(Default)]
struct Answers(BTreeMap<String, usize>);

impl Answers {
    fn add(&mut self, answer: Result<u16>) {
        let answer = answer.map_or_else(|_| "no answer".to_owned(), |status| status.to_string());
        *self.0.entry(answer).or_default() += 1;
    }

    fn say(&self) -> String {
        let each: Vec<String> = self.0.iter().map(|(answer, count)| format!("{count} x {answer}")).collect();
        each.join(", ")
    }
}

const CORE: &str = "/api/v1";
const APPS: &str = "/apis/apps/v1";

async fn nothing(_: Stage) -> Result<String> {
    Ok("-".into())
}

async fn tally(mut sending: JoinSet<Result<u16>>) -> Result<String> {
    let mut answers = Answers::default();
    while let Some(answer) = sending.join_next().await {
        answers.add(answer?);
    }
    Ok(answers.say())
}

/// The same request in a closed loop over many connections, for as long as a flood takes.
async fn flood<F, R>(stage: &Stage, request: F) -> Result<String>
where
    F: Fn(Rest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<u16>> + Send + 'static,
{
    let begun = std::time::Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (rest, request) = (stage.client.rest().await?, request.clone());
        clients.spawn(async move {
            let mut answers = Answers::default();
            while begun.elapsed() < FLOOD {
                answers.add(request(rest.clone()).await);
            }
            answers
        });
    }
    let mut all = Answers::default();
    while let Some(answers) = clients.join_next().await {
        for (answer, count) in answers?.0 {
            *all.0.entry(answer).or_default() += count;
        }
    }
    Ok(all.say())
}

/// The same body so many times, one after the other.
async fn repeat(stage: &Stage, times: usize, content_type: &str, path: &str, body: String) -> Result<String> {
    let (rest, body) = (stage.client.rest().await?, Bytes::from(body));
    let mut answers = Answers::default();
    for _ in 0..times {
        answers.add(rest.send_as(content_type, "POST", path, body.clone()).await.map(|it| it.0));
    }
    Ok(answers.say())
}

fn workload(kind: &str, name: &str, replicas: usize) -> Value {
    let template = json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "hostile/none:1"}]},
    });
    let spec =
        json!({"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template});
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}
