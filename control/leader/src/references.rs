//! The objects that a pod names: what its node needs to run it.

use std::collections::BTreeSet;

use coracle_objects::{Object, ObjectError, ObjectKey};
use serde::Deserialize;

pub const CONFIG_MAPS: &str = "configmaps";
pub const SECRETS: &str = "secrets";
pub const SERVICE_ACCOUNTS: &str = "serviceaccounts";
/// Of its pods, for what the namespace allows them.
pub const NAMESPACES: &str = "namespaces";

/// The namespace, config maps, secrets and service accounts that a pod names; the namespace alone, and why, where the pod
/// cannot be read.
pub fn of_pod(pod: &Object) -> (BTreeSet<ObjectKey>, Result<(), ObjectError>) {
    let mut references = References { namespace: pod.namespace(), keys: BTreeSet::new() };
    references.keys.insert(ObjectKey::new(NAMESPACES, "", pod.namespace()));
    let read = pod.parse::<Pod>().map(|parsed| references.add_spec(&parsed.spec));
    (references.keys, read)
}

struct References<'a> {
    namespace: &'a str,
    keys: BTreeSet<ObjectKey>,
}

impl References<'_> {
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
