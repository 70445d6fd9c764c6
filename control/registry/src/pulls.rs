//! What a node may pull: the images of its own pods, and nothing else.

use std::collections::BTreeSet;

use coracle_api::Storage;
use coracle_leader::references::node_of;
use coracle_objects::View;
use serde::Deserialize;

use crate::{
    Registry,
    artifacts::{self, Artifact},
    blobs::BlobError,
    digest::Digest,
    error::RegistryError,
    manifest::Manifest,
    path::Target,
};

/// Manifests of one image that are looked through.
const MANIFESTS_MAX: usize = 256;

/// An image of this registry: its repository, and its tag or digest.
type Image = (String, String);

impl<S: Storage> Registry<S> {
    /// Refuses what no pod of the node names, as if it were not there.
    pub(super) async fn admit_node(&self, node: &str, target: &Target) -> Result<(), RegistryError> {
        if *target == Target::Base {
            return Ok(());
        }
        // A look at all pods costs something: however many a node asks for, one is under way at a time.
        let _turn = self.looks.lock().await;
        if self.names(&images(&self.storage.view(), node), target).await {
            return Ok(());
        }
        // The pod may be newer than what this member has.
        let view = self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
        match self.names(&images(&view, node), target).await {
            true => Ok(()),
            false => Err(match target {
                Target::Manifest { repository, reference } => {
                    RegistryError::manifest_unknown(repository, reference)
                }
                Target::Blob { digest, .. } => {
                    RegistryError::blob(digest, BlobError::Missing(digest.to_string()))
                }
                _ => RegistryError::denied(),
            }),
        }
    }

    async fn names(&self, images: &BTreeSet<Image>, target: &Target) -> bool {
        let wanted = match target {
            Target::Manifest { repository, reference } => {
                if images.contains(&(repository.clone(), reference.clone())) {
                    return true;
                }
                let Some(digest) = Digest::parse(reference) else { return false };
                (repository, digest)
            }
            Target::Blob { repository, digest } => (repository, digest.clone()),
            _ => return false,
        };
        for (repository, reference) in images.iter().filter(|(repository, _)| repository == wanted.0) {
            if self.is_part(repository, reference, &wanted.1).await {
                return true;
            }
        }
        false
    }

    /// Whether an image is made of this blob or manifest, at whatever depth of its indexes.
    async fn is_part(&self, repository: &str, reference: &str, wanted: &Digest) -> bool {
        let view = self.storage.view();
        let mut open = match Digest::parse(reference) {
            Some(digest) => vec![self.part(&view, repository, digest).await],
            None => artifacts::find(&view, repository, reference)
                .and_then(|tag| Part::of(&tag))
                .into_iter()
                .collect(),
        };
        let mut seen = BTreeSet::new();
        while let Some(Part { digest, is_index, names }) = open.pop() {
            if digest == *wanted || names.contains(wanted) {
                return true;
            }
            if !is_index {
                continue;
            }
            for name in names {
                if seen.len() < MANIFESTS_MAX && seen.insert(name.clone()) {
                    open.push(self.part(&view, repository, name).await);
                }
            }
        }
        false
    }

    async fn part(&self, view: &View, repository: &str, digest: Digest) -> Part {
        if let Some(known) =
            artifacts::find_digest(view, repository, &digest).and_then(|known| Part::of(&known))
        {
            return known;
        }
        let content = self.manifest_content(&digest).await.ok().flatten().unwrap_or_default();
        let manifest = Manifest::of_kept(&content);
        Part { digest, is_index: manifest.is_index(), names: manifest.names().collect() }
    }
}

/// A manifest of an image.
struct Part {
    digest: Digest,
    /// Whether it names manifests.
    is_index: bool,
    names: Vec<Digest>,
}

impl Part {
    fn of(artifact: &Artifact) -> Option<Self> {
        let names = artifact.blobs.iter().filter_map(|name| Digest::parse(name)).collect();
        Some(Self { digest: Digest::parse(&artifact.digest)?, is_index: artifact.is_index(), names })
    }
}

/// The images of this registry that the pods of a node name.
fn images(view: &View, node: &str) -> BTreeSet<Image> {
    #[derive(Deserialize)]
    struct Pod {
        spec: Spec,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        containers: Option<Vec<Container>>,
        init_containers: Option<Vec<Container>>,
    }
    #[derive(Deserialize)]
    struct Container {
        image: Option<String>,
    }
    let pods = view.list("pods", None).filter(|pod| node_of(pod).as_deref() == Some(node));
    let specs = pods.filter_map(|pod| pod.parse::<Pod>().ok()).map(|pod| pod.spec);
    let containers =
        specs.flat_map(|spec| [spec.containers, spec.init_containers].into_iter().flatten()).flatten();
    containers.filter_map(|container| image(&container.image?)).collect()
}

/// The image of this registry that a name means; `None` for one elsewhere. A digest wins over a tag, and without either
/// it is `latest`.
fn image(name: &str) -> Option<Image> {
    if name.starts_with("file://") {
        return None;
    }
    let (rest, digest) = name.split_once('@').map_or((name, None), |(rest, digest)| (rest, Some(digest)));
    // A colon behind the last slash begins a tag; before it, it belongs to the registry's port.
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (repository, tag) = match rest[slash..].split_once(':') {
        Some((last, tag)) => (&rest[..slash + last.len()], Some(tag)),
        None => (rest, None),
    };
    let host = repository.split_once('/').map_or("", |(host, _)| host);
    let elsewhere = host == "localhost" || host.contains(['.', ':']);
    let reference = digest.or(tag).unwrap_or("latest");
    (!elsewhere).then(|| (repository.to_owned(), reference.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_images_of_this_registry_or_of_others() {
        let image =
            |name: &str| image(name).map(|(repository, reference)| format!("{repository} {reference}"));
        for (name, found) in [
            ("hello", Some("hello latest")),
            ("team/app:1.0", Some("team/app 1.0")),
            ("team/app:1.0@sha256:ab", Some("team/app sha256:ab")),
            ("ghcr.io/team/app:1.0", None),
            ("localhost/app", None),
            ("host:5000/app", None),
            ("file:///tmp/x.wasm", None),
        ] {
            assert_eq!(image(name).as_deref(), found, "{name}");
        }
    }
}
