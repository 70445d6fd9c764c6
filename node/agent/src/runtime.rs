//! What runs pods, as the agent sees it: the node's CRI. The agent decides what is to run; a [`Runtime`] runs it.
//!
//! Whatever passes here could cross a local socket, so that a tenant's pods can have a process of their own, and pods can
//! outlive the agent that started them: ids that the agent gives, plain data, open directories (which a Unix socket carries
//! as descriptors), refusals in words, and streams of bytes or lines with backpressure. Nothing of wasmtime, no code that
//! runs in or beside a guest, no part of the host that both sides share. Today there is one runtime, in the agent's own
//! process ([`InProcess`]).
//!
//! **HTTP requests are no matter of this trait.** Nobody in the agent calls a component: probes speak HTTP over a connection
//! ([`Runtime::dial`]), and for the gateway and for services the fabric finds the component in its pod's network, where a
//! call has no socket in between.
//!
//! **What the agent has of `coracle_wasi_host` beside this** is the node's, and not the running of pods: pools and shares (who
//! may do how much at once), descriptors, what pods were refused, digests of files, and the accounts of what pods have on the disk ([`Disks`]), to
//! which volumes and logs count as well as what guests write. Only `node.rs`, which puts a node together, makes a `Host`: it
//! asks it what the machine has room for, and what comes from outside is counted there.
//!
//! **What has to change for a process of its own** is in one place, [`in_process::Shared`]: what the runtime and the rest of the
//! node have in common in memory.

mod disks;
pub mod in_process;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
};

use coracle_core::{PodUid, observe::Exit, resources::Limits};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

pub use self::{disks::Disks, in_process::InProcess};
/// Plain data of the host, as is: what a container sees of the disk, what it used, what all did, and where its lines go.
pub use coracle_wasi_host::{Compiles, LogSink, Mount, Totals, Usage};

/// What is answered later. Dropping it gives up the wait.
pub type Reply<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs pods. What is to be done in an order is called in that order.
///
/// Nothing here waits for a runtime on the agent's loop. What has no answer is only told; what cannot be done of it shows
/// when something is to be started. Whatever does not exist any more is left alone.
pub trait Runtime: Send + Sync + 'static {
    /// Makes what a pod's containers share: its network, at which they are reached from now on, and its limits.
    fn create_sandbox(&self, id: &SandboxId, spec: SandboxSpec);

    /// Takes it off the network: its addresses are another's. What runs in it goes on until it is told otherwise.
    fn detach_sandbox(&self, id: &SandboxId);

    /// Ends at once what runs in it, resets its connections and frees its addresses. Its containers can be waited for still.
    fn remove_sandbox(&self, id: &SandboxId);

    /// Makes the component in this file ready to run, on the account of the Kubernetes namespace: checked, compiled and linked,
    /// which may take minutes. The error says what is wrong with it, in words for the pod's status. The file stays where it is
    /// until this is answered; giving up the wait gives up what nobody else waits for.
    fn prepare(&self, image: PathBuf, namespace: String) -> Reply<Result<Prepared, String>>;

    /// Starts a container. It runs until it ends, is killed, or its sandbox is removed. Blocks: it opens what is mounted.
    fn start(&self, id: &ContainerId, spec: ContainerSpec) -> Result<(), StartRefused>;

    /// Asks a container to end: clients go elsewhere, its listeners close, its standard input ends. It may refuse.
    fn stop(&self, id: &ContainerId);

    /// Ends a container now, within milliseconds.
    fn kill(&self, id: &ContainerId);

    /// Waits for the end of a container, once all that it held is free. May be asked often, and after the end; one that is not
    /// there any more was killed.
    fn wait(&self, id: &ContainerId) -> Reply<Exit>;

    /// Lets go of a container that has ended.
    fn remove_container(&self, id: &ContainerId);

    /// Opens a connection to a port of the pod, as coming `from` there: the node's own, which does not fail for what clients hold
    /// of the pod. The error is the system's words for it.
    fn dial(&self, sandbox: &SandboxId, from: SocketAddr, to: SocketAddr) -> Reply<Result<Dialed, String>>;

    /// What each container used so far and holds now.
    fn usage(&self) -> Reply<Vec<(ContainerId, Usage)>>;

    /// What all that it ran and made ready came to.
    fn figures(&self) -> Reply<Figures>;

    /// Changes when there is room again after a container was refused for want of it.
    fn room_freed(&self) -> watch::Receiver<u64>;

    /// What it holds now, by what it is: for whoever looks for what was not given back.
    fn held(&self) -> Reply<Vec<(String, usize)>>;
}

/// One of the sandboxes that a pod has after each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SandboxId {
    pub pod: PodUid,
    pub number: u64,
}

/// One attempt of one container, in the sandbox in which it was started.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId {
    pub sandbox: SandboxId,
    pub name: String,
    pub attempt: u32,
}

/// What a sandbox is made of.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// The Kubernetes namespace: what the pod may reach, and on whose account it is.
    pub namespace: String,
    /// The pod's name and labels: whose it is for those that it reaches and that reach it.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub hostname: String,
    /// The preferred one first.
    pub addresses: Vec<IpAddr>,
    /// Of all its containers together.
    pub limits: Limits,
}

/// What to run, and with what.
pub struct ContainerSpec {
    /// `namespace/pod/container`, for logs.
    pub name: String,
    pub component: Prepared,
    /// argv[0] first.
    pub arguments: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The whole file system.
    pub mounts: Vec<Mount>,
    /// Where relative paths begin, empty for the root.
    pub working_dir: String,
    pub limits: Limits,
    /// Where a component that exports HTTP is served.
    pub http_port: u16,
    /// Where a core module finds listening sockets.
    pub listen_ports: Vec<u16>,
    pub stdio: Stdio,
}

/// Where a container's output goes, line by line. A sink that is full holds up its container alone, as a stream would whose
/// reader grants so many bytes at a time.
#[derive(Clone)]
pub struct Stdio {
    /// Standard input is silent, and ends when the container is stopped. Otherwise it is at its end from the start.
    pub stdin: bool,
    pub stdout: Arc<dyn LogSink>,
    pub stderr: Arc<dyn LogSink>,
}

/// Why a container was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartRefused {
    /// Nothing is wrong with it: others have the room. [`Runtime::room_freed`] tells when it is worth another try.
    NoRoom(String),
    /// What is wrong, in words for the pod's status.
    Failed(String),
}

/// What a runtime has come to, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Since its start.
    pub totals: Totals,
    /// Containers that have started and not ended.
    pub running: usize,
    /// What its pods have now of linear memory and tables, and what is held for them beside that, in bytes.
    pub memory_bytes: u64,
    pub host_bytes: u64,
}

/// A connection to a pod.
pub type Dialed = Box<dyn Connection>;

/// Bytes in both directions; dropping it closes it.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A component that is ready to run. The runtime keeps it so until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Prepared {
    lease: Arc<Lease>,
}

struct Lease {
    id: u64,
    release: Box<dyn Fn(u64) + Send + Sync>,
}

impl Prepared {
    /// By the runtime's own name for it, with what tells the runtime that nobody needs it any more.
    pub fn new(id: u64, release: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self { lease: Arc::new(Lease { id, release: Box::new(release) }) }
    }

    pub fn id(&self) -> u64 {
        self.lease.id
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        (self.release)(self.id);
    }
}
