//! A whole cluster in this process: control nodes and nodes, each with a data dir of its own, talking to each other
//! over the same sockets as separate processes would.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use coracle_agent::{AccessLog, Capacity, JoinWith, Node, NodeConfig, has_joined, remove_dir};
use coracle_proto::join::{JoinToken, Role};
use coracle_server::{Control, ControlConfig, Mode};
use coracle_wasi_host::{Host, HostConfig, descriptors::Descriptors};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

/// What the cluster is made of. The counts are fixed when it is made; a resume uses what the data dir says.
#[derive(Clone, Debug)]
pub struct Shape {
    pub data_dir: PathBuf,
    pub control: u32,
    pub nodes: u32,
    pub listen: SocketAddr,
    pub gateway: SocketAddr,
    pub access_log: Option<AccessLog>,
}

/// In the data dir: what a resume has to start again.
pub const SHAPE: &str = "cluster-shape.json";

/// What is in [`SHAPE`].
#[derive(Serialize, Deserialize)]
struct SavedShape {
    control: u32,
    nodes: u32,
}

/// A running cluster.
pub struct LocalCluster {
    controls: Vec<Control>,
    nodes: Vec<Node>,
    pub kubeconfig: PathBuf,
}

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// A join token made here is used at once.
const TOKEN_TTL_SECONDS: u64 = 600;
const LEARNER_HEALTHY: Duration = Duration::from_millis(500);

impl LocalCluster {
    /// Makes the cluster, or resumes the one in the data dir.
    pub async fn start(shape: &Shape) -> Result<Self> {
        coracle_server::private_dir(&shape.data_dir, SHAPE)?;
        let saved_path = shape.data_dir.join(SHAPE);
        let (controls, nodes) = match std::fs::read(&saved_path) {
            Ok(bytes) => {
                let saved: SavedShape = serde_json::from_slice(&bytes)
                    .with_context(|| format!("{} is damaged", saved_path.display()))?;
                (resume(shape, &saved).await?, saved.nodes)
            }
            Err(_) => {
                refuse_strangers(&shape.data_dir)?;
                (make(shape, &saved_path).await?, shape.nodes)
            }
        };
        let kubeconfig = shape.data_dir.join("kubeconfig");
        link_kubeconfig(controls[0].kubeconfig_path(), &kubeconfig)?;
        let mut cluster = Self { controls, nodes: Vec::new(), kubeconfig };
        cluster.nodes = cluster.start_nodes(shape, nodes).await?;
        Ok(cluster)
    }

    /// The address of the first control node.
    pub fn address(&self) -> String {
        self.controls[0].address()
    }

    /// The address of the first node's gateway.
    pub fn gateway(&self) -> Option<SocketAddr> {
        self.nodes.first().and_then(Node::gateway_address)
    }

    /// Resolves when a control node or node ends by itself, with the reason.
    pub async fn failed(&self) -> anyhow::Error {
        let controls = self.controls.iter().map(|control| Box::pin(control.closed()));
        futures::future::select_all(controls).await.0
    }

    /// Stops nodes, then control nodes. Pods of the data dir run again at the next start.
    pub async fn shutdown(self) {
        futures::future::join_all(self.nodes.iter().map(Node::shutdown)).await;
        futures::future::join_all(self.controls.into_iter().map(Control::shutdown)).await;
    }

    async fn start_nodes(&self, shape: &Shape, count: u32) -> Result<Vec<Node>> {
        let addresses: Vec<String> = self.controls.iter().map(Control::address).collect();
        let host = shared_host(shape)?;
        // The nodes share the sandbox: together they offer no more than it holds.
        let capacity = Capacity { pods: (host.pods_max() / count.max(1)).max(1), ..Capacity::default() };
        // The control nodes have the other half.
        let descriptors = Descriptors::part_of_process(2);
        let mut starts = Vec::new();
        for number in 1..=count {
            let name = format!("node-{number}");
            let data_dir = shape.data_dir.join(&name);
            // Whoever starts the cluster again wants all its nodes, also one that was deleted meanwhile and must join anew.
            if has_joined(&data_dir) && !self.controls[0].has_node(&name).await? {
                remove_dir(&data_dir).with_context(|| format!("clearing {}", data_dir.display()))?;
            }
            // A token is a write, and a cluster whose disk is full must start, so that something can be deleted.
            let token = match has_joined(&data_dir) {
                true => None,
                false => Some(token(&self.controls[0], Role::Node).await?.to_string()),
            };
            let config = NodeConfig {
                name,
                join: Some(JoinWith { addresses: addresses.clone(), token }),
                gateway_listen: Some(if number == 1 { shape.gateway } else { ANY_PORT }),
                access_log: shape.access_log.clone(),
                // Whoever runs the cluster on a machine of his own may use the network from there anyhow.
                allow_egress: true,
                local_artifacts: vec!["/".into()],
                capacity,
                host: Some(host.clone()),
                descriptors: Some(descriptors.clone()),
                ..NodeConfig::new(data_dir)
            };
            starts.push(async move {
                coracle_agent::start(config).await.with_context(|| format!("starting node-{number}"))
            });
        }
        try_join_all(starts).await
    }
}

/// All nodes share one sandbox: its threads, its pool of instances and its cache of compiled components.
fn shared_host(shape: &Shape) -> Result<Host> {
    let config = HostConfig {
        cache_dir: shape.data_dir.join("cache"),
        guest_threads: 0,
        max_instances: 0,
        compiler: std::env::current_exe().ok(),
    };
    Host::new(config).context("making the sandbox")
}

/// A data dir without a cluster of `up` must be empty, but for what an earlier start may have left half made.
fn refuse_strangers(data_dir: &Path) -> Result<()> {
    let listing = std::fs::read_dir(data_dir)
        .with_context(|| format!("reading the data dir {}", data_dir.display()))?;
    for entry in listing {
        let name = entry.with_context(|| format!("reading the data dir {}", data_dir.display()))?.file_name();
        let name = name.to_string_lossy();
        if name != "cache" && !name.starts_with("control-") && !name.starts_with("node-") {
            bail!(
                "the data dir {} holds something else than a cluster of `coracle up` ({name}): choose an empty or new \
                 --data-dir",
                data_dir.display()
            );
        }
    }
    Ok(())
}

async fn token(control: &Control, role: Role) -> Result<JoinToken> {
    control.create_token(role, TOKEN_TTL_SECONDS).await.context("making a join token")
}

async fn make(shape: &Shape, saved_path: &Path) -> Result<Vec<Control>> {
    if ![1, 3, 5].contains(&shape.control) {
        bail!(
            "--control {}: a cluster has 1, 3 or 5 control nodes (an even number tolerates no more failures)",
            shape.control
        );
    }
    let first = coracle_server::start(config(shape, 1, shape.listen, Mode::Init))
        .await
        .context("starting the first control node")?;
    let mut controls = vec![first];
    for number in 2..=shape.control {
        let token = token(&controls[0], Role::Control).await?.to_string();
        let mode = Mode::Join { addresses: vec![controls[0].address()], token };
        let control = coracle_server::start(config(shape, number, ANY_PORT, mode))
            .await
            .with_context(|| format!("starting control node {number}"))?;
        controls.push(control);
    }
    let saved = SavedShape { control: shape.control, nodes: shape.nodes };
    std::fs::write(saved_path, serde_json::to_vec_pretty(&saved)?)
        .with_context(|| format!("writing {}", saved_path.display()))?;
    Ok(controls)
}

/// All control nodes start together: a quorum of them is needed before the first is up.
async fn resume(shape: &Shape, saved: &SavedShape) -> Result<Vec<Control>> {
    if (shape.control, shape.nodes) != (saved.control, saved.nodes) {
        tracing::warn!(
            control = saved.control,
            nodes = saved.nodes,
            "the cluster in the data dir has its own number of control nodes and nodes, which a resume keeps"
        );
    }
    let starts = (1..=saved.control).map(|number| {
        let listen = if number == 1 { shape.listen } else { ANY_PORT };
        let config = config(shape, number, listen, Mode::Resume);
        async move {
            coracle_server::start(config).await.with_context(|| format!("starting control node {number}"))
        }
    });
    try_join_all(starts).await
}

fn config(shape: &Shape, number: u32, listen: SocketAddr, mode: Mode) -> ControlConfig {
    let name = format!("control-{number}");
    let mut config = ControlConfig::new(shape.data_dir.join(&name), name, listen, mode);
    // All members share this process: a learner that has caught up will not be lost before it votes.
    config.learner_healthy = LEARNER_HEALTHY;
    // The nodes have the other half of the process' open files.
    config.open_files_part = 2 * u64::from(shape.control.max(1));
    config
}

/// A link, not a copy: the control node keeps its file at certificates and authorities that are good.
fn link_kubeconfig(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let target = from.strip_prefix(folder).unwrap_or(from);
    let new = to.with_extension("new");
    // What an interrupted start has left; a link cannot take its place.
    let _ = std::fs::remove_file(&new);
    std::os::unix::fs::symlink(target, &new)
        .and_then(|()| std::fs::rename(&new, to))
        .with_context(|| format!("writing {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubeconfig_is_always_the_control_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("control-1/kubeconfig"), dir.path().join("kubeconfig"));
        std::fs::create_dir(dir.path().join("control-1")).unwrap();
        std::fs::write(&from, "first").unwrap();
        std::fs::write(&to, "a copy, as earlier starts made it").unwrap();
        for _ in 0..2 {
            link_kubeconfig(&from, &to).unwrap();
            assert_eq!(std::fs::read_to_string(&to).unwrap(), "first");
        }
        std::fs::write(dir.path().join("renewed"), "second").unwrap();
        std::fs::rename(dir.path().join("renewed"), &from).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "second");
    }
}
