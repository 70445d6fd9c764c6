//! Prints how many placements a second the scheduler makes by itself, without log and store (numbers.md, row 6).
//!
//! `cargo run --release -p coracle-scheduler --example placement_rate [NODES] [PODS] [TEMPLATES]`
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock; the scheduler does not")]

use std::{sync::Arc, time::Instant};

use coracle_objects::{Event, EventKind, Object, ObjectKey};
use coracle_scheduler::Scheduler;
use jiff::Timestamp;
use serde_json::json;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let nodes = arguments.next().unwrap_or(5_000);
    let pods = arguments.next().unwrap_or(50_000);
    let templates = arguments.next().unwrap_or(50);
    let mut scheduler = Scheduler::new();
    for index in 0..nodes {
        scheduler.observe(&added(node(index), index as u64));
    }
    let events: Vec<Event> = (0..pods).map(|index| added(pod(index, templates), index as u64)).collect();
    let started = Instant::now();
    for event in &events {
        scheduler.observe(event);
    }
    let observed = started.elapsed();
    let started = Instant::now();
    let mut placed = 0;
    let mut unplaced = 0;
    loop {
        let decisions = scheduler.schedule(Timestamp::UNIX_EPOCH);
        if decisions.placements.is_empty() {
            break;
        }
        placed += decisions.placements.len();
        unplaced += decisions.failures.len();
    }
    let decided = started.elapsed();
    println!("nodes {nodes}, pods {pods} of {templates} templates: {placed} placed, {unplaced} not");
    println!("observe  {:>10.0} pods/s", pods as f64 / observed.as_secs_f64());
    println!("schedule {:>10.0} placements/s", placed as f64 / decided.as_secs_f64());
}

fn added(object: Object, revision: u64) -> Event {
    Event { kind: EventKind::Added, object: Arc::new(object.at_revision(revision + 1)), previous: None }
}

fn node(index: usize) -> Object {
    let draft = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("node-{index}"), "uid": format!("node-uid-{index}"),
            "labels": {"kubernetes.io/hostname": format!("node-{index}"), "zone": format!("z{}", index % 3)}},
        "spec": {},
        "status": {"allocatable": {"cpu": "16", "memory": "64Gi", "pods": "500"},
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    let key = ObjectKey::new("nodes", "", &format!("node-{index}"));
    Object::from_draft(key, draft.to_string().as_bytes(), 1).expect("a valid draft")
}

/// With as many templates as pods, each pod is alone and without owner: the worst case.
fn pod(index: usize, templates: usize) -> Object {
    let template = index % templates;
    let mut draft = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("web-{template}-{index}"), "namespace": "default",
            "uid": format!("3b9a7c1e-0000-4000-8000-{index:012}"), "generateName": format!("web-{template}-"),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": format!("web-{template}"),
            "pod-template-hash": "5d9c7b8f6d"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("web-{template}"),
                "uid": format!("rs-{template}"), "controller": true, "blockOwnerDeletion": true}]},
        "spec": {"containers": [{"name": "web", "image": "hello:1.0", "imagePullPolicy": "IfNotPresent",
                "env": [{"name": "A", "value": "one"}, {"name": "B", "value": "two"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": format!("{}m", 10 + template % 90), "memory": "32Mi"}},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default", "schedulerName": "default-scheduler", "securityContext": {},
            "nodeSelector": {}, "tolerations": []},
        "status": {"phase": "Pending", "qosClass": "Burstable"},
    });
    if templates > 1_000 {
        draft["metadata"].as_object_mut().expect("an object").remove("ownerReferences");
        draft["spec"]["containers"][0]["resources"]["requests"]["memory"] =
            format!("{}", 1_000_000 + index).into();
    }
    let key = ObjectKey::new("pods", "default", &format!("web-{template}-{index}"));
    Object::from_draft(key, draft.to_string().as_bytes(), 1).expect("a valid draft")
}
