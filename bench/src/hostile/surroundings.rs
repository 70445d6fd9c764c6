//! What some acts need beside the cluster: a machine that is not this one, and a name server. Both need root.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Of the addresses for measurements of networks (RFC 2544), which no real machine has.
const HERE: &str = "198.18.77.1/30";
const THERE: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 2);
const SINK_PORT: u16 = 9;
/// Of a node that has a small disk.
pub const SMALL_DISK_MIB: u32 = 256;
const DNS: &str = "127.83.0.1:53";
/// Names that end so are never answered; all others are.
pub const SILENT_ZONE: &str = "silent.example";
/// As in RFC 1035: a header, whose third and fourth bytes are flags; the type of addresses.
const DNS_HEADER_BYTES: usize = 12;
const DNS_TYPE_A: [u8; 2] = [0, 1];

/// A machine behind a link that accepts connections and reads nothing. Gone with its handle.
pub struct Outside {
    namespace: String,
    link: String,
    pub sink: SocketAddr,
}

impl Outside {
    pub fn make() -> Result<Self> {
        need_root()?;
        let id = std::process::id();
        let (namespace, link) = (format!("hostile-{id}"), format!("hv{id}"));
        // Made first: what was begun is undone with it.
        let outside = Self { namespace, link, sink: SocketAddr::new(THERE.into(), SINK_PORT) };
        let Self { namespace, link, .. } = &outside;
        run("ip", &format!("netns add {namespace}"))?;
        run("ip", &format!("link add {link} type veth peer name eth0 netns {namespace}"))?;
        run("ip", &format!("addr add {HERE} dev {link}"))?;
        run("ip", &format!("link set {link} up"))?;
        run("ip", &format!("-n {namespace} addr add {THERE}/30 dev eth0"))?;
        run("ip", &format!("-n {namespace} link set eth0 up"))?;
        let listener = outside.within(|this| Ok(TcpListener::bind(this.sink)?))?;
        std::thread::spawn(move || {
            let held: Vec<TcpStream> = listener.incoming().map_while(Result::ok).collect();
            drop(held);
        });
        Ok(outside)
    }

    /// This machine's address on that link, where a node's gateway is to listen.
    pub fn here() -> &'static str {
        HERE.split_once('/').map_or(HERE, |(address, _)| address)
    }

    /// So many connections from there, as a runtime wants them.
    pub fn connect(&self, to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
        let one = move || {
            let stream = TcpStream::connect(to)?;
            stream.set_nonblocking(true)?;
            anyhow::Ok(stream)
        };
        self.within(|_| (0..count).map(|_| one()).collect())
    }

    /// What is sent from there is lost from now on. The link stays up: a machine whose own link is down asks nobody whether
    /// they are there.
    pub fn vanish(&self) -> Result<()> {
        run("ip", &format!("-n {} route add blackhole {}", self.namespace, Self::here()))
    }

    /// What makes sockets there. A socket stays in the network in which it was made, so that only a thread has to go.
    fn within<T: Send>(&self, make: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        let network = File::open(format!("/run/netns/{}", self.namespace))?;
        std::thread::scope(|scope| {
            let making = scope.spawn(|| {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                make(self)
            });
            making.join().map_err(|_| anyhow::anyhow!("the thread that makes sockets panicked"))?
        })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Connections keep the network there, so that the link goes by itself. There is nobody to tell what fails.
        let _ = run("ip", &format!("link del {}", self.link));
        let _ = run("ip", &format!("netns del {}", self.namespace));
    }
}

/// A name server that is silent about [`SILENT_ZONE`] and knows every other name.
pub struct NameServer {
    resolv_conf: PathBuf,
}

impl NameServer {
    pub fn start(folder: &Path) -> Result<Self> {
        need_root()?;
        let socket = UdpSocket::bind(DNS).with_context(|| format!("a name server at {DNS}"))?;
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                if let Some(answer) = answer(&query[..length]) {
                    // Who asked and went away needs none.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        let resolv_conf = folder.join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {}\n", DNS.trim_end_matches(":53")))?;
        Ok(Self { resolv_conf })
    }

    /// The command, for a process to which this is the machine's only name server.
    pub fn within(&self, command: Command) -> Command {
        with_mounts("mount --bind \"$0\" /etc/resolv.conf", &self.resolv_conf, command)
    }
}

/// The command, for a process to which `folder` is a disk of [`SMALL_DISK_MIB`]. It goes with the process.
pub fn on_a_small_disk(folder: &Path, command: Command) -> Result<Command> {
    need_root()?;
    std::fs::create_dir_all(folder)?;
    let mount = format!("mount -t tmpfs -o size={SMALL_DISK_MIB}m small \"$0\"");
    Ok(with_mounts(&mount, folder, command))
}

/// The command in a mount namespace of its own, once `mount` has been done there, to which `$0` is this path.
fn with_mounts(mount: &str, path: &Path, command: Command) -> Command {
    let mut inner = Command::new("unshare");
    inner.args(["--mount", "sh", "-c", &format!("{mount} && exec \"$@\"")]).arg(path);
    inner.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        inner.env(name, value.unwrap_or_default());
    }
    inner
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let question = query.get(DNS_HEADER_BYTES..)?;
    let end = question.iter().position(|byte| *byte == 0)? + 5;
    let (name, kind) = (question.get(..end - 4)?, question.get(end - 4..end - 2)?);
    let silent = SILENT_ZONE.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    if name.strip_suffix(&[0])?.ends_with(&silent.collect::<Vec<u8>>()) {
        return None;
    }
    let records = u8::from(kind == DNS_TYPE_A);
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, records, 0, 0, 0, 0]);
    answer.extend(&question[..end]);
    if records == 1 {
        // The name of the question, an address of the Internet, for a minute.
        answer.extend([0xc0, DNS_HEADER_BYTES as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(THERE.octets());
    }
    Some(answer)
}

fn need_root() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "it needs root: a network or a name server of its own");
    Ok(())
}

fn run(program: &str, arguments: &str) -> Result<()> {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.with_context(|| format!("running {program}: apt-get install iproute2"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn the_name_server_knows_all_names_but_those_of_the_silent_zone() {
        assert_eq!(answer(&query("n1.silent.example", 1)), None);
        assert_eq!(answer(b"\x12\x34"), None);
        let asked = query("n1.known.example", 1);
        let address = answer(&asked).expect("an answer");
        assert_eq!(address[..2], asked[..2]);
        assert_eq!(address[12..asked.len()], asked[12..]);
        assert!(address.ends_with(&THERE.octets()));
        assert_eq!(answer(&query("n1.known.example", 28)).expect("an answer").len(), asked.len());
    }
}
