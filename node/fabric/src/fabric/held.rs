//! What a fabric holds, counted: for whoever looks for what was not given back.

use super::Fabric;
use coracle_wasi_host::descriptors::Purpose;
use std::sync::Arc;

impl Fabric {
    /// How much there is now, by what it is.
    pub fn held(&self) -> Vec<(&'static str, usize)> {
        let inner = &self.inner;
        let (streams, datagrams) = inner.tunnels.held();
        let (flows, spare_flows) = inner.flows.held();
        let (lookups, answers) = inner.resolver.held();
        let purposes = [Purpose::Clients, Purpose::Outside, Purpose::Tunnels];
        let [clients, outside, tunnels] = purposes.map(|purpose| inner.descriptors.taken(purpose));
        let listeners = purposes.map(|purpose| inner.descriptors.listeners(purpose)).iter().sum();
        vec![
            ("attached addresses", inner.policy.pods.read().len()),
            ("flows", flows),
            ("flows that can be done without", spare_flows),
            ("streams to other nodes", streams),
            ("datagrams for other nodes", datagrams),
            ("lookups", lookups),
            ("answers of name servers", answers),
            ("outside connections", inner.egress.open()),
            ("clients of services with affinity", inner.balancer.held()),
            ("instances of functions that serve", inner.tables().served()),
            ("revisions that are counted", inner.demand().meters.held()),
            ("endpoints counted", inner.counters.held()),
            ("endpoints with kept connections", inner.kept.held()),
            ("node ports", inner.node_ports.as_ref().map_or(0, |ports| ports.held())),
            ("listeners", listeners),
            ("descriptors of clients", clients),
            ("descriptors of outside connections", outside),
            ("descriptors of tunnels", tunnels),
            // The network of each pod keeps the fabric.
            ("fabric references", Arc::strong_count(inner)),
        ]
    }
}
