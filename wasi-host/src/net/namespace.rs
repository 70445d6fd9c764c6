//! A pod's network namespace: one set of addresses and ports, shared by all containers of the pod.

use super::callers::Caller;
use super::listener::{AcceptQueue, Bound, Listener};
use super::mailbox::Mailbox;
use super::ports::{EPHEMERAL_PORTS, PortTable};
use super::seat::{Budget, Seats};
use super::udp::UdpSocket;
use super::{Buffers, Conn, HttpService, NetError, NetLimits, Uplink};
use crate::ledger::{Account, Charge, Refused};
use crate::serving::source_of;
use crate::shares::Holder;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// Connections that wait at a listener whose maker names no number; what Rust's std asks for.
const BACKLOG_DEFAULT: usize = 128;

/// The longest name of the domain name system, in bytes.
const NAME_BYTES_MAX: usize = 253;

/// What a namespace is made of.
#[derive(Debug, Clone)]
pub struct NamespaceConfig {
    /// The pod's name, which resolves to its addresses.
    pub hostname: String,
    /// The Kubernetes namespace, on whose account the pod's part of what all share is taken.
    pub tenant: Arc<str>,
    /// The pod's addresses, the preferred one first. Loopback need not be named.
    pub addresses: Vec<IpAddr>,
    /// What the pod may take.
    pub limits: NetLimits,
}

/// A pod's network namespace. Clones are the same namespace.
///
/// A handle has an owner: what is listened on or offered through it can be closed apart from what others have there.
#[derive(Clone)]
pub struct Namespace {
    shared: Arc<Shared>,
    owner: Owner,
}

/// Whose handle it is: 0 is the pod's own, others are from [`Namespace::scoped`].
#[derive(Debug, Clone)]
struct Owner {
    id: u64,
    name: Arc<str>,
}

/// What all sockets of a namespace hang on.
pub(crate) struct Shared {
    hostname: String,
    holder: Holder,
    addresses: Vec<IpAddr>,
    pub(crate) limits: NetLimits,
    pub(crate) uplink: Arc<dyn Uplink>,
    pub(crate) seats: Arc<Seats>,
    pub(crate) budget: Arc<Budget>,
    next_source_port: AtomicU16,
    next_owner: AtomicU64,
    tables: Mutex<Tables>,
}

struct Tables {
    tcp: PortTable<TcpSlot>,
    udp: PortTable<UdpSlot>,
    http: BTreeMap<u16, Offer>,
    down: bool,
}

/// An HTTP component that may be called without a socket, and who offers it.
struct Offer {
    owner: Owner,
    service: Arc<dyn HttpService>,
}

/// What stands at a TCP port.
#[derive(Debug)]
struct TcpSlot {
    owner: Owner,
    /// Without one it is taken, and connections are refused.
    queue: Option<Arc<AcceptQueue>>,
}

/// What stands at a UDP port.
#[derive(Debug)]
struct UdpSlot {
    owner: Owner,
    mailbox: Arc<Mailbox>,
}

/// Where a packet to some address goes, and the address it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To a socket of this namespace.
    Own { source: IpAddr },
    /// To the uplink.
    Beyond { source: IpAddr },
}

impl Namespace {
    /// A namespace with no socket in it.
    pub fn new(config: NamespaceConfig, uplink: Arc<dyn Uplink>) -> Namespace {
        let first_port = || rand::random_range(EPHEMERAL_PORTS);
        let tables = Tables {
            tcp: PortTable::new(first_port()),
            udp: PortTable::new(first_port()),
            http: BTreeMap::new(),
            down: false,
        };
        let budget = Arc::new(Budget::new(config.limits.buffered_bytes_max));
        let shared = Shared {
            hostname: config.hostname,
            holder: Holder { namespace: config.tenant, pod: config.addresses.first().copied() },
            addresses: config.addresses,
            uplink,
            seats: Seats::new(config.limits.sockets_max, Arc::clone(&budget)),
            budget,
            limits: config.limits,
            next_source_port: AtomicU16::new(first_port()),
            next_owner: AtomicU64::new(1),
            tables: Mutex::new(tables),
        };
        Namespace { shared: Arc::new(shared), owner: Owner { id: 0, name: "".into() } }
    }

    /// The same namespace, by a handle with an owner of its own, e.g. the container of this name.
    #[must_use]
    pub fn scoped(&self, name: &str) -> Namespace {
        let id = self.shared.next_owner.fetch_add(1, Ordering::Relaxed);
        Namespace { shared: Arc::clone(&self.shared), owner: Owner { id, name: name.into() } }
    }

    /// The pod's name.
    pub fn hostname(&self) -> &str {
        &self.shared.hostname
    }

    /// On whose account the pod takes of what all share.
    pub fn holder(&self) -> &Holder {
        &self.shared.holder
    }

    /// Has the pod's account hold what its network takes of the host.
    pub(crate) fn charge_to(&self, account: &Arc<Account>) {
        self.shared.budget.charge_to(account);
    }

    /// So many bytes of the host for the pod, until the charge is dropped.
    pub(crate) fn hold(&self, bytes: u64) -> Result<Option<Charge>, Refused> {
        self.shared.budget.hold(bytes)
    }

    /// The pod's addresses, without loopback.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.shared.addresses
    }

    /// How many sockets the pod has now.
    pub fn sockets(&self) -> usize {
        self.shared.seats.count()
    }

    /// Takes a TCP address. `0.0.0.0` means all of the pod's and loopback; port 0 means a free one.
    pub fn bind_tcp(&self, address: SocketAddr) -> Result<Bound, NetError> {
        self.shared.check_bindable(address.ip())?;
        let seat = self.shared.seats.take()?;
        let mut tables = self.shared.tables_up()?;
        let slot = TcpSlot { owner: self.owner.clone(), queue: None };
        let address = tables.tcp.bind(address, slot)?;
        Ok(Bound { shared: self.shared.clone(), address, _seat: seat })
    }

    /// The name of who keeps others from a TCP address.
    pub(crate) fn tcp_owner(&self, address: SocketAddr) -> Option<Arc<str>> {
        let tables = self.shared.tables.lock();
        tables.tcp.conflicting(address).map(|slot| Arc::clone(&slot.owner.name))
    }

    /// Takes a TCP address and listens on it.
    pub fn listen(&self, address: SocketAddr) -> Result<Listener, NetError> {
        self.bind_tcp(address)?.listen(BACKLOG_DEFAULT)
    }

    /// Connects as a container of the pod would: to loopback or the pod's own addresses in here, else by the uplink.
    /// Needs a tokio runtime in context for its time limit.
    pub async fn connect(&self, to: SocketAddr) -> Result<Conn, NetError> {
        self.connect_from(None, to).await
    }

    /// [`Namespace::connect`] from an address that the caller has bound, whose unset parts are filled in.
    pub async fn connect_from(&self, from: Option<SocketAddr>, to: SocketAddr) -> Result<Conn, NetError> {
        let shared = &self.shared;
        drop(shared.tables_up()?);
        let to = loopback_for_unspecified(to);
        if to.port() == 0 {
            return Err(NetError::ConnectionRefused);
        }
        let route = shared.route(to.ip())?;
        let source = shared.source(from, route)?;
        let seat = shared.seats.take()?;
        let at_once = match route {
            Route::Own { .. } => shared.deliver(source, to, &Caller::Own),
            Route::Beyond { .. } => Err(NetError::WouldBlock),
        };
        let mut conn = match at_once {
            Err(NetError::WouldBlock) => shared.connect_slowly(route, source, to).await?,
            done => done?,
        };
        conn.take_seat(seat);
        // The pod may have been taken down while the connection was made.
        drop(shared.tables_up()?);
        Ok(conn)
    }

    /// A connection from outside arrives at one of the pod's addresses; the caller gets the outer end.
    /// `ConnectionRefused` where nobody listens, `WouldBlock` while the listener's backlog is full.
    pub fn deliver(&self, from: SocketAddr, to: SocketAddr) -> Result<Conn, NetError> {
        self.shared.check_own(to.ip())?;
        self.shared.deliver(from, to, &self.shared.caller(from.ip()))
    }

    /// [`Namespace::deliver`] that waits for a place in the backlog, at most for the connect timeout.
    /// Needs a tokio runtime in context.
    pub async fn deliver_when_room(&self, from: SocketAddr, to: SocketAddr) -> Result<Conn, NetError> {
        self.deliver_in_time(from, to, self.shared.caller(from.ip())).await
    }

    /// The same of what a node opens for a client in the outside, who is nobody's pod, whatever address it comes from: what
    /// it takes of the pod is the client's part. For the node's code alone. Needs a tokio runtime in context.
    pub async fn deliver_for(
        &self,
        client: IpAddr,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Conn, NetError> {
        let caller = Caller::Other { source: source_of(client), namespace: None };
        self.deliver_in_time(from, to, caller).await
    }

    /// The same for a check of the node's own, which does not fail for what clients hold of the pod's sockets and of what
    /// an HTTP component serves at once. For the node's code alone: no guest has a way here. Needs a tokio runtime in context.
    pub async fn deliver_probe(&self, from: SocketAddr, to: SocketAddr) -> Result<Conn, NetError> {
        self.deliver_in_time(from, to, Caller::Node).await
    }

    async fn deliver_in_time(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        caller: Caller,
    ) -> Result<Conn, NetError> {
        self.shared.check_own(to.ip())?;
        let attempt = self.shared.deliver_when_room(from, to, &caller);
        tokio::time::timeout(self.shared.limits.connect_timeout, attempt)
            .await
            .map_err(|_| NetError::TimedOut)?
    }

    /// Where what is carried for the pod is counted.
    pub fn buffers(&self) -> Buffers {
        Buffers::new(self.shared.budget.clone(), self.shared.limits.pipe_bytes)
    }

    /// What the pod has beyond itself.
    pub fn uplink(&self) -> &Arc<dyn Uplink> {
        &self.shared.uplink
    }

    /// A datagram from outside arrives. `ConnectionRefused` where no socket takes it; a full socket drops it.
    pub fn deliver_datagram(&self, from: SocketAddr, to: SocketAddr, payload: Bytes) -> Result<(), NetError> {
        self.shared.check_own(to.ip())?;
        self.shared.deliver_datagram(from, to, &self.shared.caller(from.ip()), payload)
    }

    /// The same where it is known already of whose pod it is, as [`Uplink::namespace_of`] would say.
    pub fn deliver_datagram_of(
        &self,
        namespace: Option<Arc<str>>,
        from: SocketAddr,
        to: SocketAddr,
        payload: Bytes,
    ) -> Result<(), NetError> {
        self.shared.check_own(to.ip())?;
        let caller = self.shared.caller_of(from.ip(), || namespace);
        self.shared.deliver_datagram(from, to, &caller, payload)
    }

    /// Takes a UDP address. `0.0.0.0` means all; port 0 means a free one.
    pub fn bind_udp(&self, address: SocketAddr) -> Result<UdpSocket, NetError> {
        self.shared.check_bindable(address.ip())?;
        let seat = self.shared.seats.take()?;
        let budget = Arc::clone(&self.shared.budget);
        let mailbox = Arc::new(Mailbox::new(self.shared.limits.datagram_bytes, budget));
        let slot = UdpSlot { owner: self.owner.clone(), mailbox: Arc::clone(&mailbox) };
        let address = self.shared.tables_up()?.udp.bind(address, slot)?;
        Ok(UdpSocket::new(self.shared.clone(), mailbox, address, seat))
    }

    /// Resolves a name: literal addresses, localhost and the pod's own name here, all else by the uplink.
    /// Never gives an empty list.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NetError> {
        let name = name.trim_end_matches('.');
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(NetError::InvalidInput);
        }
        if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(vec![address]);
        }
        let name = name.to_ascii_lowercase();
        if name == "localhost" || name.ends_with(".localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        let shared = &self.shared;
        if name == shared.hostname.to_ascii_lowercase() && !shared.addresses.is_empty() {
            return Ok(shared.addresses.clone());
        }
        let from = shared.addresses.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into());
        let resolved =
            tokio::time::timeout(shared.limits.connect_timeout, shared.uplink.resolve(from, &name));
        resolved.await.unwrap_or(Err(NetError::NameTemporarilyUnknown))
    }

    /// Offers an HTTP component that may be called without a socket. A later one on the same port replaces it.
    pub fn serve_http(&self, port: u16, service: Arc<dyn HttpService>) {
        self.shared.tables.lock().http.insert(port, Offer { owner: self.owner.clone(), service });
    }

    /// Takes this owner's offers of [`Namespace::serve_http`] back: callers look for another endpoint from now on.
    pub fn withdraw_http(&self) {
        self.shared.tables.lock().http.retain(|_, offer| offer.owner.id != self.owner.id);
    }

    /// The HTTP component on a port, if there is one.
    pub fn http_service(&self, port: u16) -> Option<Arc<dyn HttpService>> {
        self.shared.tables.lock().http.get(&port).map(|offer| Arc::clone(&offer.service))
    }

    /// Closes this owner's TCP listeners, so that nothing new arrives while what has begun goes on: a graceful stop.
    /// An accept in progress ends with an error. Other owners' listeners stay.
    pub fn close_listeners(&self) {
        let queues: Vec<Arc<AcceptQueue>> = {
            let tables = self.shared.tables.lock();
            let own = tables.tcp.slots().filter(|slot| slot.owner.id == self.owner.id);
            own.filter_map(|slot| slot.queue.clone()).collect()
        };
        queues.iter().for_each(|queue| queue.close());
    }

    /// Whether this owner has ports: others may connect, or send something.
    pub fn has_ports(&self) -> bool {
        let tables = self.shared.tables.lock();
        let mut owners =
            tables.tcp.slots().map(|slot| &slot.owner).chain(tables.udp.slots().map(|slot| &slot.owner));
        owners.any(|owner| owner.id == self.owner.id)
    }

    /// Takes the network down for good: listeners close, connections are reset, nothing new begins.
    pub fn shutdown(&self) {
        let mut tables = self.shared.tables.lock();
        tables.down = true;
        tables.http.clear();
        let listening: Vec<Arc<AcceptQueue>> =
            tables.tcp.slots().filter_map(|slot| slot.queue.clone()).collect();
        let mailboxes: Vec<Arc<Mailbox>> = tables.udp.slots().map(|slot| Arc::clone(&slot.mailbox)).collect();
        drop(tables);
        listening.iter().for_each(|queue| queue.close());
        mailboxes.iter().for_each(|mailbox| mailbox.close());
        self.shared.seats.reset_all();
    }

    #[cfg(test)]
    pub(crate) fn has_callers(&self) -> bool {
        self.shared.seats.has_callers()
    }

    #[cfg(test)]
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.shared.budget.used()
    }
}

impl Shared {
    /// The tables, unless the network has been taken down.
    fn tables_up(&self) -> Result<parking_lot::MutexGuard<'_, Tables>, NetError> {
        let tables = self.tables.lock();
        if tables.down { Err(NetError::NetworkDown) } else { Ok(tables) }
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip)
    }

    fn check_own(&self, ip: IpAddr) -> Result<(), NetError> {
        if self.is_own(ip) { Ok(()) } else { Err(NetError::HostUnreachable) }
    }

    fn check_bindable(&self, ip: IpAddr) -> Result<(), NetError> {
        if ip.is_unspecified() || ip.is_loopback() || self.is_own(ip) {
            Ok(())
        } else {
            Err(NetError::AddressNotAvailable)
        }
    }

    /// Where packets to an address go.
    pub(crate) fn route(&self, to: IpAddr) -> Result<Route, NetError> {
        if to.is_loopback() {
            let source = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            return Ok(Route::Own { source });
        }
        if self.is_own(to) {
            return Ok(Route::Own { source: to });
        }
        if to.is_multicast() || to == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(NetError::HostUnreachable);
        }
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == to.is_ipv4();
        let source = *self.addresses.iter().find(of_family).ok_or(NetError::HostUnreachable)?;
        Ok(Route::Beyond { source })
    }

    /// The full source address of a packet on a route. Loopback ends at the namespace's edge: what is bound to it cannot
    /// send beyond (EINVAL on Linux), and nobody else would know whom the address means.
    pub(crate) fn source(&self, bound: Option<SocketAddr>, route: Route) -> Result<SocketAddr, NetError> {
        let (Route::Own { source } | Route::Beyond { source }) = route;
        let ip = bound.map(|address| address.ip()).filter(|ip| !ip.is_unspecified()).unwrap_or(source);
        if matches!(route, Route::Beyond { .. }) && !self.is_own(ip) {
            return Err(NetError::InvalidInput);
        }
        let port = bound.map(|address| address.port()).filter(|port| *port != 0);
        Ok(SocketAddr::new(ip, port.unwrap_or_else(|| self.next_source_port())))
    }

    /// The port of an outgoing connection. It is not entered into the table: connections are found by their
    /// pipes, so two with the same port cannot be mistaken for each other.
    fn next_source_port(&self) -> u16 {
        let (first, last) = (*EPHEMERAL_PORTS.start(), *EPHEMERAL_PORTS.end());
        let next = |port: u16| Some(if port >= last { first } else { port + 1 });
        self.next_source_port.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(first)
    }

    pub(crate) fn start_listening(
        &self,
        address: SocketAddr,
        queue: Arc<AcceptQueue>,
    ) -> Result<(), NetError> {
        match self.tables_up()?.tcp.get_mut(address) {
            Some(slot) => {
                slot.queue = Some(queue);
                Ok(())
            }
            None => Err(NetError::InvalidInput),
        }
    }

    pub(crate) fn release_tcp(&self, address: SocketAddr) {
        self.tables.lock().tcp.release(address);
    }

    pub(crate) fn release_udp(&self, address: SocketAddr) {
        self.tables.lock().udp.release(address);
    }

    fn accept_queue(&self, to: SocketAddr) -> Result<Arc<AcceptQueue>, NetError> {
        let tables = self.tables_up()?;
        tables.tcp.find(to).and_then(|slot| slot.queue.clone()).ok_or(NetError::ConnectionRefused)
    }

    /// Who has the address that a connection to the pod comes from.
    fn caller(&self, from: IpAddr) -> Caller {
        self.caller_of(from, || self.uplink.namespace_of(from))
    }

    /// The same of whose pod it is, if any.
    fn caller_of(&self, from: IpAddr, namespace: impl FnOnce() -> Option<Arc<str>>) -> Caller {
        if from.is_loopback() || self.is_own(from) {
            return Caller::Own;
        }
        Caller::of(from, namespace(), &self.holder.namespace)
    }

    fn deliver(&self, from: SocketAddr, to: SocketAddr, caller: &Caller) -> Result<Conn, NetError> {
        self.accept_queue(to)?.offer(caller, || self.make_connection(from, to, caller))
    }

    /// A connect that has to wait: for another pod, or for a place in a full backlog.
    async fn connect_slowly(&self, route: Route, from: SocketAddr, to: SocketAddr) -> Result<Conn, NetError> {
        let attempt = async {
            match route {
                Route::Own { .. } => self.deliver_when_room(from, to, &Caller::Own).await,
                Route::Beyond { .. } => self.uplink.dial(from, to).await,
            }
        };
        tokio::time::timeout(self.limits.connect_timeout, attempt).await.map_err(|_| NetError::TimedOut)?
    }

    async fn deliver_when_room(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        caller: &Caller,
    ) -> Result<Conn, NetError> {
        loop {
            let queue = self.accept_queue(to)?;
            let attempt = || queue.offer(caller, || self.make_connection(from, to, caller));
            match attempt() {
                Err(NetError::WouldBlock) => {}
                done => return done,
            }
            let space = queue.space(caller);
            let room = space.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match attempt() {
                Err(NetError::WouldBlock) => room.await,
                done => {
                    if done.is_err() {
                        // It may have been told of a place that another of its party can have.
                        space.notify_one();
                    }
                    return done;
                }
            }
        }
    }

    /// The inner end first. A pod without a free seat refuses, as a kernel out of memory would.
    fn make_connection(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        caller: &Caller,
    ) -> Result<(Conn, Conn), NetError> {
        let taken = self.seats.take_for(caller);
        let (seat, budget) = taken.map_err(|_| NetError::ConnectionRefused)?;
        let (mut inner, outer) = Conn::pair_within(to, from, self.limits.pipe_bytes, Some(&budget));
        inner.take_seat(seat);
        if *caller == Caller::Node {
            inner.mark_as_probe();
        }
        Ok((inner, outer))
    }

    pub(crate) fn deliver_datagram(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        caller: &Caller,
        payload: Bytes,
    ) -> Result<(), NetError> {
        let found = self.tables_up()?.udp.find(to).map(|slot| Arc::clone(&slot.mailbox));
        found.ok_or(NetError::ConnectionRefused)?.put(from, caller, payload)
    }
}

/// A connect to "any address" means this host, on Linux.
pub(crate) fn loopback_for_unspecified(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), to.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), to.port()),
        _ => to,
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("hostname", &self.hostname)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}
