//! What runs until it is stopped.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use coracle_agent::AccessLog;

use super::{LogArgs, values};
use crate::{join_token::TokenArgs, names};

#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Where the cluster lives on disk; by default $XDG_DATA_HOME/coracle or ~/.local/share/coracle.
    #[arg(long, value_name = "DIR", env = "CORACLE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Control nodes: 1, 3 or 5. Fixed when the cluster is made.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub control: u32,
    /// Nodes that run pods.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub nodes: u32,
    /// Address of the first control node's API; further ones take free ports. Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR", value_parser = values::listen)]
    pub listen: SocketAddr,
    /// Address of the first node's gateway; further nodes take free ports. Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR", value_parser = values::listen)]
    pub gateway: SocketAddr,
    #[command(flatten)]
    pub access: AccessLogArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// What the gateway tells of its requests.
#[derive(Clone, Debug, Default, Args)]
pub struct AccessLogArgs {
    /// A file to which the gateway adds a line of JSON for each request that it has answered; `-` is standard output. One that
    /// was moved away is made anew.
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// The part of the requests that have lines, as 0.01; those that end with 500 or more all have.
    #[arg(long, value_name = "PART", default_value = "1", value_parser = values::part, requires = "access_log")]
    pub access_log_sample: f64,
}

impl AccessLogArgs {
    /// Opens the log, where there is to be one.
    pub fn open(&self) -> anyhow::Result<Option<AccessLog>> {
        let Some(path) = &self.access_log else { return Ok(None) };
        let log = AccessLog::open(path, self.access_log_sample);
        Ok(Some(log.with_context(|| format!("opening the access log {}", path.display()))?))
    }
}

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Leave the cluster running until Ctrl-C, to look around in it.
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// Where this control node lives on disk.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Address of REST, gRPC and raft: HOST:PORT, or :PORT for all of the machine's. Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR", value_parser = values::listen)]
    pub listen: SocketAddr,
    /// The host:port under which others reach this control node; by default the listen address.
    #[arg(long, value_name = "HOST:PORT", value_parser = values::advertised)]
    pub advertise: Option<String>,
    /// This member's name; by default the machine's name and the port.
    #[arg(long, value_name = "NAME", value_parser = names::machine)]
    pub name: Option<String>,
    /// Make a new cluster. Resumes it where the data dir already holds it.
    #[arg(long, conflicts_with = "join")]
    pub init: bool,
    /// Join the cluster at these addresses. Resumes the membership where the data dir already holds it: then they are
    /// where other members may be found that have moved, without a token.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = values::remote)]
    pub join: Vec<String>,
    #[command(flatten)]
    pub token: TokenArgs,
    /// Make a snapshot, and drop the log before it, after so many raft entries.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_entries: u64,
    /// While this member leads: a member that was not heard of for so long is dead. A learner takes its place, or
    /// `coracle cluster status` tells of it. As 30s or 5m.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = values::member_dead)]
    pub member_dead: Duration,
    /// The file with the keys that Secrets are encrypted with; by default keys/secrets.ring in the data dir.
    #[arg(long, value_name = "FILE")]
    pub key_ring: Option<PathBuf>,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Where this node lives on disk.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Control nodes to join at.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = values::remote)]
    pub join: Vec<String>,
    #[command(flatten)]
    pub token: TokenArgs,
    /// The node's name; by default the machine's.
    #[arg(long, value_name = "NAME", value_parser = names::machine)]
    pub name: Option<String>,
    /// Address of the tunnels between nodes. Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDR", value_parser = values::listen)]
    pub fabric: SocketAddr,
    /// Address of the gateway for the outside, as :8080; without it the node has none.
    #[arg(long, value_name = "ADDR", value_parser = values::listen)]
    pub gateway: Option<SocketAddr>,
    /// Addresses of proxies before the gateway, as 10.0.0.0/8. Only what they say in X-Forwarded-* headers is believed.
    /// Repeat for more.
    #[arg(long = "trusted-proxy", value_name = "CIDR")]
    pub trusted_proxies: Vec<coracle_agent::Cidr>,
    #[command(flatten)]
    pub access: AccessLogArgs,
    /// Address of /metrics, as :9464, over HTTPS with the node's certificate, for those with a token of `coracle token create
    /// --role reader`. Without it there is none.
    #[arg(long, value_name = "ADDR", value_parser = values::listen)]
    pub metrics: Option<SocketAddr>,
    /// Pods that the node offers to run; 0 is as many as it can hold, and more than that it never offers.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub pods: u32,
    /// Instances of components that may be alive at once; 0 is as many as vm.max_map_count has room for, up to 4,000. How
    /// many pods the node can hold follows from it.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub max_instances: u32,
    /// A label of the node, as `zone=a`. Repeat for more.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::label)]
    pub labels: Vec<(String, String)>,
    /// Allow the pods of all namespaces to open connections to beyond the cluster. Without it only those may whose
    /// namespace has the label coracle.dev/egress=allow.
    #[arg(long)]
    pub allow_egress: bool,
    /// A folder of which pods may name files as images, as file:///DIR/x.wasm, wherever its links lead within it. Repeat for
    /// more.
    #[arg(long = "allow-local-artifacts", value_name = "DIR")]
    pub local_artifacts: Vec<PathBuf>,
    #[command(flatten)]
    pub log: LogArgs,
}
