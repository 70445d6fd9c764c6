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
            names.add_spec(&parsed.spec);
            References { node: parsed.spec.node_name, keys: names.keys, readable: true }
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
        for secret in &spec.image_pull_secrets {
            self.add(SECRETS, secret.name.as_ref());
        }
        for container in spec.init_containers.iter().chain(&spec.containers) {
            for from in container.env.iter().filter_map(|variable| variable.value_from.as_ref()) {
                self.add_both(from.config_map_key_ref.as_ref(), from.secret_key_ref.as_ref());
            }
            for from in &container.env_from {
                self.add_both(from.config_map_ref.as_ref(), from.secret_ref.as_ref());
            }
        }
        for volume in &spec.volumes {
            self.add_both(volume.config_map.as_ref(), None);
            self.add(SECRETS, volume.secret.as_ref().and_then(|source| source.secret_name.as_ref()));
            for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
                self.add_both(source.config_map.as_ref(), source.secret.as_ref());
            }
        }
    }
}

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    image_pull_secrets: Vec<Named>,
    init_containers: Vec<Container>,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Vec<EnvVar>,
    env_from: Vec<EnvFromSource>,
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
    sources: Vec<ProjectedSource>,
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
