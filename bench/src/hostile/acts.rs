//! The hostile acts, each with no more than a user of one namespace has.

mod bodies;
mod compile;
mod compute;
mod controllers;
mod doors;
mod endpoints;
mod files;
mod floods;
mod frames;
pub mod guests;
mod logs;
mod network;
mod pods;
mod structures;
pub mod web;

use std::{
    collections::BTreeMap, future::Future, path::PathBuf, pin::Pin, process::Command, sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::surroundings::Outside;
use crate::client::{Client, Rest};

/// How long the acts that are floods go on.
const FLOOD: Duration = Duration::from_secs(6);
/// The same of acts that need more time until their harm shows.
const LONG: Duration = Duration::from_secs(20);
/// Between two looks at something.
const POLL: Duration = Duration::from_millis(100);
/// Connections of a flood.
const CONNECTIONS: usize = 32;

type Acting = Pin<Box<dyn Future<Output = Result<String>> + Send>>;

pub struct Act {
    pub name: &'static str,
    pub against: Against,
    pub needs: Needs,
    /// What was answered, in a few words.
    pub run: fn(Stage) -> Acting,
}

/// Who suffers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Against {
    Control,
    Node,
}

/// What an act needs beside a control node and a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    SecondNode,
    Outside,
    NameServer,
    /// The node's data are on a disk of [`super::surroundings::SMALL_DISK_MIB`].
    SmallDisk,
}

/// Where an act takes place.
#[derive(Clone)]
pub struct Stage {
    pub client: Client,
    pub namespace: String,
    /// The gateway of the node.
    pub gateway: String,
    /// Where other nodes reach it.
    pub fabric: String,
    /// The process of the node, and its data as the node itself sees them.
    pub node: u32,
    pub node_dir: PathBuf,
    /// A machine beyond the cluster, where the act needs one.
    pub outside: Option<Arc<Outside>>,
    pub binary: PathBuf,
    pub kubeconfig: PathBuf,
}

macro_rules! acts {
    ($($against:ident, $needs:ident, $name:literal => $run:path;)*) => {
        pub const ALL: &[Act] = &[$(Act {
            name: $name, against: Against::$against, needs: Needs::$needs, run: |stage| Box::pin($run(stage)),
        }),*];
    };
}

acts! {
    Control, Nothing, "nothing" => nothing;
    Control, Nothing, "a circle of three owners, deleted in the foreground" => controllers::owner_circle;
    Control, Nothing, "YAML nested 119 deep, 100 times" => bodies::deep_yaml;
    Control, Nothing, "null for lists in a ReplicaSet's template" => controllers::nulls;
    Control, Nothing, "a Deployment of 20 whose template names a node that is not there" => controllers::absent_node;
    Control, Nothing, "a ReplicaSet that would be too large" => controllers::too_large;
    Control, Nothing, "a selector on pod-template-hash beside 80 ReplicaSets" => controllers::template_hash;
    Control, Nothing, "15 kB of YAML aliases for 9 million values, 50 times" => bodies::aliases;
    Control, Nothing, "Services of 20,000 ports, 20 times" => bodies::wide_services;
    Control, Nothing, "a patch with 100,000 finalizers, 20 times" => bodies::finalizers;
    Control, Nothing, "slices of 1,000 endpoints and 15,000 ports, 20 times" => bodies::wide_slices;
    Control, Nothing, "32 connections that list everything" => floods::lists;
    Control, Nothing, "32 connections with bodies of 2 MB" => floods::large_bodies;
    Control, Nothing, "2,000 watches that read nothing" => floods::idle_watches;
    Control, Nothing, "300 ConfigMaps that own each other, deleted in the foreground" => controllers::dense_owners;
    Control, Nothing, "two ReplicaFailures in the status of a ReplicaSet whose pods are too large" => controllers::rotating_conditions;
    Control, Nothing, "1,000,000 empty containers" => bodies::empty_containers;
    Control, Nothing, "a strategic patch of 100,000 fields under a name of 1 MB" => bodies::long_names;
    Control, Nothing, "a pod with 14,000 labels and 60 Services that select them" => controllers::wide_selectors;
    Control, Nothing, "260 connections that list 8 MB and read nothing" => floods::unread_lists;
    Control, Nothing, "a page of a list after each rewrite of 40 MB, 8 times" => floods::pages;
    Control, Nothing, "64 connections without a certificate, bodies of 64 MB to the store's door" => floods::anonymous_bodies;
    Node, Nothing, "nothing to a node" => nothing;
    Node, Nothing, "a guest nests 15,000 folders and ends" => files::nested;
    Node, Nothing, "a guest makes 200,000 files and ends" => files::many;
    Node, Nothing, "8 guests that open files and sockets without end" => files::open;
    Node, Nothing, "2 guests with 1,000 listings of 10,000 names each" => files::listings;
    Node, Nothing, "32 guests that sync a file again and again" => files::syncs;
    Node, Nothing, "8 guests that use all permits of 128 streams at once and 8 that write without one" => files::permits;
    Node, Nothing, "64 guests that loop" => compute::loops;
    Node, Nothing, "8 guests that fill 256 MiB in one instruction, again and again" => compute::fills;
    Node, Nothing, "8 guests that grow to 256 MiB, are ended and start again" => compute::hogs;
    Node, Nothing, "20 guests with 4,900 timers each" => compute::resources;
    Node, Nothing, "8 guests that take random bytes" => compute::random;
    Node, Nothing, "8 guests that send to 1,000 sockets nobody receives from" => compute::datagrams;
    Node, Nothing, "8 guests that log as fast as they can" => compute::log;
    Node, Nothing, "8 guests that log one line without end" => compute::lines;
    Node, Nothing, "300 readers that take nothing of a log that grows" => logs::unread;
    Node, SmallDisk, "8 guests that log 1 GB each on a small disk" => logs::full;
    Node, SmallDisk, "a guest that fills the disk" => files::disk;
    Node, SmallDisk, "40 images of 8 MB each on a small disk" => files::images;
    Node, Outside, "4 guests with outside connections to one who never reads" => network::outside;
    Node, Nothing, "8 guests that send to a service from 8,000 ports each" => network::flows;
    Node, SecondNode, "8 guests with connections to a pod on another node that never reads" => network::tunnels;
    Node, SecondNode, "8 guests that send to a pod on another node from 8,000 ports each" => network::far_flows;
    Node, NameServer, "64 guests that look up names of a silent zone" => network::silent_zone;
    Node, Nothing, "a guest that claims the addresses of others" => network::claims;
    Node, Nothing, "8 guests that flood a server of the other user with datagrams" => network::floods;
    Node, Nothing, "8 guests with 2,000 connections each to a pod of the other user that has 16 MiB" => network::crowds;
    Node, Nothing, "400 silent connections to each of 8 ports of one who never accepts" => doors::deaf;
    Node, Nothing, "700 WebSockets through each door" => doors::upgrades;
    Node, Outside, "300 clients that vanish: idle, in a request, as a WebSocket" => doors::vanished;
    Node, Outside, "300 WebSockets through both doors whose clients vanish" => doors::vanished_upgrades;
    Node, Nothing, "connections to the fabric that are silent, say garbage or begin a handshake" => doors::handshakes;
    Node, Nothing, "1,500 silent connections to each door" => web::silent;
    Node, Nothing, "1,500 silent connections from a pod" => web::from_a_pod;
    Node, Nothing, "1,500 slow heads to each door" => web::slow_heads;
    Node, Nothing, "700 slow bodies to each door" => web::slow_bodies;
    Node, Nothing, "300 clients of each door that read nothing of 64 MiB" => web::unread;
    Node, Nothing, "500 requests to each door that are never answered" => web::never;
    Node, Nothing, "100 requests to each door that loop" => web::looping;
    Node, Nothing, "250 answers at each door that never end" => web::endless;
    Node, Nothing, "32 requests that fill 1,000 bodies nobody takes" => web::held_bodies;
    Node, Nothing, "32 clients of answers with 60 kB of header fields" => web::fields;
    Node, Nothing, "HTTP/2: requests reset at once" => frames::resets;
    Node, Nothing, "HTTP/2: header fields that go on and on" => frames::continuations;
    Node, Nothing, "HTTP/2: pings" => frames::pings;
    Node, Nothing, "HTTP/2: settings" => frames::settings;
    Node, Nothing, "50 components of one user that compile slowly" => compile::slow;
    Node, Nothing, "a pod forced away while it compiles, again and again" => compile::forced;
    Node, Nothing, "components that are cut short, garbage, nested deep" => compile::malformed;
    Node, Nothing, "200 pods of a component that keeps 1 million elements for tables" => structures::elements;
    Node, Nothing, "an environment of 200 MB" => pods::environment;
    Node, Nothing, "300,000 unclosed references in an environment" => pods::unclosed;
    Node, Nothing, "8 MB of Secrets in each of 24 pods" => pods::secrets;
    Node, Nothing, "16 pods that mount 64 subPaths of 64 directories each" => pods::sub_paths;
    Node, Nothing, "4 pods of 150 containers that wait with long messages" => pods::statuses;
    Node, Nothing, "a pod that names 200 ConfigMaps of 1 MB" => pods::config_maps;
    Node, Nothing, "60 pods of 48,000 variables each" => pods::fat;
    Node, SmallDisk, "a ConfigMap of 1 MB as 60 files in each of 20 pods on a small disk" => pods::multiplied;
    Node, Nothing, "100 changes a second of 50 services with 1000 endpoints each" => endpoints::changes;
    Node, Nothing, "pods forced away as soon as they are there" => pods::forced;
    Node, Nothing, "1,000 pods that crash" => pods::crashes;
}

impl Stage {
    /// Where the node's doors are.
    fn address_of_node(&self) -> Result<&str> {
        Ok(self.gateway.rsplit_once(':').context("the gateway has a port")?.0)
    }

    fn path(&self, group: &str, resource: &str) -> String {
        format!("{group}/namespaces/{}/{resource}", self.namespace)
    }

    async fn post(&self, rest: &Rest, group: &str, resource: &str, object: &Value) -> Result<Value> {
        let (status, body) =
            rest.call("POST", &self.path(group, resource), object.to_string().into()).await?;
        anyhow::ensure!(status == 201, "{resource}: HTTP {status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    /// Puts a component, or what claims to be one, into the registry.
    pub async fn push(&self, name: &str, wasm: &[u8]) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), wasm)?;
        let mut command = Command::new(&self.binary);
        command.arg("push").arg(file.path()).arg(name).arg("--kubeconfig").arg(&self.kubeconfig);
        let output =
            tokio::task::spawn_blocking(move || command.output()).await?.context("running coracle push")?;
        ensure!(output.status.success(), "pushing {name}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// Statuses and how often each came.
#[derive(Default)]
struct Answers(BTreeMap<String, usize>);

impl Answers {
    fn add(&mut self, answer: Result<u16>) {
        self.count(&answer.map_or_else(|_| "no answer".to_owned(), |status| status.to_string()));
    }

    fn count(&mut self, answer: &str) {
        *self.0.entry(answer.to_owned()).or_default() += 1;
    }

    fn merge(&mut self, other: Self) {
        for (answer, count) in other.0 {
            *self.0.entry(answer).or_default() += count;
        }
    }

    fn say(&self) -> String {
        let each: Vec<String> = self.0.iter().map(|(answer, count)| format!("{count} x {answer}")).collect();
        each.join(", ")
    }
}

const CORE: &str = "/api/v1";
const APPS: &str = "/apis/apps/v1";
const INGRESSES: &str = "/apis/networking.k8s.io/v1";

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
        all.merge(answers?);
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
