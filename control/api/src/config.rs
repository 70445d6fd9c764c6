//! What the composition root tells the API server.

use std::{net::Ipv4Addr, ops::RangeInclusive, sync::Arc};

use jiff::Timestamp;

use crate::{
    auth::{Authorizer, Masters},
    meter::{Meter, Unmetered},
};

/// Named checks and what has come of each; the error is the reason why it is not fulfilled.
pub type Checks = Vec<(String, Result<(), String>)>;

/// Settings of the API server, fixed for the life of the process.
#[derive(Clone)]
pub struct ApiConfig {
    /// The cluster's id, shown by `/version` as build metadata.
    pub cluster_id: String,
    /// The version of this binary, `0.1.0`.
    pub version: String,
    /// Where service addresses are taken from.
    pub service_network: ServiceNetwork,
    /// Where node ports are taken from.
    pub node_ports: RangeInclusive<u16>,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Further checks of `/livez` and `/healthz`: what only a restart mends.
    pub liveness: Arc<dyn Fn() -> Checks + Send + Sync>,
    /// Further checks of `/readyz`, those of liveness not among them.
    pub readiness: Arc<dyn Fn() -> Checks + Send + Sync>,
    /// Who says what users may do.
    pub authorizer: Arc<dyn Authorizer>,
    /// Who counts the requests.
    pub meter: Arc<dyn Meter>,
}

impl ApiConfig {
    /// Kubernetes' defaults: services in 10.96.0.0/12, node ports 30000 to 32767, the system's clock, and no users but `system:masters`.
    pub fn new(cluster_id: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            version: version.into(),
            service_network: ServiceNetwork { first: Ipv4Addr::new(10, 96, 0, 0), prefix: 12 },
            node_ports: 30000..=32767,
            now: Timestamp::now,
            liveness: Arc::new(Vec::new),
            readiness: Arc::new(Vec::new),
            authorizer: Arc::new(Masters),
            meter: Arc::new(Unmetered),
        }
    }
}

/// An IPv4 network in which services have addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceNetwork {
    /// The network's own address, which no service gets.
    pub first: Ipv4Addr,
    /// Length of the prefix in bits, 8 to 30.
    pub prefix: u8,
}

impl ServiceNetwork {
    /// Number of addresses, the network's own and the last one among them.
    pub fn size(&self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address at an offset from the network's own.
    pub fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first) + offset)
    }

    /// Whether a service may have this address.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let offset = u32::from(address).wrapping_sub(u32::from(self.first));
        offset > 0 && offset < self.size() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_knows_its_addresses() {
        let network = ServiceNetwork { first: Ipv4Addr::new(10, 96, 0, 0), prefix: 12 };
        assert_eq!(network.at(1), Ipv4Addr::new(10, 96, 0, 1));
        assert!(network.contains(Ipv4Addr::new(10, 111, 255, 254)));
        assert!(!network.contains(Ipv4Addr::new(10, 96, 0, 0)));
        assert!(!network.contains(Ipv4Addr::new(10, 111, 255, 255)));
        assert!(!network.contains(Ipv4Addr::new(10, 112, 0, 1)));
        assert!(!network.contains(Ipv4Addr::new(10, 95, 255, 255)));
    }
}
