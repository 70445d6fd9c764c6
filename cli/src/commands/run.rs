//! `coracle run`: one component in this process, without a cluster, in the sandbox that a node has for it.

mod network;
mod stdio;

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use coracle_wasi_host::{
    Container, ContainerLimits, ContainerSpec, Entry, Exit, Host, HostConfig, Mount, PodLimits, Stdin,
    net::{Namespace, NamespaceConfig, NetLimits},
};

use self::{network::Publications, stdio::Console};
use crate::{
    args::{MappedDir, Published, RunArgs},
    commands::{push::WASM_BYTES_MAX, up::stop_asked},
    environment,
    output::{self, NobodyReads},
};

/// The component's address, of those that pods have.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 128, 0, 1));
/// The port of what serves HTTP where none is said.
const HTTP_PORT: u16 = 80;
/// Where that is reached where nothing is said.
const HTTP_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// What a shell says of a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;
/// The name under which it compiles: nobody else has a turn here.
const NAMESPACE: &str = "default";

/// The component has ended with this code, which is told as the command's own.
#[derive(Debug)]
pub struct Ended(pub u8);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the component ended with code {}", self.0)
    }
}

impl std::error::Error for Ended {}

pub async fn run(args: &RunArgs) -> Result<()> {
    let env = environment::variables(&args.env_file, &args.env)?;
    ensure_component(&args.file)?;
    let host = host()?;
    let artifact = host
        .prepare(&args.file, NAMESPACE)
        .await
        .with_context(|| format!("{} does not run", args.file.display()))?;
    let serves_http = artifact.entry() != Entry::Command;
    let name =
        args.file.file_stem().map_or_else(|| "component".into(), |name| name.to_string_lossy().into_owned());
    let config = NamespaceConfig {
        hostname: name.clone(),
        tenant: NAMESPACE.into(),
        addresses: vec![ADDRESS],
        limits: NetLimits::default(),
    };
    let namespace = Namespace::new(config, network::uplink(args.net));
    let (http_port, ports) = ports(&args.ports, serves_http)?;
    let publications = Publications::listen(&ports).await?;
    let (stdout, stderr) = (Console::stdout(), Console::stderr());
    let spec = ContainerSpec {
        args: std::iter::once(name.clone()).chain(args.args.iter().cloned()).collect(),
        env: env.into_iter().collect(),
        mounts: mounts(args),
        limits: ContainerLimits { memory_bytes: args.memory, ..ContainerLimits::default() },
        http_port: Some(http_port),
        listen_ports: ports.iter().map(|(_, port)| *port).collect(),
        http_timeout: None,
        working_dir: None,
        stdin: if serves_http { Stdin::AtEnd } else { stdio::stdin()? },
        stdout: stdout.clone(),
        stderr: stderr.clone(),
        artifact,
        name,
    };
    let container = host.pod(PodLimits::default(), namespace.clone()).start(spec)?;
    publications.serve(&namespace, serves_http);
    let exit = tokio::select! {
        exit = until_its_end(&container) => exit,
        () = stdout.broken() => Err(NobodyReads.into()),
    };
    drop(container);
    namespace.shutdown();
    told(exit?)
}

/// What is no file, or too large for a component, is not read.
fn ensure_component(file: &Path) -> Result<()> {
    let found = fs::metadata(file).with_context(|| format!("reading {}", file.display()))?;
    if !found.is_file() || found.len() > WASM_BYTES_MAX {
        bail!("{} is no component: a file of at most {} MiB is needed", file.display(), WASM_BYTES_MAX >> 20);
    }
    Ok(())
}

fn host() -> Result<Host> {
    let cache_dir = cache_dir();
    let parent = cache_dir.parent().unwrap_or(&cache_dir);
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let compiler = Some(
        std::env::current_exe().context("finding this program, which compiles in a process of its own")?,
    );
    Ok(Host::new(HostConfig { cache_dir, compiler, ..HostConfig::default() })?)
}

/// Where native code is kept from one run to the next.
fn cache_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    caches.unwrap_or_else(std::env::temp_dir).join("coracle/run")
}

/// The port on which HTTP is served, and what leads to which port.
fn ports(asked: &[Published], serves_http: bool) -> Result<(u16, Vec<(SocketAddr, u16)>)> {
    if !serves_http {
        let same = |one: &Published| match (one.port, one.listen.port()) {
            (Some(port), _) => Ok((one.listen, port)),
            (None, 0) => bail!("--port 0 leads to no port of the program: write 0:ITS-PORT"),
            (None, port) => Ok((one.listen, port)),
        };
        return Ok((HTTP_PORT, asked.iter().map(same).collect::<Result<_>>()?));
    }
    let own = asked.iter().find_map(|one| one.port).unwrap_or(HTTP_PORT);
    if let Some(other) = asked.iter().filter_map(|one| one.port).find(|port| *port != own) {
        bail!("what serves HTTP has one port, and --port names {own} and {other}");
    }
    let all: Vec<_> = asked.iter().map(|one| (one.listen, own)).collect();
    Ok((own, if all.is_empty() { vec![(HTTP_LISTEN, own)] } else { all }))
}

fn mounts(args: &RunArgs) -> Vec<Mount> {
    let mount = |dir: &MappedDir| Mount {
        host: dir.host.clone(),
        pin: None,
        guest: dir.guest.clone(),
        read_only: dir.read_only,
        volume: None,
    };
    args.dirs.iter().map(mount).collect()
}

/// Waits for the end, and brings it about where it is asked for: first in order, then at once.
async fn until_its_end(container: &Container) -> Result<Exit> {
    tokio::select! {
        exit = container.wait() => return Ok(exit),
        () = stop_asked() => container.stop(),
    }
    let exit = tokio::select! {
        exit = container.wait() => exit,
        () = stop_asked() => {
            container.kill();
            container.wait().await
        }
    };
    if exit == Exit::Killed { Err(Ended(INTERRUPTED).into()) } else { Ok(exit) }
}

/// The component's end as that of this command.
fn told(exit: Exit) -> Result<()> {
    if exit.is_success() {
        return Ok(());
    }
    if !matches!(exit, Exit::Completed { .. }) {
        output::note(format!("error: the component {exit}"));
    }
    // What a process can say of itself is a byte.
    Err(Ended((exit.code() & 0xff) as u8).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(listen: &str, port: Option<u16>) -> Published {
        Published { listen: listen.parse().unwrap(), port }
    }

    #[test]
    fn http_has_one_port_and_a_program_those_that_are_named() {
        assert_eq!(ports(&[], true).unwrap(), (80, vec![(HTTP_LISTEN, 80)]));
        assert_eq!(ports(&[], false).unwrap().1, []);
        let two = [published("127.0.0.1:1", None), published("127.0.0.1:2", Some(8080))];
        let all = |first, second| vec![(two[0].listen, first), (two[1].listen, second)];
        assert_eq!(ports(&two, true).unwrap(), (8080, all(8080, 8080)));
        assert_eq!(ports(&two, false).unwrap().1, all(1, 8080));
        let other = [two[1], published("127.0.0.1:3", Some(81))];
        assert!(ports(&other, true).unwrap_err().to_string().contains("8080 and 81"));
        assert!(ports(&[published("127.0.0.1:0", None)], false).is_err());
    }
}
