//! What a node may pull: the images of its own pods, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use coracle_api::Storage;
use coracle_leader::references::node_of;
use coracle_objects::View;
use serde::Deserialize;
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    Registry,
    artifacts::{self, Artifact},
    blobs::{BlobError, Blobs},
    digest::Digest,
    error::RegistryError,
    manifest::{MANIFEST_BYTES_MAX, Manifest},
    path::Target,
};

/// Names of one image that are looked at, and bytes of its manifests that are read here.
const NAMES_MAX: usize = 256;
const READ_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Manifests of one image that are fetched from other members, and how long all of it may take.
const FETCHED_MAX: usize = 16;
const FETCH_PATIENCE: Duration = Duration::from_secs(10);

/// An image of this registry: its repository, and its tag or digest.
type Image = (String, String);

impl<S: Storage> Registry<S> {
    /// Refuses what no pod of the node names, as if it were not there.
    pub(super) async fn admit_node(&self, node: &str, target: &Target) -> Result<(), RegistryError> {
        if *target == Target::Base {
            return Ok(());
        }
        let walks = match self.look(self.storage.view(), node, target).await? {
            Look::Named => return Ok(()),
            Look::Into(walks) => walks,
        };
        if self.leads_there(walks).await?.is_none() {
            return Ok(());
        }
        // The pod may be newer than what this member has.
        let view = self.storage.linearizable().await.map_err(RegistryError::unavailable)?;
        let walks = match self.look(view, node, target).await? {
            Look::Named => return Ok(()),
            Look::Into(walks) => walks,
        };
        let Some(walks) = self.leads_there(walks).await? else { return Ok(()) };
        if timeout(FETCH_PATIENCE, self.leads_there_from_afar(walks)).await.unwrap_or(false) {
            return Ok(());
        }
        Err(match target {
            Target::Manifest { repository, reference } => {
                RegistryError::manifest_unknown(repository, reference)
            }
            Target::Blob { digest, .. } => {
                RegistryError::blob(digest, BlobError::Missing(digest.to_string()))
            }
            _ => RegistryError::denied(),
        })
    }

    /// What objects tell. A look at all pods costs something: however many a node asks for, one is under way at a time, and
    /// it waits for nothing but its turn.
    async fn look(&self, view: Arc<View>, node: &str, target: &Target) -> Result<Look, RegistryError> {
        let (node, target) = (node.to_owned(), target.clone());
        let _turn = self.looks.lock().await;
        let look = spawn_blocking(move || look(&view, &images(&view, &node), &target));
        look.await.map_err(RegistryError::unavailable)
    }

    /// What manifests tell that are here: `None` where one of them names what is wanted, else what is left.
    async fn leads_there(&self, walks: Vec<Walk>) -> Result<Option<Vec<Walk>>, RegistryError> {
        let blobs = self.blobs.clone();
        let led = spawn_blocking(move || {
            let mut walks = walks;
            let is_there = walks.iter_mut().any(|walk| walk.go_on(&blobs));
            (!is_there).then_some(walks)
        });
        led.await.map_err(RegistryError::unavailable)
    }

    /// The same of those that other members have.
    async fn leads_there_from_afar(&self, walks: Vec<Walk>) -> bool {
        for mut walk in walks {
            for _ in 0..FETCHED_MAX {
                let Some(digest) = walk.absent.pop() else { break };
                if self.obtain(&digest).await.is_err() {
                    continue;
                }
                walk.open.push(digest);
                match self.leads_there(vec![walk]).await.map(|left| left.and_then(|mut left| left.pop())) {
                    Ok(Some(left)) => walk = left,
                    Ok(None) => return true,
                    Err(_) => return false,
                }
            }
        }
        false
    }
}

/// What a look at the objects found.
enum Look {
    /// A pod of the node names it, or an image of one does.
    Named,
    /// Manifests that no object tells about may.
    Into(Vec<Walk>),
}

/// Looks through one image for what it is made of, at whatever depth of its indexes.
struct Walk {
    wanted: Digest,
    /// What objects tell of the repository.
    known: Arc<BTreeMap<Digest, Part>>,
    seen: BTreeSet<Digest>,
    /// Manifests to be read, and those of them that are not here.
    open: Vec<Digest>,
    absent: Vec<Digest>,
    bytes_read: usize,
}

impl Walk {
    fn new(wanted: &Digest, known: &Arc<BTreeMap<Digest, Part>>) -> Self {
        Self {
            wanted: wanted.clone(),
            known: known.clone(),
            seen: BTreeSet::new(),
            open: vec![],
            absent: vec![],
            bytes_read: 0,
        }
    }

    /// Takes these names in, and what objects tell of them; whether the wanted is among it.
    fn take(&mut self, mut names: Vec<Digest>) -> bool {
        while let Some(name) = names.pop() {
            if name == self.wanted {
                return true;
            }
            if self.seen.len() == NAMES_MAX || !self.seen.insert(name.clone()) {
                continue;
            }
            match self.known.get(&name) {
                Some(part) if part.names.contains(&self.wanted) => return true,
                Some(part) if part.is_index => names.extend(part.names.iter().cloned()),
                Some(_) => {}
                None => self.open.push(name),
            }
        }
        false
    }

    /// Reads the manifests that are here; whether one of them names the wanted. Waits for the disk.
    fn go_on(&mut self, blobs: &Blobs) -> bool {
        while let Some(digest) = self.open.pop() {
            if self.bytes_read > READ_BYTES_MAX {
                return false;
            }
            if !blobs.is_here(&digest) {
                self.absent.push(digest);
                continue;
            }
            let content = blobs.read_small(&digest, MANIFEST_BYTES_MAX).ok().flatten().unwrap_or_default();
            self.bytes_read += content.len();
            let manifest = Manifest::of_kept(&content);
            let names: Vec<Digest> = manifest.names().collect();
            if names.contains(&self.wanted) || manifest.is_index() && self.take(names) {
                return true;
            }
        }
        false
    }
}

/// What objects tell of a manifest.
struct Part {
    /// Whether it names manifests.
    is_index: bool,
    names: Vec<Digest>,
}

impl Part {
    fn of(artifact: &Artifact) -> Option<(Digest, Self)> {
        let names = artifact.blobs.iter().filter_map(|name| Digest::parse(name)).collect();
        Some((Digest::parse(&artifact.digest)?, Self { is_index: artifact.is_index(), names }))
    }
}

fn look(view: &View, images: &BTreeSet<Image>, target: &Target) -> Look {
    let nothing = Look::Into(vec![]);
    let (repository, wanted) = match target {
        Target::Manifest { repository, reference } => {
            if images.contains(&(repository.clone(), reference.clone())) {
                return Look::Named;
            }
            let Some(digest) = Digest::parse(reference) else { return nothing };
            (repository, digest)
        }
        Target::Blob { repository, digest } => (repository, digest.clone()),
        _ => return nothing,
    };
    let mut own = images.iter().filter(|(of, _)| of == repository).peekable();
    if own.peek().is_none() {
        return nothing;
    }
    let known: BTreeMap<Digest, Part> =
        artifacts::of_repository(view, repository).filter_map(|known| Part::of(&known)).collect();
    let (known, mut walks) = (Arc::new(known), vec![]);
    for (_, reference) in own {
        let tagged = || Digest::parse(&artifacts::find(view, repository, reference)?.digest);
        let Some(root) = Digest::parse(reference).or_else(tagged) else { continue };
        let mut walk = Walk::new(&wanted, &known);
        if walk.take(vec![root]) {
            return Look::Named;
        }
        walks.push(walk);
    }
    Look::Into(walks)
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
    fn manifest(field: &str, names: &[&Digest]) -> Vec<u8> {
        let names: Vec<_> =
            names.iter().map(|name| serde_json::json!({ "digest": name.to_string(), "size": 1 })).collect();
        serde_json::json!({ field: names }).to_string().into_bytes()
    }

    fn walk(wanted: &Digest, known: BTreeMap<Digest, Part>) -> Walk {
        Walk::new(wanted, &Arc::new(known))
    }

    #[tokio::test]
    async fn manifests_here_are_read_before_any_is_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), || true).unwrap();
        let (layer, absent) = (Digest::of(b"layer"), Digest::of(b"elsewhere"));
        let image = manifest("layers", &[&layer]);
        let image_digest = Digest::of(&image);
        blobs.put(&image_digest, &image).await.unwrap();
        let index = manifest("manifests", &[&image_digest, &absent]);
        let index_digest = Digest::of(&index);
        blobs.put(&index_digest, &index).await.unwrap();
        let mut found = walk(&layer, BTreeMap::new());
        assert!(!found.take(vec![index_digest.clone()]), "no object tells of it");
        assert!(found.go_on(&blobs));
        let mut other = walk(&Digest::of(b"other"), BTreeMap::new());
        assert!(!other.take(vec![index_digest]) && !other.go_on(&blobs));
        assert_eq!(other.absent, [absent], "only this would be fetched");
    }

    #[test]
    fn what_objects_tell_is_not_read() {
        let (index, image, layer) = (Digest::of(b"index"), Digest::of(b"image"), Digest::of(b"layer"));
        let known = || {
            BTreeMap::from([
                (index.clone(), Part { is_index: true, names: vec![image.clone()] }),
                (image.clone(), Part { is_index: false, names: vec![layer.clone()] }),
            ])
        };
        assert!(walk(&layer, known()).take(vec![index.clone()]));
        let mut other = walk(&Digest::of(b"other"), known());
        assert!(!other.take(vec![index.clone()]) && other.open.is_empty());
    }

    #[test]
    fn names_beyond_the_bound_are_not_looked_at() {
        let names: Vec<Digest> = (0..2 * NAMES_MAX).map(|n| Digest::of(&n.to_le_bytes())).collect();
        let mut walk = walk(&Digest::of(b"wanted"), BTreeMap::new());
        assert!(!walk.take(names));
        assert_eq!(walk.open.len(), NAMES_MAX);
    }
}
