//! HTTP/1.1 connections to endpoints, kept for the next request of the same client: at its pod a connection is the client's
//! for whom it was opened.

use crate::tables::Service;
use coracle_wasi_host::net::HttpBody;
use coracle_wasi_host::refusals::What;
use coracle_wasi_host::serving::source_of;
use coracle_wasi_host::shares::{Holder, Permit, Shares};
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Idle connections kept to one endpoint, of all clients. The oldest makes room.
const IDLE_MAX: usize = 64;

/// Endpoints that connections are kept to, each counted for every service that leads to it. A namespace has at most as many
/// as are free; the others' are closed after use.
const ENDPOINTS_MAX: usize = 4096;

/// Where a namespace has its share, those that may be used no more are looked for at most so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How long a connection is kept without a request; below the keep-alive time of common servers.
const IDLE_TIME_MAX: Duration = Duration::from_secs(4);

/// Whose connections, and to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) client: IpAddr,
    pub(super) endpoint: SocketAddr,
    /// The service that leads there: another's may be, and may not open it.
    service: u64,
}

impl Pair {
    /// What a client has with an endpoint by way of a service.
    pub(super) fn new(client: IpAddr, endpoint: SocketAddr, service: &Service) -> Self {
        Self { client: source_of(client), endpoint, service: service.id }
    }

    fn route(&self) -> Route {
        (self.endpoint, self.service)
    }
}

/// Idle connections.
pub(crate) struct Pool {
    places: Arc<Shares>,
    state: Mutex<State>,
}

/// An endpoint, and the service that leads there.
type Route = (SocketAddr, u64);

struct State {
    idle: HashMap<Route, Kept>,
    swept: Instant,
    /// A task closes what nobody has asked for in time, as long as there is anything.
    sweeping: bool,
}

/// The connections to one endpoint.
struct Kept {
    /// The latest last.
    idle: Vec<Idle>,
    _place: Permit,
}

impl State {
    fn close_idle(&mut self) {
        self.swept = Instant::now();
        self.idle.retain(|_, kept| {
            kept.idle.retain(Idle::is_usable);
            !kept.idle.is_empty()
        });
    }

    /// A place for one endpoint more.
    fn place(&mut self, places: &Arc<Shares>, namespace: &Arc<str>) -> Option<Permit> {
        let holder = Holder { namespace: namespace.clone(), pod: None };
        let place = places.take(&holder).ok();
        if place.is_some() || self.swept.elapsed() < SWEEP_EVERY {
            return place;
        }
        self.close_idle();
        places.take(&holder).ok()
    }
}

impl Default for Pool {
    fn default() -> Self {
        let state = State { idle: HashMap::new(), swept: Instant::now(), sweeping: false };
        Self { places: Shares::new(What::Remembered, ENDPOINTS_MAX), state: Mutex::new(state) }
    }
}

struct Idle {
    client: IpAddr,
    sender: SendRequest<HttpBody>,
    since: Instant,
}

impl Idle {
    fn is_usable(&self) -> bool {
        self.sender.is_ready() && self.since.elapsed() < IDLE_TIME_MAX
    }
}

impl Pool {
    /// The connection that was used last, if one is still open.
    pub(super) fn take(&self, pair: Pair) -> Option<SendRequest<HttpBody>> {
        let mut state = self.state.lock();
        let kept = state.idle.get_mut(&pair.route())?;
        kept.idle.retain(Idle::is_usable);
        let found = kept.idle.iter().rposition(|idle| idle.client == pair.client);
        let taken = found.map(|at| kept.idle.remove(at).sender);
        if kept.idle.is_empty() {
            state.idle.remove(&pair.route());
        }
        taken
    }

    /// Keeps a connection whose last response has been read, on account of the service's namespace. Beyond the bounds another
    /// of the endpoint is closed, or this one.
    pub(super) fn keep(self: &Arc<Self>, pair: Pair, namespace: &Arc<str>, sender: SendRequest<HttpBody>) {
        let mut state = self.state.lock();
        if !state.idle.contains_key(&pair.route()) {
            let Some(place) = state.place(&self.places, namespace) else { return };
            state.idle.insert(pair.route(), Kept { idle: Vec::new(), _place: place });
        }
        let Some(Kept { idle, .. }) = state.idle.get_mut(&pair.route()) else { return };
        if idle.len() >= IDLE_MAX {
            idle.remove(0);
        }
        idle.push(Idle { client: pair.client, sender, since: Instant::now() });
        // Where there is no runtime any more the node ends.
        if !state.sweeping
            && let Ok(runtime) = Handle::try_current()
        {
            state.sweeping = true;
            runtime.spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Endpoints that connections are kept to.
    pub(crate) fn held(&self) -> usize {
        self.state.lock().idle.len()
    }
}

/// An endpoint that is gone is never asked for again, and one that serves others leaves a connection of the gateway open
/// for as long as it likes: so what is kept is closed also where nobody asks.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(IDLE_TIME_MAX).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut state = pool.state.lock();
        state.close_idle();
        if state.idle.is_empty() {
            state.sweeping = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_wasi_host::net::empty_body;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_closed_in_time_though_nobody_asks_for_it() {
        let pool = Arc::<Pool>::default();
        let mut servers = Vec::new();
        for port in 1..=3 {
            let (client, mut server) = tokio::io::duplex(1024);
            let (mut sender, connection) = http1::handshake(TokioIo::new(client)).await.unwrap();
            tokio::spawn(connection);
            let answered = async {
                let read = server.read(&mut [0; 1024]).await.unwrap();
                server.write_all(b"HTTP/1.1 204 No\r\n\r\n").await.unwrap();
                read
            };
            let request = http::Request::get("/").header("host", "h").body(empty_body()).unwrap();
            let (response, read) = tokio::join!(sender.send_request(request), answered);
            assert!(response.unwrap().status() == 204 && read > 0);
            sender.ready().await.unwrap();
            pool.keep(pair(1, ([10, 128, 0, 2], port).into()), &"default".into(), sender);
            servers.push(server);
        }
        assert_eq!(pool.held(), 3);
        for mut server in servers {
            let mut end = [0; 16];
            let seen = tokio::time::timeout(10 * IDLE_TIME_MAX, server.read(&mut end)).await;
            assert_eq!(seen.expect("it is closed").unwrap(), 0, "the endpoint sees the end");
        }
        assert_eq!(pool.held(), 0);
        assert!(!pool.state.lock().sweeping, "nothing runs for a pool that keeps nothing");
    }

    fn pair(client: u8, endpoint: SocketAddr) -> Pair {
        Pair { client: [192, 0, 2, client].into(), endpoint, service: 7 }
    }

    /// An open connection, and its far end.
    async fn connection() -> (SendRequest<HttpBody>, tokio::io::DuplexStream) {
        let (client, server) = tokio::io::duplex(64);
        let (mut sender, connection) = http1::handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        sender.ready().await.unwrap();
        (sender, server)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_has_a_bound_for_each_endpoint_and_for_all_of_a_namespace() {
        let pool = Arc::<Pool>::default();
        let (greedy, modest): (Arc<str>, Arc<str>) = ("greedy".into(), "modest".into());
        let mut servers = Vec::new();
        let pair = |number: usize| {
            let endpoint = SocketAddr::new(std::net::Ipv4Addr::from_bits(number as u32).into(), 80);
            super::tests::pair(1, endpoint)
        };
        for number in 0..=IDLE_MAX {
            let (sender, server) = connection().await;
            pool.keep(pair(0), &greedy, sender);
            servers.push(server);
            assert_eq!(pool.state.lock().idle[&pair(0).route()].idle.len(), IDLE_MAX.min(number + 1));
        }
        for number in 1..=ENDPOINTS_MAX {
            let (sender, server) = connection().await;
            pool.keep(pair(number), &greedy, sender);
            servers.push(server);
        }
        assert_eq!(pool.held(), ENDPOINTS_MAX / 2);
        assert!(pool.take(pair(ENDPOINTS_MAX)).is_none(), "the last one found no place");
        assert!(pool.take(pair(0)).is_some());
        // Others' are kept all the same.
        let (sender, server) = connection().await;
        pool.keep(Pair { service: 8, ..pair(1) }, &modest, sender);
        servers.push(server);
        assert!(pool.take(Pair { service: 8, ..pair(1) }).is_some());
        // Those that may be used no more make room.
        tokio::time::advance(IDLE_TIME_MAX).await;
        let (sender, _server) = connection().await;
        pool.keep(pair(ENDPOINTS_MAX), &greedy, sender);
        assert_eq!((pool.held(), pool.places.held()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_gets_no_connection_of_another() {
        let pool = Arc::<Pool>::default();
        let namespace = "default".into();
        let pair = |client: u8| pair(client, ([10, 128, 0, 2], 80).into());
        let mut servers = Vec::new();
        for client in 1..=2 {
            let (sender, server) = connection().await;
            pool.keep(pair(client), &namespace, sender);
            servers.push(server);
        }
        assert!(pool.take(pair(3)).is_none());
        assert!(pool.take(Pair { service: 8, ..pair(1) }).is_none(), "it was another service's");
        assert!(pool.take(pair(1)).is_some());
        assert!(pool.take(pair(1)).is_none());
        // Of many the oldest makes room.
        for _ in 0..IDLE_MAX {
            let (sender, server) = connection().await;
            pool.keep(pair(4), &namespace, sender);
            servers.push(server);
        }
        assert!(pool.take(pair(2)).is_none());
        for _ in 0..IDLE_MAX {
            assert!(pool.take(pair(4)).is_some());
        }
        assert_eq!(pool.held(), 0);
    }
}
