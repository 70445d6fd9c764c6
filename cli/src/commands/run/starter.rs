//! Starts components in this process, each in a pod of its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Error, Result, bail};
use coracle_wasi_host::{
    Artifact, Container, ContainerLimits, ContainerSpec, Host, HostConfig, Mount, PodLimits, Stdin,
    net::{Namespace, NamespaceConfig, NetLimits},
};

use super::{
    network::{self, ADDRESS},
    ports::Ports,
    stdio::Console,
};
use crate::{
    args::{Given, MappedDir},
    commands::push::WASM_BYTES_MAX,
    environment,
};

/// The name under which it compiles: nobody else has a turn here.
const NAMESPACE: &str = "default";

/// A host, and what its components are given.
pub struct Starter<'a> {
    host: Host,
    given: &'a Given,
    args: &'a [String],
    env: BTreeMap<String, String>,
    stdout: Arc<Console>,
    stderr: Arc<Console>,
}

/// A component that runs. It ends with this.
pub struct Running {
    pub container: Container,
    pub namespace: Namespace,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.container.kill();
        self.namespace.shutdown();
    }
}

impl<'a> Starter<'a> {
    /// Needs a tokio runtime in context.
    pub fn new(given: &'a Given, args: &'a [String]) -> Result<Self> {
        let env = environment::variables(&given.env_file, &given.env)?;
        let (stdout, stderr) = (Console::stdout(), Console::stderr());
        Ok(Self { host: host()?, given, args, env, stdout, stderr })
    }

    /// Makes a file ready to run.
    pub async fn prepare(&self, file: &Path) -> Result<Arc<Artifact>> {
        ensure_component(file)?;
        let artifact = self.host.prepare(file, NAMESPACE).await;
        artifact.with_context(|| format!("{} does not run", file.display()))
    }

    /// Runs what was made of the file. A program reads this.
    pub fn start(
        &self,
        file: &Path,
        artifact: Arc<Artifact>,
        ports: &Ports,
        stdin: Stdin,
    ) -> Result<Running> {
        let name =
            file.file_stem().map_or_else(|| "component".into(), |name| name.to_string_lossy().into_owned());
        let config = NamespaceConfig {
            hostname: name.clone(),
            tenant: NAMESPACE.into(),
            addresses: vec![ADDRESS],
            limits: NetLimits::default(),
        };
        let namespace = Namespace::new(config, network::uplink(self.given.net));
        let spec = ContainerSpec {
            args: std::iter::once(&name).chain(self.args).cloned().collect(),
            env: self.env_of(&name),
            mounts: self.given.dirs.iter().map(mount).collect(),
            limits: ContainerLimits { memory_bytes: self.given.memory, ..ContainerLimits::default() },
            http_port: Some(ports.http),
            listen_ports: ports.listened(),
            http_timeout: None,
            working_dir: None,
            stdin,
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
            artifact,
            name,
        };
        let container = self.host.pod(PodLimits::default(), namespace.clone()).start(spec)?;
        Ok(Running { container, namespace })
    }

    /// The component's environment: as in a pod, which has its own name in it.
    fn env_of(&self, name: &str) -> Vec<(String, String)> {
        let mut env = self.env.clone();
        env.entry("HOSTNAME".into()).or_insert_with(|| name.to_owned());
        env.into_iter().collect()
    }

    /// Resolves once standard output takes nothing more, with the reason.
    pub async fn unwritten(&self) -> Error {
        self.stdout.failed().await
    }
}

/// What is no file, or too large for a component, is not read.
fn ensure_component(file: &Path) -> Result<()> {
    let found = fs::metadata(file).with_context(|| format!("reading {}", file.display()))?;
    if !found.is_file() || found.len() > WASM_BYTES_MAX {
        bail!("{} is no component: a file of at most {} MiB is needed", file.display(), WASM_BYTES_MAX >> 20);
    }
    Ok(())
}

fn mount(dir: &MappedDir) -> Mount {
    Mount {
        host: dir.host.clone(),
        pin: None,
        guest: dir.guest.clone(),
        read_only: dir.read_only,
        volume: None,
    }
}

fn host() -> Result<Host> {
    let cache_dir = cache_dir()?;
    let parent = cache_dir.parent().unwrap_or(&cache_dir);
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let compiler = Some(
        std::env::current_exe().context("finding this program, which compiles in a process of its own")?,
    );
    Ok(Host::new(HostConfig { cache_dir, compiler, ..HostConfig::default() })?)
}

/// Where native code is kept from one run to the next.
fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let caches =
        caches.context("set HOME, or XDG_CACHE_HOME: neither says where compiled code is to be kept")?;
    Ok(caches.join("coracle/run"))
}
