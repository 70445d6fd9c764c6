//! Images of the cluster's own registry, as far as a deployment asks for them.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    client::{Body, Cluster, Refused},
    commands::push::split_name,
};

// What follows is as nodes have it: see `node/agent/src/artifacts/registry.rs`.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
                              application/vnd.oci.image.index.v1+json, \
                              application/vnd.docker.distribution.manifest.v2+json, \
                              application/vnd.docker.distribution.manifest.list.v2+json";
/// Manifests that are read of one image: an index names an image, or another index.
const MANIFESTS_MAX: usize = 4;
/// What images for WebAssembly call their platform, the one that is taken first in front.
const SYSTEMS: [&str; 4] = ["wasip2", "wasip3", "wasi", "wasip1"];
/// Layers that hold WebAssembly: of the present format and of the one before it.
const WASM_TYPES: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];
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
    let layer = layer(cluster, &repository, manifest).await;
    let Layer { digest, size } = layer.with_context(|| format!("the image {name} cannot be deployed"))?;
    if size > WASM_BYTES_MAX {
        bail!("the image {name} has {size} bytes, the limit is {WASM_BYTES_MAX}");
    }
    let request = http::Request::get(format!("/v2/{repository}/blobs/{digest}")).body(Body::default())?;
    let (_, bytes) = cluster.send(request).await.with_context(|| format!("reading the image {name}"))?;
    Ok(bytes.to_vec())
}

/// The layer that holds an image's component.
#[derive(Debug, PartialEq, Eq)]
struct Layer {
    digest: String,
    size: u64,
}

/// What a manifest leads to.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Image(Layer),
    /// By the digest of the one in the index that is for WebAssembly.
    Index(String),
}

/// The layer that nodes run of an image: where its name means an index, of the image in it for WebAssembly.
async fn layer(cluster: &Cluster, repository: &str, mut found: Value) -> Result<Layer> {
    for _ in 0..MANIFESTS_MAX {
        let chosen = match read(&found)? {
            Read::Image(layer) => return Ok(layer),
            Read::Index(chosen) => chosen,
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

fn read(manifest: &Value) -> Result<Read> {
    if let Some(listed) = manifest["manifests"].as_array() {
        return Ok(Read::Index(choose(listed)?));
    }
    let layers = manifest["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let media_type = |layer: &Value| layer["mediaType"].as_str().unwrap_or_default().to_owned();
    let mut wasm = layers.iter().filter(|layer| WASM_TYPES.contains(&media_type(layer).as_str()));
    let Some(layer) = wasm.next() else {
        let types: Vec<String> = layers.iter().map(media_type).collect();
        bail!(
            "it holds no WebAssembly (its layers are {types:?}): build the program for wasm32-wasip2 and push the .wasm file \
             with `coracle push`"
        );
    };
    ensure!(wasm.next().is_none(), "it holds more than one WebAssembly layer");
    let digest = layer["digest"].as_str().unwrap_or_default();
    ensure!(is_digest(digest, "sha256:", 64), "its layer has the digest {digest:?}, which is no sha256");
    Ok(Read::Image(Layer { digest: digest.to_owned(), size: layer["size"].as_u64().unwrap_or(0) }))
}

/// The manifest of an index that is for WebAssembly. One that is alone and says no platform is taken for it.
fn choose(listed: &[Value]) -> Result<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rank = |one: &&Value| {
        let platform = &one["platform"];
        let system = text(&platform["os"]);
        let place = SYSTEMS.iter().position(|known| *known == system).unwrap_or(SYSTEMS.len());
        text(&platform["architecture"]).starts_with("wasm").then_some(place)
    };
    let best = listed.iter().filter(|one| rank(one).is_some()).min_by_key(rank);
    let alone = listed.first().filter(|only| listed.len() == 1 && only["platform"].is_null());
    let Some(found) = best.or(alone) else {
        let name = |platform: &Value| match platform {
            Value::Null => "none".to_owned(),
            platform => format!("{}/{}", text(&platform["os"]), text(&platform["architecture"])),
        };
        let platforms: Vec<String> = listed.iter().map(|one| name(&one["platform"])).collect();
        bail!("its index holds no image for wasi/wasm (its platforms are {platforms:?})");
    };
    let digest = text(&found["digest"]);
    let is_one = is_digest(&digest, "sha256:", 64) || is_digest(&digest, "sha512:", 128);
    ensure!(is_one, "its index names {digest:?}, which is no digest");
    Ok(digest)
}

fn is_digest(text: &str, algorithm: &str, length: usize) -> bool {
    let digits = text.strip_prefix(algorithm);
    digits.is_some_and(|hex| hex.len() == length && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The newest tags of a repository, for a message.
async fn tags(cluster: &Cluster, repository: &str) -> Vec<String> {
    let answer = cluster.get(&format!("/v2/{repository}/tags/list")).await.ok().flatten().unwrap_or_default();
    let tags = answer["tags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    tags.take(5).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(letter: &str) -> String {
        format!("sha256:{}", letter.repeat(64))
    }

    #[test]
    fn the_layer_of_webassembly_is_taken() {
        let layer = |media_type: &str| json!({ "mediaType": media_type, "digest": digest("a"), "size": 7 });
        let tar = layer("application/vnd.oci.image.layer.v1.tar+gzip");
        for media_type in WASM_TYPES {
            let manifest = json!({ "layers": [tar, layer(media_type)] });
            let expected = Layer { digest: digest("a"), size: 7 };
            assert_eq!(read(&manifest).unwrap(), Read::Image(expected));
        }
        let twice = json!({ "layers": [layer("application/wasm"), layer("application/wasm")] });
        let elsewhere =
            json!({ "layers": [{ "mediaType": "application/wasm", "digest": "../x", "size": 7 }] });
        for (manifest, said) in [
            (json!({ "layers": [tar] }), "holds no WebAssembly"),
            (json!({}), "holds no WebAssembly"),
            (twice, "more than one"),
            (elsewhere, "no sha256"),
        ] {
            let error = read(&manifest).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn an_index_gives_the_image_that_nodes_run() {
        let listed = |letter: &str, os: &str, architecture: &str| {
            let platform = json!({ "os": os, "architecture": architecture });
            json!({ "digest": digest(letter), "platform": platform })
        };
        let bare = |letter: &str| json!({ "digest": digest(letter) });
        let linux = listed("a", "linux", "amd64");
        for (entries, letter) in [
            (vec![linux.clone(), listed("b", "wasi", "wasm")], "b"),
            (vec![listed("b", "wasip1", "wasm"), listed("c", "wasip2", "wasm")], "c"),
            (vec![linux.clone(), listed("b", "js", "wasm32")], "b"),
            (vec![bare("d")], "d"),
        ] {
            let chosen = read(&json!({ "manifests": entries })).unwrap();
            assert_eq!(chosen, Read::Index(digest(letter)));
        }
        let pathless = json!({ "digest": "../x" });
        for (entries, said) in [
            (vec![], "no image for wasi/wasm (its platforms are [])"),
            (vec![linux, bare("b")], "(its platforms are [\"linux/amd64\", \"none\"])"),
            (vec![pathless], "is no digest"),
        ] {
            let error = read(&json!({ "manifests": entries })).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
