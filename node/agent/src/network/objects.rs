//! The objects that the network is made of, and what their changes mean for it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use coracle_fabric::{
    Cidr, Claim, Endpoint, Name, NetworkChange, NodeEntry, NodeIdentity, PodEntry, RouteSet, RouteSource,
    ServiceEntry,
};
use coracle_objects::is_api_slice;
use serde_json::Value;

use super::{FABRIC_ANNOTATION, read, read::text};
use crate::decode::Key;

/// On node objects to which the certificates of their nodes are bound.
const JOINED_ANNOTATION: &str = "coracle.dev/joined";
/// The label of a namespace that says whether its pods may open connections to beyond the cluster, and what it says then.
const EGRESS_LABEL: &str = "coracle.dev/egress";
const EGRESS_ALLOWED: &str = "allow";
/// The label by which an endpoint slice names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// The objects, read once each, and what the fabric is yet to be told of them.
#[derive(Default)]
pub(super) struct NetworkObjects {
    /// Without endpoints.
    services: BTreeMap<Name, ServiceEntry>,
    /// Which service has an address, by the store's claims (`ipaddresses`).
    addresses: BTreeMap<IpAddr, Name>,
    /// Which service has a node port, by the store's claims (`portallocations`).
    node_ports: BTreeMap<u16, Name>,
    slices: Slices,
    blocks: BTreeMap<String, (Cidr, String)>,
    nodes: BTreeMap<String, NodeEntry>,
    routes: BTreeMap<RouteSource, RouteSet>,
    /// Those with an address.
    pods: BTreeMap<Name, PodEntry>,
    /// Those whose pods may leave the cluster.
    egress_namespaces: BTreeMap<String, ()>,
    /// Services that may look different now, by their namespaces.
    touched: BTreeMap<Arc<str>, Touched>,
    changes: Vec<NetworkChange>,
    /// Of the change that is taken in.
    number: u64,
}

/// Services that may look different now, in the order in which they were touched first.
#[derive(Default)]
struct Touched {
    order: VecDeque<(u64, Name)>,
    known: BTreeSet<Name>,
}

/// Endpoints of one service that a node goes by, those of the first slices by name: what one service costs to be told of is
/// what others wait for at most.
const ENDPOINTS_MAX: usize = 65_536;

/// Endpoint slices.
#[derive(Default)]
struct Slices {
    /// By the service, then by their names.
    by_service: BTreeMap<Name, BTreeMap<String, Vec<Endpoint>>>,
    /// The service of each.
    services: BTreeMap<Name, Name>,
}

impl NetworkObjects {
    /// An object is so now, or is gone.
    pub(super) fn take_in(&mut self, key: &Key, object: Option<&Value>) {
        let (resource, namespace, name) = key;
        let own = Name::new(namespace, name);
        match resource.as_str() {
            "services" => self.put_service(own, object),
            "ipaddresses.networking.k8s.io" => self.claim_address(name, object.and_then(address_owner)),
            "portallocations.coracle.dev" => {
                let Ok(port) = name.parse() else { return };
                let claimed = claim(&mut self.node_ports, port, object.and_then(port_owner));
                self.hand_over(Claim::NodePort(port), claimed);
            }
            "endpointslices.discovery.k8s.io" => {
                let slice = object.and_then(|object| endpoints_of(namespace, object));
                self.slices.put(own, slice).into_iter().for_each(|service| self.touch(service));
            }
            "podblocks.coracle.dev" => self.put_block(name, object.and_then(block)),
            "nodes" => {
                let node = object.and_then(node);
                if set(&mut self.nodes, name.clone(), node.clone()) {
                    self.changes.push(NetworkChange::Node(name.clone(), node));
                }
            }
            "ingresses.networking.k8s.io" => {
                self.put_routes(RouteSource::Ingress(own), object.map(read::ingress));
            }
            "functions.coracle.dev" => {
                self.put_routes(RouteSource::Function(own), object.map(read::function))
            }
            "namespaces" => {
                let label = |object: &Value| object["metadata"]["labels"][EGRESS_LABEL] == EGRESS_ALLOWED;
                let allowed = object.filter(|object| label(object)).map(|_| ());
                if set(&mut self.egress_namespaces, name.clone(), allowed) {
                    self.changes.push(NetworkChange::Egress(name.clone(), allowed.is_some()));
                }
            }
            "pods" => {
                let pod = object.and_then(read::pod);
                if set(&mut self.pods, own.clone(), pod.clone()) {
                    self.changes.push(NetworkChange::Pod(own, pod));
                }
            }
            _ => {}
        }
    }

    fn put_routes(&mut self, source: RouteSource, routes: Option<RouteSet>) {
        if set(&mut self.routes, source.clone(), routes.clone()) {
            self.changes.push(NetworkChange::Routes(source, routes));
        }
    }

    fn put_service(&mut self, own: Name, object: Option<&Value>) {
        let entry = object.map(|object| read::service(&own.namespace, &own.name, object));
        if set(&mut self.services, own.clone(), entry) {
            self.touch(own);
        }
    }

    fn touch(&mut self, service: Name) {
        let touched = self.touched.entry(service.namespace.clone()).or_default();
        if touched.known.insert(service.clone()) {
            touched.order.push_back((self.number, service));
        }
    }

    /// The next that is taken in is the change of this number.
    pub(super) fn changed_by(&mut self, number: u64) {
        self.number = number;
    }

    /// The number of the first change that touched a service of this namespace which the fabric is yet to be told of.
    pub(super) fn touched_since(&self, namespace: &str) -> Option<u64> {
        self.touched.get(namespace)?.order.iter().map(|(number, _)| *number).min()
    }

    /// An address or a node port is another service's. Who had it loses it at once, and not only when it is told of anew,
    /// which may take a while: nobody keeps the traffic of another.
    fn hand_over(&mut self, claim: Claim, claimed: Claimed) {
        if let Some(former) = claimed.former {
            self.changes.push(NetworkChange::Unclaimed(former.clone(), claim));
            self.touch(former);
        }
        claimed.now.into_iter().for_each(|service| self.touch(service));
    }

    fn claim_address(&mut self, address: &str, owner: Option<Name>) {
        let Ok(address) = address.parse() else { return };
        let had_any = !self.addresses.is_empty();
        let claimed = claim(&mut self.addresses, address, owner);
        self.hand_over(Claim::Address(address), claimed);
        if had_any == self.addresses.is_empty() {
            let all: Vec<Name> = self.services.keys().cloned().collect();
            all.into_iter().for_each(|service| self.touch(service));
        }
    }

    fn put_block(&mut self, name: &str, block: Option<(Cidr, String)>) {
        let former = self.blocks.get(name).cloned();
        if !set(&mut self.blocks, name.to_owned(), block.clone()) {
            return;
        }
        self.changes.extend(former.map(|(cidr, _)| NetworkChange::PodBlock(cidr, None)));
        self.changes.extend(block.map(|(cidr, node)| NetworkChange::PodBlock(cidr, Some(node))));
    }

    /// The namespaces of services that the fabric is to be told of.
    pub(super) fn touched(&self) -> impl Iterator<Item = &Arc<str>> {
        self.touched.keys()
    }

    /// What the fabric is to be told since the last time, of services those of this namespace, at least one of them, until it
    /// is enough.
    pub(super) fn take_changes(
        &mut self,
        namespace: &str,
        mut is_enough: impl FnMut() -> bool,
    ) -> Vec<NetworkChange> {
        let mut changes = std::mem::take(&mut self.changes);
        while let Some(name) = self.pop_touched(namespace) {
            let entry = self.service(&name);
            changes.push(NetworkChange::Service(name, entry));
            if is_enough() {
                break;
            }
        }
        changes
    }

    fn pop_touched(&mut self, namespace: &str) -> Option<Name> {
        let touched = self.touched.get_mut(namespace)?;
        let (_, name) = touched.order.pop_front()?;
        touched.known.remove(&name);
        if touched.order.is_empty() {
            self.touched.remove(namespace);
        }
        Some(name)
    }

    /// A service as the fabric is told of it.
    fn service(&self, name: &Name) -> Option<ServiceEntry> {
        let mut service = self.services.get(name)?.clone();
        self.keep_what_is_claimed(name, &mut service);
        // What is of the control plane's service may be reached wherever it is: that is not for others to say.
        let is_api = (&*name.namespace, &*name.name) == ("default", "kubernetes");
        for (slice, endpoints) in self.slices.by_service.get(name).into_iter().flatten() {
            if !is_api || is_api_slice(slice) {
                let room = ENDPOINTS_MAX - service.endpoints.len();
                service.endpoints.extend(endpoints.iter().take(room).cloned());
            }
        }
        Some(service)
    }

    /// What a service's object says of addresses and node ports counts only where the store's claim says so too:
    /// an object must not get itself the traffic of another.
    fn keep_what_is_claimed(&self, name: &Name, service: &mut ServiceEntry) {
        // Every cluster has the claim of its API's address. A control node that sends none is of an older build.
        if self.addresses.is_empty() {
            return;
        }
        service.addresses.retain(|address| self.addresses.get(address) == Some(name));
        for port in &mut service.ports {
            port.node_port = port.node_port.filter(|port| self.node_ports.get(port) == Some(name));
        }
    }

    /// How many objects there are.
    pub(super) fn held(&self) -> usize {
        let claims = self.addresses.len() + self.node_ports.len();
        let others = self.blocks.len() + self.nodes.len() + self.egress_namespaces.len();
        let slices = self.slices.services.len();
        self.services.len() + slices + self.routes.len() + self.pods.len() + claims + others
    }
}

impl Slices {
    /// A slice is so now, with its service, or is gone. Says which services look different.
    fn put(&mut self, own: Name, slice: Option<(Name, Vec<Endpoint>)>) -> Vec<Name> {
        let former = self.services.get(&own).cloned();
        let (service, endpoints) = slice.unzip();
        if former == service
            && service.as_ref().and_then(|service| self.by_service.get(service)?.get(&*own.name))
                == endpoints.as_ref()
        {
            return Vec::new();
        }
        if let Some(of) = &former
            && let Some(slices) = self.by_service.get_mut(of)
        {
            slices.remove(&*own.name);
            if slices.is_empty() {
                self.by_service.remove(of);
            }
        }
        if let (Some(of), Some(endpoints)) = (&service, endpoints) {
            self.by_service.entry(of.clone()).or_default().insert(own.name.to_string(), endpoints);
        }
        set(&mut self.services, own, service.clone());
        former.into_iter().chain(service).collect()
    }
}

/// Sets a value or removes it; true where it was not so before.
fn set<K: Ord, V: PartialEq>(table: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    let Some(value) = value else { return table.remove(&key).is_some() };
    if table.get(&key) == Some(&value) {
        return false;
    }
    table.insert(key, value);
    true
}

/// The service that something was with, and the one that it is with, where that is not the same.
#[derive(Default)]
struct Claimed {
    former: Option<Name>,
    now: Option<Name>,
}

/// Gives something to a service, or to none.
fn claim<K: Ord>(table: &mut BTreeMap<K, Name>, key: K, owner: Option<Name>) -> Claimed {
    let former = match &owner {
        Some(owner) => table.insert(key, owner.clone()),
        None => table.remove(&key),
    };
    if former == owner { Claimed::default() } else { Claimed { former, now: owner } }
}

fn address_owner(object: &Value) -> Option<Name> {
    let parent = &object["spec"]["parentRef"];
    let of_a_service = parent["resource"] == "services";
    of_a_service.then(|| Name::new(&text(&parent["namespace"]), &text(&parent["name"])))
}

fn port_owner(object: &Value) -> Option<Name> {
    let (namespace, name) = object["spec"]["service"].as_str()?.split_once('/')?;
    Some(Name::new(namespace, name))
}

/// An endpoint slice's service, and its endpoints.
fn endpoints_of(namespace: &str, object: &Value) -> Option<(Name, Vec<Endpoint>)> {
    let service = object["metadata"]["labels"][SERVICE_LABEL].as_str()?;
    Some((Name::new(namespace, service), read::endpoints(object)))
}

fn block(object: &Value) -> Option<(Cidr, String)> {
    let spec = &object["spec"];
    Some((spec["cidr"].as_str()?.parse().ok()?, text(&spec["nodeName"])))
}

fn node(object: &Value) -> Option<NodeEntry> {
    let metadata = &object["metadata"];
    let fabric = metadata["annotations"][FABRIC_ANNOTATION].as_str()?.to_owned();
    let bound = metadata["annotations"][JOINED_ANNOTATION].is_string();
    Some(NodeEntry { fabric, identity: Some(NodeIdentity { uid: text(&metadata["uid"]), bound }) })
}

#[cfg(test)]
mod tests;
