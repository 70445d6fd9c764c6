//! A network of our own: a bridge, and a namespace a member, in which packets are dropped on demand.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

/// The members' port, each in its own namespace.
const PORT: u16 = 6443;

/// Namespaces, links and rules; all gone with it.
pub struct Network {
    /// In the names of everything that belongs to it; at most four characters, as links have short names.
    id: String,
    /// The third number of the addresses.
    subnet: u32,
    members: usize,
}

/// Which packets a member loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
    Both,
}

impl Network {
    /// Says what is missing where this machine cannot have one.
    pub fn new(members: usize) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the soak needs root: it makes network namespaces, drops packets and mounts a tmpfs; run it with sudo"
        );
        for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("mount", "mount")] {
            let found = Command::new(program).arg("--version").output().is_ok();
            ensure!(found, "the soak needs {program}: apt-get install {package}");
        }
        let pid = std::process::id();
        let network = Self { id: format!("{:x}", pid % 0x1_0000), subnet: pid % 250 + 1, members };
        network.make().context("making network namespaces; a container may not allow it")?;
        Ok(network)
    }

    fn make(&self) -> Result<()> {
        let bridge = self.bridge();
        run(&format!("ip link add {bridge} type bridge"))?;
        run(&format!("ip addr add 10.213.{}.254/24 dev {bridge}", self.subnet))?;
        run(&format!("ip link set {bridge} up"))?;
        for member in 0..self.members {
            let (namespace, link) = (self.namespace(member), format!("sk{}v{member}", self.id));
            run(&format!("ip netns add {namespace}"))?;
            run(&format!("ip link add {link} type veth peer name eth0 netns {namespace}"))?;
            run(&format!("ip link set {link} master {bridge} up"))?;
            run(&format!("ip -n {namespace} addr add {}/24 dev eth0", self.ip(member)))?;
            run(&format!("ip -n {namespace} link set eth0 up"))?;
            run(&format!("ip -n {namespace} link set lo up"))?;
            self.nft(member, "add table inet soak")?;
            for (chain, hook) in [("in", "input"), ("out", "output")] {
                self.nft(
                    member,
                    &format!("add chain inet soak {chain} {{ type filter hook {hook} priority 0 ; }}"),
                )?;
            }
        }
        Ok(())
    }

    fn bridge(&self) -> String {
        format!("sk{}br", self.id)
    }

    fn namespace(&self, member: usize) -> String {
        format!("soak-{}-{member}", self.id)
    }

    fn ip(&self, member: usize) -> String {
        format!("10.213.{}.{}", self.subnet, member + 1)
    }

    pub fn address(&self, member: usize) -> String {
        format!("{}:{PORT}", self.ip(member))
    }

    /// A command that runs a program in a member's namespace, as the same process.
    pub fn command(&self, member: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(member)]).arg(program);
        command
    }

    /// The member loses packets from or to the others; to `from` alone where it is given.
    pub fn cut(&self, member: usize, from: Option<usize>, direction: Direction) -> Result<()> {
        let others = (0..self.members).filter(|other| *other != member);
        for other in others.filter(|other| from.is_none_or(|from| from == *other)) {
            let ip = self.ip(other);
            if direction != Direction::Out {
                self.nft(member, &format!("add rule inet soak in ip saddr {ip} drop"))?;
            }
            if direction != Direction::In {
                self.nft(member, &format!("add rule inet soak out ip daddr {ip} drop"))?;
            }
        }
        Ok(())
    }

    /// All packets of a member pass again.
    pub fn heal(&self, member: usize) -> Result<()> {
        self.nft(member, "flush table inet soak")
    }

    fn nft(&self, member: usize, rule: &str) -> Result<()> {
        run(&format!("ip netns exec {} nft {rule}", self.namespace(member)))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not made cannot be removed; nothing else is ours.
        for member in 0..self.members {
            let _ = run(&format!("ip netns del {}", self.namespace(member)));
        }
        let _ = run(&format!("ip link del {}", self.bridge()));
    }
}

/// Runs a command that must succeed. Its words are separated by single spaces.
pub fn run(command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output().with_context(|| format!("running {command}"))?;
    if !output.status.success() {
        bail!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
