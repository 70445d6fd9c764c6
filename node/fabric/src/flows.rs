//! Datagrams on their way: which endpoint a flow through a service has, and in whose name the answers come.
//!
//! A flow is what one socket sends to one address, a service's or a pod's. No two flows look alike to the endpoint: where
//! they would, as when a socket sends to a service and to one of its endpoints directly, the later one comes from
//! another port. So each answer is of one flow, and comes from the address that the flow was sent to.
//!
//! Nobody's answers cost him a flow that he needs: what answers a flow of this node has none of its own, and what a socket
//! sends to a pod directly, as who answers a pod of another node does, gives its flow up where the room is needed.
//!
//! The flows of a pod go with it: its address is another pod's later.

use crate::spare::{self, Spare};
use coracle_wasi_host::refusals::{Refusals, Refused, What};
use coracle_wasi_host::shares::{Certain, Holder, Permit, Shares};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Flows remembered on one node.
const FLOWS_MAX: usize = 65_536;

/// Those that a pod has for certain beside them, and for how many.
const CERTAIN: Certain = Certain { each: 8, all: 16_384 };

/// A flow without a datagram for this long is forgotten; the value of Linux' connection tracking for UDP streams.
const FLOW_IDLE_MAX: Duration = Duration::from_secs(120);

/// The flows that are idle are looked for at most so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A flow that goes on is the one used last for so long: not each of its datagrams has to say so.
const RANKED_EVERY: Duration = Duration::from_secs(1);

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
    refusals: Refusals,
    state: Mutex<State>,
}

struct State {
    /// By the pod, then by its socket and the address that this sends to.
    out: HashMap<IpAddr, HashMap<Key, Flow>>,
    /// The two ends as the endpoint sees them, to the key of `out`.
    back: HashMap<(SocketAddr, SocketAddr), Key>,
    /// Direct flows from the socket's own port: without them the datagrams and their answers go the same way.
    spare: Spare<Key>,
    swept: Instant,
}

/// A socket, and the address that it sends to.
type Key = (SocketAddr, SocketAddr);

struct Flow {
    way: Way,
    last: Instant,
    place: Permit,
    /// Its place among the spare ones, and since when.
    spare: Option<(u64, Instant)>,
}

impl Flow {
    fn is_idle(&self) -> bool {
        self.last.elapsed() >= FLOW_IDLE_MAX
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self::new(Refusals::default())
    }
}

impl Flows {
    pub(crate) fn new(refusals: Refusals) -> Self {
        Self::with(Shares::with_certain(What::Flows, FLOWS_MAX, CERTAIN), refusals)
    }

    fn with(places: Arc<Shares>, refusals: Refusals) -> Self {
        let (out, back, spare) = (HashMap::new(), HashMap::new(), Spare::default());
        let state = State { out, back, spare, swept: Instant::now() };
        Self { places, refusals, state: Mutex::new(state) }
    }

    /// The way of what `client` sends to a service at `to`. A new flow, and one whose endpoint serves no more, gets the
    /// endpoint that `choose` gives. None where there is no room for a new flow.
    pub(crate) fn way<E>(
        &self,
        holder: &Holder,
        client: SocketAddr,
        to: SocketAddr,
        still_serves: impl Fn(SocketAddr) -> bool,
        choose: impl FnOnce() -> Result<SocketAddr, E>,
    ) -> Result<Option<Way>, E> {
        let way = self.way_within(&mut self.state.lock(), holder, client, to, still_serves, choose)?;
        Ok(way.unwrap_or_else(|refused| {
            self.refusals.note(holder, refused);
            None
        }))
    }

    /// The way of what `client` sends to a pod at `to`; where there is no room for its flow it goes without.
    pub(crate) fn direct(&self, holder: &Holder, client: SocketAddr, to: SocketAddr) -> Way {
        let mut state = self.state.lock();
        let plain = Way { source: client, endpoint: to };
        if state.answered(client, to, |_, _| true).is_some() {
            return plain;
        }
        let choose = || Ok::<_, Infallible>(to);
        let Ok(way) = self.way_within(&mut state, holder, client, to, |_| true, choose);
        way.ok().flatten().unwrap_or(plain)
    }

    fn way_within<E>(
        &self,
        state: &mut State,
        holder: &Holder,
        client: SocketAddr,
        to: SocketAddr,
        still_serves: impl Fn(SocketAddr) -> bool,
        choose: impl FnOnce() -> Result<SocketAddr, E>,
    ) -> Result<Result<Option<Way>, Refused>, E> {
        let key = (client, to);
        if let Some(way) = state.used(&key, |way| still_serves(way.endpoint)) {
            return Ok(Ok(Some(way)));
        }
        state.forget(&key);
        let endpoint = choose()?;
        let place =
            spare::place(&self.places, holder, state, State::forget_idle, |state| state.give_up(holder));
        let place = match place {
            Ok(place) => place,
            Err(refused) => return Ok(Err(refused)),
        };
        let Some(source) = state.free_source(client, endpoint) else { return Ok(Ok(None)) };
        let way = Way { source, endpoint };
        state.back.insert((source, endpoint), key);
        let spare = ((source, endpoint) == key).then(|| (state.spare.enter(holder, key), Instant::now()));
        let flow = Flow { way, last: Instant::now(), place, spare };
        state.out.entry(client.ip()).or_default().insert(key, flow);
        Ok(Ok(Some(way)))
    }

    /// Forgets what a pod has sent, which is gone.
    pub(crate) fn forget_pod(&self, pod: IpAddr) {
        let State { out, back, spare, .. } = &mut *self.state.lock();
        for flow in out.remove(&pod).into_iter().flat_map(HashMap::into_values) {
            flow.leave(back, spare);
        }
    }

    /// Flows that are remembered, and those of them that can be done without.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.places.held(), self.state.lock().spare.len())
    }

    /// What a datagram from `from` to `to` answers: the socket that waits for it, and the address that it sent to. A flow
    /// ends where its endpoint does not speak for that address (given first) any more.
    pub(crate) fn answered(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        speaks: impl FnOnce(SocketAddr, SocketAddr) -> bool,
    ) -> Option<(SocketAddr, SocketAddr)> {
        self.state.lock().answered(from, to, speaks)
    }
}

impl Flow {
    fn leave(&self, back: &mut HashMap<(SocketAddr, SocketAddr), Key>, spare: &mut Spare<Key>) {
        back.remove(&(self.way.source, self.way.endpoint));
        if let Some((at, _)) = self.spare {
            spare.leave(self.place.holder(), at);
        }
    }
}

impl State {
    /// The way of a flow that goes on now, if it is there and is wanted.
    fn used(&mut self, key: &Key, is_wanted: impl FnOnce(Way) -> bool) -> Option<Way> {
        let flow = self.out.get_mut(&key.0.ip())?.get_mut(key)?;
        if flow.is_idle() || !is_wanted(flow.way) {
            return None;
        }
        flow.last = Instant::now();
        if let Some((at, since)) = &mut flow.spare
            && since.elapsed() >= RANKED_EVERY
        {
            self.spare.leave(flow.place.holder(), *at);
            (*at, *since) = (self.spare.enter(flow.place.holder(), *key), flow.last);
        }
        Some(flow.way)
    }

    fn answered(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        speaks: impl FnOnce(SocketAddr, SocketAddr) -> bool,
    ) -> Option<Key> {
        let key = *self.back.get(&(to, from))?;
        if self.used(&key, |way| speaks(key.1, way.endpoint)).is_none() {
            self.forget(&key);
            return None;
        }
        Some(key)
    }

    /// The client's own address, or another port of it where the flow could be taken for another one, or what the endpoint
    /// asks the client for an answer.
    fn free_source(&self, client: SocketAddr, endpoint: SocketAddr) -> Option<SocketAddr> {
        let is_taken = |ends| self.back.contains_key(&ends);
        let is_free = |source: &SocketAddr| !is_taken((*source, endpoint)) && !is_taken((endpoint, *source));
        let other = |_| SocketAddr::new(client.ip(), rand::random_range(OTHER_PORTS));
        std::iter::once(client).chain((0..PORT_TRIES).map(other)).find(is_free)
    }

    fn forget(&mut self, key: &Key) {
        let Some(flows) = self.out.get_mut(&key.0.ip()) else { return };
        if let Some(flow) = flows.remove(key) {
            flow.leave(&mut self.back, &mut self.spare);
        }
        if flows.is_empty() {
            self.out.remove(&key.0.ip());
        }
    }

    /// Drops what can be done without and was used longest ago. None where there is nothing of that.
    fn give_up(&mut self, holder: &Holder) -> Option<()> {
        let key = self.spare.first(holder)?;
        self.forget(&key);
        Some(())
    }

    /// Looks for what is over, unless it did a moment ago.
    fn forget_idle(&mut self) {
        if self.swept.elapsed() < SWEEP_EVERY {
            return;
        }
        let Self { out, back, spare, swept } = self;
        *swept = Instant::now();
        out.retain(|_, flows| {
            flows.retain(|_, flow| {
                let keep = !flow.is_idle();
                if !keep {
                    flow.leave(back, spare);
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

    const SERVICE: &str = "10.96.0.10:53";
    const ENDPOINT: &str = "10.128.2.2:5353";
    const CLIENT: &str = "10.128.1.9:40000";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn holder(pod: u8) -> Holder {
        Holder { namespace: "default".into(), pod: Some([10, 128, 1, pod].into()) }
    }

    fn in_namespace(namespace: &str, pod: u8) -> Holder {
        Holder { namespace: namespace.into(), ..holder(pod) }
    }

    fn answered(flows: &Flows, from: SocketAddr, to: SocketAddr) -> Option<Key> {
        flows.answered(from, to, |_, _| true)
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
                assert_eq!(answered(&flows, way.endpoint, way.source), Some((at(CLIENT), at(to))));
            }
            assert_eq!(order.map(|to| way(&flows, CLIENT, to).unwrap()), ways, "flows stay");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn flows_expire_and_give_their_room_back() {
        let flows = Flows::with(Shares::new(What::Flows, 9), Refusals::default());
        for port in [1, 2, 3] {
            assert!(way(&flows, &format!("10.128.1.9:{port}"), SERVICE).is_some());
        }
        assert_eq!(way(&flows, CLIENT, SERVICE), None, "the pod has its share");
        let told = flows.refusals.next().await[0].to_string();
        assert!(
            told.starts_with("UDP flows to services: the pod holds 3 of this node's 9 and may hold 3 by"),
            "{told}"
        );
        assert!(
            flows.way(&holder(8), at(CLIENT), at(SERVICE), |_| true, || Ok::<_, ()>(at(ENDPOINT))).is_ok()
        );
        tokio::time::advance(FLOW_IDLE_MAX / 2).await;
        assert!(answered(&flows, at(ENDPOINT), at("10.128.1.9:1")).is_some(), "an answer keeps the flow");
        tokio::time::advance(FLOW_IDLE_MAX / 2).await;
        assert!(answered(&flows, at(ENDPOINT), at("10.128.1.9:1")).is_some());
        assert_eq!(answered(&flows, at(ENDPOINT), at("10.128.1.9:2")), None);
        assert!(way(&flows, CLIENT, SERVICE).is_some());
        assert!(way(&flows, "10.128.1.9:4", SERVICE).is_some(), "what is idle makes room");
        assert_eq!(way(&flows, "10.128.1.9:5", SERVICE), None);
        let state = flows.state.lock();
        let out: usize = state.out.values().map(HashMap::len).sum();
        assert_eq!((out, state.back.len(), flows.places.held()), (3, 3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_sent_much_and_answers_can_still_ask_services() {
        let (flows, here, elsewhere) = (
            Flows::with(Shares::new(What::Flows, 900), Refusals::default()),
            [10, 128, 1, 9],
            [10, 128, 2, 9],
        );
        let server = |pod: u8| SocketAddr::from(([10, 128, 1, pod], 5353));
        // As much as there can be is asked by a pod of this node, on its own account, and is answered.
        for port in 1..=2000 {
            let (asker, server) = (SocketAddr::from((here, port)), server(2));
            assert_eq!(flows.direct(&holder(9), asker, server), Way { source: asker, endpoint: server });
            let answer = Way { source: server, endpoint: asker };
            assert_eq!(flows.direct(&in_namespace("victim", 2), server, asker), answer);
            assert_eq!(answered(&flows, server, asker), Some((asker, server)));
        }
        assert_eq!(flows.held().0, 300, "a pod's share: the answers have cost nothing");
        // Of what pods of another node ask nothing is known here: three servers answer it.
        for (pod, port) in (2..=4).flat_map(|pod| (1..=2000).map(move |port| (pod, port))) {
            let (asker, server) = (SocketAddr::from((elsewhere, port)), server(pod));
            let answer = Way { source: server, endpoint: asker };
            assert_eq!(flows.direct(&in_namespace("victim", pod), server, asker), answer);
        }
        let asks = |pod: u8, port: u16| {
            let (from, choose) =
                (SocketAddr::from(([10, 128, 1, pod], port)), || Ok::<_, Infallible>(at(ENDPOINT)));
            flows.way(&in_namespace("victim", pod), from, at(SERVICE), |_| true, choose).unwrap()
        };
        for (pod, port) in (2..=5).flat_map(|pod| (1..=50).map(move |port| (pod, port))) {
            assert!(asks(pod, port).is_some(), "of {pod} from {port}");
        }
        // What was used last is given up last.
        assert!(flows.state.lock().back.contains_key(&(server(2), SocketAddr::from((elsewhere, 2000)))));
        for pod in [2, 3, 4, 5, 9] {
            flows.forget_pod([10, 128, 1, pod].into());
        }
        assert_eq!(flows.held(), (0, 0));
        let state = flows.state.lock();
        assert!(state.back.is_empty() && state.spare.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_neighbours_send_a_pod_has_a_few_flows() {
        let certain = Certain { all: 256, ..CERTAIN };
        let flows = Flows::with(Shares::with_certain(What::Flows, 100, certain), Refusals::default());
        let fill = |namespace: &str, pod: u8| {
            let send = |port: u16| {
                let (from, to) =
                    (SocketAddr::from(([10, 128, 1, pod], port)), || Ok::<_, Infallible>(at(ENDPOINT)));
                flows.way(&in_namespace(namespace, pod), from, at(SERVICE), |_| true, to).unwrap()
            };
            (1..=200).filter_map(send).count()
        };
        for pod in 1..=12 {
            fill(&format!("greedy-{pod}"), pod);
        }
        assert_eq!([fill("modest", 13), fill("modest", 14)], [CERTAIN.each; 2]);
        assert_eq!(flows.held().0, 100 + 14 * CERTAIN.each);
    }

    #[tokio::test(start_paused = true)]
    async fn questions_are_told_from_answers_where_both_ends_ask() {
        let flows = Flows::default();
        let (asker, server) = (at(ENDPOINT), at(CLIENT));
        flows.direct(&holder(2), asker, server);
        // The server asks a service of which the asker is the endpoint.
        let asked = way(&flows, CLIENT, SERVICE).unwrap();
        assert_ne!(asked.source, server);
        assert_eq!(
            answered(&flows, asker, server),
            None,
            "the asker's next question is no answer of the service"
        );
        assert_eq!(answered(&flows, asker, asked.source), Some((server, at(SERVICE))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_the_address_of_a_former_endpoint_does_not_speak_for_the_service() {
        let flows = Flows::default();
        way(&flows, CLIENT, SERVICE).unwrap();
        let asked = |sent_to: SocketAddr, endpoint: SocketAddr| {
            assert_eq!((sent_to, endpoint), (at(SERVICE), at(ENDPOINT)));
            false
        };
        assert_eq!(flows.answered(at(ENDPOINT), at(CLIENT), asked), None);
        assert_eq!(answered(&flows, at(ENDPOINT), at(CLIENT)), None, "the flow has ended with it");
        assert_eq!(flows.held(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_of_a_pod_that_is_gone() {
        let flows = Flows::default();
        for port in 1..100 {
            way(&flows, &format!("10.128.1.9:{port}"), SERVICE).unwrap();
        }
        way(&flows, "10.128.1.8:1", SERVICE).unwrap();
        flows.forget_pod([10, 128, 1, 9].into());
        assert_eq!(answered(&flows, at(ENDPOINT), at("10.128.1.9:1")), None, "the next pod of this address");
        assert!(answered(&flows, at(ENDPOINT), at("10.128.1.8:1")).is_some(), "others keep theirs");
        assert_eq!(flows.held().0, 1);
        let state = flows.state.lock();
        assert_eq!((state.out.len(), state.back.len()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flow_moves_where_its_endpoint_serves_no_more() {
        let flows = Flows::default();
        way(&flows, CLIENT, SERVICE).unwrap();
        let other = at("10.128.2.3:5353");
        let moved = flows.way(&holder(9), at(CLIENT), at(SERVICE), |_| false, || Ok::<_, ()>(other)).unwrap();
        assert_eq!(moved, Some(Way { source: at(CLIENT), endpoint: other }));
        assert_eq!(answered(&flows, other, at(CLIENT)), Some((at(CLIENT), at(SERVICE))));
        assert_eq!(answered(&flows, at(ENDPOINT), at(CLIENT)), None);
    }
}
