//! What a node is started with.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use coracle_fabric::{AccessLog, Cidr};
use coracle_wasi_host::{Host, descriptors::Descriptors};

/// The longest that a pod may take to end when the node stops, where nothing else is said: the grace of most pods.
pub const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// The settings of one node.
#[derive(Clone)]
pub struct NodeConfig {
    /// Identity, certificates, artifacts, volumes and logs. Made where it does not exist.
    pub data_dir: PathBuf,
    /// A DNS label, unique in the cluster. Empty: this machine's host name, or the name that the data dir has.
    pub name: String,
    /// How to join. `None` resumes from the data dir; with a data dir that has joined before it is not used, but
    /// compared.
    pub join: Option<JoinWith>,
    /// Where other nodes reach this one's pods. Port 0 picks a free one.
    pub fabric_listen: SocketAddr,
    /// host:port told to other nodes; by default the address listened on.
    pub fabric_advertise: Option<String>,
    /// Where the outside world reaches ingresses; `None` serves no gateway. Port 0 picks a free one.
    pub gateway_listen: Option<SocketAddr>,
    /// Proxies before the gateway. Only what they say in `X-Forwarded-*` is believed; what other clients say there is
    /// replaced.
    pub trusted_proxies: Vec<Cidr>,
    /// Where the gateway tells of its requests, if anywhere.
    pub access_log: Option<AccessLog>,
    /// Where `/metrics` is served over TLS, with the node's certificate and to those with the token of a reader; `None` serves
    /// it nowhere. Port 0 picks a free one.
    pub metrics_listen: Option<SocketAddr>,
    pub labels: BTreeMap<String, String>,
    /// Whether the pods of all namespaces may open connections to beyond the cluster; otherwise those of namespaces with
    /// the label `coracle.dev/egress=allow` may.
    pub allow_egress: bool,
    /// The folders of which pods may name files as images, as `file:///path`; none: no file at all.
    pub local_artifacts: Vec<PathBuf>,
    pub capacity: Capacity,
    /// Threads that run guests; 0: one a core.
    pub guest_threads: usize,
    /// Live instances that the sandbox makes room for; 0: as many as the machine allows.
    pub max_instances: u32,
    /// When the node stops each pod ends within its grace, and within this.
    pub stop_grace_max: Duration,
    /// A binary that compiles artifacts in a process of its own, see `coracle_wasi_host::HostConfig::compiler`.
    pub compiler: Option<PathBuf>,
    /// The sandbox to use, where several nodes share a process; `None` makes one.
    pub host: Option<Host>,
    /// What connections are opened with, where something else runs in the process; `None` is all that the process has.
    pub descriptors: Option<Descriptors>,
}

/// Where and with what to join.
#[derive(Clone, Debug)]
pub struct JoinWith {
    /// `host:port` of control nodes.
    pub addresses: Vec<String>,
    /// As `coracle token create` prints it. `None` for a data dir that has joined ([`crate::has_joined`]): it has none to
    /// show.
    pub token: Option<String>,
}

/// What the node offers; zero is what the machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
    /// No more than it can hold, whatever is said here.
    pub pods: u32,
}

impl NodeConfig {
    /// A node in `data_dir` that listens on free ports of this machine and serves no gateway.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            name: String::new(),
            join: None,
            fabric_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            fabric_advertise: None,
            gateway_listen: None,
            trusted_proxies: Vec::new(),
            access_log: None,
            metrics_listen: None,
            labels: BTreeMap::new(),
            allow_egress: false,
            local_artifacts: Vec::new(),
            capacity: Capacity::default(),
            guest_threads: 0,
            max_instances: 0,
            stop_grace_max: STOP_GRACE_DEFAULT,
            compiler: None,
            host: None,
            descriptors: None,
        }
    }
}
