//! What a manifest says, and whether it can be true. Source: the OCI image specification, `manifest.md`, `image-index.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
};

use coracle_objects::image::{DOCKER_IMAGE, DOCKER_LIST, WASM_TYPES};
pub use coracle_objects::image::{IMAGE, INDEX};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, SeqAccess, Visitor},
};

use crate::digest::Digest;

/// The largest manifest, in bytes (the specification's recommendation).
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a manifest that is pushed may name. They are part of an object, which has a bound of its own.
const REFERENCES_MAX: usize = 1024;

/// The longest list that is read: what versions before took.
const LISTED_MAX: usize = 4096;

/// The longest type, in bytes: it is part of an object. Source: RFC 6838, 4.2, with 127 for each half.
pub const TYPE_BYTES_MAX: usize = 255;

/// A manifest of any kind, as far as a registry reads it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Manifest {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(deserialize_with = "list")]
    layers: Option<Vec<Descriptor>>,
    /// Of an artifact manifest, the form before the images with an `artifactType`.
    #[serde(deserialize_with = "list")]
    blobs: Option<Vec<Descriptor>>,
    #[serde(deserialize_with = "list")]
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    /// Only how many matters, so that they take no memory.
    urls: Option<Vec<IgnoredAny>>,
}

/// Descriptors, but no more than the bound: the smallest of them has 3 bytes as JSON, and a hundred in memory.
struct Listed<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Listed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Listed<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {LISTED_MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut found = vec![];
        while let Some(next) = list.next_element()? {
            if found.len() == LISTED_MAX {
                return Err(A::Error::custom(format!("a list has more than {LISTED_MAX} descriptors")));
            }
            found.push(next);
        }
        Ok(Listed(found))
    }
}

fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<Listed<T>>::deserialize(deserializer)?.map(|list| list.0))
}

/// What a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub digest: Digest,
    pub size: u64,
    /// False for layers that are not to be distributed: they are elsewhere.
    pub is_required: bool,
}

impl Manifest {
    /// Reads what was pushed, and says what is wrong with it.
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        if content.trim_ascii_start().first() != Some(&b'{') {
            return Err("it is not a JSON manifest: it is no object".into());
        }
        let manifest: Self =
            serde_json::from_slice(content).map_err(|error| format!("it is not a JSON manifest: {error}"))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads what was taken once; what cannot be read names nothing.
    pub fn of_kept(content: &[u8]) -> Self {
        serde_json::from_slice(content).unwrap_or_default()
    }

    /// Whether this content, which no object tells about, is a manifest. A config has no digest where one has it.
    pub fn is_one(content: &[u8]) -> bool {
        let manifest = Self::of_kept(content);
        let names_all = manifest.descriptors().all(|named| Digest::parse(&named.digest).is_some());
        names_all && (manifest.is_index() || manifest.descriptors().next().is_some())
    }

    fn check(&self) -> Result<(), String> {
        self.check_types()?;
        if let Some(version) = self.schema_version.filter(|version| *version != 2) {
            return Err(format!("schemaVersion: {version} is not served, only 2"));
        }
        if self.config.is_none() && self.lists().iter().all(|list| list.is_none()) {
            return Err("it names nothing: it has neither config and layers nor manifests".into());
        }
        if self.is_index() && (self.config.is_some() || self.layers.is_some()) {
            return Err(
                "it is an image and an index at once: it has manifests beside config or layers".into()
            );
        }
        let mut layers = BTreeSet::new();
        for layer in self.layers.iter().flatten() {
            if WASM_TYPES.contains(&layer.media_type.as_str()) && !layers.insert(&layer.digest) {
                return Err(format!("layers: {} is there twice, which no pod could run", layer.digest));
            }
        }
        if let Some(subject) = &self.subject
            && Digest::parse(&subject.digest).is_none()
        {
            return Err(format!("subject.digest: {:?} is no digest of sha256 or sha512", subject.digest));
        }
        if self.references()?.len() > REFERENCES_MAX {
            return Err(format!("it names more than {REFERENCES_MAX} blobs"));
        }
        Ok(())
    }

    fn check_types(&self) -> Result<(), String> {
        let config = self.config.as_ref().map(|config| config.media_type.as_str());
        let types = [
            ("mediaType", self.media_type.as_deref()),
            ("artifactType", self.artifact_type.as_deref()),
            ("config.mediaType", config),
        ];
        for (field, value) in types {
            check_type(field, value.unwrap_or_default())?;
        }
        match self.media_type.as_deref().filter(|said| !said.is_empty()) {
            Some(said) if self.is_index() && !is_index(said) => {
                Err(format!("mediaType: {said:?} has no manifests, only an index has: {INDEX}"))
            }
            Some(said) if !self.is_index() && is_index(said) => {
                Err(format!("mediaType: {said:?} is an index, which has manifests"))
            }
            _ => Ok(()),
        }
    }

    pub fn is_index(&self) -> bool {
        self.manifests.is_some()
    }

    /// Each blob and manifest that it is made of, once.
    pub fn references(&self) -> Result<Vec<Reference>, String> {
        let mut found: Vec<Reference> = vec![];
        let mut sizes = BTreeMap::new();
        for named in self.descriptors() {
            let digest = Digest::parse(&named.digest)
                .ok_or_else(|| format!("{:?} is no digest of sha256 or sha512", named.digest))?;
            match sizes.insert(digest.clone(), named.size) {
                Some(before) if before != named.size => {
                    return Err(format!(
                        "{digest} has {before} bytes in one place, {} in another",
                        named.size
                    ));
                }
                Some(_) => continue,
                None => {}
            }
            found.push(Reference { digest, size: named.size, is_required: !named.is_elsewhere() });
        }
        Ok(found)
    }

    fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(self.lists().into_iter().flatten().flatten())
    }

    fn lists(&self) -> [&Option<Vec<Descriptor>>; 3] {
        [&self.layers, &self.blobs, &self.manifests]
    }

    /// The same of what was taken once, as far as it can be read.
    pub fn names(&self) -> impl Iterator<Item = Digest> {
        self.descriptors().filter_map(|named| Digest::parse(&named.digest))
    }

    /// The manifest that it is about.
    pub fn subject(&self) -> Option<Digest> {
        Digest::parse(&self.subject.as_ref()?.digest)
    }

    /// What kind of thing it is to who lists referrers: an image without a type of its own has that of its config.
    pub fn artifact_type(&self) -> Option<&str> {
        let config = self.config.as_ref().map(|config| config.media_type.as_str());
        let said = [self.artifact_type.as_deref(), config];
        said.into_iter().flatten().find(|text| !text.is_empty())
    }

    /// The manifest says it itself, else whoever pushed it, else its form. Whether it is an index only its form says.
    pub fn media_type(&self, pushed: Option<&str>) -> String {
        // Parameters are nothing to a registry.
        let pushed = pushed.and_then(|value| value.split(';').next()).map(str::trim);
        let form = if self.is_index() { INDEX } else { IMAGE };
        let fits = |value: &&str| value.ends_with("json") && is_index(value) == self.is_index();
        let said = [self.media_type.as_deref(), pushed.filter(fits)];
        said.into_iter().flatten().find(|text| !text.is_empty()).unwrap_or(form).to_owned()
    }
}

impl Descriptor {
    /// Whether the content is not to be distributed. Source: the image specification, `layer.md`; docker's foreign layers.
    fn is_elsewhere(&self) -> bool {
        let is_foreign =
            self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.");
        is_foreign || self.urls.as_ref().is_some_and(|urls| !urls.is_empty())
    }
}

/// Whether what is of this type names manifests.
pub fn is_index(media_type: &str) -> bool {
    [INDEX, DOCKER_LIST].contains(&media_type)
}

/// The same where versions before took an index by any type.
pub fn may_be_index(media_type: &str) -> bool {
    ![IMAGE, DOCKER_IMAGE].contains(&media_type)
}

pub fn check_type(field: &str, value: &str) -> Result<(), String> {
    if value.len() > TYPE_BYTES_MAX {
        return Err(format!("{field}: it has {} bytes, at most {TYPE_BYTES_MAX} are taken", value.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn descriptor(letter: &str, size: u64) -> Value {
        json!({ "mediaType": "application/x", "digest": format!("sha256:{}", letter.repeat(64)), "size": size })
    }

    fn parse(manifest: &Value) -> Result<Manifest, String> {
        Manifest::parse(manifest.to_string().as_bytes())
    }

    #[test]
    fn what_a_manifest_names_is_counted_once() {
        let manifest = json!({ "schemaVersion": 2, "config": descriptor("a", 2),
            "layers": [descriptor("a", 2), descriptor("b", 3), descriptor("b", 3)] });
        let sizes: Vec<u64> =
            parse(&manifest).unwrap().references().unwrap().iter().map(|r| r.size).collect();
        assert_eq!(sizes, [2, 3]);
        let none = json!({ "schemaVersion": 2, "config": descriptor("a", 2), "layers": null });
        assert_eq!(parse(&none).unwrap().references().unwrap().len(), 1);
    }

    #[test]
    fn a_layer_that_is_elsewhere_is_not_required() {
        let foreign = |media_type: &str| {
            json!({ "mediaType": media_type, "size": 1, "digest":
            format!("sha256:{}", "c".repeat(64)) })
        };
        for media_type in [
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            let manifest = json!({ "layers": [descriptor("b", 3), foreign(media_type)] });
            let required: Vec<bool> =
                parse(&manifest).unwrap().references().unwrap().iter().map(|r| r.is_required).collect();
            assert_eq!(required, [true, false], "{media_type}");
        }
    }

    #[test]
    fn what_cannot_be_true_is_refused_with_its_reason() {
        let wasm = json!({ "mediaType": "application/wasm", "digest": format!("sha256:{}", "a".repeat(64)) });
        let many: Vec<Value> = (0..=REFERENCES_MAX)
            .map(|n| json!({ "digest": format!("sha256:{n:064x}"), "size": 1 }))
            .collect();
        for (manifest, reason) in [
            (json!([]), "not a JSON manifest"),
            (json!({ "schemaVersion": 2 }), "names nothing"),
            (json!({ "schemaVersion": 1 }), "schemaVersion: 1"),
            (json!({ "layers": [descriptor("a", 1), descriptor("a", 2)] }), "1 bytes in one place, 2 in"),
            (json!({ "layers": [wasm, wasm] }), "is there twice"),
            (json!({ "layers": [], "manifests": [] }), "an image and an index at once"),
            (json!({ "layers": many }), "more than 1024"),
            (json!({ "config": { "digest": "md5:1" } }), "\"md5:1\" is no digest"),
            (json!({ "layers": [], "subject": { "digest": "x" } }), "subject.digest"),
        ] {
            let error = parse(&manifest).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
        let twice = Manifest::parse(br#"{"layers":[],"layers":[]}"#).expect_err("a field twice");
        assert!(twice.contains("duplicate field"), "{twice}");
    }

    #[test]
    fn a_list_is_read_only_as_far_as_it_may_be_long() {
        for field in ["layers", "blobs", "manifests"] {
            let list = "{},".repeat(1_000_000) + "{}";
            let content = format!("{{\"{field}\":[{list}]}}");
            let error = Manifest::parse(content.as_bytes()).expect_err(field);
            assert!(error.contains("a list has more than 4096 descriptors"), "{error}");
        }
        let named: Vec<Value> = (0..LISTED_MAX)
            .map(|n| json!({ "digest": format!("sha256:{n:064x}"), "urls": ["a", "b"] }))
            .collect();
        let kept = Manifest::of_kept(json!({ "layers": named }).to_string().as_bytes());
        assert_eq!(kept.references().unwrap().len(), LISTED_MAX, "what a version before took is read");
    }

    #[test]
    fn a_type_is_no_longer_than_an_object_wants_it() {
        let (most, more) = ("t".repeat(TYPE_BYTES_MAX), "t".repeat(TYPE_BYTES_MAX + 1));
        let config = |media_type: &str| json!({ "digest": format!("sha256:{}", "a".repeat(64)), "mediaType": media_type });
        assert!(parse(&json!({ "layers": [], "mediaType": most, "artifactType": most })).is_ok());
        for (manifest, field) in [
            (json!({ "layers": [], "mediaType": more }), "mediaType: it has 256 bytes"),
            (json!({ "layers": [], "artifactType": more }), "artifactType: it has 256 bytes"),
            (json!({ "config": config(&more) }), "config.mediaType: it has 256 bytes"),
        ] {
            let error = parse(&manifest).expect_err(field);
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn an_index_is_told_by_its_form() {
        let of = |manifest: Value, pushed| parse(&manifest).map(|manifest| manifest.media_type(pushed));
        for pushed in ["application/json", IMAGE, DOCKER_IMAGE] {
            assert_eq!(of(json!({ "manifests": [] }), Some(pushed)).unwrap(), INDEX, "{pushed}");
        }
        assert_eq!(of(json!({ "manifests": [] }), Some(DOCKER_LIST)).unwrap(), DOCKER_LIST);
        assert_eq!(of(json!({ "layers": [] }), Some(INDEX)).unwrap(), IMAGE);
        let error = of(json!({ "manifests": [], "mediaType": "application/json" }), None).unwrap_err();
        assert!(error.contains("mediaType: \"application/json\" has no manifests"), "{error}");
        let error = of(json!({ "layers": [], "mediaType": INDEX }), None).unwrap_err();
        assert!(error.contains("is an index, which has manifests"), "{error}");
    }

    #[test]
    fn what_no_object_tells_about_is_a_manifest_by_what_it_names() {
        let is_one = |content: Value| Manifest::is_one(content.to_string().as_bytes());
        assert!(is_one(json!({ "config": descriptor("a", 1), "layers": [] })));
        assert!(is_one(json!({ "manifests": [descriptor("a", 1)] })));
        assert!(!is_one(json!({ "architecture": "wasm", "config": { "Env": [] } })), "a config");
        assert!(!is_one(json!({ "hello": "world" })) && !is_one(json!([])));
        assert!(!Manifest::is_one(b"text"));
    }

    #[test]
    fn a_manifest_has_the_type_that_it_says() {
        let of = |manifest: Value, pushed| parse(&manifest).unwrap().media_type(pushed);
        assert_eq!(of(json!({ "mediaType": "a/b", "layers": [] }), Some(IMAGE)), "a/b");
        assert_eq!(
            of(json!({ "layers": [] }), Some("application/x+json; charset=utf-8")),
            "application/x+json"
        );
        assert_eq!(of(json!({ "layers": [] }), Some("application/octet-stream")), IMAGE);
        assert_eq!(of(json!({ "manifests": [] }), None), INDEX);
        let config = json!({ "mediaType": "application/c", "digest": format!("sha256:{}", "a".repeat(64)) });
        let artifact = |manifest: Value| parse(&manifest).unwrap().artifact_type().map(str::to_owned);
        assert_eq!(artifact(json!({ "config": config })).as_deref(), Some("application/c"));
        assert_eq!(artifact(json!({ "config": config, "artifactType": "t" })).as_deref(), Some("t"));
        assert_eq!(artifact(json!({ "manifests": [] })), None);
    }
}
