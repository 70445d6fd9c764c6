//! Kinds as users name them: by plural, singular or short name or by category, as with kubectl. Those of this binary are
//! known; others the cluster is asked for.

use anyhow::{Context, Result, anyhow};
use coracle_objects::{Kind, NameRule};
use http::Request;
use serde_json::Value;
use thiserror::Error;

use super::{Body, Cluster};
use crate::names;

/// All groups with their resources in one answer (KEP-3352).
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A kind that the cluster serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedKind {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    singular: String,
    pub namespaced: bool,
    short_names: Vec<String>,
    categories: Vec<String>,
    verbs: Vec<String>,
    name_rule: NameRule,
}

impl ServedKind {
    fn native(kind: &Kind) -> Self {
        let texts = |all: &[coracle_objects::kind::Text]| all.iter().map(ToString::to_string).collect();
        Self {
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            kind: kind.kind.to_string(),
            plural: kind.plural.to_string(),
            singular: kind.singular.to_string(),
            namespaced: kind.namespaced,
            short_names: texts(&kind.short_names),
            categories: texts(&kind.categories),
            verbs: kind.verbs.iter().map(ToString::to_string).collect(),
            name_rule: kind.name_rule,
        }
    }

    /// One of a discovery document.
    fn discovered(group: &str, version: &str, resource: &Value) -> Option<Self> {
        let text = |field: &Value| field.as_str().map(str::to_owned);
        let texts = |field: &Value| field.as_array().into_iter().flatten().filter_map(text).collect();
        Some(Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: text(&resource["responseKind"]["kind"])?,
            plural: text(&resource["resource"])?,
            singular: text(&resource["singularResource"])?,
            namespaced: resource["scope"] == "Namespaced",
            short_names: texts(&resource["shortNames"]),
            categories: texts(&resource["categories"]),
            verbs: texts(&resource["verbs"]),
            name_rule: NameRule::Subdomain,
        })
    }

    /// Whether `name`, in lower case, with its group where it has one, is a name of the kind.
    fn is_named(&self, name: &str) -> bool {
        let (plain, group) = name.split_once('.').map_or((name, None), |(plain, group)| (plain, Some(group)));
        let named = self.plural == plain
            || self.singular == plain
            || self.kind.eq_ignore_ascii_case(plain)
            || self.short_names.iter().any(|short| short == plain);
        named
            && group.is_none_or(|group| {
                group == self.group || group == format!("{}.{}", self.version, self.group)
            })
    }

    /// What its objects are called in front of their names: `pod`, `deployment.apps`.
    pub fn prefix(&self) -> String {
        self.with_group(&self.kind.to_lowercase())
    }

    /// `pods`, `deployments.apps`.
    pub fn resource(&self) -> String {
        self.with_group(&self.plural)
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    fn with_group(&self, name: &str) -> String {
        if self.group.is_empty() { name.to_owned() } else { format!("{name}.{}", self.group) }
    }

    /// The path of the objects of all namespaces.
    pub fn everywhere(&self) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.api_version(), self.plural)
    }

    /// The path of the objects of one namespace; of all where the kind has none.
    pub fn collection(&self, namespace: &str) -> String {
        if !self.namespaced {
            return self.everywhere();
        }
        let root = if self.group.is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/namespaces/{}/{}", self.api_version(), names::encode(namespace), self.plural)
    }

    /// The path of one object. What can be no name is refused: an empty one would be all objects.
    pub fn object(&self, namespace: &str, name: &str) -> Result<String> {
        names::of_kind(&self.singular, self.name_rule, name)?;
        Ok(format!("{}/{}", self.collection(namespace), names::encode(name)))
    }
}

/// A kind of this binary.
pub fn native_kind(name: &str) -> Result<ServedKind> {
    Ok(find_native(name).ok_or_else(|| unknown(name))?)
}

/// No kind has this name.
#[derive(Debug, Error)]
pub enum NoSuchKind {
    #[error("Coracle does not serve {0} yet: see \"Not yet\" in README.md")]
    NotYet(&'static str),
    #[error("the server doesn't have a resource type {0:?}: see `kubectl api-resources`")]
    Unknown(String),
}

fn unknown(name: &str) -> NoSuchKind {
    let plain = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    match NOT_SERVED.iter().find(|names| names.contains(&plain.as_str())) {
        Some(names) => NoSuchKind::NotYet(names[0]),
        None => NoSuchKind::Unknown(name.to_owned()),
    }
}

/// Kinds of Kubernetes that are not served, each with all its names.
const NOT_SERVED: &[&[&str]] = &[
    &["jobs", "job"],
    &["cronjobs", "cronjob", "cj"],
    &["statefulsets", "statefulset", "sts"],
    &["daemonsets", "daemonset", "ds"],
    &["replicationcontrollers", "replicationcontroller", "rc"],
    &["horizontalpodautoscalers", "horizontalpodautoscaler", "hpa"],
    &["poddisruptionbudgets", "poddisruptionbudget", "pdb"],
    &["networkpolicies", "networkpolicy", "netpol"],
    &["persistentvolumeclaims", "persistentvolumeclaim", "pvc"],
    &["persistentvolumes", "persistentvolume", "pv"],
    &["storageclasses", "storageclass", "sc"],
    &["resourcequotas", "resourcequota", "quota"],
    &["limitranges", "limitrange", "limits"],
    &["roles", "role"],
    &["rolebindings", "rolebinding"],
    &["clusterroles", "clusterrole"],
    &["clusterrolebindings", "clusterrolebinding"],
    &["priorityclasses", "priorityclass", "pc"],
    &["runtimeclasses", "runtimeclass"],
    &["validatingwebhookconfigurations", "validatingwebhookconfiguration"],
    &["mutatingwebhookconfigurations", "mutatingwebhookconfiguration"],
    &["certificatesigningrequests", "certificatesigningrequest", "csr"],
    &["apiservices", "apiservice"],
    &["componentstatuses", "componentstatus", "cs"],
    &["podtemplates", "podtemplate"],
    &["controllerrevisions", "controllerrevision"],
];

fn find_native(name: &str) -> Option<ServedKind> {
    let name = name.to_ascii_lowercase();
    coracle_objects::kinds().iter().map(|kind| ServedKind::native(kind)).find(|kind| kind.is_named(&name))
}

/// The kinds of a discovery document. The first version of a group is the preferred one.
fn discovered(groups: &Value) -> Vec<ServedKind> {
    let mut kinds = Vec::new();
    for group in groups["items"].as_array().into_iter().flatten() {
        let name = group["metadata"]["name"].as_str().unwrap_or("");
        for version in group["versions"].as_array().into_iter().flatten() {
            let of = version["version"].as_str().unwrap_or("");
            let resources = version["resources"].as_array().into_iter().flatten();
            kinds.extend(resources.filter_map(|resource| ServedKind::discovered(name, of, resource)));
        }
    }
    kinds
}

/// The kinds of a category, each once, that can be listed.
fn of_category(kinds: Vec<ServedKind>, category: &str) -> Vec<ServedKind> {
    let mut found: Vec<ServedKind> = Vec::new();
    for kind in kinds {
        let is_known = found.iter().any(|known| known.resource() == kind.resource());
        if !is_known
            && kind.categories.iter().any(|one| one == category)
            && kind.verbs.iter().any(|verb| verb == "list")
        {
            found.push(kind);
        }
    }
    found
}

impl Cluster {
    /// Finds a kind, also one that the cluster itself declares.
    pub async fn kind(&self, name: &str) -> Result<ServedKind> {
        if let Some(known) = find_native(name) {
            return Ok(known);
        }
        let lower = name.to_ascii_lowercase();
        let served = discovered(&self.groups("/apis").await?);
        Ok(served.into_iter().find(|kind| kind.is_named(&lower)).ok_or_else(|| unknown(name))?)
    }

    /// The kind that a manifest names by its apiVersion and kind.
    pub async fn kind_of(&self, api_version: &str, kind: &str) -> Result<ServedKind> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        if let Some(known) = coracle_objects::by_kind(group, version, kind) {
            return Ok(ServedKind::native(known));
        }
        let is_it = |one: &ServedKind| one.group == group && one.version == version && one.kind == kind;
        let served = discovered(&self.groups("/apis").await?);
        served.into_iter().find(is_it).ok_or_else(|| match unknown(kind) {
            known @ NoSuchKind::NotYet(_) => known.into(),
            NoSuchKind::Unknown(_) => {
                anyhow!("no kind {kind:?} is served in {api_version:?}: see `kubectl api-resources`")
            }
        })
    }

    /// Kinds by name, and all of a category (`all`).
    pub async fn kinds(&self, name: &str) -> Result<Vec<ServedKind>> {
        if let Some(known) = find_native(name) {
            return Ok(vec![known]);
        }
        let mut served = discovered(&self.groups("/api").await?);
        served.extend(discovered(&self.groups("/apis").await?));
        let lower = name.to_ascii_lowercase();
        if let Some(kind) = served.iter().find(|kind| kind.is_named(&lower)) {
            return Ok(vec![kind.clone()]);
        }
        match of_category(served, &lower) {
            none if none.is_empty() => Err(unknown(name).into()),
            kinds => Ok(kinds),
        }
    }

    async fn groups(&self, path: &str) -> Result<Value> {
        let request = Request::get(path).header("accept", DISCOVERY).body(Body::default())?;
        let (_, answer) = self.send(request).await.context("asking for the kinds that are served")?;
        serde_json::from_slice(&answer).context("the answer is not JSON")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_are_found_by_any_of_their_names() {
        for name in ["pods", "pod", "po", "Pods", "Pod"] {
            assert_eq!(native_kind(name).unwrap().collection("a"), "/api/v1/namespaces/a/pods", "{name}");
        }
        let deployments = native_kind("deploy.apps").unwrap();
        assert_eq!(deployments.everywhere(), "/apis/apps/v1/deployments");
        assert_eq!(
            (deployments.prefix(), deployments.resource()),
            ("deployment.apps".into(), "deployments.apps".into())
        );
        assert_eq!(native_kind("deployments.v1.apps").unwrap(), deployments);
        let said = native_kind("deploy.other").unwrap_err().to_string();
        assert!(said.contains("doesn't have a resource type \"deploy.other\""), "{said}");
    }

    #[test]
    fn kinds_that_the_cluster_declares_are_found_too() {
        let resource = |plural: &str, kind: &str, scope: &str| {
            json!({ "resource": plural, "singularResource": kind.to_lowercase(), "scope": scope, "verbs": ["list"],
                    "responseKind": { "kind": kind }, "shortNames": [&plural[..2]], "categories": ["all"] })
        };
        let groups = json!({ "items": [{ "metadata": { "name": "example.com" }, "versions": [
            { "version": "v1", "resources": [
                resource("backups", "Backup", "Namespaced"), resource("zones", "Zone", "Cluster"),
            ] },
            { "version": "v1beta1", "resources": [resource("backups", "Backup", "Namespaced")] },
        ] }] });
        let served = discovered(&groups);
        for name in ["backups", "backup", "ba", "ba.example.com"] {
            let found = served.iter().find(|kind| kind.is_named(name)).unwrap();
            assert_eq!(
                found.object("a", "x").unwrap(),
                "/apis/example.com/v1/namespaces/a/backups/x",
                "{name}"
            );
        }
        let zones = served.iter().find(|kind| kind.is_named("zone")).unwrap();
        assert_eq!(zones.collection("a"), "/apis/example.com/v1/zones");
        assert!(!served.iter().any(|kind| kind.is_named("ba.other.com")));
        let all: Vec<String> = of_category(served, "all").iter().map(ServedKind::resource).collect();
        assert_eq!(all, ["backups.example.com", "zones.example.com"], "each once");
    }

    #[test]
    fn what_is_not_served_yet_is_told_so_and_what_is_served_never() {
        let said = native_kind("sts").unwrap_err().to_string();
        assert!(said.starts_with("Coracle does not serve statefulsets yet"), "{said}");
        for name in NOT_SERVED.iter().flat_map(|names| names.iter()) {
            assert!(find_native(name).is_none(), "{name} is served: take it from the list");
        }
    }
}
