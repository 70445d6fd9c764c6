//! Containers together: over a pod's loopback, from pod to pod by name, and a pod's failure beside another.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::BodyExt;

use super::*;
use crate::Exit;
use crate::net::{Conn, NetError, Uplink, empty_body, full_body};

const PORT: u16 = 8080;

/// Knows one name, and the pod behind it.
struct Lane {
    target: Namespace,
}

impl Uplink for Lane {
    fn dial(&self, from: SocketAddr, to: SocketAddr) -> BoxFuture<'static, Result<Conn, NetError>> {
        Box::pin(std::future::ready(self.target.deliver(from, to)))
    }

    fn resolve(&self, _from: IpAddr, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, NetError>> {
        let known = name == "guestbook";
        let address = IpAddr::V4(Ipv4Addr::new(10, 128, 0, 7));
        Box::pin(std::future::ready(if known { Ok(vec![address]) } else { Err(NetError::NameUnknown) }))
    }

    fn send(&self, _from: SocketAddr, _to: SocketAddr, _payload: Bytes) -> Result<(), NetError> {
        Err(NetError::HostUnreachable)
    }
}

async fn text_of(pod: &Pod, request: http::Request<crate::net::HttpBody>) -> String {
    let service = pod.namespace().http_service(PORT).expect("served");
    let response = service.call(request).await.expect("answered");
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

fn get() -> http::Request<crate::net::HttpBody> {
    http::Request::get("/").body(empty_body()).expect("a request")
}

fn in_pod_of(bench: &Bench, target: &Namespace) -> Pod {
    let config = NamespaceConfig {
        hostname: "caller".to_owned(),
        tenant: "default".into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 128, 0, 8))],
        limits: NetLimits::default(),
    };
    let uplink = Arc::new(Lane { target: target.clone() });
    bench.host.pod(PodLimits::default(), Namespace::new(config, uplink))
}

#[tokio::test]
async fn a_guestbook_of_two_containers_is_called_from_another_pod_by_its_name() {
    let bench = Bench::new(2);
    let pod = bench.pod(PodLimits::default());
    let store = pod.start(bench.spec(bench.sample("guestbook-store").await)).expect("started");
    let mut front = bench.spec(bench.sample("guestbook-front").await);
    front.http_port = Some(PORT);
    let _front = pod.start(front).expect("started");
    while !bench.stdout.text().contains("keeping the guestbook") {
        tokio::task::yield_now().await;
    }
    let signed = http::Request::post("/").body(full_body("was here")).expect("a request");
    assert!(text_of(&pod, signed).await.starts_with("OK 1"));
    let caller_pod = in_pod_of(&bench, pod.namespace());
    let caller = bench.sample("guestbook-caller").await;
    let start = |target: &str| {
        let mut spec = bench.spec(caller.clone());
        spec.http_port = Some(PORT);
        spec.env = vec![("TARGET".to_owned(), target.to_owned())];
        caller_pod.start(spec).expect("started")
    };
    let container = start("http://guestbook:8080/");
    assert_eq!(text_of(&caller_pod, get()).await.trim_end(), "was here");
    container.kill();
    assert!(caller_pod.namespace().http_service(PORT).is_none());
    // Once the end is told, its port is free.
    assert_eq!(container.wait().await, Exit::Killed);
    let _container = start("http://nobody/");
    assert!(text_of(&caller_pod, get()).await.contains("DnsError"));
    // Its listener closed, the store's accept fails, and with it its program.
    store.stop();
    assert!(matches!(store.wait().await, Exit::Completed { .. }));
    // Its neighbour's does not go with it.
    let client = "10.128.9.9:4000".parse().expect("an address");
    let front_address = "10.128.0.7:8080".parse().expect("an address");
    pod.namespace().deliver(client, front_address).expect("still listening");
}

/// A sink with a bug.
struct Broken;

impl LogSink for Broken {
    fn write(&self, _line: &[u8]) -> usize {
        panic!("the sink is broken")
    }
}

#[tokio::test]
async fn a_panic_of_the_host_fails_the_one_pod_that_it_served() {
    let bench = Bench::new(1);
    let job = bench.sample("pi-job").await;
    let mut spec = bench.spec(job.clone());
    spec.stdout = Arc::new(Broken);
    let failed = bench.pod(PodLimits::default()).start(spec).expect("started");
    let exit = failed.wait().await;
    assert!(matches!(&exit, Exit::HostFault { message } if message.contains("the sink is broken")), "{exit}");
    assert_eq!(bench.start(job).wait().await, Exit::Completed { code: 0 });
}
