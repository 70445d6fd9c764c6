//! The cluster as the network sees it: plain data that the agent makes from Kubernetes' objects.

use crate::names::Name;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// What has become of one part of the cluster that the network is made of; `None` where it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkChange {
    /// A service with its endpoints.
    Service(Name, Option<ServiceEntry>),
    /// An endpoint of a service is a pod of this node that serves, whatever its slices say yet; or is so no more.
    Served(Name, SocketAddr, bool),
    /// A service has lost something, until it is told of anew.
    Unclaimed(Name, Claim),
    /// The node that hands out these pod addresses.
    PodBlock(Cidr, Option<String>),
    /// A node by its name.
    Node(String, Option<NodeEntry>),
    /// The gateway's routes that one object has.
    Routes(RouteSource, Option<RouteSet>),
    /// A pod that has an address, for its names and for who it is.
    Pod(Name, Option<PodEntry>),
    /// Whether the pods of a namespace may open connections to beyond the cluster.
    Egress(String, bool),
}

/// What one service has at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// An address.
    Address(IpAddr),
    /// A TCP node port.
    NodePort(u16),
}

/// A node as others reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeEntry {
    /// The `host:port` of its fabric.
    pub fabric: String,
    /// What its certificate must say. Where it is missing the name is enough.
    pub identity: Option<NodeIdentity>,
}

/// Which Node a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeIdentity {
    /// metadata.uid
    pub uid: String,
    /// Whether its certificates name the uid. Those of older versions do not.
    pub bound: bool,
}

/// A v1.Pod with an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEntry {
    /// status.podIP
    pub address: IpAddr,
    /// metadata.uid
    pub uid: Arc<str>,
    /// metadata.labels
    pub labels: Labels,
}

/// The labels of an object, shared by all who know it.
pub type Labels = Arc<BTreeMap<String, String>>;

/// Which pod a pod is, as policies select it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    /// metadata.namespace and metadata.name
    pub name: Name,
    /// metadata.uid: another of the same name is another pod.
    pub uid: Arc<str>,
    /// metadata.labels
    pub labels: Labels,
}

/// A v1.Service with the addresses of its EndpointSlices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// metadata.namespace
    pub namespace: String,
    /// metadata.name
    pub name: String,
    /// spec.clusterIPs, empty where the service is headless or an external name.
    pub addresses: Vec<IpAddr>,
    /// spec.externalName of a service of type ExternalName.
    pub external_name: Option<String>,
    /// spec.ports
    pub ports: Vec<ServicePort>,
    /// The timeout of sessionAffinity ClientIP (Kubernetes' default: 10,800 s); none where there is no affinity.
    pub client_affinity: Option<Duration>,
    /// spec.publishNotReadyAddresses
    pub publish_not_ready: bool,
    /// The endpoints of all its slices.
    pub endpoints: Vec<Endpoint>,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Protocol {
    /// The default of Kubernetes.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where the service has one port without a name.
    pub name: String,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// The port of the service's address.
    pub port: u16,
    /// The port on the nodes' real addresses.
    pub node_port: Option<u16>,
}

/// One address behind a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A pod's address, or one outside of the cluster.
    pub address: IpAddr,
    /// conditions.ready (absent means true).
    pub ready: bool,
    /// The name under the service's, for pods of a StatefulSet.
    pub hostname: Option<String>,
    /// The slice's ports: the service port's name to the number on this endpoint. All endpoints of a slice share them.
    pub ports: Arc<BTreeMap<String, u16>>,
}

/// An object that has routes of the gateway. Their backends are in its namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteSource {
    /// A networking.k8s.io/v1 Ingress.
    Ingress(Name),
    /// A coracle.dev/v1 Function.
    Function(Name),
}

impl RouteSource {
    /// Its namespace and name.
    pub fn name(&self) -> &Name {
        match self {
            Self::Ingress(name) | Self::Function(name) => name,
        }
    }
}

/// The routes of one object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteSet {
    /// metadata.creationTimestamp, which sorts as text: of two of one namespace the older one has what both want.
    pub created: String,
    /// Of an Ingress spec.defaultBackend.
    pub default_backend: Option<ServiceBackend>,
    /// Of an Ingress spec.rules.
    pub hosts: Vec<HostRoutes>,
}

/// The routes for a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRoutes {
    /// Exact, or `*.` and a domain for exactly one label before it; none for every host.
    pub host: Option<String>,
    /// Since when the object asks for the host, which sorts as text.
    pub since: String,
    /// In the order in which they are written.
    pub paths: Vec<PathRoute>,
}

/// The route of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRoute {
    /// Begins with a slash; empty means `/`.
    pub path: String,
    /// How it is compared.
    pub kind: PathKind,
    /// Where a match goes.
    pub backend: RouteBackend,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteBackend {
    /// To one service.
    Service(ServiceBackend),
    /// To several, by chance: each with how many of all parts of the requests are its own. None is without any, and there is one
    /// at least.
    Split(Arc<[(u32, ServiceBackend)]>),
}

impl RouteBackend {
    /// The backend of one request: `chance` is a number of which any is as likely as any other.
    pub fn choose(&self, chance: u64) -> &ServiceBackend {
        match self {
            Self::Service(backend) => backend,
            Self::Split(parts) => {
                let whole: u64 = parts.iter().map(|(part, _)| u64::from(*part)).sum();
                let mut left = chance % whole.max(1);
                let chosen = parts.iter().find(|(part, _)| {
                    let is_here = left < u64::from(*part);
                    left = left.saturating_sub(u64::from(*part));
                    is_here
                });
                &chosen.unwrap_or(&parts[0]).1
            }
        }
    }
}

impl From<ServiceBackend> for RouteBackend {
    fn from(backend: ServiceBackend) -> Self {
        Self::Service(backend)
    }
}

/// How paths are compared: pathType of an Ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// The path alone.
    Exact,
    /// The path and what lies under it, element by element.
    Prefix,
    /// As Prefix here.
    ImplementationSpecific,
}

/// A service and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceBackend {
    /// The service's name, in the namespace of the route's source.
    pub service: String,
    /// Which of its ports.
    pub port: BackendPort,
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendPort {
    /// spec.ports[].port
    Number(u16),
    /// spec.ports[].name
    Name(String),
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    base: IpAddr,
    bits: u8,
}

/// A text that is no CIDR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address range like 10.128.3.0/24")]
pub struct ParseCidrError(String);

impl Cidr {
    /// The range with this many leading bits of `base`, whose other bits are cleared. None where there are not
    /// as many bits.
    pub fn new(base: IpAddr, bits: u8) -> Option<Self> {
        let width = if base.is_ipv4() { 32 } else { 128 };
        (bits <= width).then(|| Self { base: masked(base, bits), bits })
    }

    /// The first address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// Whether the address lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.base.is_ipv4() && masked(address, self.bits) == self.base
    }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let parse = || {
            let (base, bits) = text.split_once('/')?;
            Cidr::new(base.parse().ok()?, bits.parse().ok()?)
        };
        parse().ok_or_else(|| ParseCidrError(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}
