//! What images are: the types of manifests, and the layer that a node runs. Source: the OCI image specification, and the
//! Wasm artifact guidance of the CNCF's TAG Runtime.

use serde::Deserialize;

pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What a registry is asked for.
pub const MANIFEST_TYPES: [&str; 4] = [IMAGE, INDEX, DOCKER_IMAGE, DOCKER_LIST];
/// Layers that hold WebAssembly: of the present format, which is the one to push, and of the one before it.
pub const WASM_TYPES: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];
/// Manifests that are read of one image: an index names an image, or another index.
pub const MANIFESTS_MAX: usize = 4;
/// What images for WebAssembly call their platform, the one that is taken first in front. The architecture is `wasm`, or
/// begins with it.
const SYSTEMS: [&str; 4] = ["wasip2", "wasip3", "wasi", "wasip1"];

/// What a manifest leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Image(WasmLayer),
    /// With the digest of the manifest in it that is for WebAssembly.
    Index {
        chosen: String,
    },
}

/// The one layer that holds an image's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmLayer {
    /// `sha256:<hex>`.
    pub digest: String,
    pub size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// What a manifest means to who would run it, or why nobody can.
pub fn content(manifest: &[u8]) -> Result<Content, String> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(default)]
        layers: Option<Vec<Layer>>,
        #[serde(default)]
        manifests: Option<Vec<Listed>>,
    }
    let manifest: Manifest =
        serde_json::from_slice(manifest).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    match manifest.manifests {
        Some(listed) => Ok(Content::Index { chosen: choose(&listed)? }),
        None => Ok(Content::Image(wasm_layer(&manifest.layers.unwrap_or_default())?)),
    }
}

fn wasm_layer(layers: &[Layer]) -> Result<WasmLayer, String> {
    let mut wasm = layers.iter().filter(|layer| WASM_TYPES.contains(&layer.media_type.as_str()));
    let Some(layer) = wasm.next() else {
        let types: Vec<&str> = layers.iter().map(|layer| layer.media_type.as_str()).collect();
        return Err(format!(
            "it holds no WebAssembly (its layers are {types:?}); build the program for wasm32-wasip2 and push the \
             .wasm file with `coracle push`"
        ));
    };
    if wasm.next().is_some() {
        return Err("it holds more than one WebAssembly layer".to_owned());
    }
    if !is_digest(&layer.digest, "sha256:", 64) {
        return Err(format!("its layer has the digest {:?}, which is no sha256", layer.digest));
    }
    Ok(WasmLayer { digest: layer.digest.clone(), size: layer.size })
}

/// The manifest of an index that is for WebAssembly. One that is alone and says no platform is taken for it.
fn choose(listed: &[Listed]) -> Result<String, String> {
    let rank = |listed: &&Listed| {
        let platform =
            listed.platform.as_ref().filter(|platform| platform.architecture.starts_with("wasm"))?;
        Some(SYSTEMS.iter().position(|system| *system == platform.os).unwrap_or(SYSTEMS.len()))
    };
    let best = listed.iter().filter(|listed| rank(listed).is_some()).min_by_key(rank);
    let alone = listed.first().filter(|only| listed.len() == 1 && only.platform.is_none());
    let Some(found) = best.or(alone) else {
        let names = |platform: &Platform| format!("{}/{}", platform.os, platform.architecture);
        let platforms: Vec<String> =
            listed.iter().map(|listed| listed.platform.as_ref().map_or("none".to_owned(), names)).collect();
        return Err(format!("its index holds no image for wasi/wasm (its platforms are {platforms:?})"));
    };
    if !is_digest(&found.digest, "sha256:", 64) && !is_digest(&found.digest, "sha512:", 128) {
        return Err(format!("its index names {:?}, which is no digest", found.digest));
    }
    Ok(found.digest.clone())
}

/// Digests stand in paths.
fn is_digest(text: &str, algorithm: &str, length: usize) -> bool {
    text.strip_prefix(algorithm).is_some_and(|hex| {
        hex.len() == length && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(letter: &str) -> String {
        format!("sha256:{}", letter.repeat(64))
    }

    fn read(manifest: &Value) -> Result<Content, String> {
        content(manifest.to_string().as_bytes())
    }

    #[test]
    fn the_layer_of_webassembly_is_taken() {
        let layer =
            |media_type: &str, digest: &str| json!({ "mediaType": media_type, "digest": digest, "size": 7 });
        let tar = layer("application/vnd.oci.image.layer.v1.tar+gzip", &digest("b"));
        for media_type in WASM_TYPES {
            let manifest = json!({ "layers": [tar, layer(media_type, &digest("a"))] });
            assert_eq!(read(&manifest), Ok(Content::Image(WasmLayer { digest: digest("a"), size: 7 })));
        }
        let wasm = |digest: &str| layer("application/wasm", digest);
        for (manifest, said) in [
            (json!({ "layers": [tar] }), "holds no WebAssembly (its layers are [\"application/vnd.oci"),
            (json!({}), "holds no WebAssembly (its layers are [])"),
            (json!({ "layers": [wasm(&digest("a")), wasm(&digest("a"))] }), "more than one"),
            (json!({ "layers": [wasm("../../etc/passwd")] }), "no sha256"),
            (json!({ "layers": [wasm(&digest("A"))] }), "no sha256"),
            (json!([1]), "cannot be read"),
        ] {
            let reason = read(&manifest).expect_err(said);
            assert!(reason.contains(said), "{reason}");
        }
    }

    #[test]
    fn an_index_gives_the_image_for_webassembly() {
        let listed = |letter: &str, os: &str, architecture: &str| json!({ "digest": digest(letter), "platform": { "os": os, "architecture": architecture } });
        let bare = |letter: &str| json!({ "digest": digest(letter) });
        let linux = listed("a", "linux", "amd64");
        for (entries, letter) in [
            (vec![linux.clone(), listed("b", "wasi", "wasm")], "b"),
            (vec![listed("b", "wasip1", "wasm"), listed("c", "wasip2", "wasm")], "c"),
            (vec![linux.clone(), listed("b", "js", "wasm32")], "b"),
            (vec![bare("d")], "d"),
        ] {
            let chosen = read(&json!({ "manifests": entries }));
            assert_eq!(chosen, Ok(Content::Index { chosen: digest(letter) }));
        }
        for (entries, said) in [
            (vec![], "no image for wasi/wasm (its platforms are [])"),
            (vec![linux.clone()], "(its platforms are [\"linux/amd64\"])"),
            (vec![bare("a"), bare("b")], "(its platforms are [\"none\", \"none\"])"),
            (vec![linux, bare("b")], "(its platforms are [\"linux/amd64\", \"none\"])"),
            (vec![json!({ "digest": "../x" })], "is no digest"),
        ] {
            let reason = read(&json!({ "manifests": entries })).expect_err(said);
            assert!(reason.contains(said), "{reason}");
        }
    }
}
