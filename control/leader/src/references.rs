//! The objects that a pod names: what its node needs to run it.

use std::collections::BTreeSet;

use coracle_objects::{Object, ObjectKey};
use serde::Deserialize;

pub const CONFIG_MAPS: &str = "configmaps";
pub const SECRETS: &str = "secrets";
pub const SERVICE_ACCOUNTS: &str = "serviceaccounts";
/// Of its pods, for what the namespace allows them.
pub const NAMESPACES: &str = "namespaces";

/// Where a pod is, and what it names.
#[derive(Debug, Default)]
pub struct References {
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// Its namespace, and the config maps, secrets and service accounts.
    pub keys: BTreeSet<ObjectKey>,
    /// Where it cannot be read only the node and the namespace are known.
    pub readable: bool,
}

pub fn of_pod(pod: &Object) -> References {
    let mut names = Names { namespace: pod.namespace(), keys: BTreeSet::new() };
    names.keys.insert(ObjectKey::new(NAMESPACES, "", pod.namespace()));
    match pod.parse::<Pod>() {
        Ok(parsed) => {
            let spec = parsed.spec.unwrap_or_default();
            // One that has ended needs nothing more, however long its object is kept.
            let phase = parsed.status.and_then(|status| status.phase).unwrap_or_default();
            if !matches!(phase.as_str(), "Succeeded" | "Failed") {
                names.add_spec(&spec);
            }
            References { node: spec.node_name, keys: names.keys, readable: true }
        }
        Err(_) => References { node: node_of(pod), keys: names.keys, readable: false },
    }
}

/// `spec.nodeName`.
pub fn node_of(pod: &Object) -> Option<String> {
    #[derive(Deserialize)]
    struct Narrow {
        spec: NarrowSpec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct NarrowSpec {
        node_name: Option<String>,
    }
    pod.parse::<Narrow>().ok()?.spec.node_name
}

struct Names<'a> {
    namespace: &'a str,
    keys: BTreeSet<ObjectKey>,
}

impl Names<'_> {
    fn add(&mut self, resource: &str, name: Option<&String>) {
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            self.keys.insert(ObjectKey::new(resource, self.namespace, name));
        }
    }

    fn add_both(&mut self, config_map: Option<&Named>, secret: Option<&Named>) {
        self.add(CONFIG_MAPS, config_map.and_then(|source| source.name.as_ref()));
        self.add(SECRETS, secret.and_then(|source| source.name.as_ref()));
    }

    fn add_spec(&mut self, spec: &PodSpec) {
        let account = spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
        self.add(SERVICE_ACCOUNTS, Some(&account));
        for secret in spec.image_pull_secrets.iter().flatten() {
            self.add(SECRETS, secret.name.as_ref());
        }
        let containers = [&spec.init_containers, &spec.containers];
        for container in containers.into_iter().flatten().flatten() {
            for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
                self.add_both(from.config_map_key_ref.as_ref(), from.secret_key_ref.as_ref());
            }
            for from in container.env_from.iter().flatten() {
                self.add_both(from.config_map_ref.as_ref(), from.secret_ref.as_ref());
            }
        }
        for volume in spec.volumes.iter().flatten() {
            self.add_both(volume.config_map.as_ref(), None);
            self.add(SECRETS, volume.secret.as_ref().and_then(|source| source.secret_name.as_ref()));
            for source in volume.projected.iter().flat_map(|projected| &projected.sources).flatten() {
                self.add_both(source.config_map.as_ref(), source.secret.as_ref());
            }
        }
    }
}

/// Null is as if the field were absent, as every reader takes it.
#[derive(Deserialize)]
struct Pod {
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Deserialize)]
struct PodStatus {
    phase: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    image_pull_secrets: Option<Vec<Named>>,
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    volumes: Option<Vec<Volume>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Option<Vec<EnvVar>>,
    env_from: Option<Vec<EnvFromSource>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvVar {
    value_from: Option<EnvVarSource>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvVarSource {
    config_map_key_ref: Option<Named>,
    secret_key_ref: Option<Named>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvFromSource {
    config_map_ref: Option<Named>,
    secret_ref: Option<Named>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    config_map: Option<Named>,
    secret: Option<SecretVolume>,
    projected: Option<ProjectedVolume>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretVolume {
    secret_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ProjectedVolume {
    sources: Option<Vec<ProjectedSource>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProjectedSource {
    config_map: Option<Named>,
    secret: Option<Named>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    name: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(spec: Value) -> References {
        let draft = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec}).to_string();
        of_pod(&Object::from_draft(ObjectKey::new("pods", "d", "p"), draft.as_bytes(), 1).unwrap())
    }

    fn names(references: &References) -> Vec<String> {
        references.keys.iter().map(|key| format!("{} {}", key.resource, key.name.name)).collect()
    }

    #[test]
    fn everything_that_a_pod_names_is_found() {
        let references = of(json!({
            "nodeName": "n1", "serviceAccountName": "account", "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"name": "i", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "init", "key": "k"}}}]}],
            "containers": [{"name": "c", "image": "x",
                "env": [{"name": "B", "value": "b"}, {"name": "C", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "all"}}, {"secretRef": {"name": "all-secret"}}]}],
            "volumes": [{"name": "v", "configMap": {"name": "files"}}, {"name": "w", "secret": {"secretName": "files-secret"}},
                {"name": "x", "projected": {"sources": [{"configMap": {"name": "part"}}, {"secret": {"name": "part-secret"}}]}},
                {"name": "y", "emptyDir": {}}],
        }));
        assert_eq!((references.node.as_deref(), references.readable), (Some("n1"), true));
        let mut expected: Vec<String> =
            ["all", "files", "init", "part"].map(|name| format!("configmaps {name}")).into();
        expected.push("namespaces d".into());
        let secrets = ["all-secret", "files-secret", "key", "part-secret", "pull"];
        expected.extend(secrets.map(|name| format!("secrets {name}")));
        expected.push("serviceaccounts account".into());
        let mut found = names(&references);
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn null_is_nothing_and_of_what_cannot_be_read_the_node_is_known() {
        let nothing =
            of(json!({"nodeName": "n1", "containers": null, "volumes": null, "imagePullSecrets": null}));
        assert!(nothing.readable);
        assert_eq!(names(&nothing).len(), 2, "the namespace and its account");
        let unreadable = of(json!({"nodeName": "n1", "containers": "none"}));
        assert_eq!((unreadable.node.as_deref(), unreadable.readable), (Some("n1"), false));
        assert_eq!(names(&unreadable), ["namespaces d"]);
    }

    #[test]
    fn a_pod_that_has_ended_names_its_namespace_alone() {
        let of_phase = |phase: &str| {
            let volumes = json!([{"name": "v", "configMap": {"name": "files"}}]);
            let draft = json!({"metadata": {"name": "p", "namespace": "d"},
                "spec": {"nodeName": "n1", "volumes": volumes}, "status": {"phase": phase}});
            let object =
                Object::from_draft(ObjectKey::new("pods", "d", "p"), draft.to_string().as_bytes(), 1);
            names(&of_pod(&object.unwrap())).len()
        };
        assert_eq!(["Running", "Failed", "Succeeded"].map(of_phase), [3, 1, 1]);
    }
}
