//! Ordinary manifests of every kind that clients write: what edits begin with.

use serde_json::{Value, json};

use crate::rng::Rng;

/// The kinds that are made, with weights: (group, plural).
pub const KINDS: &[(&str, &str, u64)] = &[
    ("apps", "deployments", 22),
    ("apps", "replicasets", 16),
    ("", "pods", 20),
    ("", "services", 14),
    ("", "configmaps", 8),
    ("", "secrets", 3),
    ("", "serviceaccounts", 2),
    ("", "endpoints", 2),
    ("discovery.k8s.io", "endpointslices", 5),
    ("networking.k8s.io", "ingresses", 4),
    ("", "events", 3),
    ("events.k8s.io", "events", 2),
    ("coordination.k8s.io", "leases", 3),
    ("", "nodes", 2),
    ("networking.k8s.io", "ingressclasses", 1),
    ("networking.k8s.io", "ipaddresses", 1),
];

/// Nodes that live, and one that does not exist.
const NODES: [&str; 4] = ["n1", "n2", "n1", "ghost"];

pub fn draw(plural: &str, group: &str, name: &str, rng: &mut Rng) -> Value {
    let mut object = match (group, plural) {
        (_, "deployments") => deployment(rng),
        (_, "replicasets") => replica_set(rng),
        (_, "pods") => json!({ "spec": pod_spec(rng, false) }),
        (_, "services") => service(rng),
        (_, "configmaps") => json!({ "data": { "a": "b", "c": "d" }, "binaryData": { "z": "AAAA" } }),
        (_, "secrets") => json!({ "data": { "a": "Yg==" }, "type": "Opaque" }),
        (_, "endpoints") => json!({ "subsets": [{
            "addresses": [{ "ip": "10.1.2.3" }], "ports": [{ "port": 80 }] }] }),
        (_, "endpointslices") => json!({
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.1.2.3"], "conditions": { "ready": true } }],
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }] }),
        (_, "ingresses") => ingress(),
        ("events.k8s.io", "events") => json!({
            "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Doing", "reason": "Because",
            "type": "Normal", "reportingController": "c", "reportingInstance": "i",
            "regarding": { "kind": "Pod", "name": "x", "namespace": "default" } }),
        (_, "events") => json!({
            "involvedObject": { "kind": "Pod", "name": "x", "namespace": "default" },
            "reason": "Because", "message": "so", "type": "Normal", "count": 1 }),
        (_, "leases") => json!({ "spec": {
            "holderIdentity": "me", "leaseDurationSeconds": 15,
            "renewTime": "2026-01-01T00:00:00.000000Z" } }),
        (_, "nodes") => json!({ "spec": { "taints": [{ "key": "a", "effect": "NoSchedule" }] },
            "status": { "capacity": { "cpu": "2", "pods": "10" },
            "conditions": [{ "type": "Ready", "status": "True" }] } }),
        (_, "ingressclasses") => json!({ "spec": { "controller": "example.com/x" } }),
        (_, "ipaddresses") => json!({ "spec": { "parentRef": {
            "resource": "services", "name": "x", "namespace": "default" } } }),
        _ => json!({}),
    };
    object["metadata"] = json!({ "name": name, "labels": { "app": app(rng) } });
    if plural == "endpointslices" && rng.chance(600) {
        object["metadata"]["labels"]["kubernetes.io/service-name"] = "x".into();
    }
    object
}

fn app(rng: &mut Rng) -> &'static str {
    rng.pick(&["x", "y"]).copied().unwrap_or("x")
}

fn replica_set(rng: &mut Rng) -> Value {
    let app = app(rng);
    let mut labels = json!({ "app": app });
    let mut selector = labels.clone();
    if rng.chance(80) {
        labels["pod-template-hash"] = "v".into();
        selector["pod-template-hash"] = "v".into();
    }
    json!({ "spec": {
        "replicas": rng.below(4),
        "selector": { "matchLabels": selector },
        "template": { "metadata": { "labels": labels, "annotations": { "n": "1" } },
            "spec": pod_spec(rng, true) },
    } })
}

fn deployment(rng: &mut Rng) -> Value {
    let mut object = replica_set(rng);
    let spec = &mut object["spec"];
    if rng.chance(300) {
        spec["minReadySeconds"] = rng.below(4).into();
    }
    match rng.below(4) {
        0 => spec["strategy"] = json!({ "type": "Recreate" }),
        1 => {
            spec["strategy"] = json!({ "type": "RollingUpdate",
                "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } });
        }
        _ => {}
    }
    if rng.chance(150) {
        spec["revisionHistoryLimit"] = rng.below(2).into();
    }
    object
}

/// The spec of a pod; of a template that lasts where `lasting`.
fn pod_spec(rng: &mut Rng, lasting: bool) -> Value {
    let mut spec = json!({ "containers": [container("c", rng)] });
    let extras: [(&str, u64, Value); 14] = [
        ("tolerations", 150, json!([{ "key": "a", "operator": "Exists", "effect": "NoExecute" }])),
        ("nodeSelector", 60, json!({ "kubernetes.io/hostname": "n1" })),
        ("nodeName", 60, (*rng.pick(&NODES).unwrap_or(&"n1")).into()),
        ("initContainers", 150, json!([container("i", rng)])),
        ("hostname", 80, "h".into()),
        ("subdomain", 60, "x".into()),
        ("terminationGracePeriodSeconds", 300, rng.below(10).into()),
        ("priority", 30, 0.into()),
        ("schedulerName", 30, "other".into()),
        ("serviceAccountName", 50, "default".into()),
        ("volumes", 250, volumes()),
        ("readinessGates", 40, json!([{ "conditionType": "example.com/gate" }])),
        ("hostAliases", 30, json!([{ "ip": "10.0.0.1", "hostnames": ["a"] }])),
        ("affinity", 80, affinity()),
    ];
    for (field, share, value) in extras {
        if rng.chance(share) {
            spec[field] = value;
        }
    }
    if !lasting && rng.chance(300) {
        spec["restartPolicy"] = (*rng.pick(&["Never", "OnFailure"]).unwrap_or(&"Never")).into();
    }
    spec
}

fn volumes() -> Value {
    json!([
        { "name": "v", "emptyDir": {} },
        { "name": "w", "configMap": { "name": "x", "optional": true } },
        { "name": "p", "projected": { "sources": [{ "downwardAPI": { "items": [
            { "path": "l", "fieldRef": { "fieldPath": "metadata.labels" } }] } }] } },
    ])
}

fn affinity() -> Value {
    let term = json!({ "matchExpressions": [
        { "key": "kubernetes.io/hostname", "operator": "In", "values": ["n1", "n2"] }] });
    json!({ "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] },
        "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 1, "preference": term }],
    } })
}

fn container(name: &str, rng: &mut Rng) -> Value {
    let mut container = json!({ "name": name, "image": "x:1" });
    let probe = json!({ "httpGet": { "path": "/", "port": 80 }, "periodSeconds": 5 });
    let extras: [(&str, u64, Value); 9] = [
        ("ports", 400, json!([{ "name": "http", "containerPort": 80 }])),
        ("env", 400, env()),
        ("envFrom", 100, json!([{ "configMapRef": { "name": "x", "optional": true } }])),
        ("resources", 300, json!({ "requests": { "cpu": "10m" }, "limits": { "memory": "16Mi" } })),
        ("readinessProbe", 200, probe.clone()),
        ("livenessProbe", 100, probe.clone()),
        ("startupProbe", 60, probe),
        ("args", 150, json!(["-a", "$(A)"])),
        ("lifecycle", 60, json!({ "preStop": { "sleep": { "seconds": 1 } } })),
    ];
    for (field, share, value) in extras {
        if rng.chance(share) {
            container[field] = value;
        }
    }
    container
}

fn env() -> Value {
    json!([
        { "name": "A", "value": "1" },
        { "name": "B", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
        { "name": "C", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
        { "name": "D", "valueFrom": { "configMapKeyRef": { "name": "x", "key": "a", "optional": true } } },
    ])
}

fn service(rng: &mut Rng) -> Value {
    let mut spec = json!({
        "selector": { "app": app(rng) },
        "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
    });
    match rng.below(8) {
        0 => spec["type"] = "NodePort".into(),
        1 => spec["clusterIP"] = "None".into(),
        2 => spec = json!({ "type": "ExternalName", "externalName": "example.com" }),
        3 => {
            spec["ipFamilies"] = json!(["IPv4"]);
            spec["ipFamilyPolicy"] = "SingleStack".into();
        }
        4 => {
            spec["ipFamilies"] = rng
                .pick(&[json!(["IPv4", "IPv4"]), json!(["IPv6"]), json!(["IPv4", "IPv6"])])
                .cloned()
                .unwrap_or_default();
        }
        5 => {
            spec["ports"] =
                json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 80, "protocol": "UDP" }])
        }
        _ => {}
    }
    json!({ "spec": spec })
}

fn ingress() -> Value {
    let backend = json!({ "service": { "name": "x", "port": { "number": 80 } } });
    json!({ "spec": {
        "defaultBackend": backend,
        "rules": [{ "host": "a.example", "http": { "paths": [
            { "path": "/", "pathType": "Prefix", "backend": backend }] } }],
    } })
}
