//! Datagrams on their way: which endpoint a flow through a service has, and in whose name the answers come.
//!
//! A flow is what one socket sends to one address, a service's or a pod's. No two flows look alike to the endpoint: where
//! they would, as when a socket sends to a service and to one of its endpoints directly, the later one comes from
//! another port. So each answer is of one flow, and comes from the address that the flow was sent to.
//!
//! The flows of a pod go with it: its address is another pod's later.

use coracle_wasi_host::shares::{Holder, Permit, Shares};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Flows remembered on one node.
const FLOWS_MAX: usize = 65_536;

/// A flow without a datagram for this long is forgotten; the value of Linux' connection tracking for UDP streams.
const FLOW_IDLE_MAX: Duration = Duration::from_secs(120);

/// The flows that are idle are looked for at most so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Ports of flows that would look like another one: above those that sockets are given where they ask for none.
const OTHER_PORTS: RangeInclusive<u16> = 61_000..=65_535;

/// Ports that are tried for a flow; where all are taken it finds no room.
const PORT_TRIES: usize = 64;

/// Where a datagram goes, and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) source: SocketAddr,
    pub(crate) endpoint: SocketAddr,
}

/// The flows of this node's pods.
pub(crate) struct Flows {
    places: Arc<Shares>,
    state: Mutex<State>,
}

struct State {
    /// By the pod, then by its socket and the address that this sends to.
    out: HashMap<IpAddr, HashMap<(SocketAddr, SocketAddr), Flow>>,
    /// The two ends as the endpoint sees them, to the key of `out`.
    back: HashMap<(SocketAddr, SocketAddr), (SocketAddr, SocketAddr)>,
    swept: Instant,
}

struct Flow {
    way: Way,
    last: Instant,
    _place: Permit,
}

impl Flow {
    fn is_idle(&self) -> bool {
        self.last.elapsed() >= FLOW_IDLE_MAX
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self::new(FLOWS_MAX)
    }
}

impl Flows {
    fn new(size: usize) -> Self {
        let state = State { out: HashMap::new(), back: HashMap::new(), swept: Instant::now() };
        Self { places: Shares::new(size), state: Mutex::new(state) }
    }

    /// The way of what `client` sends to `to`. A new flow, and one whose endpoint serves no more, gets the endpoint that
    /// `choose` gives. None where there is no room for a new flow.
    pub(crate) fn way<E>(
        &self,
        holder: &Holder,
        client: SocketAddr,
        to: SocketAddr,
        still_serves: impl Fn(SocketAddr) -> bool,
        choose: impl FnOnce() -> Result<SocketAddr, E>,
    ) -> Result<Option<Way>, E> {
        let mut state = self.state.lock();
        if let Some(flow) = state.flow_mut(&(client, to))
            && !flow.is_idle()
            && still_serves(flow.way.endpoint)
        {
            flow.last = Instant::now();
            return Ok(Some(flow.way));
        }
        state.forget(&(client, to));
        let endpoint = choose()?;
        let Some(place) = self.place(&mut state, holder) else { return Ok(None) };
        let Some(source) = state.free_source(client, endpoint) else { return Ok(None) };
        let way = Way { source, endpoint };
        state.back.insert((source, endpoint), (client, to));
        let flow = Flow { way, last: Instant::now(), _place: place };
        state.out.entry(client.ip()).or_default().insert((client, to), flow);
        Ok(Some(way))
    }

    /// Forgets what a pod has sent, which is gone.
    pub(crate) fn forget_pod(&self, pod: IpAddr) {
        let mut state = self.state.lock();
        for flow in state.out.remove(&pod).into_iter().flat_map(HashMap::into_values) {
            state.back.remove(&(flow.way.source, flow.way.endpoint));
        }
    }

    /// Flows that are remembered.
    pub(crate) fn held(&self) -> usize {
        self.places.held()
    }

    fn place(&self, state: &mut State, holder: &Holder) -> Option<Permit> {
        let place = self.places.take(holder);
        if place.is_some() || state.swept.elapsed() < SWEEP_EVERY {
            return place;
        }
        state.forget_idle();
        self.places.take(holder)
    }

    /// What a datagram from `from` to `to` answers: the socket that waits for it, and the address that it sent to.
    pub(crate) fn answered(&self, from: SocketAddr, to: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
        let mut state = self.state.lock();
        let key = *state.back.get(&(to, from))?;
        let flow = state.flow_mut(&key)?;
        if flow.is_idle() {
            state.forget(&key);
            return None;
        }
        flow.last = Instant::now();
        Some(key)
    }
}

impl State {
    fn flow_mut(&mut self, key: &(SocketAddr, SocketAddr)) -> Option<&mut Flow> {
        self.out.get_mut(&key.0.ip())?.get_mut(key)
    }

    /// The client's own address, or another port of it where an endpoint could not tell the flows apart.
    fn free_source(&self, client: SocketAddr, endpoint: SocketAddr) -> Option<SocketAddr> {
        let is_free = |source: &SocketAddr| !self.back.contains_key(&(*source, endpoint));
        let other = |_| SocketAddr::new(client.ip(), rand::random_range(OTHER_PORTS));
        std::iter::once(client).chain((0..PORT_TRIES).map(other)).find(is_free)
    }

    fn forget(&mut self, key: &(SocketAddr, SocketAddr)) {
        let Some(flows) = self.out.get_mut(&key.0.ip()) else { return };
        if let Some(flow) = flows.remove(key) {
            self.back.remove(&(flow.way.source, flow.way.endpoint));
        }
        if flows.is_empty() {
            self.out.remove(&key.0.ip());
        }
    }

    fn forget_idle(&mut self) {
        let Self { out, back, swept } = self;
        *swept = Instant::now();
        out.retain(|_, flows| {
            flows.retain(|_, flow| {
                let keep = !flow.is_idle();
                if !keep {
                    back.remove(&(flow.way.source, flow.way.endpoint));
                }
                keep
            });
            !flows.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    const SERVICE: &str = "10.96.0.10:53";
    const ENDPOINT: &str = "10.128.2.2:5353";
    const CLIENT: &str = "10.128.1.9:40000";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn holder(pod: u8) -> Holder {
        Holder { namespace: "default".into(), pod: Some([10, 128, 1, pod].into()) }
    }

    fn way(flows: &Flows, client: &str, to: &str) -> Option<Way> {
        let choose = || Ok::<_, Infallible>(at(ENDPOINT));
        flows.way(&holder(9), at(client), at(to), |_| true, choose).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_comes_from_where_its_question_went() {
        for order in [[SERVICE, ENDPOINT, "10.96.0.11:53"], [ENDPOINT, SERVICE, "10.96.0.11:53"]] {
            let flows = Flows::default();
            let ways = order.map(|to| way(&flows, CLIENT, to).unwrap());
            assert_eq!(ways[0].source, at(CLIENT), "the first keeps its port");
            for (to, way) in order.iter().zip(ways) {
                assert_eq!(way.source.ip(), at(CLIENT).ip());
                assert_eq!(flows.answered(way.endpoint, way.source), Some((at(CLIENT), at(to))));
            }
            assert_eq!(order.map(|to| way(&flows, CLIENT, to).unwrap()), ways, "flows stay");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn flows_expire_and_give_their_room_back() {
        let flows = Flows::new(9);
        for port in [1, 2, 3] {
            assert!(way(&flows, &format!("10.128.1.9:{port}"), SERVICE).is_some());
        }
        assert_eq!(way(&flows, CLIENT, SERVICE), None, "the pod has its share");
        assert!(
            flows.way(&holder(8), at(CLIENT), at(SERVICE), |_| true, || Ok::<_, ()>(at(ENDPOINT))).is_ok()
        );
        tokio::time::advance(FLOW_IDLE_MAX / 2).await;
        assert!(flows.answered(at(ENDPOINT), at("10.128.1.9:1")).is_some(), "an answer keeps the flow");
        tokio::time::advance(FLOW_IDLE_MAX / 2).await;
        assert!(flows.answered(at(ENDPOINT), at("10.128.1.9:1")).is_some());
        assert_eq!(flows.answered(at(ENDPOINT), at("10.128.1.9:2")), None);
        assert!(way(&flows, CLIENT, SERVICE).is_some());
        assert!(way(&flows, "10.128.1.9:4", SERVICE).is_some(), "what is idle makes room");
        assert_eq!(way(&flows, "10.128.1.9:5", SERVICE), None);
        let state = flows.state.lock();
        let out: usize = state.out.values().map(HashMap::len).sum();
        assert_eq!((out, state.back.len(), flows.places.held()), (3, 3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_of_a_pod_that_is_gone() {
        let flows = Flows::default();
        for port in 1..100 {
            way(&flows, &format!("10.128.1.9:{port}"), SERVICE).unwrap();
        }
        way(&flows, "10.128.1.8:1", SERVICE).unwrap();
        flows.forget_pod([10, 128, 1, 9].into());
        assert_eq!(flows.answered(at(ENDPOINT), at("10.128.1.9:1")), None, "the next pod of this address");
        assert!(flows.answered(at(ENDPOINT), at("10.128.1.8:1")).is_some(), "others keep theirs");
        let state = flows.state.lock();
        assert_eq!((state.out.len(), state.back.len(), flows.held()), (1, 1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flow_moves_where_its_endpoint_serves_no_more() {
        let flows = Flows::default();
        way(&flows, CLIENT, SERVICE).unwrap();
        let other = at("10.128.2.3:5353");
        let moved = flows.way(&holder(9), at(CLIENT), at(SERVICE), |_| false, || Ok::<_, ()>(other)).unwrap();
        assert_eq!(moved, Some(Way { source: at(CLIENT), endpoint: other }));
        assert_eq!(flows.answered(at(ENDPOINT), at(CLIENT)), None);
    }
}
