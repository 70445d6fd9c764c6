//! Names beyond the cluster, asked of the machine's name servers.
//!
//! A question waits on a socket of its own, never on a thread, and nobody's questions keep those of another namespace
//! from being asked: a zone that does not answer costs only who asks for it.

mod cache;
mod message;
mod system;

use cache::Cache;
use coracle_wasi_host::descriptors::{Descriptors, Purpose};
use coracle_wasi_host::net::NetError;
use coracle_wasi_host::refusals::{Refusals, What};
use coracle_wasi_host::shares::{Certain, Holder, Shares};
use message::{Question, Reply, Unfit};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use system::Files;
pub(crate) use system::System;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Lookups of all pods of a node that are under way at once, each with a socket: so many, and this part of the
/// descriptors for connections to the outside.
const LOOKUPS_MAX: usize = 512;
const OUTSIDE_PART: usize = 8;

/// Lookups of one pod that are under way at once; more wait.
const POD_LOOKUPS_MAX: usize = 8;

/// How long a lookup may take altogether, the wait for its turn included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one name server has for one answer; then the next is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// One of a pod is under way whatever others ask, for so many pods as this part of them.
const CERTAIN_PART: usize = 4;

/// How often all name servers are asked.
const ROUNDS: usize = 3;

/// The largest answer that is taken by UDP, as the question says (the DNS flag day's value); larger ones come by TCP.
const UDP_ANSWER_BYTES_MAX: u16 = 1232;

/// The lookups of one pod that are under way.
#[derive(Clone)]
pub(crate) struct PodLookups {
    places: Arc<Semaphore>,
    refusals: Refusals,
}

impl PodLookups {
    pub(crate) fn new(refusals: Refusals) -> Self {
        Self { places: Arc::new(Semaphore::new(POD_LOOKUPS_MAX)), refusals }
    }
}

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Of a pod's address: the pod reaches no others.
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// The machine's hosts and name servers, and what they have said.
pub(crate) struct Resolver {
    source: Source,
    lookups: Arc<Shares>,
    cache: Cache,
}

/// Where it is said who is to be asked.
enum Source {
    Files(Files),
    #[cfg(test)]
    Given(Arc<System>),
}

impl Resolver {
    /// By `/etc/hosts` and `/etc/resolv.conf`, as they were a moment ago.
    pub(crate) fn of_machine(descriptors: &Descriptors) -> Self {
        let lookups_max = (descriptors.size(Purpose::Outside) / OUTSIDE_PART).clamp(1, LOOKUPS_MAX);
        Self::new(Source::Files(Files::of_machine()), lookups_max)
    }

    #[cfg(test)]
    pub(crate) fn given(system: System) -> Self {
        Self::new(Source::Given(Arc::new(system)), LOOKUPS_MAX)
    }

    fn new(source: Source, lookups_max: usize) -> Self {
        let certain = Certain { each: 1, all: lookups_max / CERTAIN_PART };
        Self {
            source,
            lookups: Shares::with_certain(What::Lookups, lookups_max, certain),
            cache: Cache::default(),
        }
    }

    /// Lookups that are under way, and what is remembered of those before.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.lookups.held(), self.cache.held())
    }

    async fn system(&self, runtime: &Handle) -> Arc<System> {
        match &self.source {
            Source::Files(files) => files.load(runtime).await,
            #[cfg(test)]
            Source::Given(system) => system.clone(),
        }
    }

    /// Asks for a name in lower case, without its last dot. Whether its addresses may be reached is not judged here.
    /// Whoever drops the future has asked for nothing. Needs a tokio runtime in context.
    pub(crate) async fn resolve(
        &self,
        runtime: &Handle,
        pod: &PodLookups,
        holder: &Holder,
        name: &str,
        family: Family,
    ) -> Result<Vec<IpAddr>, NetError> {
        let system = self.system(runtime).await;
        if let Some(found) = system.host(name, family) {
            return Ok(found);
        }
        if let Some(known) = self.cache.get(name, family) {
            return known.ok_or(NetError::NameUnknown);
        }
        let lookup = async {
            let gone = |_| NetError::NameTemporarilyUnknown;
            let _of_pod = pod.places.acquire().await.map_err(gone)?;
            let _of_node = self.lookups.take(holder).map_err(|refused| {
                pod.refusals.note(holder, refused);
                NetError::NameTemporarilyUnknown
            })?;
            // Polled where I/O is done, and ended with this future.
            let (mut asking, name) = (JoinSet::new(), name.to_owned());
            asking.spawn_on(async move { ask_all(&system.servers, &name, family).await }, runtime);
            asking.join_next().await.and_then(Result::ok).unwrap_or(Err(NetError::NameTemporarilyUnknown))
        };
        let asked = tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await;
        let (addresses, lifetime) = asked.unwrap_or(Err(NetError::NameTemporarilyUnknown))?;
        let addresses = (!addresses.is_empty()).then_some(addresses);
        self.cache.put(holder, name, family, addresses.clone(), lifetime);
        addresses.ok_or(NetError::NameUnknown)
    }
}

/// The answer of the first server that has one: addresses, or none where the name has none, and how long that holds.
async fn ask_all(
    servers: &[SocketAddr],
    name: &str,
    family: Family,
) -> Result<(Vec<IpAddr>, Duration), NetError> {
    for server in (0..ROUNDS).flat_map(|_| servers) {
        // Another number and another port each time: nobody guesses both.
        let Some(question) = Question::new(name, family) else { return Err(NetError::NameUnknown) };
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, ask(*server, &question)).await;
        match answered {
            Ok(Ok(Reply::Addresses(addresses, lifetime))) => return Ok((addresses, lifetime)),
            Ok(Ok(Reply::Nothing(lifetime))) => return Ok((Vec::new(), lifetime)),
            // It cannot tell, does not answer, or is not there: the next may know.
            Ok(Ok(Reply::Truncated | Reply::Failed) | Err(_)) | Err(_) => {}
        }
    }
    Err(NetError::NameTemporarilyUnknown)
}

async fn ask(server: SocketAddr, question: &Question) -> io::Result<Reply> {
    match ask_udp(server, question).await? {
        Reply::Truncated => ask_tcp(server, question).await,
        reply => Ok(reply),
    }
}

async fn ask_udp(server: SocketAddr, question: &Question) -> io::Result<Reply> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port that the kernel chooses at random; connected, so that only the server's datagrams come in.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question.encode(UDP_ANSWER_BYTES_MAX)).await?;
    let mut buffer = vec![0; UDP_ANSWER_BYTES_MAX.into()];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is no answer to this question is passed over: the right one may still come.
        if let Ok(reply) = Reply::decode(question, &buffer[..length]) {
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &Question) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    let bytes = question.encode(UDP_ANSWER_BYTES_MAX);
    stream.write_u16(bytes.len() as u16).await?;
    stream.write_all(&bytes).await?;
    let length = stream.read_u16().await?;
    let mut buffer = vec![0; length.into()];
    stream.read_exact(&mut buffer).await?;
    Reply::decode(question, &buffer).map_err(|Unfit| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests;
