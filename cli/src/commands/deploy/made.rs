//! What a deployment has made, and how that is removed: where it fails, and by `coracle delete NAME`.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{
    image,
    objects::{KINDS, MADE_BY, PUSHED},
};
use crate::{
    args::DeleteArgs,
    client::{Body, Cluster, Refused, native_kind},
    commands::delete,
    output,
    selection::Target,
};

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
        let first = self.objects.iter().any(|(kind, _)| *kind == "deployments");
        let exists = async || {
            let path = native_kind("deployments")?.object(&cluster.namespace, name)?;
            cluster.get(&path).await
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
    let kind = native_kind("artifacts")?;
    let all = cluster.get(&kind.everywhere()).await?.unwrap_or_default();
    let is_it =
        |artifact: &&Value| artifact["spec"]["repository"] == repository && artifact["spec"]["tag"] == tag;
    let found = all["items"].as_array().and_then(|all| all.iter().find(is_it));
    match found.and_then(|artifact| artifact["metadata"]["name"].as_str()) {
        Some(name) => remove(cluster, "artifacts", name).await,
        None => Ok(()),
    }
}

/// `coracle delete NAME`: removes what `coracle deploy` made under a name, and the images that it pushed for it.
pub async fn delete_app(cluster: &Cluster, args: &DeleteArgs, name: &str) -> Result<()> {
    let (mut targets, mut others, mut images) = (Vec::new(), Vec::new(), Vec::new());
    // The way in goes first, the Secret last.
    for kind in KINDS.iter().rev() {
        let kind = native_kind(kind)?;
        let path = kind.object(&cluster.namespace, name)?;
        let Some(object) = cluster.get(&path).await? else { continue };
        if object["metadata"]["labels"][MADE_BY.0] != MADE_BY.1 {
            others.push(format!("{}/{name}", kind.prefix()));
            continue;
        }
        let pushed = object["metadata"]["annotations"][PUSHED].as_str().unwrap_or_default();
        images.extend(pushed.split(',').filter(|image| !image.is_empty()).map(str::to_owned));
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
    delete::delete(cluster, args, &targets).await?;
    if !others.is_empty() {
        output::note(format!("not made by `coracle deploy`, and left: {}", others.join(", ")));
    }
    if args.dry_run == crate::args::DryRun::None {
        remove_images(cluster, name, &images).await?;
    }
    Ok(())
}

/// Removes images that nothing else runs. Registries are the cluster's, not a namespace's.
async fn remove_images(cluster: &Cluster, name: &str, images: &[String]) -> Result<()> {
    if images.is_empty() {
        return Ok(());
    }
    let mut used = Vec::new();
    for (kind, containers) in
        [("deployments", "/spec/template/spec/containers"), ("pods", "/spec/containers")]
    {
        let all = cluster.get(&native_kind(kind)?.everywhere()).await?.unwrap_or_default();
        for object in all["items"].as_array().into_iter().flatten() {
            let meta = &object["metadata"];
            // Its own pods are on their way out.
            let own = meta["namespace"] == *cluster.namespace && meta["labels"]["app"] == name;
            let list = object.pointer(containers).and_then(Value::as_array).into_iter().flatten();
            used.extend(list.filter(|_| !own).filter_map(|one| one["image"].as_str().map(str::to_owned)));
        }
    }
    for image in images.iter().filter(|image| !used.contains(image)) {
        let (repository, tag) = image::split(image)?;
        untag(cluster, &repository, &tag).await?;
        output::line(format!("image \"{image}\" deleted"))?;
    }
    Ok(())
}
