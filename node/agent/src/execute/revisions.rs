//! What revisions of functions have run with on this node: images, and components that are compiled and loaded. While it is kept
//! an instance is started without a registry, a disk or a compiler. It counts to the namespaces' shares of images and of loaded
//! code, and goes where anything fails for want of those.

use std::collections::BTreeMap;

use coracle_core::{Observation, Pod, observe::News};
use coracle_fabric::Name;
use coracle_objects::kinds::REVISION_LABEL;

use super::{At, Executor, Kept};

/// Revisions of which it is kept, those that have run last.
const KEPT_MAX: usize = 1_024;

/// By namespace and name, with when each has run last.
#[derive(Default)]
pub(super) struct Revisions {
    kept: BTreeMap<(String, String), (u64, Kept)>,
    by_age: BTreeMap<u64, (String, String)>,
    uses: u64,
}

impl Revisions {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    fn get(&self, namespace: &str, revision: &str) -> Option<&Kept> {
        Some(&self.kept.get(&(namespace.to_owned(), revision.to_owned()))?.1)
    }

    fn put(&mut self, of: (String, String), kept: Kept) {
        self.remove(&of);
        self.uses += 1;
        self.by_age.insert(self.uses, of.clone());
        self.kept.insert(of, (self.uses, kept));
        if self.kept.len() > KEPT_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.kept.remove(&oldest);
        }
    }

    fn retain(&mut self, stays: impl Fn(&(String, String)) -> bool) {
        self.kept.retain(|of, _| stays(of));
        self.by_age.retain(|_, of| stays(of));
    }

    fn remove(&mut self, of: &(String, String)) {
        if let Some((age, _)) = self.kept.remove(of) {
            self.by_age.remove(&age);
        }
    }
}

impl Executor {
    /// Whether an instance of the revision can be started without asking anybody.
    pub fn keeps_image_of(&self, revision: &Name) -> bool {
        self.kept.get(&revision.namespace, &revision.name).is_some_and(|kept| kept.component.is_some())
    }

    /// There is a revision of this namespace and name, or no more. Labels of pods are whoever's, and count for nothing without one.
    pub fn know_revision(&mut self, revision: &(String, String), is_there: bool) {
        if is_there {
            self.revisions.insert(revision.clone());
        } else {
            self.revisions.remove(revision);
            self.kept.remove(revision);
        }
    }

    /// The revision of which a pod is an instance.
    pub(super) fn revision_of(&self, pod: &Pod) -> Option<(String, String)> {
        let revision = (pod.metadata.namespace.clone(), pod.metadata.labels.get(REVISION_LABEL)?.clone());
        self.revisions.contains(&revision).then_some(revision)
    }

    /// Something failed that there may be room for without what is kept: that of one namespace goes, or all.
    pub fn let_go_of_images(&mut self, namespace: Option<&str>) {
        self.kept.retain(|(of, _)| namespace.is_some_and(|namespace| namespace != of));
    }

    /// An instance of a revision has what that has run with before: it need not be pulled.
    pub(super) fn keep_of_revision(&mut self, at: &At, pod: &Pod) -> Option<Observation> {
        let revision = pod.metadata.labels.get(REVISION_LABEL)?;
        let kept = self.kept.get(&pod.metadata.namespace, revision)?.clone();
        let image_id = kept.image.id.clone();
        // The labels are whoever's: another image is another's.
        let spec = pod.container(&at.container)?;
        (kept.name == spec.image && spec.pull_policy() != coracle_core::spec::PullPolicy::Always)
            .then_some(())?;
        self.images.entry(at.uid.clone()).or_default().lock().insert(at.container.clone(), kept);
        Some(at.news(News::Pulled { image_id, fetched: None }))
    }

    /// An instance of a revision runs: what it runs with is kept for others.
    pub fn keep_for_revision(&mut self, at: &At, pod: &Pod) {
        let Some(revision) = self.revision_of(pod) else { return };
        let kept = self.images.get(&at.uid).and_then(|images| images.lock().get(&at.container).cloned());
        if let Some(kept) = kept.filter(|kept| kept.component.is_some()) {
            self.kept.put(revision, kept);
        }
    }
}
