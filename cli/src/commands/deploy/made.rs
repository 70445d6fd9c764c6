//! What a deployment has made, and how that is removed: where it fails, and by `coracle delete NAME`.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{
    everywhere, image, list,
    objects::{KINDS, PUSHED, is_own},
};
use crate::{
    args::{Cascade, DeleteArgs, DryRun},
    client::{Body, Cluster, Refused, native_kind},
    commands::delete,
    output,
    selection::Target,
};

/// The kinds that name images, owners first.
const USERS: [&str; 3] = ["deployments", "replicasets", "pods"];

/// What one run has made that was not there before.
#[derive(Default)]
pub struct Made {
    /// Repository and tag that were pushed.
    pub image: Option<(String, String)>,
    /// Plural and name.
    pub objects: Vec<(&'static str, String)>,
    /// Whether anything was changed that there was.
    pub applied: bool,
}

impl Made {
    /// Removes what was made, where this was the first time; the error, with what became of it.
    pub async fn taken_back(self, cluster: &Cluster, name: &str, error: anyhow::Error) -> anyhow::Error {
        let first = self.objects.iter().any(|(kind, _)| ["deployments", "functions"].contains(kind));
        let exists = async || {
            for kind in ["deployments", "functions"] {
                let path = native_kind(kind)?.object(&cluster.namespace, name)?;
                if let Some(found) = cluster.get(&path).await? {
                    return anyhow::Ok(Some(found));
                }
            }
            Ok(None)
        };
        if self.applied && !first && !matches!(exists().await, Ok(None)) {
            return error.context(format!(
                "{name} could not be deployed; the pods that were there before go on. Go back with `kubectl rollout undo \
                 deployment/{name}`, or deploy another image"
            ));
        }
        let mut left = Vec::new();
        for (kind, name) in self.objects.iter().rev() {
            if remove(cluster, kind, name).await.is_err() {
                left.push(format!("{kind}/{name}"));
            }
        }
        if let Some((repository, tag)) = &self.image
            && untag(cluster, repository, tag).await.is_err()
        {
            left.push(format!("the image {repository}:{tag}"));
        }
        match left.is_empty() {
            true if !self.applied => error,
            true => error.context(format!("{name} could not be deployed, and nothing of it is left")),
            false => {
                error.context(format!("{name} could not be deployed; of it is left {}", left.join(", ")))
            }
        }
    }
}

/// Deletes an object; one that is not there is no fault.
async fn remove(cluster: &Cluster, kind: &str, name: &str) -> Result<()> {
    let path = native_kind(kind)?.object(&cluster.namespace, name)?;
    let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background" });
    let request = http::Request::delete(path).header("content-type", "application/json");
    match cluster.send(request.body(Body::from(serde_json::to_vec(&options)?))?).await {
        Err(error) if Refused::is_absence(&error) => Ok(()),
        removed => removed.map(|_| ()),
    }
}

/// Removes a tag from the cluster's registry; it is an object.
async fn untag(cluster: &Cluster, repository: &str, tag: &str) -> Result<()> {
    let artifacts = everywhere(cluster, "artifacts").await?;
    match tagged(&artifacts, repository, tag).and_then(|artifact| artifact["metadata"]["name"].as_str()) {
        Some(name) => remove(cluster, "artifacts", name).await,
        None => Ok(()),
    }
}

fn tagged<'a>(artifacts: &'a [Value], repository: &str, tag: &str) -> Option<&'a Value> {
    let is_it = |artifact: &&Value| {
        let spec = &artifact["spec"];
        spec["repository"] == repository && spec["tag"] == tag
    };
    artifacts.iter().find(is_it)
}

/// `coracle delete NAME`: removes what `coracle deploy` made under a name, and the images that it pushed for it.
pub async fn delete_app(cluster: &Cluster, args: &DeleteArgs, name: &str) -> Result<()> {
    let (mut targets, mut others, mut images) = (Vec::new(), Vec::new(), Vec::new());
    let mut own = BTreeSet::new();
    // The way in goes first, the Secret last.
    for kind in KINDS.iter().rev() {
        let kind = native_kind(kind)?;
        let path = kind.object(&cluster.namespace, name)?;
        let Some(object) = cluster.get(&path).await? else { continue };
        if !is_own(&object) {
            others.push(format!("{}/{name}", kind.prefix()));
            continue;
        }
        let pushed = object["metadata"]["annotations"][PUSHED].as_str().unwrap_or_default();
        images.extend(pushed.split(',').filter(|image| !image.is_empty()).map(str::to_owned));
        own.extend(uid(&object));
        targets.push(Target { kind, namespace: cluster.namespace.clone(), name: Some(name.to_owned()) });
    }
    if targets.is_empty() && others.is_empty() {
        if args.ignore_not_found {
            return Ok(());
        }
        bail!(
            "{name:?} is neither a kind nor the name of what `coracle deploy` made in namespace {}: say KIND NAME",
            cluster.namespace
        );
    }
    if targets.is_empty() {
        bail!("not made by `coracle deploy`: {}; delete them as KIND/NAME", others.join(", "));
    }
    // Later they may be gone, and the pods that belong to them not yet.
    if !images.is_empty() && args.cascade != Cascade::Orphan {
        let sets = native_kind("replicasets")?.collection(&cluster.namespace);
        users(&list(cluster, &sets).await?, &mut own);
    }
    delete::delete(cluster, args, &targets).await?;
    if !others.is_empty() {
        output::note(format!("not made by `coracle deploy`, and left: {}", others.join(", ")));
    }
    if args.dry_run == DryRun::None {
        // What is left without its owner goes on.
        let own = if args.cascade == Cascade::Orphan { BTreeSet::new() } else { own };
        remove_images(cluster, own, &images).await?;
    }
    Ok(())
}

/// Removes images that nothing else names, in any namespace. `own` are the uids of what was deleted.
async fn remove_images(cluster: &Cluster, mut own: BTreeSet<String>, images: &[String]) -> Result<()> {
    if images.is_empty() {
        return Ok(());
    }
    let mut objects = Vec::new();
    for kind in USERS {
        objects.extend(everywhere(cluster, kind).await?);
    }
    let used = users(&objects, &mut own);
    let artifacts = everywhere(cluster, "artifacts").await?;
    for image in images {
        let (repository, tag) = image::split(image)?;
        let digest = tagged(&artifacts, &repository, &tag).and_then(|one| one["spec"]["digest"].as_str());
        if let Some(user) = used.iter().find(|user| user.names(&repository, &tag, digest)) {
            output::note(format!("the image {image:?} is left: {} names it", user.what));
            continue;
        }
        untag(cluster, &repository, &tag).await?;
        output::line(format!("image \"{image}\" deleted"))?;
    }
    Ok(())
}

/// Something that names images.
struct User {
    /// For a message.
    what: String,
    images: Vec<String>,
}

impl User {
    fn of(object: &Value) -> Self {
        let meta = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = if object["spec"]["template"].is_null() { "pod" } else { "template of" };
        let what = format!("the {kind} {} in namespace {}", text(&meta["name"]), text(&meta["namespace"]));
        let spec = match &object["spec"]["template"] {
            Value::Null => &object["spec"],
            template => &template["spec"],
        };
        let lists = ["containers", "initContainers"].into_iter().filter_map(|field| spec[field].as_array());
        let images = lists.flatten().map(|container| text(&container["image"])).collect();
        Self { what, images }
    }

    /// Whether it names a tag, or by its digest what the tag stands for.
    fn names(&self, repository: &str, tag: &str, digest: Option<&str>) -> bool {
        // Names of other registries cannot be split.
        let mut named = self.images.iter().filter_map(|image| image::split(image).ok());
        named.any(|(other, reference)| {
            other == repository && (reference == tag || digest == Some(reference.as_str()))
        })
    }
}

/// Who names images and does not belong to `own`. The uids of those that do are added: owners come first.
fn users(objects: &[Value], own: &mut BTreeSet<String>) -> Vec<User> {
    let mut users = Vec::new();
    for object in objects {
        if belongs_to(object, own) {
            own.extend(uid(object));
        } else {
            users.push(User::of(object));
        }
    }
    users
}

/// Whether an object is one of those, or goes with them: all its owners are.
fn belongs_to(object: &Value, own: &BTreeSet<String>) -> bool {
    let is_one = |uid: &Value| uid.as_str().is_some_and(|uid| own.contains(uid));
    let owners = object["metadata"]["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
    let goes_with_them = !owners.is_empty() && owners.iter().all(|owner| is_one(&owner["uid"]));
    is_one(&object["metadata"]["uid"]) || goes_with_them
}

fn uid(object: &Value) -> Option<String> {
    object["metadata"]["uid"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object with `spec` that the owners of these uids own.
    fn object(uid: &str, owners: &[&str], spec: Value) -> Value {
        let owners: Vec<Value> = owners.iter().map(|uid| json!({ "uid": uid, "controller": true })).collect();
        let labels = json!({ "app": "hello" });
        json!({ "metadata": { "name": uid, "namespace": "n", "uid": uid, "labels": labels, "ownerReferences": owners },
                "spec": spec })
    }

    fn spec(image: &str) -> Value {
        json!({ "containers": [{ "name": "a", "image": image }] })
    }

    fn template(image: &str) -> Value {
        json!({ "template": { "spec": spec(image) } })
    }

    fn is_used(objects: &[Value]) -> bool {
        let mut own = BTreeSet::from(["hello".to_owned()]);
        users(objects, &mut own).iter().any(|user| user.names("hello", "1", Some("sha256:11")))
    }

    #[test]
    fn an_image_of_its_own_objects_alone_is_used_by_nobody_else() {
        let deployment = object("hello", &[], template("hello:1"));
        let set = object("set", &["hello"], template("hello:1"));
        let pod = object("pod", &["set"], spec("hello:1"));
        assert!(!is_used(&[deployment.clone(), set.clone(), pod.clone()]));
        assert!(is_used(&[deployment, pod.clone()]), "nobody knows whose it is");
        // The sets are read before they go.
        let mut own = BTreeSet::from(["hello".to_owned()]);
        assert!(users(&[set], &mut own).is_empty());
        assert!(users(&[pod], &mut own).is_empty());
    }

    #[test]
    fn an_image_that_another_object_names_is_used() {
        let with_init =
            json!({ "initContainers": [{ "image": "hello:1" }], "containers": [{ "image": "b:1" }] });
        for other in [
            object("canary", &[], template("hello:1")),
            object("set", &[], template("hello:1")),
            object("set", &["canary"], template("hello:1")),
            object("pod", &[], spec("hello:1")),
            object("pod", &["hello", "canary"], spec("hello:1")),
            object("pod", &[], with_init.clone()),
            object("canary", &[], json!({ "template": { "spec": with_init } })),
            object("pod", &[], spec("hello@sha256:11")),
        ] {
            assert!(is_used(std::slice::from_ref(&other)), "{other}");
        }
        for other in ["hello", "hello:2", "other:1", "ghcr.io/x/hello:1", "hello@sha256:22", ""] {
            assert!(!is_used(&[object("pod", &[], spec(other))]), "{other}");
        }
    }

    #[test]
    fn who_names_an_image_is_told() {
        let told = |object: Value| User::of(&object).what;
        assert_eq!(told(object("canary", &[], template("hello:1"))), "the template of canary in namespace n");
        assert_eq!(told(object("one", &[], spec("hello:1"))), "the pod one in namespace n");
    }
}
