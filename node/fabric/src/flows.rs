//! Datagrams through service addresses: which endpoint a client's flow has, and the way back.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Flows remembered on one node.
const FLOWS_MAX: usize = 65_536;

/// A flow without a datagram for this long is forgotten; the value of Linux' connection tracking for UDP streams.
const FLOW_IDLE_MAX: Duration = Duration::from_secs(120);

/// The flows of this node's pods.
#[derive(Default)]
pub(crate) struct Flows {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Client and service to endpoint.
    out: HashMap<(SocketAddr, SocketAddr), Flow>,
    /// Client and endpoint to service.
    back: HashMap<(SocketAddr, SocketAddr), SocketAddr>,
}

struct Flow {
    endpoint: SocketAddr,
    last: Instant,
}

impl Flows {
    /// The endpoint of the flow from `client` to `service`; a new flow gets what `choose` gives.
    /// None where there is no endpoint, or no room for a new flow.
    pub(crate) fn endpoint(
        &self,
        client: SocketAddr,
        service: SocketAddr,
        still_serves: impl Fn(SocketAddr) -> bool,
        choose: impl FnOnce() -> Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        let mut state = self.state.lock();
        if let Some(flow) = state.out.get_mut(&(client, service))
            && flow.last.elapsed() < FLOW_IDLE_MAX
            && still_serves(flow.endpoint)
        {
            flow.last = Instant::now();
            return Some(flow.endpoint);
        }
        state.forget(client, service);
        if state.out.len() >= FLOWS_MAX {
            state.forget_idle();
        }
        if state.out.len() >= FLOWS_MAX {
            return None;
        }
        let endpoint = choose()?;
        state.out.insert((client, service), Flow { endpoint, last: Instant::now() });
        state.back.insert((client, endpoint), service);
        Some(endpoint)
    }

    /// The service in whose name an endpoint answers a client, if it does.
    pub(crate) fn service(&self, client: SocketAddr, endpoint: SocketAddr) -> Option<SocketAddr> {
        self.state.lock().back.get(&(client, endpoint)).copied()
    }
}

impl State {
    fn forget(&mut self, client: SocketAddr, service: SocketAddr) {
        if let Some(flow) = self.out.remove(&(client, service)) {
            self.back.remove(&(client, flow.endpoint));
        }
    }

    fn forget_idle(&mut self) {
        let Self { out, back } = self;
        out.retain(|(client, _), flow| {
            let keep = flow.last.elapsed() < FLOW_IDLE_MAX;
            if !keep {
                back.remove(&(*client, flow.endpoint));
            }
            keep
        });
    }
}
