//! What a pod's spec says where its author said nothing.

use serde_json::{Map, Value, json};

use super::resources;
use crate::fields::{child, default, default_text, elements, text};

/// Permissions of projected files: 0644.
const FILE_MODE: i64 = 0o644;

/// Fills in the pod template of a workload, at `spec.template` of the workload's `spec`.
pub(in crate::kinds) fn template_defaults(workload_spec: &mut Value) {
    let Some(template) = child(workload_spec, "template") else { return };
    default(template, "metadata", Value::Object(Map::new()));
    if let Some(spec) = child(template, "spec") {
        spec_defaults(spec);
    }
}

/// Fills in a pod's spec.
pub(in crate::kinds) fn spec_defaults(spec: &mut Value) {
    default_text(spec, "restartPolicy", "Always");
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "securityContext", json!({}));
    for volume in elements(spec, "volumes") {
        volume_defaults(volume);
    }
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for container in elements(spec, key) {
            container_defaults(container);
        }
    }
}

fn volume_defaults(volume: &mut Value) {
    if !volume.is_object() {
        return;
    }
    let sourceless = volume.as_object().is_some_and(|volume| volume.keys().all(|key| key == "name"));
    if sourceless {
        default(volume, "emptyDir", json!({}));
    }
    for key in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(key).filter(|source| source.is_object()) {
            default(source, "defaultMode", FILE_MODE);
            for item in elements(source, "items") {
                field_ref_defaults(item);
            }
            for part in elements(source, "sources").filter_map(|source| source.get_mut("downwardAPI")) {
                elements(part, "items").for_each(field_ref_defaults);
            }
        }
    }
}

/// The version of the object that a downward field is read from.
fn field_ref_defaults(holder: &mut Value) {
    if let Some(reference) = holder.get_mut("fieldRef").filter(|reference| reference.is_object()) {
        default_text(reference, "apiVersion", "v1");
    }
}

fn container_defaults(container: &mut Value) {
    if !container.is_object() {
        return;
    }
    let policy = if has_moving_tag(text(container, "/image")) { "Always" } else { "IfNotPresent" };
    default_text(container, "imagePullPolicy", policy);
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    resources::canonicalize(container);
    for port in elements(container, "ports") {
        default_text(port, "protocol", "TCP");
    }
    for source in elements(container, "env").filter_map(|variable| variable.get_mut("valueFrom")) {
        field_ref_defaults(source);
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(key).filter(|probe| probe.is_object()) {
            default(probe, "timeoutSeconds", 1);
            default(probe, "periodSeconds", 10);
            default(probe, "successThreshold", 1);
            default(probe, "failureThreshold", 3);
            handler_defaults(probe);
        }
    }
    if let Some(lifecycle) = container.get_mut("lifecycle") {
        for key in ["postStart", "preStop"] {
            if let Some(handler) = lifecycle.get_mut(key) {
                handler_defaults(handler);
            }
        }
    }
}

fn handler_defaults(handler: &mut Value) {
    if let Some(http) = handler.get_mut("httpGet").filter(|http| http.is_object()) {
        default_text(http, "path", "/");
        default_text(http, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc").filter(|grpc| grpc.is_object()) {
        default(grpc, "service", "");
    }
}

/// Whether the image names `latest`, by its tag or by having neither tag nor digest.
fn has_moving_tag(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_by_tag() {
        let cases = [
            ("hello", true),
            ("hello:latest", true),
            ("hello:1.0", false),
            ("registry:5000/hello", true),
            ("registry:5000/hello:1", false),
            ("hello@sha256:00", false),
            ("hello:latest@sha256:00", false),
        ];
        for (image, moving) in cases {
            assert_eq!(has_moving_tag(image), moving, "{image}");
        }
    }

    #[test]
    fn a_spec_is_filled_in() {
        let mut spec = json!({"containers": [{"name": "a", "image": "a:1", "ports": [{"containerPort": 80}],
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}},
                "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 5}}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}]});
        spec_defaults(&mut spec);
        let expected = json!({"containers": [{"name": "a", "image": "a:1",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP", "apiVersion": "v1"}}}],
                "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "periodSeconds": 5,
                    "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3},
                "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File"}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "x", "defaultMode": 420}}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "securityContext": {}});
        assert_eq!(spec, expected);
    }
}
