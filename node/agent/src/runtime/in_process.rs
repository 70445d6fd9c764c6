//! The runtime in the agent's own process: pods are pods of a `Host`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use coracle_core::{observe::Exit, resources::Limits};
use coracle_fabric::{Name, PodIdentity};
use coracle_wasi_host::{
    self as host, Artifact, Container, ContainerLimits, Host, Pod, PodLimits, StartError, Stdin,
    net::{Namespace, NamespaceConfig, NetError, NetLimits},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    ContainerId, ContainerSpec, Dialed, Disks, Figures, Prepared, Reply, Runtime, SandboxId, SandboxSpec,
    StartRefused, Usage,
};
use crate::network::PodNetwork;

/// What the rest of the node has in common with the pods that run in its process. A runtime in a process of its own has
/// neither, and this is what it needs instead.
#[derive(Clone)]
pub struct Shared {
    /// The fabric hands connections, datagrams and HTTP requests straight to a pod's [`Namespace`], and the pod what goes beyond
    /// itself to the fabric (`Uplink`). Both become messages and carried streams, as they are already between two nodes: the
    /// fabric then knows a pod by its runtime and address.
    pub network: PodNetwork,
    /// What guests write counts to the same accounts as volumes and logs. A process of its own is given a part of the disk for its
    /// pods instead, and tells what they took of it.
    pub disks: Disks,
}

/// Pods of a host in this process.
pub struct InProcess {
    host: Host,
    shared: Shared,
    pods: Mutex<Pods>,
    prepared: Arc<Mutex<BTreeMap<u64, Arc<Artifact>>>>,
    next_prepared: Arc<AtomicU64>,
    /// What serves containers beside the guests' threads runs there.
    io: tokio::runtime::Handle,
}

#[derive(Default)]
struct Pods {
    sandboxes: BTreeMap<SandboxId, Pod>,
    /// Until they are removed, whatever becomes of their sandboxes.
    containers: BTreeMap<ContainerId, Container>,
}

impl Pods {
    fn containers_of(&self, sandbox: &SandboxId) -> Vec<Container> {
        let first = ContainerId { sandbox: sandbox.clone(), name: String::new(), attempt: 0 };
        let all = self.containers.range(first..).take_while(|(id, _)| id.sandbox == *sandbox);
        all.map(|(_, container)| container.clone()).collect()
    }
}

impl InProcess {
    /// Call it within a tokio runtime.
    pub fn new(host: Host, shared: Shared) -> Self {
        let (pods, prepared, next_prepared) = Default::default();
        Self { host, shared, pods, prepared, next_prepared, io: tokio::runtime::Handle::current() }
    }

    fn namespace(&self, id: &SandboxId) -> Option<Namespace> {
        self.pods.lock().sandboxes.get(id).map(|pod| pod.namespace().clone())
    }

    fn container(&self, id: &ContainerId) -> Option<Container> {
        self.pods.lock().containers.get(id).cloned()
    }

    fn detach(&self, namespace: &Namespace) {
        for address in namespace.addresses() {
            self.shared.network.detach(*address);
        }
    }
}

impl Runtime for InProcess {
    fn create_sandbox(&self, id: &SandboxId, spec: SandboxSpec) {
        let SandboxSpec { namespace: of, name, labels, hostname, addresses, limits } = spec;
        let name = Name::new(&of, &name);
        let identity = PodIdentity { name, uid: id.pod.as_str().into(), labels: labels.into() };
        let disk = self.shared.disks.of(&id.pod, &of, limits.disk_bytes);
        let network = &self.shared.network;
        let uplink = network.uplink(&of);
        let config = NamespaceConfig { hostname, tenant: of.into(), addresses, limits: NetLimits::default() };
        let namespace = Namespace::new(config, uplink);
        for address in namespace.addresses() {
            network.attach(*address, namespace.clone(), identity.clone());
        }
        let pod = self.host.pod_on(pod_limits(&limits), namespace, disk);
        self.pods.lock().sandboxes.insert(id.clone(), pod);
    }

    fn detach_sandbox(&self, id: &SandboxId) {
        if let Some(namespace) = self.namespace(id) {
            self.detach(&namespace);
        }
    }

    fn remove_sandbox(&self, id: &SandboxId) {
        let (pod, containers) = {
            let mut pods = self.pods.lock();
            let Some(pod) = pods.sandboxes.remove(id) else { return };
            (pod, pods.containers_of(id))
        };
        containers.iter().for_each(Container::kill);
        self.detach(pod.namespace());
        pod.namespace().shutdown();
    }

    fn prepare(&self, image: PathBuf, namespace: String) -> Reply<Result<Prepared, String>> {
        let (host, prepared, next) = (self.host.clone(), self.prepared.clone(), self.next_prepared.clone());
        Box::pin(async move {
            let artifact = host.prepare(&image, &namespace).await.map_err(|error| error.to_string())?;
            let id = next.fetch_add(1, Ordering::Relaxed);
            prepared.lock().insert(id, artifact);
            Ok(Prepared::new(id, move |id| {
                // What goes with it goes after the lock.
                let _gone = prepared.lock().remove(&id);
            }))
        })
    }

    fn start(&self, id: &ContainerId, spec: ContainerSpec) -> Result<(), StartRefused> {
        let failed = |message: &str| StartRefused::Failed(message.to_owned());
        let pod = self.pods.lock().sandboxes.get(&id.sandbox).cloned();
        let pod = pod.ok_or_else(|| failed("the pod's sandbox is gone"))?;
        let artifact = self.prepared.lock().get(&spec.component.id()).cloned();
        let artifact = artifact.ok_or_else(|| failed("its component is of another runtime"))?;
        let started = {
            let _io = self.io.enter();
            pod.start(container_spec(spec, artifact))
        };
        let container = started.map_err(|error| match error {
            StartError::NoSeat(full) => StartRefused::NoRoom(full.to_string()),
            error => StartRefused::Failed(error.to_string()),
        })?;
        let mut pods = self.pods.lock();
        pods.containers.insert(id.clone(), container.clone());
        // It may have been removed meanwhile, and did not know of this one.
        let is_gone = !pods.sandboxes.contains_key(&id.sandbox);
        drop(pods);
        if is_gone {
            container.kill();
        }
        Ok(())
    }

    fn stop(&self, id: &ContainerId) {
        if let Some(container) = self.container(id) {
            container.stop();
        }
    }

    fn kill(&self, id: &ContainerId) {
        if let Some(container) = self.container(id) {
            container.kill();
        }
    }

    fn wait(&self, id: &ContainerId) -> Reply<Exit> {
        let container = self.container(id);
        Box::pin(async move {
            match container {
                Some(container) => exit_of(container.wait().await),
                None => Exit::Killed,
            }
        })
    }

    fn remove_container(&self, id: &ContainerId) {
        // The last handle kills what runs still, which takes longer than the lock is held.
        let _removed = self.pods.lock().containers.remove(id);
    }

    fn dial(&self, sandbox: &SandboxId, from: SocketAddr, to: SocketAddr) -> Reply<Result<Dialed, String>> {
        let namespace = self.namespace(sandbox);
        Box::pin(async move {
            let namespace = namespace.ok_or_else(|| NetError::NetworkDown.to_string())?;
            dial(&namespace, from, to).await
        })
    }

    fn usage(&self) -> Reply<Vec<(ContainerId, Usage)>> {
        let pods = self.pods.lock();
        let all: Vec<_> =
            pods.containers.iter().map(|(id, container)| (id.clone(), container.clone())).collect();
        drop(pods);
        Box::pin(async move { all.into_iter().map(|(id, container)| (id, container.usage())).collect() })
    }

    fn figures(&self) -> Reply<Figures> {
        let totals = self.host.totals();
        let pods = self.pods.lock();
        let running = pods.containers.values().filter(|container| container.exit().is_none()).count();
        let mut figures = Figures { totals, running, ..Figures::default() };
        for used in pods.sandboxes.values().map(Pod::usage) {
            figures.memory_bytes += used.memory_bytes;
            figures.host_bytes += used.host_bytes;
        }
        drop(pods);
        Box::pin(async move { figures })
    }

    fn room_freed(&self) -> watch::Receiver<u64> {
        self.host.seats_freed()
    }

    fn held(&self) -> Reply<Vec<(String, usize)>> {
        let (sandboxes, containers) = {
            let pods = self.pods.lock();
            (pods.sandboxes.len(), pods.containers.len())
        };
        let own = [
            ("sandboxes of the runtime", sandboxes),
            ("containers of the runtime", containers),
            ("components kept for containers", self.prepared.lock().len()),
        ];
        let all = own.into_iter().chain(self.host.held());
        let all = all.map(|(what, count)| (what.to_owned(), count)).collect();
        Box::pin(async move { all })
    }
}

/// By the way that is the node's alone: clients that fill the pod's port fail no probe.
pub(crate) async fn dial(namespace: &Namespace, from: SocketAddr, to: SocketAddr) -> Result<Dialed, String> {
    match namespace.deliver_probe(from, to).await {
        Ok(conn) => Ok(Box::new(conn)),
        Err(error) => Err(error.to_string()),
    }
}

fn pod_limits(limits: &Limits) -> PodLimits {
    PodLimits {
        cpu_weight: limits.cpu_weight,
        cpu_quota: limits.cpu_quota,
        memory_bytes: limits.memory_bytes,
        memory_requested: limits.memory_requested,
    }
}

fn container_spec(spec: ContainerSpec, artifact: Arc<Artifact>) -> host::ContainerSpec {
    host::ContainerSpec {
        name: spec.name,
        artifact,
        args: spec.arguments,
        env: spec.env,
        mounts: spec.mounts,
        limits: ContainerLimits {
            memory_bytes: spec.limits.memory_bytes,
            cpu_quota: spec.limits.cpu_quota,
            cpu_weight: spec.limits.cpu_weight,
        },
        http_port: Some(spec.http_port),
        listen_ports: spec.listen_ports,
        http_timeout: None,
        stdin: if spec.stdio.stdin { Stdin::UntilStop } else { Stdin::AtEnd },
        working_dir: Some(spec.working_dir).filter(|dir| !dir.is_empty()),
        stdout: spec.stdio.stdout,
        stderr: spec.stdio.stderr,
    }
}

fn exit_of(exit: host::Exit) -> Exit {
    if exit.is_out_of_memory() {
        return Exit::OutOfMemory;
    }
    match exit {
        host::Exit::Completed { code } => Exit::Completed(code),
        host::Exit::Trapped { message } => Exit::Trapped(message),
        host::Exit::LimitExceeded { resource } => Exit::LimitExceeded(resource.to_owned()),
        host::Exit::Killed => Exit::Killed,
        host::Exit::Unseated { message } => Exit::Unseated(message),
        host::Exit::HostFault { message } => Exit::HostFault(message),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, path::Path, time::Duration};

    use coracle_wasi_host::{HostConfig, LogSink};

    use super::*;
    use crate::runtime::Stdio;

    /// For the end of what spins, on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Silence;

    impl LogSink for Silence {
        fn write(&self, line: &[u8]) -> usize {
            line.len()
        }
    }

    fn runtime(dir: &Path) -> InProcess {
        let config = HostConfig { cache_dir: dir.join("cache"), max_instances: 16, ..HostConfig::default() };
        let host = Host::new(config).unwrap();
        let shared = Shared { network: PodNetwork::default(), disks: Disks::new(host.clone()) };
        InProcess::new(host, shared)
    }

    fn spec(component: &Prepared) -> ContainerSpec {
        ContainerSpec {
            name: "d/p/c".into(),
            component: component.clone(),
            arguments: vec!["spin".into()],
            env: Vec::new(),
            mounts: Vec::new(),
            working_dir: String::new(),
            limits: Limits::default(),
            http_port: 80,
            listen_ports: Vec::new(),
            stdio: Stdio { stdin: true, stdout: Arc::new(Silence), stderr: Arc::new(Silence) },
        }
    }

    async fn held(runtime: &InProcess) -> Vec<usize> {
        runtime.held().await.into_iter().take(3).map(|(_, count)| count).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_runs_in_a_sandbox_ends_with_it_and_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime(dir.path());
        let [first, second] = [1, 2].map(|number| SandboxId { pod: "p".into(), number });
        let address: IpAddr = "10.128.0.2".parse().unwrap();
        for id in [&first, &second] {
            let spec = SandboxSpec {
                namespace: "d".into(),
                name: "p".into(),
                labels: Default::default(),
                hostname: "p".into(),
                addresses: vec![address],
                limits: Limits::default(),
            };
            runtime.create_sandbox(id, spec);
        }
        let prepared = runtime.prepare(coracle_sample_artifacts::wasm("spin"), "d".into()).await;
        let component = prepared.unwrap();
        let ids =
            [&first, &second].map(|id| ContainerId { sandbox: id.clone(), name: "c".into(), attempt: 0 });
        for id in &ids {
            runtime.start(id, spec(&component)).unwrap();
        }
        assert_eq!(held(&runtime).await, [2, 2, 1]);
        let at_work = async {
            while runtime.figures().await.memory_bytes == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, at_work).await.expect("a guest has its memory");
        let figures = runtime.figures().await;
        assert!(figures.running == 2 && figures.host_bytes > 0, "{figures:?}");

        runtime.remove_sandbox(&first);
        let ended = tokio::time::timeout(PATIENCE, runtime.wait(&ids[0])).await;
        assert_eq!(ended, Ok(Exit::Killed));
        let running: Vec<_> = runtime.usage().await.into_iter().map(|(id, _)| id).collect();
        assert_eq!(running, ids, "its end has not been taken note of");
        runtime.remove_container(&ids[0]);
        assert_eq!(held(&runtime).await, [1, 1, 1]);
        assert_eq!(runtime.wait(&ids[0]).await, Exit::Killed, "there is none any more");
        let late = ContainerId { attempt: 1, ..ids[0].clone() };
        let refused = StartRefused::Failed("the pod's sandbox is gone".into());
        assert_eq!(runtime.start(&late, spec(&component)), Err(refused));
        let (from, to) = ("10.128.0.1:1".parse().unwrap(), SocketAddr::new(address, 80));
        let dialed = |result: Result<Dialed, String>| result.map(drop);
        assert_eq!(dialed(runtime.dial(&first, from, to).await), Err("network is down".into()));
        assert_eq!(dialed(runtime.dial(&second, from, to).await), Err("connection refused".into()));

        // What runs needs the component, and no longer who had it prepared.
        drop(component);
        assert_eq!(held(&runtime).await, [1, 1, 0]);
        runtime.kill(&ids[1]);
        assert_eq!(runtime.wait(&ids[1]).await, Exit::Killed);
        runtime.remove_container(&ids[1]);
        runtime.remove_sandbox(&second);
        assert_eq!(held(&runtime).await, [0, 0, 0]);
        let figures = runtime.figures().await;
        assert_eq!((figures.running, figures.memory_bytes, figures.host_bytes), (0, 0, 0));
        assert!(figures.totals.ends.contains(&("killed", 2)) && !figures.totals.cpu.is_zero(), "{figures:?}");
    }
}
