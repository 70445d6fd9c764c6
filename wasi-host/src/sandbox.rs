//! Pods and containers: the public face of running a guest.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wasmtime::{Store, UpdateDeadline};

use crate::artifact::{Artifact, Entry};
use crate::capability::ContainerParts;
use crate::command;
use crate::disk::PodDisk;
use crate::executor::{self, Bucket, Group, Verdict};
use crate::exit::{self, Exit};
use crate::files::Mount;
use crate::host;
use crate::http;
use crate::ledger::{Account, Holding, PodBounds, Refused};
use crate::limits::bound_store;
use crate::linker::{self, Grants, State};
use crate::logs::LogSink;
use crate::net::{Listener, Namespace, NetError};
use crate::seats::{NoSeat, PodSeats, Seat, Share};
use crate::stdin::Stdin;
use crate::store::GuestStore;

/// The port that an HTTP component without one is served on.
const HTTP_PORT_DEFAULT: u16 = 80;

/// How long one HTTP request may take in all, where nothing else is said.
pub const HTTP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// What all containers of a pod may use together.
#[derive(Debug, Clone, Copy, Default)]
pub struct PodLimits {
    /// The weight of containers that have none of their own, against all others of the host; 0 is 100.
    pub cpu_weight: u64,
    /// Cores, as seconds of CPU time a second.
    pub cpu_quota: Option<f64>,
    /// Bytes of linear memory and tables.
    pub memory_bytes: Option<u64>,
    /// How many of them are the pod's for certain, whatever others take.
    pub memory_requested: u64,
}

/// What one container may use.
#[derive(Debug, Clone, Copy, Default)]
pub struct ContainerLimits {
    /// Bytes of linear memory and tables; more ends the container.
    pub memory_bytes: Option<u64>,
    /// Cores, as seconds of CPU time a second.
    pub cpu_quota: Option<f64>,
    /// The share of CPU time where it is scarce; 0 is the pod's.
    pub cpu_weight: u64,
}

/// What to run, and with what.
#[derive(Clone)]
pub struct ContainerSpec {
    /// For logs and errors.
    pub name: String,
    /// What to run.
    pub artifact: Arc<Artifact>,
    /// The guest's arguments, its own name first.
    pub args: Vec<String>,
    /// The guest's whole environment.
    pub env: Vec<(String, String)>,
    /// The guest's whole file system.
    pub mounts: Vec<Mount>,
    /// What it may use.
    pub limits: ContainerLimits,
    /// The port that an HTTP component is served on; 80 where it is `None`. Programs open their own.
    pub http_port: Option<u16>,
    /// Ports on which a core module, which can open no sockets itself, finds listening ones. Components open their own.
    pub listen_ports: Vec<u16>,
    /// How long one HTTP request may take in all; a minute where it is `None`.
    pub http_timeout: Option<Duration>,
    /// Where relative paths begin: what is mounted as `.`. The root where it is `None`.
    pub working_dir: Option<String>,
    /// What a program finds at its standard input.
    pub stdin: Stdin,
    /// Where standard output goes.
    pub stdout: Arc<dyn LogSink>,
    /// Where standard error goes, and what the host has to say of failed requests.
    pub stderr: Arc<dyn LogSink>,
}

/// What a container or pod has used so far and holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, in nanoseconds; at most a tick old.
    pub cpu_ns: u64,
    /// Linear memory and tables, in bytes.
    pub memory_bytes: u64,
    /// What the host holds on its behalf beside that, in bytes: bodies, handles, what is buffered.
    pub host_bytes: u64,
}

impl Usage {
    fn of(cpu_ns: u64, account: &Account) -> Usage {
        let (memory_bytes, host_bytes) = (account.held(Holding::Memory), account.held(Holding::Heap));
        Usage { cpu_ns, memory_bytes, host_bytes }
    }
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node, the namespace or the pod has all the instances that it may have now: [`crate::Host::seats_freed`] tells
    /// when it is worth another try.
    #[error(transparent)]
    NoSeat(#[from] NoSeat),
    /// What the host has to hold for one more instance is more than it may hold for this container: memory or open files.
    #[error("the host cannot hold one more instance: {0}")]
    Exhausted(#[from] Refused),
    /// A directory that the container mounts cannot be opened.
    #[error("cannot mount {host} at {guest}: {message}")]
    Mount {
        /// The directory on the host.
        host: String,
        /// Its path in the guest.
        guest: String,
        /// What the system said.
        message: String,
    },
    /// A container of the pod listens on the port.
    #[error(
        "cannot listen on port {port} of the pod: its container {by} does, and the containers of a pod share one set of \
         ports: give one of the two another containerPort"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// Whose it is.
        by: Arc<str>,
    },
    /// A port cannot be listened on.
    #[error("cannot listen on port {port} of the pod: {source}")]
    Port {
        /// The port.
        port: u16,
        /// Why not.
        source: NetError,
    },
    /// The host's own failure.
    #[error("the sandbox cannot be made: {message}")]
    Sandbox {
        /// What was wrong.
        message: String,
    },
}

/// A network namespace with limits, in which containers run. Cheap to clone.
#[derive(Clone)]
pub struct Pod {
    inner: Arc<PodInner>,
}

struct PodInner {
    host: Arc<host::Inner>,
    limits: PodLimits,
    namespace: Namespace,
    account: Arc<Account>,
    quota: Option<Arc<Bucket>>,
    cpu_ns: Arc<AtomicU64>,
    seats: Arc<PodSeats>,
    disk: PodDisk,
}

impl Pod {
    pub(crate) fn new(host: Arc<host::Inner>, limits: PodLimits, namespace: Namespace, disk: PodDisk) -> Pod {
        let PodLimits { memory_bytes, memory_requested, .. } = limits;
        let bounds = PodBounds { memory: memory_bytes, memory_requested, disk: None };
        let account = host.ledger.bounded_pod(&namespace.holder().namespace, bounds);
        let address = namespace.holder().pod;
        account.set_address(address);
        disk.set_address(address);
        namespace.charge_to(&account);
        let quota = limits.cpu_quota.map(|cores| Arc::new(Bucket::new(cores)));
        let cpu_ns = Arc::new(AtomicU64::new(0));
        let seats = host.seats.pod(&namespace.holder().namespace);
        Pod { inner: Arc::new(PodInner { host, limits, namespace, account, quota, cpu_ns, seats, disk }) }
    }

    /// The pod's network.
    pub fn namespace(&self) -> &Namespace {
        &self.inner.namespace
    }

    /// What all containers together used and hold.
    pub fn usage(&self) -> Usage {
        Usage::of(self.inner.cpu_ns.load(Ordering::Relaxed), &self.inner.account)
    }

    /// What the pod holds.
    #[cfg(test)]
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.inner.account
    }

    /// Starts a container. It runs until it ends, is killed, or the last clone of its handle is dropped.
    pub fn start(&self, spec: ContainerSpec) -> Result<Container, StartError> {
        let stop = CancellationToken::new();
        // What is wrong with the spec is told before the want of a seat, and what there is no room for after it.
        let mut grants = self.grants(&spec, &stop)?;
        let share = self.inner.seats.admit(spec.artifact.weight)?;
        grants.charge()?;
        let sandbox = Arc::new(self.sandbox(&spec, stop, grants, share));
        match spec.artifact.entry() {
            Entry::Command => command::start(&sandbox, &spec.listen_ports)?,
            Entry::HttpP2 | Entry::HttpP3 => {
                let port = spec.http_port.unwrap_or(HTTP_PORT_DEFAULT);
                let timeout = spec.http_timeout.unwrap_or(HTTP_TIMEOUT_DEFAULT);
                http::start(&sandbox, port, timeout)?;
            }
        }
        tracing::debug!(container = spec.name, entry = ?spec.artifact.entry(), "container started");
        Ok(Container { handle: Arc::new(Handle { sandbox }) })
    }

    fn grants(&self, spec: &ContainerSpec, stop: &CancellationToken) -> Result<Grants, StartError> {
        let pod = &self.inner;
        let env = spec.env.iter().map(|(name, value)| (Arc::from(name.as_str()), Arc::from(value.as_str())));
        let container = ContainerParts {
            spec,
            env: &env.collect(),
            // What the container listens on is its own: it can be stopped by itself.
            namespace: &pod.namespace.scoped(&spec.name),
            account: &pod.account.container(spec.limits.memory_bytes),
            disk: &pod.disk,
            host: &pod.host,
        };
        Grants::new(&container, stop)
    }

    fn sandbox(
        &self,
        spec: &ContainerSpec,
        stop: CancellationToken,
        grants: Grants,
        share: Arc<Share>,
    ) -> Sandbox {
        let pod = &self.inner;
        let own_quota = spec.limits.cpu_quota.map(|cores| Arc::new(Bucket::new(cores)));
        let buckets = own_quota.into_iter().chain(pod.quota.clone()).collect();
        let weight = match (spec.limits.cpu_weight, pod.limits.cpu_weight) {
            (0, 0) => executor::DEFAULT_WEIGHT,
            (0, weight) | (weight, _) => weight,
        };
        Sandbox {
            name: spec.name.clone(),
            group: pod.host.executor.group(weight, buckets, Arc::clone(&pod.cpu_ns)),
            host: Arc::clone(&pod.host),
            artifact: Arc::clone(&spec.artifact),
            share,
            account: Arc::clone(&grants.account),
            grants,
            disk: pod.disk.clone(),
            stdin_ends: matches!(spec.stdin, Stdin::UntilStop),
            stop,
            ended: CancellationToken::new(),
            reason: OnceLock::new(),
            exit: watch::Sender::new(None),
        }
    }
}

/// A component that runs. Cheap to clone; dropping the last clone kills it.
#[derive(Clone)]
pub struct Container {
    handle: Arc<Handle>,
}

/// Kills the container when the last clone goes.
struct Handle {
    sandbox: Arc<Sandbox>,
}

impl Container {
    /// Waits for the end. May be called often, and after the end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.handle.sandbox.exit.subscribe();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(Exit::Killed),
            // The sender lives as long as this handle.
            Err(_) => Exit::Killed,
        }
    }

    /// The end, if it has come.
    pub fn exit(&self) -> Option<Exit> {
        self.handle.sandbox.exit.borrow().clone()
    }

    /// Asks it to end: standard input ends; a program's own listeners accept no more connections; an HTTP component
    /// is called no more, finishes the requests that it has and then ends with code 0. A program may take as long as
    /// it likes, or refuse. One that can see nothing of this is ended, as a process is that handles no SIGTERM.
    pub fn stop(&self) {
        let sandbox = &self.handle.sandbox;
        if !sandbox.sees_stop() {
            return sandbox.kill();
        }
        // First, so that callers go elsewhere rather than come too late.
        sandbox.grants.namespace.withdraw_http();
        sandbox.stop.cancel();
        if sandbox.artifact.entry() == Entry::Command {
            sandbox.grants.namespace.close_listeners();
        }
    }

    /// Ends it now: within about a millisecond where it runs, at once where it waits.
    pub fn kill(&self) {
        self.handle.sandbox.kill();
    }

    /// What it used and holds.
    pub fn usage(&self) -> Usage {
        let sandbox = &self.handle.sandbox;
        Usage::of(sandbox.group.cpu_ns(), &sandbox.account)
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("name", &self.handle.sandbox.name).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.sandbox.kill();
    }
}

/// What a container is made of, shared by its tasks.
pub(crate) struct Sandbox {
    pub(crate) name: String,
    pub(crate) host: Arc<host::Inner>,
    pub(crate) group: Arc<Group>,
    pub(crate) artifact: Arc<Artifact>,
    /// Its part of the host's instances.
    pub(crate) share: Arc<Share>,
    pub(crate) grants: Grants,
    pub(crate) account: Arc<Account>,
    disk: PodDisk,
    /// Standard input ends when the container is asked to stop.
    stdin_ends: bool,
    /// Cancelled when the container is asked to stop. Not where it is ended without being asked.
    pub(crate) stop: CancellationToken,
    /// Cancelled when it must end: what serves it on the I/O runtime ends too.
    pub(crate) ended: CancellationToken,
    /// Why it must end, where that is known before it has.
    reason: OnceLock<Exit>,
    exit: watch::Sender<Option<Exit>>,
}

impl Sandbox {
    /// A new store with all its limits, ready for the instance of a component that the seat is for.
    pub(crate) fn store(&self, seat: Seat) -> Result<GuestStore, StartError> {
        let meter = self.grants.meter(self.artifact.engine(), self.artifact.structures)?;
        self.store_with(self.grants.state(seat, meter))
    }

    /// The same for the instance of a core module, which finds these listeners open.
    pub(crate) fn store_of_module(
        &self,
        seat: Seat,
        listeners: Vec<Listener>,
    ) -> Result<GuestStore, StartError> {
        let meter = self.grants.meter(self.artifact.engine(), self.artifact.structures)?;
        self.store_with(self.grants.state_of_module(seat, meter, listeners).map_err(failed)?)
    }

    fn store_with(&self, state: State) -> Result<GuestStore, StartError> {
        let engine = self.host.engines.of(self.artifact.engine());
        let mut store = Store::try_new(engine, state).map_err(failed)?;
        store.limiter(|state| &mut state.limiter);
        bound_store(wasmtime::AsContextMut::as_context_mut(&mut store), self.artifact.entry());
        linker::meter_tasks(&mut store);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|_| {
            Ok(match executor::tick() {
                Verdict::Continue => UpdateDeadline::Continue(1),
                Verdict::Yield => UpdateDeadline::Yield(1),
                Verdict::Interrupt => UpdateDeadline::Interrupt,
            })
        });
        Ok(store.into())
    }

    /// Listens on a port of the pod.
    pub(crate) fn listen(&self, port: u16) -> Result<Listener, StartError> {
        let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        let namespace = &self.grants.namespace;
        namespace.listen(address).map_err(|source| match namespace.tcp_owner(address) {
            Some(by) if source == NetError::AddressInUse => StartError::PortTaken { port, by },
            _ => StartError::Port { port, source },
        })
    }

    /// What an error that ended a call of the guest means.
    pub(crate) fn classify(&self, error: &wasmtime::Error) -> Exit {
        exit::classify(error, &self.account, self.group.is_killed(), self.disk.refusal())
    }

    /// What an error means that kept an instance from being made.
    pub(crate) fn not_made(&self, error: &wasmtime::Error) -> Exit {
        match exit::unseated(error) {
            Some(message) => Exit::Unseated { message },
            None => self.classify(error),
        }
    }

    /// Has the container end, for this reason where no other came before. Its end is told later, by what runs it,
    /// when all that it held is free: its port above all.
    pub(crate) fn fail(&self, reason: Exit) {
        // Only the first one counts.
        let _ = self.reason.set(reason);
        self.kill();
    }

    /// Tells the end, once. `exit` is how it ended where there was no reason before.
    pub(crate) fn end(&self, exit: Exit) {
        let exit = self.reason.get().cloned().unwrap_or(exit);
        tracing::debug!(container = self.name, %exit, "container ended");
        self.host.tally.ended(&exit);
        self.kill();
        self.share.close();
        self.exit.send_replace(Some(exit));
    }

    /// Whether it can see that it is asked to stop.
    fn sees_stop(&self) -> bool {
        self.artifact.entry() != Entry::Command || self.stdin_ends || self.grants.namespace.has_ports()
    }

    fn kill(&self) {
        self.grants.namespace.withdraw_http();
        // Its input does not end: a guest that waits for that must not end by itself.
        self.group.kill();
        self.ended.cancel();
    }
}

fn failed(error: wasmtime::Error) -> StartError {
    StartError::Sandbox { message: format!("{error:#}") }
}
