//! Objects that pods are made of change: each pod counts the changes of those that it is made of, so that nobody looks
//! through them whenever something else happens to the pod.

use crate::{
    env::MASTER,
    pod::{Observed, Phase, PodState},
    sources::{Kind, Source, Sources},
    spec::PodUid,
};

impl Observed {
    /// Takes in an object by namespace and name. Answers which pods are to be looked at.
    pub fn put_source(
        &mut self,
        sources: &mut Sources,
        own: (String, String),
        source: Source,
    ) -> Vec<PodUid> {
        let kind = source.kind();
        if sources.put(own.clone(), source) { self.source_changed(kind, &own) } else { Vec::new() }
    }

    /// The same of one that is gone.
    pub fn remove_source(
        &mut self,
        sources: &mut Sources,
        kind: Kind,
        own: &(String, String),
    ) -> Vec<PodUid> {
        if sources.remove(kind, own) { self.source_changed(kind, own) } else { Vec::new() }
    }

    /// Takes note that an object changed, came or went, by namespace and name. Answers which pods are to be looked at.
    pub fn source_changed(&mut self, kind: Kind, (namespace, name): &(String, String)) -> Vec<PodUid> {
        if kind == Kind::Service {
            return self.service_changed(namespace, name);
        }
        let own = self.pods.iter_mut().filter(|(_, state)| state.pod.metadata.namespace == *namespace);
        own.filter_map(|(uid, state)| state.source_changed(kind, name).then(|| uid.clone())).collect()
    }

    /// What services are is asked when a container starts. Only one that is held may be so because there are too many.
    fn service_changed(&mut self, namespace: &str, name: &str) -> Vec<PodUid> {
        let of_all = (namespace, name) == MASTER;
        let mut waiting = Vec::new();
        for (uid, state) in &mut self.pods {
            let pod = &state.pod;
            if of_all || pod.metadata.namespace == namespace && pod.has_service_links() {
                state.changes.environment += 1;
                if state.has_held_container() {
                    waiting.push(uid.clone());
                }
            }
        }
        waiting
    }
}

impl PodState {
    fn has_held_container(&self) -> bool {
        self.containers
            .values()
            .any(|state| matches!(&state.phase, Phase::Pulled(pulled) if pulled.held.is_some()))
    }

    /// True where the pod names it.
    fn source_changed(&mut self, kind: Kind, name: &str) -> bool {
        let outline = &self.pod.outline;
        let named = [outline.volumes.has(kind, name), outline.environment.has(kind, name)];
        self.changes.volumes += u64::from(named[0]);
        self.changes.environment += u64::from(named[1]);
        named.contains(&true)
    }
}
