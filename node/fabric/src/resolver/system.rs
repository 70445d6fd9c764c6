//! What this machine says of names: `/etc/hosts` and the name servers of `/etc/resolv.conf`.
//!
//! Of the latter only the servers count: names that pods ask for are whole. What libc's own switch may know beside
//! (mDNS, directories) is not asked.

use super::Family;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Bytes that are read of either file. They are local and small: reading them holds nobody up.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How often the files are read, while somebody asks.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Name servers that are used, as in resolv.conf(5).
const SERVERS_MAX: usize = 3;

const DNS_PORT: u16 = 53;

/// What the files say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) servers: Vec<SocketAddr>,
    hosts: HashMap<String, Vec<IpAddr>>,
}

impl System {
    /// Reads the texts of the two files; what makes no sense in them is passed over. Without a server it is the one of
    /// this machine, as in resolv.conf(5).
    pub(crate) fn parse(hosts: &str, resolv_conf: &str) -> Self {
        let mut system = Self::default();
        for line in hosts.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
            for name in words {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                system.hosts.entry(name).or_default().push(address);
            }
        }
        for line in resolv_conf.lines() {
            let mut words = line.split_ascii_whitespace();
            // A scope, as of fe80::1%eth0, is not known here.
            let server = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next());
            let server = server.and_then(|word| word.parse::<IpAddr>().ok());
            system.servers.extend(server.map(|ip| SocketAddr::new(ip, DNS_PORT)));
        }
        system.servers.truncate(SERVERS_MAX);
        if system.servers.is_empty() {
            system.servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
        }
        system
    }

    /// The addresses of a name in `/etc/hosts`. A name that is there is asked of nobody else.
    pub(super) fn host(&self, name: &str, family: Family) -> Option<Vec<IpAddr>> {
        let found = self.hosts.get(name)?;
        let of_family: Vec<IpAddr> = found.iter().copied().filter(|ip| Family::of(*ip) == family).collect();
        (!of_family.is_empty()).then_some(of_family)
    }
}

/// The files of this machine.
#[derive(Default)]
pub(super) struct Files {
    read: Mutex<Option<(Instant, Arc<System>)>>,
}

impl Files {
    pub(super) fn load(&self) -> Arc<System> {
        let mut read = self.read.lock();
        match &*read {
            Some((at, system)) if at.elapsed() < READ_EVERY => system.clone(),
            _ => {
                let system = Arc::new(System::parse(&text(HOSTS), &text(RESOLV_CONF)));
                *read = Some((Instant::now(), system.clone()));
                system
            }
        }
    }
}

/// A file's text; of one that is not there, none.
fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What was read before an error may still be of use.
        let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_read_as_libc_reads_them() {
        let hosts =
            "127.0.0.1 localhost\n# no\n10.1.2.3\tDB.example. db # the database\n::1 db\nx y\n10.1.2.4 db\n";
        let conf = "search a b\nnameserver 192.0.2.1 # one\n;nameserver 192.0.2.9\nnameserver fe80::1%eth0\n \
                    nameserver ::1\noptions ndots:2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n";
        let system = System::parse(hosts, conf);
        let server = |text: &str| SocketAddr::new(text.parse().unwrap(), 53);
        assert_eq!(system.servers, ["192.0.2.1", "::1", "192.0.2.3"].map(server));
        let v4 = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        assert_eq!(system.host("db.example", Family::V4), Some(v4("10.1.2.3")));
        assert_eq!(system.host("db", Family::V4), Some([v4("10.1.2.3"), v4("10.1.2.4")].concat()));
        assert_eq!(system.host("db", Family::V6), Some(v4("::1")));
        assert_eq!(system.host("y", Family::V4), None);
        assert_eq!(System::parse("", "").servers, [server("127.0.0.1")]);
    }
}
