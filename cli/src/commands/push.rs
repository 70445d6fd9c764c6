//! `coracle push`: puts a component into the cluster's own registry, by the OCI distribution API.
//!
//! The artifact is an OCI image manifest with a wasm config and one `application/wasm` layer, as the CNCF
//! TAG Runtime's Wasm OCI artifact guidance lays down.

use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use coracle_objects::image::{IMAGE, WASM_TYPES};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    args::PushArgs,
    client::{Body, Cluster, Refused},
    input, output,
};

/// The largest component that a node takes, see `wasi-host/src/artifact/check.rs`.
pub const WASM_BYTES_MAX: u64 = 256 << 20;
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_TYPE: &str = WASM_TYPES[0];

pub async fn run(args: &PushArgs) -> Result<()> {
    let cluster = Cluster::find(&args.connection)?;
    let (repository, tag) = split_name(&args.name)?;
    let bytes = read_wasm(&args.file)?;
    let digest = push(&cluster, &repository, &tag, bytes).await?;
    output::line(format!("{repository}:{tag} pushed, digest {digest}"))
}

/// `hello:1.0` as repository and tag; `latest` where no tag is given.
pub fn split_name(name: &str) -> Result<(String, String)> {
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    };
    let fine = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b))
    };
    let tag_fine = !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !fine(repository) || !tag_fine || repository.split('/').any(str::is_empty) {
        bail!(
            "`{name}` is no image name: write lower-case letters, digits, `.`, `_`, `-` and `/`, as in hello:1.0"
        );
    }
    if repository.split('/').next().is_some_and(|host| host.contains('.') && repository.contains('/')) {
        bail!("`{name}` names another registry: a name in the cluster's own registry has no host");
    }
    Ok((repository.into(), tag.into()))
}

/// Reads a file and makes sure that it is wasm at all.
pub fn read_wasm(file: &Path) -> Result<Vec<u8>> {
    let bytes = input::bytes(file, WASM_BYTES_MAX)?;
    if !bytes.starts_with(b"\0asm") {
        bail!("{} is not WebAssembly: it does not begin with the bytes \\0asm", file.display());
    }
    Ok(bytes)
}

/// Pushes wasm bytes; answers the digest of the manifest.
pub async fn push(cluster: &Cluster, repository: &str, tag: &str, wasm: Vec<u8>) -> Result<String> {
    let layer = digest(&wasm);
    let size = wasm.len();
    let config = serde_json::to_vec(&json!({
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer],
    }))?;
    let bar = ProgressBar::new(size as u64).with_style(
        ProgressStyle::with_template("pushing {bar:30} {bytes}/{total_bytes}")
            .expect("the template is well-formed"),
    );
    let config_digest = digest(&config);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": LAYER_TYPE, "digest": layer, "size": size}],
    }))?;
    push_blob(cluster, repository, &config_digest, config.into()).await?;
    push_blob(cluster, repository, &layer, wasm.into()).await?;
    bar.set_position(size as u64);
    let manifest_digest = digest(&manifest);
    let request = http::Request::put(format!("/v2/{repository}/manifests/{tag}"))
        .header("content-type", IMAGE)
        .body(Body::from(manifest))?;
    cluster.send(request).await.with_context(|| format!("pushing the manifest of {repository}:{tag}"))?;
    bar.finish_and_clear();
    Ok(manifest_digest)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

async fn push_blob(cluster: &Cluster, repository: &str, digest: &str, bytes: Bytes) -> Result<()> {
    let head = http::Request::head(format!("/v2/{repository}/blobs/{digest}")).body(Body::default())?;
    match cluster.send(head).await {
        Ok(_) => return Ok(()),
        Err(error) if Refused::is_absence(&error) => {}
        Err(error) => return Err(error),
    }
    let begin = http::Request::post(format!("/v2/{repository}/blobs/uploads/")).body(Body::default())?;
    let (headers, _) = cluster.send(begin).await.context("beginning an upload")?;
    let location = headers.get("location").and_then(|value| value.to_str().ok());
    let location = location.context("the registry named no place for the upload")?;
    let path: http::Uri = location.parse().context("the registry's place for the upload is no URI")?;
    let path = path.path_and_query().map_or("/", |path| path.as_str());
    let join = if path.contains('?') { '&' } else { '?' };
    let put = http::Request::put(format!("{path}{join}digest={digest}"))
        .header("content-type", "application/octet-stream")
        .body(Body::from(bytes))?;
    cluster.send(put).await.with_context(|| format!("uploading {digest}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_repository_and_a_tag() {
        assert_eq!(split_name("hello").unwrap(), ("hello".into(), "latest".into()));
        assert_eq!(split_name("team/hello:1.0").unwrap(), ("team/hello".into(), "1.0".into()));
        for bad in ["", ":1", "Hello", "a//b", "ghcr.io/x/y:1", "hello:", "a b"] {
            assert!(split_name(bad).is_err(), "{bad}");
        }
    }
}
