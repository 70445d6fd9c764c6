//! Puts a node together and takes it apart.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use coracle_core::{NodeFacts, Observed};
use coracle_fabric::{Fabric, FabricConfig, FabricError};
use coracle_proto::{node::Hello, tls};
use coracle_wasi_host::{
    Host, HostConfig, HostError, descriptors::Descriptors, refusals::What, serving::GATEWAY, shares::Shares,
};
use parking_lot::RwLock;
use thiserror::Error;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
};

use crate::{
    app::{self, App, EVENTS_MAX, Event, LAST_RUN_AFTER},
    artifacts::{Artifacts, Registry},
    clock::Clock,
    config::{Capacity, NodeConfig},
    decode,
    execute::{Context, Executor},
    identity::{Identity, IdentityError},
    link::{self, LinkConfig},
    logs::Logs,
    machine,
    metrics::Metrics,
    network::PodNetwork,
    private,
    removal::Removals,
    renewal::{NodeTls, Renewal},
    runtime::{Disks, InProcess, Runtime, in_process::Shared},
    wishes::{self, Recorder},
};

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("this node's certificate cannot be used; choose another --data-dir and join anew")]
    Tls(#[from] tls::TlsError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error("{path} cannot be used: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A running node. Dropping it leaves it running; [`Node::shutdown`] stops it.
pub struct Node {
    name: String,
    fabric: Fabric,
    metrics_address: Option<SocketAddr>,
    events: mpsc::Sender<Event>,
    /// The loop, and what renews the certificate.
    tasks: Mutex<Option<[JoinHandle<()>; 2]>>,
}

/// Starts a node: joins where the data dir is new, resumes otherwise. Returns once it listens; the link to the
/// cluster comes about, and is kept, by itself.
pub async fn start(config: NodeConfig) -> Result<Node, NodeError> {
    machine::raise_open_files();
    let probable =
        reachable(config.fabric_listen, config.join.as_ref().and_then(|with| with.addresses.first()));
    let advertise = config.fabric_advertise.clone().unwrap_or_else(|| probable.to_string());
    let identity = Arc::new(Identity::obtain(&config, &advertise).await?);
    let node_tls = NodeTls::new(&identity.certificates())?;
    let host = match &config.host {
        Some(host) => host.clone(),
        None => Host::new(HostConfig {
            cache_dir: config.data_dir.join("cache"),
            guest_threads: config.guest_threads,
            max_instances: config.max_instances,
            compiler: config.compiler.clone(),
        })?,
    };
    let fabric = start_fabric(&config, &identity, &node_tls, &host).await?;
    let bound = fabric.address();
    let advertise = config
        .fabric_advertise
        .clone()
        .unwrap_or_else(|| SocketAddr::new(probable.ip(), bound.port()).to_string());
    keep_addresses(&config, &fabric)?;

    let capacity = machine::capacity(config.capacity, host.pods_max());
    let (logs_dir, pods_dir) = (config.data_dir.join("logs"), config.data_dir.join("pods"));
    for dir in [&logs_dir, &pods_dir] {
        private::create_dir(dir).map_err(io_error(dir))?;
    }
    let (events, received) = mpsc::channel(EVENTS_MAX);
    let addresses = Arc::new(RwLock::new(identity.control_addresses()));
    let boot_id = hex::encode(rand::random::<[u8; 16]>());
    let link_config = LinkConfig {
        hello: hello(&config, (capacity, host.memory_max()), &identity, &fabric, &advertise, &boot_id),
        tls: node_tls.control.clone(),
        addresses: addresses.clone(),
        data_dir: config.data_dir.clone(),
        fabric: fabric.clone(),
    };
    let artifacts_dir = config.data_dir.join("artifacts");
    let registry = Registry::new(addresses.clone(), node_tls.control.clone());
    let artifacts = Artifacts::new(artifacts_dir.clone(), config.local_artifacts.clone(), registry)
        .map_err(io_error(&artifacts_dir))?;
    let (said, heard) = mpsc::channel(decode::QUEUE_MAX);
    let (link, link_task) = link::start(link_config, said);
    let wishes = wishes::load(&config.data_dir);
    tokio::spawn(decode::run(heard, events.clone(), Recorder::start(config.data_dir.clone())));
    let network = PodNetwork::start(fabric.clone()).map_err(io_error(&config.data_dir))?;
    let disks = Disks::new(host.clone());
    tokio::spawn(app::tell(host.refusals().clone(), events.clone()));
    tokio::spawn(wake_instances(fabric.clone(), events.clone()));
    let shared = Shared { network: network.clone(), disks: disks.clone() };
    let runtime: Arc<dyn Runtime> = Arc::new(InProcess::new(host, shared));
    let metrics = Metrics {
        events: events.clone(),
        fabric: fabric.clone(),
        runtime: runtime.clone(),
        data_dir: config.data_dir.clone(),
    };
    let metrics_address = match config.metrics_listen {
        Some(listen) => Some(fabric.serve_page(listen, metrics.page(&node_tls, addresses.clone())).await?),
        None => None,
    };
    let executor = Executor::new(Context {
        node_name: identity.name.clone(),
        runtime,
        disks,
        artifacts,
        logs: Arc::new(Logs::start(logs_dir.clone()).map_err(io_error(&logs_dir))?),
        removals: Removals::start().map_err(io_error(&pods_dir))?,
        pods_dir,
        network,
        link,
        clock: Arc::new(Clock::new()),
        events: events.clone(),
        boot_id,
    });
    let facts = NodeFacts {
        name: identity.name.clone(),
        host_ip: host_of(&advertise),
        cpu_milli: capacity.cpu_milli,
        memory_bytes: capacity.memory_bytes,
        ..NodeFacts::default()
    };
    let observed = Observed { node: facts, pods: BTreeMap::new() };
    let name = identity.name.clone();
    tracing::info!(node = name, fabric = advertise, "node started");
    let app = App::new(identity.clone(), observed, executor, (config.stop_grace_max, capacity.pods.into()))
        .with_last(wishes, LAST_RUN_AFTER);
    let renewal = Renewal { identity, tls: node_tls, addresses, advertise, wanted: app.trust() };
    let renewal = tokio::spawn(renewal.run());
    let app = tokio::spawn(app.run(received, link_task));
    Ok(Node { name, fabric, metrics_address, events, tasks: Mutex::new(Some([app, renewal])) })
}

/// Tells the loop of requests that wait for instances of functions, until it has ended.
async fn wake_instances(fabric: Fabric, events: mpsc::Sender<Event>) {
    loop {
        let wanted = fabric.instances_wanted().await;
        if events.send(Event::InstancesWanted(wanted)).await.is_err() {
            return;
        }
    }
}

impl Node {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where other nodes reach this one's pods.
    pub fn fabric_address(&self) -> SocketAddr {
        self.fabric.address()
    }

    /// Where the outside world reaches ingresses, if this node serves a gateway.
    pub fn gateway_address(&self) -> Option<SocketAddr> {
        self.fabric.gateway_address()
    }

    /// Where this node tells how it fares, if it does.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Stops all pods, each within its grace and the configured most, and the node. The cluster's wishes stay: the next
    /// start runs the pods again.
    pub async fn shutdown(&self) {
        let Some([app, renewal]) = self.tasks.lock().await.take() else { return };
        // Waited for, because it holds the data dir's lock.
        renewal.abort();
        let _ = renewal.await;
        // A loop that is gone already has stopped.
        let _ = self.events.send(Event::Stop).await;
        if let Err(error) = app.await {
            tracing::error!(%error, "the node's loop failed");
        }
        self.fabric.shutdown();
        tracing::info!(node = self.name, "node stopped");
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let path = path.to_owned();
    move |source| NodeError::Io { path, source }
}

async fn start_fabric(
    config: &NodeConfig,
    identity: &Identity,
    tls: &NodeTls,
    host: &Host,
) -> Result<Fabric, NodeError> {
    let fabric = Fabric::start(FabricConfig {
        node_name: identity.name.clone(),
        listen: config.fabric_listen,
        gateway_listen: config.gateway_listen,
        tls: tls.fabric.clone(),
        egress: config.allow_egress,
        trusted_proxies: config.trusted_proxies.clone(),
        access_log: config.access_log.clone(),
        gateway_requests: Shares::new(What::GatewayRequests, GATEWAY.requests_max),
        descriptors: config.descriptors.clone().unwrap_or_else(Descriptors::of_process),
        outside: host.tenant_buffers(),
        refusals: host.refusals().clone(),
    });
    Ok(fabric.await?)
}

/// Writes the chosen ports where scripts find them.
fn keep_addresses(config: &NodeConfig, fabric: &Fabric) -> Result<(), NodeError> {
    let mut files = vec![("fabric.address", fabric.address())];
    files.extend(fabric.gateway_address().map(|address| ("gateway.address", address)));
    for (name, address) in files {
        let path = config.data_dir.join(name);
        std::fs::write(&path, format!("{address}\n")).map_err(|source| NodeError::Io { path, source })?;
    }
    Ok(())
}

fn hello(
    config: &NodeConfig,
    (capacity, guests_memory): (Capacity, Option<u64>),
    identity: &Identity,
    fabric: &Fabric,
    advertise: &str,
    boot_id: &str,
) -> Hello {
    // The host keeps a part of the memory for itself: what is placed here must fit into the rest.
    let memory_bytes =
        guests_memory.map_or(capacity.memory_bytes, |guests| guests.min(capacity.memory_bytes));
    let allocatable = Capacity { memory_bytes, ..capacity };
    let mut labels = std::collections::HashMap::from([
        ("kubernetes.io/hostname".to_owned(), identity.name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), machine::architecture().to_owned()),
    ]);
    labels.extend(config.labels.clone());
    Hello {
        name: identity.name.clone(),
        cluster_id: identity.cluster_id.clone(),
        fabric_address: advertise.to_owned(),
        gateway_address: fabric.gateway_address().map(|address| address.to_string()).unwrap_or_default(),
        labels,
        capacity: machine::quantities(capacity, &config.data_dir),
        allocatable: machine::quantities(allocatable, &config.data_dir),
        node_info_json: machine::node_info(boot_id).to_string().into(),
        allow_local_artifacts: !config.local_artifacts.is_empty(),
        boot_id: boot_id.to_owned(),
        ..Hello::default()
    }
}

/// The address under which others reach a listener: where it listens on all, the one that faces `towards`.
fn reachable(listen: SocketAddr, towards: Option<&String>) -> SocketAddr {
    if !listen.ip().is_unspecified() {
        return listen;
    }
    let facing = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        // Sends nothing: it only chooses the route.
        socket.connect(towards?.as_str()).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    SocketAddr::new(facing().unwrap_or(IpAddr::from([127, 0, 0, 1])), listen.port())
}

/// The address of `host:port`; a name is looked up once.
fn host_of(advertise: &str) -> String {
    let host = advertise.rsplit_once(':').map_or(advertise, |(host, _)| host).trim_matches(['[', ']']);
    if host.parse::<IpAddr>().is_ok() {
        return host.to_owned();
    }
    use std::net::ToSocketAddrs;
    let resolved = (host, 0).to_socket_addrs().ok().and_then(|mut all| all.next());
    resolved.map_or_else(|| "127.0.0.1".to_owned(), |address| address.ip().to_string())
}
