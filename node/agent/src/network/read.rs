//! Kubernetes objects, read as the parts of the network that they stand for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coracle_fabric::{
    BackendPort, Endpoint, HostRoutes, PathKind, PathRoute, PodEntry, Protocol, RouteBackend, RouteSet,
    ServiceBackend, ServiceEntry, ServicePort,
};
use coracle_objects::kinds::{
    FUNCTION_PORT, TRAFFIC_MAX, function_paths, hosts_since, own_hosts, tagged_host,
};
use serde_json::Value;

/// Source: v1.ClientIPConfig.
const AFFINITY_SECONDS_DEFAULT: u64 = 10_800;

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

pub(super) fn service(namespace: &str, name: &str, object: &Value) -> ServiceEntry {
    let spec = &object["spec"];
    let addresses = match list(&spec["clusterIPs"]) {
        [] => std::slice::from_ref(&spec["clusterIP"]),
        several => several,
    };
    let affinity = (spec["sessionAffinity"] == "ClientIP").then(|| {
        let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
        Duration::from_secs(seconds.unwrap_or(AFFINITY_SECONDS_DEFAULT))
    });
    let is_external = spec["type"] == "ExternalName";
    ServiceEntry {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        addresses: addresses.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect(),
        external_name: spec["externalName"].as_str().filter(|_| is_external).map(str::to_owned),
        ports: list(&spec["ports"]).iter().filter_map(service_port).collect(),
        client_affinity: affinity,
        publish_not_ready: spec["publishNotReadyAddresses"] == true,
        endpoints: Vec::new(),
    }
}

fn service_port(object: &Value) -> Option<ServicePort> {
    Some(ServicePort {
        name: text(&object["name"]),
        protocol: match object["protocol"].as_str().unwrap_or("TCP") {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            // There is no SCTP in the virtual network.
            _ => return None,
        },
        port: port(&object["port"])?,
        node_port: port(&object["nodePort"]),
    })
}

pub(super) fn endpoints(slice: &Value) -> Vec<Endpoint> {
    let ports: Arc<BTreeMap<String, u16>> = Arc::new(
        list(&slice["ports"])
            .iter()
            .filter_map(|one| Some((text(&one["name"]), port(&one["port"])?)))
            .collect(),
    );
    let mut all = Vec::new();
    for endpoint in list(&slice["endpoints"]) {
        let ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
        let hostname = endpoint["hostname"].as_str().map(str::to_owned);
        // Consumers use the first address only. Source: discovery.k8s.io/v1.
        let address = list(&endpoint["addresses"]).first().and_then(|ip| ip.as_str()?.parse().ok());
        all.extend(address.map(|address| Endpoint {
            address,
            ready,
            hostname: hostname.clone(),
            ports: ports.clone(),
        }));
    }
    all
}

/// A pod that has an address. One that has ended has given it back; another pod may have it.
pub(super) fn pod(object: &Value) -> Option<PodEntry> {
    let (metadata, status) = (&object["metadata"], &object["status"]);
    if matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let label = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    let labels = metadata["labels"].as_object().into_iter().flatten().filter_map(label).collect();
    Some(PodEntry {
        address: status["podIP"].as_str()?.parse().ok()?,
        uid: text(&metadata["uid"]).into(),
        labels: Arc::new(labels),
    })
}

pub(super) fn ingress(object: &Value) -> RouteSet {
    let spec = &object["spec"];
    let since = hosts_since(object);
    let hosts = list(&spec["rules"]).iter().map(|rule| {
        let host = rule["host"].as_str().filter(|host| !host.is_empty());
        let asked = host.and_then(|host| since.get(&host.to_ascii_lowercase()));
        let paths = list(&rule["http"]["paths"]).iter().filter_map(ingress_path).collect();
        HostRoutes { host: host.map(str::to_owned), since: asked.cloned().unwrap_or_default(), paths }
    });
    RouteSet {
        created: text(&object["metadata"]["creationTimestamp"]),
        default_backend: backend(&spec["defaultBackend"]),
        hosts: hosts.collect(),
    }
}

/// The routes of a function, as its status says that the requests go.
pub(super) fn function(object: &Value) -> RouteSet {
    let since = hosts_since(object);
    let traffic = list(&object["status"]["traffic"]);
    let traffic = &traffic[..traffic.len().min(TRAFFIC_MAX)];
    let backend = |part: &Value| {
        let service = part["revision"].as_str()?.to_owned();
        Some(ServiceBackend { service, port: BackendPort::Number(FUNCTION_PORT) })
    };
    let share = |part: &Value| {
        let percent = part["percent"].as_u64().and_then(|percent| u32::try_from(percent).ok());
        Some((percent.filter(|percent| *percent > 0)?, backend(part)?))
    };
    let parts: Vec<(u32, ServiceBackend)> = traffic.iter().filter_map(share).collect();
    let whole = match &parts[..] {
        [] => None,
        [(_, one)] => Some(RouteBackend::Service(one.clone())),
        _ => Some(RouteBackend::Split(parts.into())),
    };
    let own = own_hosts(object);
    let routes = |host: String, backend: Option<RouteBackend>| {
        let path = |path: &str, backend| PathRoute { path: path.to_owned(), kind: PathKind::Prefix, backend };
        let to = |backend: RouteBackend| {
            function_paths(object).into_iter().map(|at| path(at, backend.clone())).collect::<Vec<_>>()
        };
        let paths = backend.map(to).unwrap_or_default();
        // A tag that only the status has asks for no host: it may be another's by now.
        Some(HostRoutes { since: since.get(&host)?.clone(), host: Some(host), paths })
    };
    let mut hosts: Vec<HostRoutes> =
        own.iter().filter_map(|host| routes(host.clone(), whole.clone())).collect();
    for part in traffic {
        let Some(tag) = part["tag"].as_str().filter(|tag| !tag.is_empty()) else { continue };
        hosts.extend(
            own.iter()
                .filter_map(|host| routes(tagged_host(tag, host), backend(part).map(RouteBackend::from))),
        );
    }
    RouteSet { created: text(&object["metadata"]["creationTimestamp"]), default_backend: None, hosts }
}

fn ingress_path(path: &Value) -> Option<PathRoute> {
    Some(PathRoute {
        path: text(&path["path"]),
        kind: match path["pathType"].as_str() {
            Some("Exact") => PathKind::Exact,
            Some("Prefix") => PathKind::Prefix,
            _ => PathKind::ImplementationSpecific,
        },
        backend: backend(&path["backend"])?.into(),
    })
}

fn backend(object: &Value) -> Option<ServiceBackend> {
    let service = &object["service"];
    let number = port(&service["port"]["number"]).map(BackendPort::Number);
    let name = || service["port"]["name"].as_str().map(|name| BackendPort::Name(name.to_owned()));
    Some(ServiceBackend { service: service["name"].as_str()?.to_owned(), port: number.or_else(name)? })
}
