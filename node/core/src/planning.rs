//! What takes as long as a pod's author likes: environments and files. Reconcile only says that they are wanted; the
//! shell makes them where that delays no other pod, out of what is taken along here. Taking it along costs nothing
//! that a user sizes.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::{
    action::StartPlan,
    env,
    fields::PodFacts,
    resources,
    sources::Sources,
    spec::{Container, Pod},
    volumes::{self, Fingerprint, VolumePlan},
};

/// What the start of a container is planned from.
#[derive(Clone, Debug, PartialEq)]
pub struct StartInputs {
    pub pod: Arc<Pod>,
    /// Its name in the pod.
    pub container: String,
    pub sources: Sources,
    pub facts: PodFacts,
    pub image_id: String,
}

impl StartInputs {
    /// The plan, or the message of a CreateContainerConfigError.
    pub fn plan(&self) -> Result<StartPlan, String> {
        let container = self.pod.container(&self.container);
        let container = container.ok_or_else(|| format!("the pod has no container {}", self.container))?;
        let env = env::environment(&self.pod, container, &self.sources, &self.facts)?;
        Ok(StartPlan {
            arguments: env::arguments(container, &env)?,
            mounts: volumes::mounts(&self.pod, container, &env)?,
            env,
            limits: resources::container_limits(container),
            http_port: container.http_port(),
            image_id: self.image_id.clone(),
        })
    }
}

/// What a pod's volumes are planned from.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeInputs {
    pub pod: Arc<Pod>,
    pub sources: Sources,
    pub facts: PodFacts,
}

impl VolumeInputs {
    /// The plan, or the message of a FailedMount event.
    pub fn plan(&self) -> Result<Vec<VolumePlan>, String> {
        volumes::plan(&self.pod, &self.sources, &self.facts)
    }
}

/// Everything that the plan of a container's start hangs on, in short: with the same fingerprint it would come out the
/// same, so that what cannot be planned is not tried again before this changes.
pub fn start_fingerprint(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    facts: &PodFacts,
) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    let namespace = &pod.metadata.namespace;
    let config_map = |name: &str| sources.config_map(namespace, name).map(|data| data.revision);
    let secret = |name: &str| sources.secret(namespace, name).map(|data| data.revision);
    for from in &container.env_from {
        from.config_map_ref.as_ref().map(|source| config_map(&source.name)).hash(&mut hasher);
        from.secret_ref.as_ref().map(|source| secret(&source.name)).hash(&mut hasher);
    }
    for source in container.env.iter().filter_map(|variable| variable.value_from.as_ref()) {
        source.config_map_key_ref.as_ref().map(|key| config_map(&key.name)).hash(&mut hasher);
        source.secret_key_ref.as_ref().map(|key| secret(&key.name)).hash(&mut hasher);
    }
    for (name, service) in sources.services_of(namespace) {
        (name, service).hash(&mut hasher);
    }
    (&pod.metadata.labels, &pod.metadata.annotations, &facts.addresses).hash(&mut hasher);
    hasher.finish()
}
