//! What joins a node's pods to each other, to other nodes' pods and to the world.
//!
//! A [`Fabric`] is one node's share of the cluster network: service addresses and their balancing, cluster names,
//! tunnels to other nodes, the gateway and node ports. Pods see it as their [`coracle_wasi_host::net::Uplink`].
//! What the cluster looks like it is told as [`NetworkChange`]s: each costs what has changed, however large the cluster is.
//!
//! What must hold here: one function ([`place`]) finds where a connection goes and who is there, one ([`policy`]'s `decide`)
//! whether it may, by who its two ends are ([`peer`]); a pod never reaches
//! its node's own loopback, link-local or control addresses; it sends from its own address and no other; one slow stream
//! stops no other, and nothing that pods share is to be had whole by one of them ([`coracle_wasi_host::shares`]).

mod caller;
mod carry;
mod closed;
mod dns;
mod door;
mod egress;
mod error;
mod fabric;
mod flows;
mod gateway;
mod model;
mod names;
mod node_port;
mod page;
mod peer;
mod place;
mod policy;
mod resolver;
mod service;
mod spare;
mod tables;
mod tunnel;
mod uplink;
mod whereabouts;

#[cfg(test)]
mod tests;

pub use error::FabricError;
pub use fabric::{Fabric, FabricConfig};
pub use gateway::{AccessLog, AskedOfFunction};
pub use model::{
    BackendPort, Cidr, Claim, Endpoint, HostRoutes, Labels, NetworkChange, NodeEntry, NodeIdentity,
    ParseCidrError, PathKind, PathRoute, PodEntry, PodIdentity, Protocol, RouteBackend, RouteSet,
    RouteSource, ServiceBackend, ServiceEntry, ServicePort,
};
pub use names::Name;
pub use page::{Page, Verdict};
#[cfg(test)]
use tables::whole::NetworkState;
pub use tunnel::FabricTls;
