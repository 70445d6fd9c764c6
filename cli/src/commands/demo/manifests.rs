//! The demo's manifests: what a user would write in YAML.

use serde_json::{Value, json};

/// A Deployment of one HTTP component, its Service and its Ingress at `NAME.localhost`.
pub fn web(name: &str, replicas: u32) -> Vec<Value> {
    vec![
        deployment(
            name,
            replicas,
            json!([{"name": name, "image": image(name), "ports": [{"containerPort": 80}]}]),
        ),
        service(name, 80),
        ingress(name),
    ]
}

/// A pod of two components and its caller.
pub fn guestbook() -> Vec<Value> {
    let front = json!({"name": "front", "image": image("guestbook-front"), "ports": [{"containerPort": 80}]});
    let store = json!({"name": "store", "image": image("guestbook-store")});
    let mut objects = vec![
        deployment("guestbook", 1, json!([front, store])),
        service("guestbook", 80),
        ingress("guestbook"),
    ];
    objects.extend(web("guestbook-caller", 1));
    objects
}

pub fn echo() -> Vec<Value> {
    let container = json!({
        "name": "tcp-echo", "image": image("tcp-echo"), "ports": [{"containerPort": 7}],
        "readinessProbe": {"tcpSocket": {"port": 7}, "periodSeconds": 1},
    });
    vec![deployment("tcp-echo", 2, json!([container])), service("tcp-echo", 7)]
}

pub fn echo_client() -> Value {
    let args = json!(["--connect", "tcp-echo:7", "hello", "through", "the", "service"]);
    pod("echo-client", json!({"name": "echo-client", "image": image("tcp-echo"), "args": args}), "Never")
}

/// A pod that runs once.
pub fn once(name: &str, args: &[&str]) -> Value {
    pod(name, json!({"name": name, "image": image(name), "args": args}), "Never")
}

pub fn spin(name: &str) -> Value {
    pod(name, json!({"name": "spin", "image": image("spin")}), "Never")
}

pub fn memory_hog() -> Value {
    let container =
        json!({"name": "hog", "image": image("memory-hog"), "resources": {"limits": {"memory": "64Mi"}}});
    pod("memory-hog", container, "Never")
}

pub fn crash() -> Value {
    pod("crash", json!({"name": "crash", "image": image("crash")}), "Always")
}

fn image(name: &str) -> String {
    format!("{name}:1.0")
}

fn pod(name: &str, container: Value, restart: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": restart, "containers": [container]},
    })
}

fn deployment(name: &str, replicas: u32, containers: Value) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
    })
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": port}]},
    })
}

fn ingress(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name},
        "spec": {"rules": [{"host": format!("{name}.localhost"), "http": {"paths": [{
            "path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": name, "port": {"number": 80}}},
        }]}}]},
    })
}
