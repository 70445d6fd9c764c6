//! Functions at the gateway: who waits for an instance, and what is told of what is asked.

use super::cluster::{Cluster, ingress, named, pod};
use super::gateway::{Component, get};
use crate::{AskedOfFunction, Name, RouteSource};
use coracle_proto::metrics::Text;
use futures::future::join_all;
use http::StatusCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The host hello.local of a function with the revision hello-1, which has no instance.
async fn at_rest() -> Cluster {
    let mut cluster = Cluster::new().await;
    cluster.state.services = vec![named("hello-1", &[])];
    let (_, routes) = ingress(&[("hello.local", "/", "hello-1")]);
    cluster.state.routes = vec![(RouteSource::Function(Name::new("default", "hello")), routes)];
    cluster.tell();
    cluster
}

fn only(told: Vec<AskedOfFunction>) -> AskedOfFunction {
    let [one] = &told[..] else { panic!("one revision: {told:?}") };
    assert_eq!((&*one.namespace, &*one.revision), ("default", "hello-1"));
    one.clone()
}

#[tokio::test]
async fn requests_wait_until_there_is_an_instance() {
    let mut cluster = at_rest().await;
    let gateway = cluster.a.gateway_address().unwrap();
    assert_eq!(cluster.a.take_demand(), []);
    let asked: Vec<_> =
        (0..20).map(|_| tokio::spawn(async move { get(gateway, "hello.local", "/").await })).collect();
    assert_eq!(cluster.a.instances_wanted().await, [Name::new("default", "hello-1")]);
    // Others come after the first, of whom it is told at once.
    while only(cluster.a.take_demand()).waiting < 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let told = only(cluster.a.take_demand());
    assert!(
        (told.arrived, told.waiting) == (0, 20) && told.under_way >= Duration::from_millis(20 * 50),
        "{told:?}"
    );
    // What changes of others wakes nobody.
    cluster.state.services.push(named("other", &[]));
    cluster.tell();
    let near = pod(&cluster.a, "10.128.1.2");
    near.net.serve_http(8080, Arc::new(Component("component")));
    cluster.state.services = vec![named("hello-1", &[&near])];
    let begun = Instant::now();
    cluster.tell();
    for answer in join_all(asked).await {
        assert_eq!(answer.unwrap().0, StatusCode::OK);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "they are told, and look not only now and then");
    assert_eq!(only(cluster.a.take_demand()).waiting, 0);
    assert_eq!(cluster.a.take_demand(), [], "what nobody asks for is forgotten");
    let told = |cluster: &Cluster| {
        let mut figures = Text::default();
        cluster.a.write_gateway(&mut figures);
        figures.finish()
    };
    let of = "namespace=\"default\",revision=\"hello-1\"";
    for line in [
        format!("coracle_function_requests_total{{{of},code=\"2xx\"}} 20"),
        format!("coracle_function_request_duration_seconds_count{{{of}}} 20"),
        format!("coracle_function_wait_seconds_count{{{of}}} 20"),
        format!("coracle_function_wait_seconds_bucket{{{of},le=\"0.025\"}} 0"),
    ] {
        let figures = told(&cluster);
        assert!(figures.lines().any(|found| found == line), "{line} is not in\n{figures}");
    }
    cluster.state.services = vec![];
    cluster.tell();
    assert!(!told(&cluster).contains("hello-1"), "with the revision goes what was counted");
}

#[tokio::test]
async fn a_request_whose_instances_have_ended_waits_for_another() {
    let mut cluster = at_rest().await;
    let gateway = cluster.a.gateway_address().unwrap();
    let gone = pod(&cluster.a, "10.128.1.2");
    cluster.state.services = vec![named("hello-1", &[&gone])];
    cluster.tell();
    let asked = tokio::spawn(async move { get(gateway, "hello.local", "/").await });
    cluster.a.instances_wanted().await;
    let near = pod(&cluster.a, "10.128.1.3");
    near.net.serve_http(8080, Arc::new(Component("another")));
    cluster.state.services = vec![named("hello-1", &[&near])];
    cluster.tell();
    let (status, text) = asked.await.unwrap();
    assert!(status == StatusCode::OK && text.starts_with("another"), "{status} {text}");
}

#[tokio::test]
async fn who_goes_away_waits_no_longer_and_a_revision_that_is_gone_is_not_waited_for() {
    let mut cluster = at_rest().await;
    let gateway = cluster.a.gateway_address().unwrap();
    let asked = tokio::spawn(async move { get(gateway, "hello.local", "/").await });
    cluster.a.instances_wanted().await;
    asked.abort();
    while cluster.a.take_demand().iter().any(|told| told.waiting > 0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let asked = tokio::spawn(async move { get(gateway, "hello.local", "/").await });
    cluster.a.instances_wanted().await;
    cluster.state.services = vec![];
    cluster.tell();
    assert_eq!(asked.await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE);
}
