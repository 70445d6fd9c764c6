//! Starts and stops a control node: everything in the one order that works.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use coracle_api::{Admission, ApiConfig, Storage, UserInfo};
use coracle_node_link::{Links, NodeLinkService, nodes::LinkedNodes};
use coracle_objects::{ObjectKey, Refusal};
use coracle_proto::{
    MESSAGE_BYTES_MAX,
    cluster::{
        blobs_server::BlobsServer, cluster_server::ClusterServer, join_server::JoinServer,
        leader_server::LeaderServer,
    },
    join::{JoinToken, Role},
    node::node_link_server::NodeLinkServer,
    security::security_server::SecurityServer,
    store::store_server::StoreServer,
    tls,
};
use coracle_raft::{GrpcTransport, Raft, RaftService, Transport, chain};
use coracle_registry::blobs::Blobs;
use coracle_storage::{
    ReplicatedStorage,
    encryption::{self, SecretBox},
    health,
    machine::{AppliedEntry, Fatal, Machine},
    peers::{MemberSpec, Peers},
    version::{self, Agreed, AgreedLevel, VERSION},
};
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    access::{JOIN_BYTES_MAX, NODE_MESSAGE_BYTES_MAX},
    authorization::Builtin,
    blobs_service::{BlobsService, Others},
    bootstrap,
    certificates::{self, Credentials, KUBECONFIG, KubeconfigFile, TrustState},
    checks,
    cluster_service::{
        ClusterService,
        status::{self, Certificates},
    },
    config::ControlConfig,
    data_dir::{DataDir, Membership},
    enter::{self, Entered, FIRST_MEMBER},
    error::ServerError,
    events::EventRecorder,
    inflow::Inflow,
    join::JoinService,
    kubeconfig::admin_of,
    leader::{self, Duties},
    leader_service::LeaderService,
    listener::{self, Bounds, Port},
    membership::{
        self,
        keeper::{self, Periods},
    },
    open_files,
    rendezvous::Rendezvous,
    security_service::SecurityService,
    service::Front,
    standing::Judge,
    store_service::StoreService,
    telemetry::{Requests, Telemetry},
    tokens::{self, Purpose},
    whereabouts::Whereabouts,
};

/// Until a new cluster must have its first objects.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks at whether it has.
const READY_PAUSE: Duration = Duration::from_millis(5);

/// Until another voter must have taken over from a leader that stops.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two looks whether this member has caught up.
const CATCH_UP_PAUSE: Duration = Duration::from_millis(100);

/// A running control node. Dropping it without [`Control::shutdown`] stops it as a crash would.
pub struct Control {
    address: String,
    listen_address: SocketAddr,
    kubeconfig_path: PathBuf,
    membership: Membership,
    credentials: Arc<Credentials>,
    storage: ReplicatedStorage,
    links: Arc<Links>,
    fatal: Arc<Fatal>,
    closing: CancellationToken,
    tasks: JoinSet<()>,
    /// What ends by itself once raft has: [`leader::run`].
    leading: JoinSet<()>,
    /// Held until everything has ended.
    data: Arc<DataDir>,
}

/// Starts a control node, or resumes the one in the data directory. A new cluster is ready when this returns; a
/// resumed or joined member serves and catches up with the others by itself.
pub async fn start(config: ControlConfig) -> Result<Control, ServerError> {
    tls::provider();
    let files = open_files::raise().map(|files| files / config.open_files_part.max(1));
    let bounds = Bounds::within(files);
    let data = Arc::new(DataDir::open_as(&config.data_dir, config.build.clone())?);
    let listener = enter::listen(config.listen, &data).await?;
    let bound =
        listener.local_addr().map_err(|source| ServerError::Listen { address: config.listen, source })?;
    let address = enter::advertised(config.advertise.as_deref(), bound);
    let entered = enter::enter(&config, &data, &address).await?;
    let founds = entered.founds;
    let control = run(&config, data, (listener, bounds), bound, entered).await?;
    if founds {
        control.data.record(&control.membership)?;
        control.wait_until_ready().await?;
    }
    Ok(control)
}

async fn run(
    config: &ControlConfig,
    data: Arc<DataDir>,
    (listener, bounds): (TcpListener, Bounds),
    listen_address: SocketAddr,
    entered: Entered,
) -> Result<Control, ServerError> {
    let Entered { membership, authorities, secrets, peers: known, founds } = entered;
    let secrets = Arc::new(secrets);
    let me = MemberSpec {
        id: membership.member_id,
        name: membership.name.clone(),
        address: membership.address.clone(),
        version: config.build.version.clone(),
        level: config.build.level(),
    };
    let authorities = authorities.with_leaf_life(config.certificate_life);
    let kept_admin = fs::read_to_string(data.path(KUBECONFIG)).ok().and_then(|text| admin_of(&text));
    let credentials = Arc::new(Credentials::issue(authorities, &me, kept_admin)?);
    let kubeconfig = KubeconfigFile::new(data.clone(), credentials.clone(), me.clone(), known.clone());
    let kubeconfig = Arc::new(kubeconfig);
    match kubeconfig.write() {
        Err(error) if founds => return Err(error),
        // A member with certificates can serve; the renewal tries it again.
        Err(error) => tracing::warn!(error = chain(&error), "the kubeconfig is not written"),
        Ok(()) => {}
    }
    let peers = Arc::new(Peers::new(credentials.client().clone()));
    peers.set(&known);
    let fatal = Arc::new(watch::Sender::new(None));
    let (machine, hub) = Machine::of_build(config.build.clone(), fatal.clone(), secrets.clone());
    let transport = GrpcTransport::new(me.id, &membership.cluster_id, peers.connector());
    transport.set_peers(known);
    let whereabouts = Arc::new(Whereabouts::new(peers.clone(), transport.clone()));
    let raft = start_raft(config, &data, &membership, machine, transport, founds)?;
    let level = AgreedLevel::new(config.build.levels);
    let storage = ReplicatedStorage::start(me.id, raft.clone(), hub, peers, secrets.clone(), level);
    let links = Arc::new(Links::default());
    let requests = Arc::default();
    let admission = admission(&storage, &requests, &membership.cluster_id);
    let recorder = EventRecorder::start(admission.storage_of(storage.clone(), UserInfo::api_server()));
    let watched = storage.raft().status();
    let blobs = Blobs::open(&data.path("blobs"), move || !health::disk_is_low(&watched.borrow()));
    let blobs = Arc::new(blobs.map_err(ServerError::io("prepare", data.path("blobs")))?);
    let node_link = NodeLinkService {
        storage: storage.clone(),
        admission: admission.clone(),
        links: links.clone(),
        events: Arc::new(recorder.clone()),
        cluster_id: membership.cluster_id.clone(),
        former_ids: bootstrap::former_ids,
        trust_generation: TrustState::generation,
    };
    let telemetry = Telemetry {
        requests,
        storage: storage.clone(),
        links: links.clone(),
        data_dir: config.data_dir.clone(),
        planning: Arc::default(),
    };
    let planning = telemetry.planning.clone();
    let garbage = coracle_registry::collect_garbage(storage.clone(), admission.clone(), blobs.clone());
    let judge = Arc::new(Judge::new(credentials.clone(), storage.clone()));
    let front = Front {
        api: coracle_api::router(
            storage.clone(),
            LinkedNodes { storage: storage.clone(), links: links.clone() },
            admission.clone(),
        ),
        registry: coracle_registry::router(
            storage.clone(),
            admission.clone(),
            Arc::new(Builtin),
            blobs.clone(),
            Arc::new(Others { peers: storage.peers().clone(), me: me.id }),
        ),
        grpc: grpc(&raft, &credentials, &secrets, &whereabouts, node_link, blobs, data.root().to_owned()),
        telemetry: Arc::new(telemetry),
        judge: judge.clone(),
    };
    let port = Port {
        credentials: credentials.clone(),
        front: Arc::new(front),
        inflow: Arc::new(Inflow::new(bounds.connections())),
    };
    let closing = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(listener::serve(listener, port, bounds, closing.clone()));
    tasks.spawn(certificates::follow_authorities(storage.clone(), credentials.clone(), data.clone()));
    tasks.spawn(certificates::run_renewal(credentials.clone(), kubeconfig.clone()));
    tasks.spawn(async move { judge.follow().await });
    tasks.spawn(garbage);
    let told = recorder.clone();
    let mut leading = JoinSet::new();
    leading.spawn(leader::run(Duties {
        storage: storage.clone(),
        admission,
        links: links.clone(),
        recorder,
        cluster_id: membership.cluster_id.clone(),
        me: me.clone(),
        credentials: credentials.clone(),
        periods: Periods { learner_healthy: config.learner_healthy, member_dead: config.member_dead },
        secrets: secrets.clone(),
        planning,
    }));
    tasks.spawn(encryption::follow(storage.clone(), secrets));
    let rendezvous = Rendezvous {
        storage: storage.clone(),
        whereabouts: whereabouts.clone(),
        seek: config.seek.clone(),
        me: me.clone(),
        cluster_id: membership.cluster_id.clone(),
        fatal: fatal.clone(),
    };
    tasks.spawn(rendezvous.run());
    tasks.spawn(membership::stop_when_removed(storage.clone(), fatal.clone()));
    let recorded = data.clone();
    tasks.spawn(version::follow(storage.clone(), data.build().clone(), fatal.clone(), move |agreed| {
        write_version_down(&recorded, agreed)
    }));
    let (followed, known) = (storage.clone(), whereabouts.clone());
    tasks.spawn(membership::follow(storage.clone(), move |members| {
        known.follow(known_addresses(members, &followed));
    }));
    tasks.spawn(write_addresses_down(storage.clone(), whereabouts, data.clone(), kubeconfig));
    tasks.spawn(membership::announce(storage.clone(), me.clone()));
    let disputed = storage.clone();
    tasks.spawn(health::run(storage.clone(), fatal.clone(), move |message| {
        keeper::record(&told, &disputed.view(), me.id, "Warning", "StatesDiffer", message);
    }));
    tracing::info!(
        member = me.id,
        cluster = membership.cluster_id,
        address = me.address,
        "control node started"
    );
    Ok(Control {
        address: me.address,
        listen_address,
        kubeconfig_path: data.path(KUBECONFIG),
        membership,
        credentials,
        storage,
        links,
        fatal,
        closing,
        tasks,
        leading,
        data,
    })
}

/// What the cluster's status tells of this member's certificates.
fn certificates(credentials: &Arc<Credentials>) -> Certificates {
    let credentials = credentials.clone();
    Arc::new(move || {
        let leaves = credentials.leaves();
        let shown = [("serving", &leaves.serving), ("peer", &leaves.peer), ("admin", &leaves.admin)];
        let leaves = shown.into_iter().map(|(name, leaf)| status::certificate(name, &leaf.chain_pem));
        let mut reports: Vec<_> = leaves.filter_map(Result::ok).collect();
        // They were read when they were issued: what cannot be read is not there.
        reports.extend(status::authorities(&credentials.authorities()).unwrap_or_default());
        reports
    })
}

fn start_raft(
    config: &ControlConfig,
    data: &DataDir,
    membership: &Membership,
    machine: Machine,
    transport: GrpcTransport,
    founds: bool,
) -> Result<Raft<AppliedEntry>, ServerError> {
    let mut raft = coracle_raft::Config::new(membership.member_id, data.path("raft"), &membership.cluster_id);
    raft.snapshot_entries = config.snapshot_entries;
    let transport: Arc<dyn Transport> = Arc::new(transport);
    Ok(match founds {
        true => Raft::bootstrap(raft, machine, transport, &[FIRST_MEMBER])?,
        false => Raft::start(raft, machine, transport)?,
    })
}

/// By what the API decides, and all who write beside it.
fn admission(storage: &ReplicatedStorage, requests: &Arc<Requests>, cluster_id: &str) -> Admission {
    let mut config = ApiConfig::new(cluster_id, VERSION);
    config.meter = requests.clone();
    config.authorizer = Arc::new(Builtin);
    let checked = storage.clone();
    config.liveness = Arc::new(move || checks::liveness(&checked));
    let checked = storage.clone();
    config.readiness = Arc::new(move || checks::readiness(&checked));
    Admission::new(config)
}

fn grpc(
    raft: &Raft<AppliedEntry>,
    credentials: &Arc<Credentials>,
    secrets: &Arc<SecretBox>,
    whereabouts: &Arc<Whereabouts>,
    node_link: NodeLinkService,
    blobs: Arc<Blobs>,
    data_dir: PathBuf,
) -> Routes {
    let NodeLinkService { storage, links, cluster_id, .. } = node_link.clone();
    let join = JoinService {
        storage: storage.clone(),
        credentials: credentials.clone(),
        secrets: secrets.clone(),
        cluster_id: cluster_id.clone(),
        links: links.clone(),
    };
    let cluster = ClusterService {
        storage: storage.clone(),
        credentials: credentials.clone(),
        cluster_id: cluster_id.clone(),
        data_dir,
        certificates: certificates(credentials),
        whereabouts: whereabouts.clone(),
    };
    let store = StoreServer::new(StoreService { storage: storage.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let security = SecurityService {
        storage: storage.clone(),
        secrets: secrets.clone(),
        credentials: credentials.clone(),
        cluster_id: cluster_id.clone(),
    };
    let leader = LeaderServer::new(LeaderService { storage, links })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let node_link = NodeLinkServer::new(node_link)
        .max_decoding_message_size(NODE_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let blobs = BlobsServer::new(BlobsService { blobs }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    Routes::new(RaftService::new(raft, cluster_id).into_server())
        .add_service(JoinServer::new(join).max_decoding_message_size(JOIN_BYTES_MAX))
        .add_service(ClusterServer::new(cluster))
        .add_service(SecurityServer::new(security))
        .add_service(leader)
        .add_service(store)
        .add_service(blobs)
        .add_service(node_link)
        .prepare()
}

/// Where the members are, as far as this one knows.
fn known_addresses(
    members: &BTreeMap<u64, MemberSpec>,
    storage: &ReplicatedStorage,
) -> BTreeMap<u64, String> {
    let mut addresses = membership::addresses(members);
    // My own object may be outdated, and while the log is replayed the objects of members may be missing that are known
    // from joining or from asking.
    let status = storage.status();
    for (id, address) in storage.peers().addresses() {
        let is_member = status.voters.contains(&id) || status.learners.contains(&id);
        if id == status.id || is_member && !members.contains_key(&id) {
            addresses.insert(id, address);
        }
    }
    addresses
}

/// Records what the cluster agrees on. Whether it need not be tried again: the directory of a new cluster is not whole at
/// once.
fn write_version_down(data: &DataDir, agreed: &Agreed) -> bool {
    data.record_agreed(agreed).unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "the cluster's version is not written down");
        true
    })
}

/// Keeps the members' addresses in the data directory, from when this member has caught up: until then it would write
/// down what was true once.
async fn write_addresses_down(
    storage: ReplicatedStorage,
    whereabouts: Arc<Whereabouts>,
    data: Arc<DataDir>,
    kubeconfig: Arc<KubeconfigFile>,
) {
    while storage.linearizable().await.is_err() {
        sleep(CATCH_UP_PAUSE).await;
    }
    let known = storage.clone();
    membership::follow(storage, move |members| {
        let mut addresses = known_addresses(members, &known);
        whereabouts.overlay(&mut addresses);
        for written in [data.record_peers(&addresses), kubeconfig.follow(&addresses)] {
            if let Err(error) = written {
                tracing::warn!(error = chain(&error), "the members' addresses are not written down");
            }
        }
    })
    .await;
}

impl Control {
    /// `host:port` as advertised.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Where it really listens.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen_address
    }

    pub fn kubeconfig_path(&self) -> &Path {
        &self.kubeconfig_path
    }

    pub fn storage(&self) -> &ReplicatedStorage {
        &self.storage
    }

    pub fn cluster_id(&self) -> &str {
        &self.membership.cluster_id
    }

    /// The raft id.
    pub fn member_id(&self) -> u64 {
        self.membership.member_id
    }

    /// Makes a join token. `ttl_seconds` 0 is a day.
    pub async fn create_token(&self, role: Role, ttl_seconds: u64) -> anyhow::Result<JoinToken> {
        self.create_token_for(&Purpose { role, node: None }, ttl_seconds).await
    }

    /// Whether the cluster has a Node of this name.
    pub async fn has_node(&self, name: &str) -> anyhow::Result<bool> {
        let view = self.storage.linearizable().await?;
        Ok(view.get(&ObjectKey::new("nodes", "", name)).is_some())
    }

    /// Makes a join token for the one node of this name, which may exist.
    pub async fn create_node_token(&self, node: &str, ttl_seconds: u64) -> anyhow::Result<JoinToken> {
        self.create_token_for(&Purpose { role: Role::Node, node: Some(node.into()) }, ttl_seconds).await
    }

    async fn create_token_for(&self, purpose: &Purpose, ttl_seconds: u64) -> anyhow::Result<JoinToken> {
        let pin = self.credentials.serving_pin()?;
        let made = tokens::create(&self.storage, pin, purpose, ttl_seconds, Timestamp::now()).await?;
        made.map_err(|refusal: Refusal| anyhow::anyhow!("the token was refused: {refusal:?}"))
    }

    /// Resolves when the control node cannot go on, with the reason. The process should end then.
    pub async fn closed(&self) -> anyhow::Error {
        let mut fatal = self.fatal.subscribe();
        let reason = tokio::select! {
            closed = self.storage.raft().closed() => closed.to_string(),
            reason = fatal.wait_for(Option::is_some) => {
                reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
            }
        };
        anyhow::anyhow!("this control node has stopped: {reason}")
    }

    /// Hands leadership over where it can, then stops.
    pub async fn shutdown(self) {
        let status = self.storage.status();
        let others = status
            .progress
            .iter()
            .filter(|(id, _, active)| *active && *id != status.id && status.voters.contains(id));
        if self.storage.leads()
            && let Some((successor, _, _)) = others.max_by_key(|(_, matched, _)| *matched)
        {
            let handed_over =
                timeout(HAND_OVER_TIMEOUT, self.storage.raft().transfer_leader(*successor)).await;
            tracing::info!(successor, done = matches!(handed_over, Ok(Ok(()))), "leadership handed over");
        }
        self.abort().await;
    }

    /// Stops without handing anything over.
    pub async fn abort(mut self) {
        self.links.close_all();
        self.closing.cancel();
        self.storage.raft().shutdown().await;
        while self.leading.join_next().await.is_some() {}
        // The listener ends by itself once its connections have; the others never do.
        self.tasks.join_next().await;
        self.tasks.shutdown().await;
        tracing::info!(member = self.member_id(), "control node stopped");
    }

    async fn wait_until_ready(&self) -> Result<(), ServerError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while !bootstrap::is_done(&self.storage.view()) {
            if Instant::now() > deadline {
                let reason = "the cluster's first objects could not be written".into();
                return Err(ServerError::NotReady { seconds: READY_TIMEOUT.as_secs(), reason });
            }
            sleep(READY_PAUSE).await;
        }
        Ok(())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}
