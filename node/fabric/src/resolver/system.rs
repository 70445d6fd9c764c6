//! What this machine says of names: `/etc/hosts` and the name servers of `/etc/resolv.conf`.
//!
//! Of the latter only the servers count: names that pods ask for are whole. What libc's own switch may know beside
//! (mDNS, directories) is not asked.

use super::Family;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Bytes that are read of either file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How often the files are read, while somebody asks.
const READ_EVERY: Duration = Duration::from_secs(5);

/// How long one who has them read waits for it; the others do not.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

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

/// The files of this machine, as they were read last. Nobody who asks for a name waits for the disk that they are on.
#[derive(Clone)]
pub(super) struct Files {
    inner: Arc<Inner>,
}

struct Inner {
    read: Box<dyn Fn() -> System + Send + Sync>,
    last: ArcSwap<Version>,
    /// They are being read: by one at a time, however long that takes.
    reading: AtomicBool,
}

struct Version {
    system: Arc<System>,
    /// When they had been read.
    at: Instant,
}

impl Version {
    fn read(read: impl Fn() -> System) -> Arc<Self> {
        let system = Arc::new(read());
        Arc::new(Self { system, at: Instant::now() })
    }
}

impl Files {
    /// Reads them for the first time, and so may block.
    pub(super) fn of_machine() -> Self {
        Self::new(|| System::parse(&text(HOSTS), &text(RESOLV_CONF)))
    }

    fn new(read: impl Fn() -> System + Send + Sync + 'static) -> Self {
        let last = ArcSwap::new(Version::read(&read));
        Self { inner: Arc::new(Inner { read: Box::new(read), last, reading: AtomicBool::new(false) }) }
    }

    /// What they said last. Where that was a while ago they are read again, on the runtime's blocking threads, and the one
    /// who begins it waits for a moment. Needs a tokio runtime in context.
    pub(super) async fn load(&self, runtime: &Handle) -> Arc<System> {
        let old = self.inner.last.load().at.elapsed() >= READ_EVERY;
        if old && !self.inner.reading.swap(true, Ordering::AcqRel) {
            let reading = Reading(self.inner.clone());
            let read = runtime.spawn_blocking(move || reading.0.last.store(Version::read(&reading.0.read)));
            // What was said before is better than nothing.
            let _ = tokio::time::timeout(READ_TIMEOUT, read).await;
        }
        self.inner.last.load().system.clone()
    }
}

/// The one who reads, until it has or cannot.
struct Reading(Arc<Inner>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.reading.store(false, Ordering::Release);
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
    use futures::FutureExt;
    use std::sync::atomic::AtomicUsize;

    /// What the files say when they are read for the so many-th time.
    fn numbered(number: usize) -> System {
        System::parse(&format!("192.0.2.{number} db"), "")
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_holds_up_nobody_who_asks() {
        let (answer, disk) = std::sync::mpsc::channel();
        let disk = parking_lot::Mutex::new(disk);
        let reads = Arc::new(AtomicUsize::new(0));
        let count = reads.clone();
        let files = Files::new(move || match count.fetch_add(1, Ordering::SeqCst) {
            0 => numbered(0),
            // The disk answers when the test has it answer.
            number => disk.lock().recv().map(|()| numbered(number)).unwrap_or_default(),
        });
        let runtime = Handle::current();
        tokio::time::advance(READ_EVERY / 2).await;
        assert_eq!(*files.load(&runtime).await, numbered(0));
        assert_eq!(reads.load(Ordering::SeqCst), 1, "they were read a moment ago");
        tokio::time::advance(READ_EVERY).await;
        let first = tokio::spawn({
            let (files, runtime) = (files.clone(), runtime.clone());
            async move { files.load(&runtime).await }
        });
        while reads.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            let asked = files.load(&runtime).now_or_never();
            assert_eq!(*asked.expect("others wait for nothing"), numbered(0));
        }
        assert!(!first.is_finished());
        tokio::time::advance(2 * READ_TIMEOUT).await;
        assert_eq!(*first.await.unwrap(), numbered(0));
        tokio::time::advance(READ_EVERY).await;
        assert_eq!(*files.load(&runtime).await, numbered(0));
        assert_eq!(reads.load(Ordering::SeqCst), 2, "one is enough");
        answer.send(()).unwrap();
        while files.inner.reading.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        assert_eq!(*files.load(&runtime).await, numbered(1));
        tokio::time::advance(READ_EVERY).await;
        answer.send(()).unwrap();
        assert_eq!(*files.load(&runtime).await, numbered(2), "who asks after a pause has what they say now");
    }

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
