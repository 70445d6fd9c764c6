//! Kinds as users name them: by plural, singular or short name, as with kubectl. Those of this binary are known; others the
//! cluster is asked for.

use anyhow::{Context, Result, anyhow};
use coracle_objects::NameRule;
use http::Request;
use serde_json::Value;

use super::{Body, Cluster};
use crate::names;

/// All groups with their resources in one answer (KEP-3352).
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The paths of a kind: of its objects in one namespace, in all, and of one.
#[derive(Debug)]
pub struct KindPath {
    singular: String,
    name_rule: NameRule,
    pub collection: String,
    pub everywhere: String,
}

impl KindPath {
    fn new(api: &str, plural: &str, namespace: Option<&str>, singular: &str, name_rule: NameRule) -> Self {
        let everywhere = format!("{api}/{plural}");
        let collection = match namespace {
            Some(namespace) => format!("{api}/namespaces/{}/{plural}", names::encode(namespace)),
            None => everywhere.clone(),
        };
        Self { singular: singular.to_owned(), name_rule, collection, everywhere }
    }

    /// The path of one object. What can be no name is refused: an empty one would be all objects.
    pub fn object(&self, name: &str) -> Result<String> {
        names::of_kind(&self.singular, self.name_rule, name)?;
        Ok(format!("{}/{}", self.collection, names::encode(name)))
    }
}

/// A kind of this binary.
pub fn native_kind(name: &str, namespace: &str) -> Result<KindPath> {
    find_native(name, namespace).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> anyhow::Error {
    anyhow!("the server has no kind named `{name}`: see `kubectl api-resources`")
}

/// The name, and the group where one is named.
fn parts(name: &str) -> (String, Option<String>) {
    let name = name.to_ascii_lowercase();
    match name.split_once('.') {
        Some((plain, group)) => (plain.to_owned(), Some(group.to_owned())),
        None => (name, None),
    }
}

fn find_native(name: &str, namespace: &str) -> Option<KindPath> {
    let (plain, group) = parts(name);
    let kind = coracle_objects::kinds().iter().find(|kind| {
        let named = kind.plural == *plain
            || kind.singular == *plain
            || kind.short_names.iter().any(|short| *short == *plain);
        named && group.as_ref().is_none_or(|group| kind.group == **group)
    })?;
    let api = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let namespace = kind.namespaced.then_some(namespace);
    Some(KindPath::new(&api, &kind.plural, namespace, &kind.singular, kind.name_rule))
}

/// The same among the groups that a cluster has told of. The first version of a group is the preferred one.
fn find_served(groups: &Value, name: &str, namespace: &str) -> Option<KindPath> {
    let (plain, wanted) = parts(name);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for group in list(&groups["items"]) {
        let group_name = group["metadata"]["name"].as_str().unwrap_or("");
        if wanted.as_ref().is_some_and(|wanted| wanted != group_name) {
            continue;
        }
        for version in list(&group["versions"]) {
            let api = format!("/apis/{group_name}/{}", version["version"].as_str().unwrap_or(""));
            for resource in list(&version["resources"]) {
                let short = list(&resource["shortNames"]);
                let (plural, singular) = (&resource["resource"], &resource["singularResource"]);
                if plural == &*plain || singular == &*plain || short.iter().any(|short| short == &*plain) {
                    let namespace = (resource["scope"] == "Namespaced").then_some(namespace);
                    let (plural, singular) = (plural.as_str()?, singular.as_str()?);
                    return Some(KindPath::new(&api, plural, namespace, singular, NameRule::Subdomain));
                }
            }
        }
    }
    None
}

impl Cluster {
    /// Finds a kind, also one that the cluster itself declares.
    pub async fn kind(&self, name: &str) -> Result<KindPath> {
        if let Some(known) = find_native(name, &self.namespace) {
            return Ok(known);
        }
        let request = Request::get("/apis").header("accept", DISCOVERY).body(Body::default())?;
        let (_, answer) = self.send(request).await.context("asking for the kinds that are served")?;
        let groups: Value = serde_json::from_slice(&answer).context("the answer is not JSON")?;
        find_served(&groups, name, &self.namespace).ok_or_else(|| unknown(name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_are_found_by_any_of_their_names() {
        for name in ["pods", "pod", "po", "Pods"] {
            assert_eq!(native_kind(name, "a").unwrap().collection, "/api/v1/namespaces/a/pods", "{name}");
        }
        assert_eq!(native_kind("deploy.apps", "a").unwrap().everywhere, "/apis/apps/v1/deployments");
        assert!(
            native_kind("deploy.other", "a")
                .unwrap_err()
                .to_string()
                .contains("no kind named `deploy.other`")
        );
        let groups = json!({ "items": [{ "metadata": { "name": "example.com" }, "versions": [{ "version": "v1", "resources": [
            { "resource": "backups", "singularResource": "backup", "scope": "Namespaced", "shortNames": ["bk"] },
            { "resource": "zones", "singularResource": "zone", "scope": "Cluster" },
        ] }] }] });
        for name in ["backups", "backup", "bk", "bk.example.com"] {
            let found = find_served(&groups, name, "a").unwrap();
            assert_eq!(found.object("x").unwrap(), "/apis/example.com/v1/namespaces/a/backups/x", "{name}");
        }
        assert_eq!(find_served(&groups, "zone", "a").unwrap().collection, "/apis/example.com/v1/zones");
        assert!(find_served(&groups, "bk.other.com", "a").is_none());
    }
}
