//! Images of the cluster's own registry, as far as a deployment asks for them.

use anyhow::{Context, Error, Result, bail};
use bytes::Bytes;
use coracle_objects::image::{Content, MANIFEST_TYPES, MANIFESTS_MAX, WasmLayer, content};
use serde_json::Value;

use crate::{
    client::{Body, Cluster, Refused},
    commands::push::{WASM_BYTES_MAX, split_name},
};

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

async fn manifest(cluster: &Cluster, repository: &str, reference: &str) -> Result<Option<Bytes>> {
    let request = http::Request::get(format!("/v2/{repository}/manifests/{reference}"))
        .header("accept", MANIFEST_TYPES.join(", "));
    match cluster.send(request.body(Body::default())?).await {
        Ok((_, manifest)) => Ok(Some(manifest)),
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
    let layer = layer(cluster, &repository, manifest).await;
    let WasmLayer { digest, size } = layer.with_context(|| format!("the image {name} cannot be deployed"))?;
    if size > WASM_BYTES_MAX {
        bail!("the image {name} has {size} bytes, the limit is {WASM_BYTES_MAX}");
    }
    let request = http::Request::get(format!("/v2/{repository}/blobs/{digest}")).body(Body::default())?;
    let (_, bytes) = cluster.send(request).await.with_context(|| format!("reading the image {name}"))?;
    Ok(bytes.to_vec())
}

/// The layer that nodes run of an image: where its name means an index, of the image in it for WebAssembly.
async fn layer(cluster: &Cluster, repository: &str, mut found: Bytes) -> Result<WasmLayer> {
    for _ in 0..MANIFESTS_MAX {
        let chosen = match content(&found).map_err(Error::msg)? {
            Content::Image(layer) => return Ok(layer),
            Content::Index { chosen } => chosen,
        };
        let Some(next) = manifest(cluster, repository, &chosen).await? else {
            bail!(
                "its index names {chosen}, which the registry does not have: push the index with its images"
            );
        };
        found = next;
    }
    bail!("its indexes are in each other too deeply")
}

/// Some tags of a repository, for a message.
async fn tags(cluster: &Cluster, repository: &str) -> Vec<String> {
    let answer = cluster.get(&format!("/v2/{repository}/tags/list")).await.ok().flatten().unwrap_or_default();
    let tags = answer["tags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    tags.take(5).map(str::to_owned).collect()
}
