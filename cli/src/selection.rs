//! What a command's words and files name, as kubectl reads them: `pods,svc`, `pod a b`, `pod/a svc/b`, manifests.

mod manifests;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::client::{Cluster, ServedKind};

/// Words as they are given, before the cluster is asked what they mean.
#[derive(Debug, PartialEq, Eq)]
enum Words {
    /// All objects of these kinds.
    Kinds(Vec<String>),
    /// These objects: kind and name.
    Objects(Vec<(String, String)>),
}

/// One object, or all of a kind.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: ServedKind,
    pub namespace: String,
    pub name: Option<String>,
}

impl Target {
    /// The path of the object, or of all.
    pub fn path(&self) -> Result<String> {
        match &self.name {
            Some(name) => self.kind.object(&self.namespace, name),
            None => Ok(self.kind.collection(&self.namespace)),
        }
    }
}

/// What the words name, in the cluster's namespace.
pub async fn by_words(cluster: &Cluster, words: &[String]) -> Result<Vec<Target>> {
    let target = |kind: ServedKind, name| Target { kind, namespace: cluster.namespace.clone(), name };
    let mut targets = Vec::new();
    match parse(words)? {
        Words::Kinds(kinds) => {
            for name in kinds {
                targets.extend(cluster.kinds(&name).await?.into_iter().map(|kind| target(kind, None)));
            }
        }
        Words::Objects(objects) => {
            for (kind, name) in objects {
                targets.push(target(cluster.kind(&kind).await?, Some(name)));
            }
        }
    }
    // All are looked at before anything is done: a script with one name that is none does nothing.
    targets.iter().try_for_each(|target| target.path().map(|_| ()))?;
    Ok(targets)
}

/// The objects that manifests name.
pub async fn by_files(cluster: &Cluster, files: &[PathBuf], namespace: Option<&str>) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for manifest in manifests::read(files)? {
        let kind = cluster.kind_of(&manifest.api_version, &manifest.kind).await?;
        let namespace = match (manifest.namespace, namespace) {
            (Some(own), Some(asked)) if own != asked && kind.namespaced => bail!(
                "{}/{} is of namespace {own:?}, and --namespace says {asked:?}: leave one of them out",
                kind.prefix(),
                manifest.name
            ),
            (Some(own), _) => own,
            (None, _) => cluster.namespace.clone(),
        };
        let target = Target { kind, namespace, name: Some(manifest.name) };
        target.path()?;
        targets.push(target);
    }
    Ok(targets)
}

fn parse(words: &[String]) -> Result<Words> {
    let slashes = words.iter().filter(|word| word.contains('/')).count();
    if slashes == 0 {
        let Some((kinds, names)) = words.split_first() else { bail!("say of which kind: see --help") };
        let kinds: Vec<String> = kinds.split(',').map(str::to_owned).collect();
        if let Some(empty) = kinds.iter().position(|kind| kind.trim().is_empty()) {
            bail!("kind {} of {:?} is empty: is a variable of the script not set?", empty + 1, words[0]);
        }
        if names.is_empty() {
            return Ok(Words::Kinds(kinds));
        }
        let of = |kind: &String| names.iter().map(|name| (kind.clone(), name.clone())).collect::<Vec<_>>();
        return Ok(Words::Objects(kinds.iter().flat_map(of).collect()));
    }
    if slashes < words.len() {
        bail!("there is no kind apart where objects are given as KIND/NAME: write all of them so, or none");
    }
    let mut objects = Vec::new();
    for word in words {
        match word.split_once('/') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') => {
                objects.push((kind.to_owned(), name.to_owned()));
            }
            _ => bail!("{word:?} is no KIND/NAME"),
        }
    }
    Ok(Words::Objects(objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Words, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(&words).map_err(|error| error.to_string())
    }

    fn objects(pairs: &[(&str, &str)]) -> Result<Words, String> {
        Ok(Words::Objects(pairs.iter().map(|(kind, name)| (kind.to_string(), name.to_string())).collect()))
    }

    #[test]
    fn words_are_read_as_kubectl_reads_them() {
        assert_eq!(words("pods"), Ok(Words::Kinds(vec!["pods".into()])));
        assert_eq!(words("deploy,svc"), Ok(Words::Kinds(vec!["deploy".into(), "svc".into()])));
        assert_eq!(words("pod a b"), objects(&[("pod", "a"), ("pod", "b")]));
        assert_eq!(words("deploy,svc a"), objects(&[("deploy", "a"), ("svc", "a")]));
        assert_eq!(words("pod/a svc/b"), objects(&[("pod", "a"), ("svc", "b")]));
        for (line, said) in [
            ("pod/a svc", "there is no kind apart"),
            ("pod svc/a", "there is no kind apart"),
            ("pods,", "kind 2 of \"pods,\" is empty"),
            ("pod/", "\"pod/\" is no KIND/NAME"),
            ("/a", "\"/a\" is no KIND/NAME"),
            ("pod/a/log", "\"pod/a/log\" is no KIND/NAME"),
        ] {
            let error = words(line).unwrap_err();
            assert!(error.starts_with(said), "{line}: {error}");
        }
    }
}
