//! Large clusters: the work of a plan follows what changed, not what there is. Times are printed, not judged.
#![allow(clippy::disallowed_methods, reason = "the test measures; the controllers do not read the clock")]

use std::time::Instant;

use coracle_objects::ObjectKey;
use serde_json::{Value, json};

use crate::harness::{Cluster, deployment, web};

#[test]
fn a_deployment_of_a_thousand_pods_among_ten_thousand() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    for index in 0..9_000 {
        let name = format!("other-{index}");
        let value = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": format!("o{}", index % 90)}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        cluster.put(ObjectKey::new("pods", "default", &name), value);
    }
    cluster.settle();
    cluster.put(web(), deployment(1_000));
    let mut plans = 0;
    while cluster.step() {
        plans += 1;
    }
    assert_eq!(cluster.names("pods").len(), 10_000);
    assert!(plans <= 8, "one for the set, two bursts of 500, and the statuses; not {plans}");

    let pod = cluster.names("pods").into_iter().find(|name| name.contains("web-")).unwrap();
    let key = ObjectKey::new("pods", "default", pod.strip_prefix("default/").unwrap());
    cluster.edit(&key, |pod: &mut Value| pod["spec"]["nodeName"] = "n1".into());
    cluster.make_ready(&key, "10.128.0.9");
    let started = Instant::now();
    let plan = cluster.plan();
    println!("a plan after one pod became ready among 10,000: {:?}", started.elapsed());
    assert!(plan.tasks <= 3, "the pod's set, and nothing that it does not concern; not {}", plan.tasks);
    assert_eq!(plan.transactions.len(), 1, "the set's status");

    let view = cluster.view.clone();
    let started = Instant::now();
    cluster.controllers.resync(&view);
    println!("a resync of 10,000 pods: {:?}", started.elapsed());
    let started = Instant::now();
    let plan = cluster.plan();
    println!("the first plan after it: {:?}", started.elapsed());
    assert_eq!(plan.transactions.len(), 1, "again the set's status");
}
