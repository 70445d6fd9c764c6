//! Names of services and pods, as pods resolve them.

use super::cluster::{Cluster, endpoint, entry, pod, service};
use crate::Name;
use coracle_wasi_host::net::NetError;
use std::net::IpAddr;

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

#[tokio::test]
async fn names_of_services_and_pods() {
    let mut cluster = Cluster::new().await;
    let mut other = service("db", vec![]);
    other.namespace = "data".into();
    other.addresses = ips(&["10.96.0.30"]);
    let mut headless =
        service("peers", vec![endpoint(ips(&["10.128.1.2"])[0]), endpoint(ips(&["10.128.2.2"])[0])]);
    headless.addresses.clear();
    headless.endpoints[0].hostname = Some("peers-0".into());
    headless.endpoints[1].ready = false;
    let mut external = service("mirror", vec![]);
    external.addresses.clear();
    external.external_name = Some("db.data.svc.cluster.local".into());
    cluster.state.services = vec![service("web", vec![]), other, headless, external];
    cluster.state.pods = vec![(Name::new("default", "web-xyz"), entry("web-xyz", ips(&["10.128.1.7"])[0]))];
    cluster.tell();
    let uplink = cluster.a.uplink("default");
    let from: IpAddr = ips(&["10.128.1.9"])[0];
    let web = ips(&["10.96.0.20"]);
    for (name, addresses) in [
        ("web", &web),
        ("WEB.default", &web),
        ("web.default.svc", &web),
        ("web.default.svc.cluster.local", &web),
        ("web.default.svc.cluster.local.", &web),
        ("db.data", &ips(&["10.96.0.30"])),
        ("mirror", &ips(&["10.96.0.30"])),
        ("peers", &ips(&["10.128.1.2"])),
        ("peers-0.peers", &ips(&["10.128.1.2"])),
        ("10-128-1-2.peers.default.svc.cluster.local", &ips(&["10.128.1.2"])),
        ("10-128-1-7.default.pod.cluster.local", &ips(&["10.128.1.7"])),
    ] {
        assert_eq!(uplink.resolve(from, name).await.as_ref(), Ok(addresses), "{name}");
    }
    for name in [
        "db",
        "nobody",
        "web.data.svc",
        "web.nowhere.svc.cluster.local",
        "cluster.local",
        "peers-1.peers.default.svc",
    ] {
        assert_eq!(uplink.resolve(from, name).await, Err(NetError::NameUnknown), "{name}");
    }
    // Another namespace searches itself first.
    assert_eq!(cluster.a.uplink("data").resolve(from, "db").await, Ok(ips(&["10.96.0.30"])));
}

#[tokio::test]
async fn not_ready_endpoints_are_named_where_the_service_says_so() {
    let mut cluster = Cluster::new().await;
    let member = pod(&cluster.a, "10.128.1.2");
    let mut headless = service("peers", vec![endpoint(member.ip)]);
    headless.addresses.clear();
    headless.endpoints[0].ready = false;
    cluster.state.services = vec![headless];
    cluster.tell();
    assert_eq!(member.net.resolve("peers").await, Err(NetError::NameUnknown));
    cluster.state.services[0].publish_not_ready = true;
    cluster.tell();
    assert_eq!(member.net.resolve("peers").await, Ok(vec![member.ip]));
}
