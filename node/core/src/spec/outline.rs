//! What is found once when a pod is read, so that nobody looks for it whenever something happens to the pod: which
//! objects it names, where its containers are, and in short what its plans hang on.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

use super::{Container, Pod, Volume};
use crate::sources::Kind;

/// Found by [`Pod::parse`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outline {
    /// Named by volumes.
    pub volumes: Names,
    /// Named by environments.
    pub environment: Names,
    /// Another one, other volumes, as far as they hang on the pod's object.
    pub of_volumes: u64,
    /// The same of the starts of its containers.
    pub of_starts: u64,
    /// The places of all containers, in order of their names.
    by_name: Vec<usize>,
}

/// Names of objects in the pod's namespace, in order, each once.
#[derive(Clone, Debug, Default, PartialEq, Hash)]
pub struct Names {
    config_maps: Vec<Box<str>>,
    secrets: Vec<Box<str>>,
}

impl Names {
    pub fn has(&self, kind: Kind, name: &str) -> bool {
        let names = match kind {
            Kind::ConfigMap => &self.config_maps,
            Kind::Secret => &self.secrets,
            Kind::Service => return false,
        };
        names.binary_search_by(|known| (**known).cmp(name)).is_ok()
    }

    fn add_volume(&mut self, volume: &Volume) {
        self.config_maps.extend(volume.config_map.iter().map(|source| source.name.as_str().into()));
        self.secrets.extend(volume.secret.iter().map(|source| source.secret_name.as_str().into()));
        for source in volume.projected.iter().flat_map(|projected| &projected.sources) {
            self.config_maps.extend(source.config_map.iter().map(|source| source.name.as_str().into()));
            self.secrets.extend(source.secret.iter().map(|source| source.name.as_str().into()));
        }
    }

    fn add_container(&mut self, container: &Container) {
        for from in &container.env_from {
            self.config_maps.extend(from.config_map_ref.iter().map(|source| source.name.as_str().into()));
            self.secrets.extend(from.secret_ref.iter().map(|source| source.name.as_str().into()));
        }
        for source in container.env.iter().filter_map(|variable| variable.value_from.as_ref()) {
            self.config_maps.extend(source.config_map_key_ref.iter().map(|key| key.name.as_str().into()));
            self.secrets.extend(source.secret_key_ref.iter().map(|key| key.name.as_str().into()));
        }
    }

    fn in_order(mut self) -> Self {
        for names in [&mut self.config_maps, &mut self.secrets] {
            names.sort_unstable();
            names.dedup();
        }
        self
    }
}

impl Outline {
    pub(super) fn of(pod: &Pod) -> Self {
        let mut volumes = Names::default();
        pod.spec.volumes.iter().for_each(|volume| volumes.add_volume(volume));
        let mut environment = Names::default();
        pod.all_containers().for_each(|container| environment.add_container(container));
        let (volumes, environment) = (volumes.in_order(), environment.in_order());
        let shown = |volume: &Volume| volume.downward_api.is_some() || volume.projected.is_some();
        let own = (&pod.metadata.labels, &pod.metadata.annotations);
        let own_in_volumes = pod.spec.volumes.iter().any(shown).then_some(own);
        let names: Vec<&str> = pod.all_containers().map(|container| container.name.as_str()).collect();
        let mut by_name: Vec<usize> = (0..names.len()).collect();
        by_name.sort_by_key(|at| names[*at]);
        Self {
            of_volumes: in_short(&(&volumes, own_in_volumes)),
            of_starts: in_short(&(&environment, own)),
            volumes,
            environment,
            by_name,
        }
    }

    /// The place of a container among all of the pod's, whose names `name_of` knows.
    pub(super) fn place<'a>(&self, name: &str, name_of: impl Fn(usize) -> Option<&'a str>) -> Option<usize> {
        let at = self.by_name.partition_point(|at| name_of(*at).is_some_and(|known| known < name));
        self.by_name.get(at).copied().filter(|at| name_of(*at) == Some(name))
    }
}

fn in_short(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(metadata: &str, spec: &str) -> Pod {
        let json = format!(r#"{{"metadata":{{"name":"p","uid":"u"{metadata}}},"spec":{{{spec}}}}}"#);
        Pod::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn what_a_pod_names_is_found_wherever_it_stands() {
        let pod = pod(
            "",
            r#""initContainers":[{"name":"i","envFrom":[{"secretRef":{"name":"s1"}}]}],
            "containers":[{"name":"c","envFrom":[{"configMapRef":{"name":"c1"}}],"env":[
                {"name":"A","valueFrom":{"configMapKeyRef":{"name":"c2","key":"k"}}},
                {"name":"B","valueFrom":{"secretKeyRef":{"name":"s2","key":"k"}}}]}],
            "volumes":[{"name":"a","configMap":{"name":"c3"}},{"name":"b","secret":{"secretName":"s3"}},
                {"name":"p","projected":{"sources":[{"configMap":{"name":"c4"}},{"secret":{"name":"s4"}},
                    {"configMap":{"name":"c4"}}]}}]"#,
        );
        let Outline { volumes, environment, .. } = &pod.outline;
        let all = |names: &Names| {
            let found = |kind, letter: char| -> Vec<String> {
                (1..5).map(|at| format!("{letter}{at}")).filter(|name| names.has(kind, name)).collect()
            };
            (found(Kind::ConfigMap, 'c'), found(Kind::Secret, 's'))
        };
        let list = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        assert_eq!(all(environment), (list(["c1", "c2"]), list(["s1", "s2"])));
        assert_eq!(all(volumes), (list(["c3", "c4"]), list(["s3", "s4"])));
        assert!(!volumes.has(Kind::Secret, "c3") && !volumes.has(Kind::Service, "c3"));
        assert_eq!(volumes.config_maps.len(), 2, "each once");
    }

    #[test]
    fn containers_are_found_by_their_names_in_both_lists() {
        let pod = pod(
            "",
            r#""initContainers":[{"name":"z"},{"name":"a"}],"containers":[{"name":"m","image":"own"},{"name":"b"}]"#,
        );
        for name in ["z", "a", "m", "b"] {
            assert_eq!(pod.container(name).unwrap().name, name);
            assert_eq!(pod.is_init(name), ["z", "a"].contains(&name), "{name}");
        }
        assert!(["", "aa", "n", "zz"].iter().all(|name| pod.container(name).is_none() && !pod.is_init(name)));
    }

    #[test]
    fn labels_matter_to_volumes_that_show_them() {
        let plain = r#""volumes":[{"name":"v","configMap":{"name":"c"}}]"#;
        let shows = r#""volumes":[{"name":"v","downwardAPI":{"items":[]}}]"#;
        let labels = [r#","labels":{"a":"1"}"#, r#","labels":{"a":"2"}"#];
        let [before, after] = labels.map(|labels| pod(labels, plain).outline);
        assert_eq!(before.of_volumes, after.of_volumes);
        assert_ne!(before.of_starts, after.of_starts);
        let [before, after] = labels.map(|labels| pod(labels, shows).outline);
        assert_ne!(before.of_volumes, after.of_volumes);
    }
}
