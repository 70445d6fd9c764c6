//! Images of the cluster's own registry, as far as a deployment asks for them.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    client::{Body, Cluster, Refused},
    commands::push::split_name,
};

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER_TYPE: &str = "application/wasm";
/// The largest component that a node takes, see `wasi-host/src/artifact/check.rs`.
const WASM_BYTES_MAX: u64 = 256 << 20;

/// A name as repository and tag or digest.
pub fn split(name: &str) -> Result<(String, String)> {
    match name.split_once('@') {
        Some((repository, digest)) => {
            let (repository, _) = split_name(repository)?;
            Ok((repository, digest.to_owned()))
        }
        None => split_name(name),
    }
}

/// Whether the registry has it.
pub async fn exists(cluster: &Cluster, repository: &str, reference: &str) -> Result<bool> {
    Ok(manifest(cluster, repository, reference).await?.is_some())
}

async fn manifest(cluster: &Cluster, repository: &str, reference: &str) -> Result<Option<Value>> {
    let request = http::Request::get(format!("/v2/{repository}/manifests/{reference}"))
        .header("accept", MANIFEST_TYPES);
    match cluster.send(request.body(Body::default())?).await {
        Ok((_, body)) => Ok(Some(serde_json::from_slice(&body).context("the image's manifest is not JSON")?)),
        Err(error) if Refused::is_absence(&error) => Ok(None),
        Err(error) => Err(error.context(format!("asking for the image {repository}"))),
    }
}

/// The component of an image, or that there is none of this name and what there is instead.
pub async fn component(cluster: &Cluster, name: &str) -> Result<Vec<u8>> {
    let (repository, reference) = split(name)?;
    let Some(manifest) = manifest(cluster, &repository, &reference).await? else {
        let tags = tags(cluster, &repository).await;
        let known = if tags.is_empty() {
            String::new()
        } else {
            format!(" of {repository} it has {};", tags.join(", "))
        };
        bail!("the cluster's registry has no image {name};{known} push it with `coracle push FILE {name}`");
    };
    let layers = manifest["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let layer = layers.iter().find(|layer| layer["mediaType"] == LAYER_TYPE).or(layers.first());
    let layer = layer.with_context(|| format!("the image {name} has no layer"))?;
    let size = layer["size"].as_u64().unwrap_or(0);
    if size > WASM_BYTES_MAX {
        bail!("the image {name} has {size} bytes, the limit is {WASM_BYTES_MAX}");
    }
    let digest =
        layer["digest"].as_str().with_context(|| format!("the layer of image {name} has no digest"))?;
    let request = http::Request::get(format!("/v2/{repository}/blobs/{digest}")).body(Body::default())?;
    let (_, bytes) = cluster.send(request).await.with_context(|| format!("reading the image {name}"))?;
    Ok(bytes.to_vec())
}

/// The newest tags of a repository, for a message.
async fn tags(cluster: &Cluster, repository: &str) -> Vec<String> {
    let answer = cluster.get(&format!("/v2/{repository}/tags/list")).await.ok().flatten().unwrap_or_default();
    let tags = answer["tags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    tags.take(5).map(str::to_owned).collect()
}
