//! A cluster for tests: an authority, nodes, pods, and the state that all are told.

use crate::caller::{Attached, Caller};
use crate::{
    BackendPort, Cidr, Endpoint, Fabric, FabricConfig, FabricTls, HostRoutes, Name, NetworkState, PathKind,
    PathRoute, PodEntry, PodIdentity, Protocol, RouteSet, RouteSource, ServiceBackend, ServiceEntry,
    ServicePort,
};
use arc_swap::ArcSwap;
use coracle_wasi_host::descriptors::Descriptors;
use coracle_wasi_host::net::{
    Conn, Listener, Namespace, NamespaceConfig, NetError, NetLimits, TenantBuffers,
};
use coracle_wasi_host::refusals::{Refusals, What};
use coracle_wasi_host::serving::GATEWAY;
use coracle_wasi_host::shares::Shares;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(super) const SERVICE: &str = "10.96.0.20:80";

/// The authority that signs nodes' certificates.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub(super) fn node(&self, name: &str) -> FabricTls {
        self.tls(name, "system:nodes")
    }

    pub(super) fn tls(&self, name: &str, organization: &str) -> FabricTls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, organization);
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{name}"));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = || PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], key())
            .unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key())
            .unwrap();
        FabricTls {
            server: Arc::new(ArcSwap::from_pointee(server)),
            client: Arc::new(ArcSwap::from_pointee(client)),
        }
    }
}

/// Nodes `a` and `b`, with the blocks 10.128.1.0/24 and 10.128.2.0/24.
pub(super) struct Cluster {
    pub(super) authority: Authority,
    pub(super) a: Fabric,
    pub(super) b: Fabric,
    pub(super) state: NetworkState,
}

impl Cluster {
    pub(super) async fn new() -> Self {
        let authority = Authority::new();
        let (a, b) = (node(&authority, "a").await, node(&authority, "b").await);
        let mut state = NetworkState {
            pod_blocks: vec![
                block("10.128.1.0/24", "a"),
                block("10.128.2.0/24", "b"),
                block("10.128.3.0/24", "c"),
            ],
            ..NetworkState::default()
        };
        state.nodes.insert("a".into(), a.address().to_string());
        state.nodes.insert("b".into(), b.address().to_string());
        let cluster = Self { authority, a, b, state };
        cluster.tell();
        cluster
    }

    /// Tells both nodes the state.
    pub(super) fn tell(&self) {
        self.a.update(self.state.clone());
        self.b.update(self.state.clone());
    }

    /// Adds a service at [`SERVICE`] with these endpoints, whose port `http` is 8080, and tells it.
    pub(super) fn serve(&mut self, endpoints: &[&Pod]) -> &mut ServiceEntry {
        let endpoints = endpoints.iter().map(|pod| endpoint(pod.ip)).collect();
        self.state.services.push(service("web", endpoints));
        self.tell();
        self.state.services.last_mut().unwrap()
    }
}

pub(super) async fn node(authority: &Authority, name: &str) -> Fabric {
    Fabric::start(config(name, authority.node(name))).await.unwrap()
}

/// A node that lets pods of all namespaces leave the cluster.
pub(super) fn config(name: &str, tls: FabricTls) -> FabricConfig {
    FabricConfig {
        access_log: None,
        node_name: name.into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        gateway_listen: Some("127.0.0.1:0".parse().unwrap()),
        tls,
        egress: true,
        trusted_proxies: Vec::new(),
        gateway_requests: Shares::new(What::GatewayRequests, GATEWAY.requests_max),
        descriptors: Descriptors::of_process(),
        outside: TenantBuffers::within(256 << 20),
        refusals: Refusals::default(),
    }
}

/// Dials as a node that does not look at what its pods send from.
pub(super) async fn dial(node: &Fabric, from: SocketAddr, to: SocketAddr) -> Result<Conn, NetError> {
    node.inner().dial(&anybody(node, from.ip()), from, to).await
}

/// A pod that has not been asked whether the address is its own.
pub(super) fn anybody(node: &Fabric, from: IpAddr) -> Caller {
    let config = NamespaceConfig {
        hostname: "anybody".into(),
        tenant: "default".into(),
        addresses: vec![from],
        limits: NetLimits::default(),
    };
    let network = Namespace::new(config, node.uplink("default"));
    Caller::pod(from, Attached::new(network, identity("default", "anybody", from).into()))
}

/// The pod with this name and address, whose uid is the address, and which has its name as a label.
pub(super) fn identity(namespace: &str, name: &str, address: IpAddr) -> PodIdentity {
    let PodEntry { uid, labels, .. } = entry(name, address);
    PodIdentity { name: Name::new(namespace, name), uid, labels }
}

/// The same as it is told of.
pub(super) fn entry(name: &str, address: IpAddr) -> PodEntry {
    let labels = Arc::new(BTreeMap::from([("app".to_owned(), name.to_owned())]));
    PodEntry { address, uid: address.to_string().into(), labels }
}

pub(super) fn block(cidr: &str, node: &str) -> (Cidr, String) {
    (cidr.parse().unwrap(), node.into())
}

pub(super) fn service(name: &str, endpoints: Vec<Endpoint>) -> ServiceEntry {
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    ServiceEntry {
        namespace: "default".into(),
        name: name.into(),
        addresses: vec![address(SERVICE).ip()],
        ports: vec![port],
        endpoints,
        ..ServiceEntry::default()
    }
}

pub(super) fn endpoint(address: IpAddr) -> Endpoint {
    Endpoint {
        address,
        ready: true,
        hostname: None,
        ports: Arc::new(BTreeMap::from([("http".to_owned(), 8080)])),
    }
}

fn backend(service: &str) -> ServiceBackend {
    ServiceBackend { service: service.into(), port: BackendPort::Name("http".into()) }
}

/// A service without an address of its own, which is reached by the gateway.
pub(super) fn named(name: &str, pods: &[&Pod]) -> ServiceEntry {
    let mut entry = service(name, pods.iter().map(|pod| endpoint(pod.ip)).collect());
    entry.addresses.clear();
    entry
}

/// Rules of a host, a path's beginning and a service each.
pub(super) fn ingress(rules: &[(&str, &str, &str)]) -> (RouteSource, RouteSet) {
    let rule = |(host, path, service): &(&str, &str, &str)| HostRoutes {
        host: Some((*host).to_owned()),
        paths: vec![PathRoute {
            path: (*path).into(),
            kind: PathKind::Prefix,
            backend: backend(service).into(),
        }],
        ..HostRoutes::default()
    };
    let routes = RouteSet { hosts: rules.iter().map(rule).collect(), ..RouteSet::default() };
    (RouteSource::Ingress(Name::new("default", "in")), routes)
}

/// A pod on a node.
pub(super) struct Pod {
    pub(super) ip: IpAddr,
    pub(super) net: Namespace,
}

pub(super) fn pod(node: &Fabric, ip: &str) -> Pod {
    pod_in("default", node, ip)
}

pub(super) fn pod_in(namespace: &str, node: &Fabric, ip: &str) -> Pod {
    pod_within(NetLimits::default(), namespace, node, ip)
}

pub(super) fn pod_within(limits: NetLimits, namespace: &str, node: &Fabric, ip: &str) -> Pod {
    let ip = ip.parse().unwrap();
    let config =
        NamespaceConfig { hostname: "pod".into(), tenant: namespace.into(), addresses: vec![ip], limits };
    let net = Namespace::new(config, node.uplink(namespace));
    node.attach(ip, net.clone(), identity(namespace, "pod", ip));
    Pod { ip, net }
}

impl Pod {
    pub(super) fn listen(&self) -> Listener {
        self.net.listen(address("0.0.0.0:8080")).unwrap()
    }

    /// Answers every connection on 8080 with a name, then closes it.
    pub(super) fn say(&self, name: &'static str) {
        let listener = self.listen();
        tokio::spawn(async move {
            while let Ok((mut conn, _)) = listener.accept().await {
                // The client may be gone already.
                let _ = conn.write_all(name.as_bytes()).await;
            }
        });
    }

    /// Connects to [`SERVICE`] and reads what it says.
    pub(super) async fn ask(&self) -> std::io::Result<String> {
        let mut conn = self.net.connect(address(SERVICE)).await?;
        read_all(&mut conn).await
    }
}

pub(super) async fn read_all(conn: &mut Conn) -> std::io::Result<String> {
    let mut text = String::new();
    conn.read_to_string(&mut text).await?;
    Ok(text)
}

pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
