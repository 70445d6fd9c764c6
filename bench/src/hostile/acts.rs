//! The hostile acts, each with no more than a user of one namespace has.

use std::{collections::BTreeMap, future::Future, pin::Pin, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

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
    ($($name:literal => $run:ident),* $(,)?) => {
        pub const ALL: &[Act] = &[$(Act { name: $name, run: |stage| Box::pin($run(stage)) }),*];
    };
}

acts! {
    "nothing" => nothing,
    "a circle of three owners, deleted in the foreground" => owner_circle,
    "YAML nested 119 deep, 100 times" => deep_yaml,
    "null for lists in a ReplicaSet's template" => nulls,
    "a Deployment of 20 whose template names a node that is not there" => absent_node,
    "a ReplicaSet that would be too large" => too_large,
    "a selector on pod-template-hash beside 80 ReplicaSets" => template_hash,
    "15 kB of YAML aliases for 9 million values, 50 times" => aliases,
    "Services of 20,000 ports, 20 times" => wide_services,
    "a patch with 100,000 finalizers, 20 times" => finalizers,
    "slices of 1,000 endpoints and 15,000 ports, 20 times" => wide_slices,
    "an environment of 200 MB" => environment,
    "300,000 unclosed references in an environment" => unclosed,
    "32 connections that list everything" => lists,
    "32 connections with bodies of 2 MB" => large_bodies,
    "2,000 watches that read nothing" => idle_watches,
    "64 connections without a certificate, bodies of 64 MB to the store's door" => anonymous_bodies,
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

async fn owner_circle(stage: Stage) -> Result<String> {
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

async fn deep_yaml(stage: Stage) -> Result<String> {
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

async fn nulls(stage: Stage) -> Result<String> {
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

async fn absent_node(stage: Stage) -> Result<String> {
    let mut object = workload("Deployment", "ghost", 20);
    object["spec"]["template"]["spec"]["nodeName"] = "ghost".into();
    let rest = stage.client.rest().await?;
    stage.post(&rest, APPS, "deployments", &object).await?;
    Ok("201".into())
}

async fn too_large(stage: Stage) -> Result<String> {
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

async fn template_hash(stage: Stage) -> Result<String> {
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

async fn aliases(stage: Stage) -> Result<String> {
    let n = 3000;
    let body = format!("a: &a [{}0]\nb: [{}*a]\n", "0,".repeat(n), "*a,".repeat(n));
    repeat(&stage, 50, "application/yaml", &stage.path(CORE, "configmaps"), body).await
}

async fn wide_services(stage: Stage) -> Result<String> {
    let port = |number: usize| json!({"name": format!("p{number}"), "port": number + 1});
    let ports: Vec<Value> = (0..20_000).map(port).collect();
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wide"}, "spec": {"ports": ports}});
    repeat(&stage, 20, "application/json", &stage.path(CORE, "services"), object.to_string()).await
}

async fn finalizers(stage: Stage) -> Result<String> {
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

async fn wide_slices(stage: Stage) -> Result<String> {
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

async fn environment(stage: Stage) -> Result<String> {
    let mut variables = vec![json!({"name": "v0", "value": "x".repeat(500)})];
    for (number, times) in [(1, 2000), (2, 200)] {
        variables.push(
            json!({"name": format!("v{number}"), "value": format!("$(v{})", number - 1).repeat(times)}),
        );
    }
    pod_with(&stage, json!(variables)).await
}

async fn unclosed(stage: Stage) -> Result<String> {
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

/// Of 300 objects of 10 kB.
async fn lists(stage: Stage) -> Result<String> {
    let rest = stage.client.rest().await?;
    for number in 0..300 {
        let metadata = json!({"name": format!("listed-{number}")});
        let object = json!({"metadata": metadata, "data": {"a": "x".repeat(10_000)}});
        stage.post(&rest, CORE, "configmaps", &object).await?;
    }
    let path = stage.path(CORE, "configmaps");
    flood(&stage, move |rest| {
        let path = path.clone();
        async move { Ok(rest.call("GET", &path, Vec::new()).await?.0) }
    })
    .await
}

async fn large_bodies(stage: Stage) -> Result<String> {
    let metadata = json!({"name": "large", "namespace": stage.namespace});
    let data = json!({"a": "x".repeat(2_000_000)});
    let body =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string();
    let (body, path) = (Bytes::from(body), stage.path(CORE, "configmaps"));
    flood(&stage, move |rest| {
        let (body, path) = (body.clone(), path.clone());
        async move { Ok(rest.send_as("application/json", "POST", &path, body).await?.0) }
    })
    .await
}

/// They stay open to the end of the act, while an object that all of them watch is written.
async fn idle_watches(stage: Stage) -> Result<String> {
    let (mut open, mut answers) = (Vec::new(), Answers::default());
    let path = format!("{}?watch=1", stage.path(CORE, "configmaps"));
    for _ in 0..40 {
        let rest = stage.client.rest().await?;
        for _ in 0..50 {
            let answer = timeout(FLOOD, rest.send("GET", &path, Vec::new())).await.context("no answer");
            let answer = answer.and_then(|it| it);
            answers.add(answer.as_ref().map(|it| it.0).map_err(|error| anyhow::anyhow!("{error:#}")));
            open.extend(answer.map(|it| it.1));
        }
    }
    let rest = stage.client.rest().await?;
    stage.post(&rest, CORE, "configmaps", &json!({"metadata": {"name": "seen"}})).await?;
    let path = stage.path(CORE, "configmaps/seen");
    let begun = std::time::Instant::now();
    while begun.elapsed() < FLOOD {
        let value = format!("{:?}{}", begun.elapsed(), "x".repeat(10_000));
        let object = json!({"metadata": {"name": "seen"}, "data": {"a": value}});
        rest.call("PUT", &path, object.to_string().into()).await?;
    }
    Ok(answers.say())
}

/// A call of gRPC whose message claims 64 MB, of which more and more is sent as far as the door takes it.
async fn anonymous_bodies(stage: Stage) -> Result<String> {
    let anonymous = stage.client.anonymous()?;
    let mut message = Vec::with_capacity(64 << 20);
    message.extend([0, 4, 0, 0, 0]);
    message.resize(64 << 20, 0);
    let message = Bytes::from(message);
    let mut sending = JoinSet::new();
    for _ in 0..2 * CONNECTIONS {
        let (client, message) = (anonymous.clone(), message.clone());
        sending.spawn(async move {
            let calling = async {
                let rest = client.rest().await?;
                Ok(rest.send_as("application/grpc", "POST", "/coracle.store.v1.Store/Txn", message).await?.0)
            };
            timeout(FLOOD, calling).await.context("no answer")?
        });
    }
    tally(sending).await
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
