//! Manifests: YAML or JSON, several in a file, lists of them, files of a folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::input;

/// The largest file that is read.
const BYTES_MAX: u64 = 64 << 20;

/// What a manifest names.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
}

/// Those of all files in order; `-` is stdin. A folder is its files that end in .yaml, .yml or .json.
pub fn read(files: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for file in files {
        let within = if file.is_dir() { of_folder(file)? } else { vec![file.clone()] };
        for file in within {
            let text = input::text(&file, BYTES_MAX)?;
            let found = parse(&text).with_context(|| format!("reading {}", file.display()))?;
            manifests.extend(found);
        }
    }
    if manifests.is_empty() {
        bail!("no objects are in what --filename names");
    }
    Ok(manifests)
}

fn of_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let listing = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let is_manifest = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known))
    };
    let paths = listing.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.is_file() && is_manifest(path)).collect();
    paths.sort();
    Ok(paths)
}

fn parse(text: &str) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document).context("it is neither YAML nor JSON")?;
        if !value.is_null() {
            collect(&value, &mut manifests)?;
        }
    }
    Ok(manifests)
}

fn collect(value: &Value, into: &mut Vec<Manifest>) -> Result<()> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let kind = text("/kind").context("an object in it has no kind")?;
    if let Some(items) = value["items"].as_array().filter(|_| kind.ends_with("List")) {
        return items.iter().try_for_each(|item| collect(item, into));
    }
    into.push(Manifest {
        api_version: text("/apiVersion").with_context(|| format!("a {kind} in it has no apiVersion"))?,
        name: text("/metadata/name").with_context(|| format!("a {kind} in it has no metadata.name"))?,
        namespace: text("/metadata/namespace"),
        kind,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Result<Vec<String>, String> {
        let found = parse(text).map_err(|error| format!("{error:#}"))?;
        Ok(found
            .into_iter()
            .map(|one| format!("{}/{}/{}", one.kind, one.namespace.unwrap_or_default(), one.name))
            .collect())
    }

    #[test]
    fn documents_lists_and_json_are_read() {
        let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: n}}";
        let two = format!("{pod}\n---\n# nothing\n---\napiVersion: v1\nkind: List\nitems: [{pod}, {pod}]\n");
        assert_eq!(named(&two).unwrap(), ["Pod/n/a"; 3]);
        assert_eq!(
            named("{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"b\"}}").unwrap(),
            ["Service//b"]
        );
        for (text, said) in [
            ("{apiVersion: v1, kind: Pod, metadata: {}}", "a Pod in it has no metadata.name"),
            ("{kind: Pod, metadata: {name: a}}", "a Pod in it has no apiVersion"),
            ("just text", "an object in it has no kind"),
            ("{", "it is neither YAML nor JSON"),
        ] {
            assert!(named(text).unwrap_err().starts_with(said), "{text}: {:?}", named(text));
        }
    }

    #[test]
    fn a_folder_is_its_manifests_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = |name: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}}}");
        for (file, name) in [("b.yaml", "b"), ("a.json", "a"), ("c.yml", "c"), ("README.md", "none")] {
            let text = manifest(name).replace("apiVersion: v1", "\"apiVersion\": \"v1\"");
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let found = read(&[folder.path().to_owned()]).unwrap();
        assert_eq!(found.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        let said = format!("{:#}", read(&[PathBuf::from("/nowhere.yaml")]).unwrap_err());
        assert!(said.starts_with("reading /nowhere.yaml: "), "{said}");
    }
}
