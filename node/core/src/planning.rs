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
    message,
    pod::PodState,
    resources,
    sources::Sources,
    spec::Pod,
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
        let mut env = env::environment(&self.pod, container, &self.sources, &self.facts)?;
        let arguments = env::arguments(container, &env)?;
        let mut mounts = volumes::mounts(&self.pod, container, &env)?;
        let (message, folder) = message::plan(container, &mounts);
        let working = volumes::working_dir(container, &mounts)?;
        let working_dir = working.as_ref().map(|(path, _)| path.clone()).unwrap_or_default();
        // Programs of Go go by this alone.
        if working.is_some() && env::value_of(&env, "PWD").is_none() {
            env.push(("PWD".to_owned(), working_dir.clone()));
        }
        mounts.extend(folder.into_iter().chain(working.map(|(_, mount)| mount)));
        Ok(StartPlan {
            arguments,
            mounts,
            env,
            stdin: container.stdin,
            working_dir,
            message,
            limits: resources::container_limits(container),
            http_port: container.http_port(),
            listen_ports: container.listen_ports(),
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

/// Everything that the plans of the starts of a pod's containers hang on, in short: with the same fingerprint they would
/// come out the same, so that what cannot be planned is not tried again before this changes. It costs the same whatever
/// the pod and the namespace have, since it is made for every look at the pod.
pub fn start_fingerprint(pod: &Pod, state: &PodState) -> Fingerprint {
    let mut hasher = DefaultHasher::new();
    start_inputs(pod, state).hash(&mut hasher);
    hasher.finish()
}

fn start_inputs<'a>(pod: &Pod, state: &'a PodState) -> impl Hash + use<'a> {
    (pod.outline.of_starts, state.changes.environment, &state.addresses)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::{
        Action, Desired, Observed, PodUid, reconcile_pod,
        sources::{Keyed, Source},
    };

    /// Counts what is hashed.
    #[derive(Default)]
    struct Counted(usize);

    impl Hasher for Counted {
        fn write(&mut self, bytes: &[u8]) {
            self.0 += bytes.len();
        }

        fn finish(&self) -> u64 {
            0
        }
    }

    fn hashed(pod: &str) -> usize {
        let pod = Arc::new(Pod::parse(pod.as_bytes()).unwrap());
        let (mut observed, uid) = (Observed::default(), pod.uid().clone());
        let pods = BTreeMap::from([(uid.clone(), pod.clone())]);
        observed.begin(&Action::Admit { uid: uid.clone() }, &pods, Timestamp::UNIX_EPOCH);
        let (state, mut counted) = (&observed.pods[&uid], Counted::default());
        start_inputs(&pod, state).hash(&mut counted);
        volumes::fingerprinted(&pod, state).hash(&mut counted);
        counted.0
    }

    #[test]
    fn a_look_at_a_pod_hashes_the_same_whatever_the_pod_has() {
        let small = r#"{"metadata":{"name":"p","uid":"u"},"spec":{"containers":[{"name":"c"}]}}"#;
        let env = r#"{"name":"A","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}"#;
        let containers: Vec<String> =
            (0..1000).map(|at| format!(r#"{{"name":"c{at}","env":[{env}]}}"#)).collect();
        let sources: Vec<String> =
            (0..50_000).map(|at| format!(r#"{{"configMap":{{"name":"m{at}"}}}}"#)).collect();
        let large = format!(
            r#"{{"metadata":{{"name":"p","uid":"u","annotations":{{"a":"{}"}}}},"spec":{{"containers":[{}],
                "volumes":[{{"name":"v","projected":{{"sources":[{}]}}}}]}}}}"#,
            "x".repeat(256 << 10),
            containers.join(","),
            sources.join(",")
        );
        assert_eq!(hashed(&large), hashed(small));
    }

    #[test]
    fn a_start_has_its_folders_and_says_where_it_is() {
        let json = br#"{"metadata":{"name":"p","namespace":"d","uid":"u"},"spec":{"enableServiceLinks":false,"volumes":[{"name":"v"}],
            "containers":[{"name":"c","image":"x:1","stdin":true,"workingDir":"/app/in","terminationMessagePath":"/dev/why",
                "terminationMessagePolicy":"FallbackToLogsOnError","volumeMounts":[{"name":"v","mountPath":"/app"}]},
                {"name":"own","image":"x:1","workingDir":"/app","env":[{"name":"PWD","value":"/mine"}],
                "volumeMounts":[{"name":"v","mountPath":"/app"}]}]}}"#;
        let pod = Arc::new(Pod::parse(json).unwrap());
        let plan = |container: &str| {
            let (sources, facts) = (Sources::default(), PodFacts::default());
            let container = container.to_owned();
            StartInputs { pod: pod.clone(), container, sources, facts, image_id: "i".into() }.plan().unwrap()
        };
        let first = plan("c");
        assert!(first.stdin && first.working_dir == "/app/in");
        let places: Vec<_> =
            first.mounts.iter().map(|mount| (&*mount.guest_path, &*mount.volume, &*mount.sub_path)).collect();
        assert_eq!(places, [("/app", "v", ""), ("/dev", ".message-c", ""), (".", "v", "in")]);
        assert_eq!(env::value_of(&first.env, "PWD"), Some("/app/in"));
        assert_eq!(first.message.file, Some((".message-c".to_owned(), "why".to_owned())));
        assert!(first.message.falls_back_to_logs && first.mounts[1].is_made_at_start());
        let own = plan("own");
        assert!(!own.stdin && own.message.file.is_none());
        assert_eq!(env::value_of(&own.env, "PWD"), Some("/mine"));
    }

    #[test]
    fn all_containers_of_a_pod_have_one_fingerprint_of_a_look() {
        let json = br#"{"metadata":{"name":"p","namespace":"d","uid":"u"},
            "spec":{"containers":[{"name":"a"},{"name":"b","envFrom":[{"configMapRef":{"name":"m"}}]}]}}"#;
        let (mut desired, mut observed) = (Desired::default(), Observed::default());
        let uid = PodUid::from("u");
        desired.pods.insert(uid.clone(), Arc::new(Pod::parse(json).unwrap()));
        observed.begin(&Action::Admit { uid: uid.clone() }, &desired.pods, Timestamp::UNIX_EPOCH);
        let state = observed.pods.get_mut(&uid).unwrap();
        state.sandbox = crate::pod::Sandbox::Ready;
        let fingerprint = volumes::fingerprint(&state.pod, state);
        state.volumes = crate::pod::Volumes::Mounted { fingerprint, refused: None };
        for container in state.containers.values_mut() {
            container.phase = crate::pod::Phase::Pulled(crate::pod::Pulled::default());
        }
        let plans = |desired: &Desired, observed: &Observed| -> Vec<Fingerprint> {
            let actions = reconcile_pod(&uid, desired, observed, Timestamp::UNIX_EPOCH);
            let plans = actions.into_iter().filter_map(|action| match action {
                Action::Plan { fingerprint, .. } => Some(fingerprint),
                _ => None,
            });
            plans.collect()
        };
        let before = plans(&desired, &observed);
        assert!(before.len() == 2 && before[0] == before[1], "{before:?}");
        let own = ("d".to_owned(), "m".to_owned());
        let source = Source::ConfigMap(Keyed::Data(Arc::default()));
        assert!(desired.sources.put(own.clone(), source.clone()));
        assert_eq!(observed.source_changed(source.kind(), &own), std::slice::from_ref(&uid));
        assert_ne!(plans(&desired, &observed), before);
        assert!(!desired.sources.put(own, source), "it is as it was");
    }
}
