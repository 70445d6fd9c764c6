//! A cluster of real processes, each of them one of its own.

use std::{path::Path, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::harness::{Daemon, eventually, run, sample};

/// Control nodes by address, and nodes by name. They end with it.
pub struct Cluster {
    folder: tempfile::TempDir,
    pub controls: Vec<(String, Daemon)>,
    pub nodes: Vec<(String, Daemon)>,
}

impl Cluster {
    /// Starts them and waits until all control nodes vote.
    pub fn start(controls: usize, nodes: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Self { folder, controls: Vec::new(), nodes: Vec::new() };
        for number in 1..=controls {
            let data_dir = cluster.path(&format!("c{number}"));
            let mut arguments = vec!["control", "--data-dir", &data_dir, "--listen", "127.0.0.1:0"];
            let first = cluster.controls.first().map(|(address, _)| address.clone()).unwrap_or_default();
            let token = if number == 1 { String::new() } else { cluster.token("control") };
            if number == 1 {
                arguments.push("--init");
            } else {
                arguments.extend(["--join", &first, "--token", &token]);
            }
            let daemon = Daemon::start(&arguments, "control node at");
            let address = daemon.said("control node at ").trim_end_matches(',').to_string();
            cluster.controls.push((address, daemon));
        }
        let addresses: Vec<&str> = cluster.controls.iter().map(|(address, _)| address.as_str()).collect();
        let addresses = addresses.join(",");
        for &name in nodes {
            let (data_dir, token) = (cluster.path(name), cluster.token("node"));
            let daemon = Daemon::start(
                &[
                    "node",
                    "--data-dir",
                    &data_dir,
                    "--name",
                    name,
                    "--fabric",
                    "127.0.0.1:0",
                    "--gateway",
                    "127.0.0.1:0",
                    "--join",
                    &addresses,
                    "--token",
                    &token,
                ],
                "gateway http",
            );
            cluster.nodes.push((name.into(), daemon));
        }
        eventually("all to vote", || {
            let members = cluster.members();
            let voting = members.iter().filter(|row| row[3] == "voter" || row[3] == "leader").count();
            if voting == controls { Ok(()) } else { Err(format!("{members:?}")) }
        });
        cluster
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_string()
    }

    pub fn kubeconfig(&self) -> String {
        self.path("c1/kubeconfig")
    }

    fn token(&self, role: &str) -> String {
        run(&["token", "create", "--role", role, "--kubeconfig", &self.kubeconfig()]).trim().to_string()
    }

    /// Deploys the sample `hello-http` as `hello`; the name by which gateways know it.
    pub fn deploy_hello(&self, replicas: usize) -> String {
        let (config, count) = (self.kubeconfig(), replicas.to_string());
        let wasm = sample("hello-http");
        let arguments = ["deploy", &wasm, "--name", "hello", "--replicas", &count, "--kubeconfig", &config];
        let url = run(&arguments);
        url.trim().trim_start_matches("http://").split(':').next().unwrap().to_string()
    }

    /// Rows of `cluster members`: id, name, address, role, healthy, matched.
    pub fn members(&self) -> Vec<Vec<String>> {
        let table = run(&["cluster", "members", "--kubeconfig", &self.kubeconfig()]);
        table.lines().skip(1).map(|line| line.split_whitespace().map(String::from).collect()).collect()
    }

    /// The leader's address.
    pub fn leader(&self) -> String {
        eventually("a leader", || {
            let members = self.members();
            let leader = members.iter().find(|row| row[3] == "leader").map(|row| row[2].clone());
            leader.ok_or_else(|| format!("{members:?}"))
        })
    }

    pub async fn client(&self, address: &str, read_timeout: Duration) -> Client {
        Client::try_from(self.config(address, read_timeout).await).unwrap()
    }

    /// The same before it is made a client.
    pub async fn config(&self, address: &str, read_timeout: Duration) -> kube::Config {
        let mut config = Kubeconfig::read_from(Path::new(&self.kubeconfig())).unwrap();
        config.clusters[0].cluster.as_mut().unwrap().server = Some(format!("https://{address}"));
        let mut config =
            kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        config.connect_timeout = Some(Duration::from_millis(500));
        config.read_timeout = Some(read_timeout);
        config
    }
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
