//! Discovery: which groups, versions and resources are served; aggregated (v2, v2beta1) and legacy.

use std::{collections::BTreeMap, sync::Arc};

use axum::response::Response;
use coracle_objects::{Catalog, Kind, kind::Text};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    answer::{self, accepted},
    auth::reviews::{REVIEWS, Review},
    error::ApiError,
    served::Served,
};

const NOT_ACCEPTABLE: &str =
    "application/json, application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A resource of discovery, stored or review.
enum Entry {
    Kind(Arc<Kind>),
    Review(&'static Review),
}

/// Group -> version -> resources; versions in the order of preference. Groups in the order of the catalog.
pub struct Groups(Vec<(Text, Versions)>);

/// The versions of a group with their resources.
type Versions = Vec<(Text, Vec<Entry>)>;

impl Groups {
    pub fn of(catalog: &Catalog) -> Self {
        let mut groups = Groups(Vec::new());
        for kind in catalog.kinds() {
            groups.add(&kind.group, &kind.version, Entry::Kind(kind.clone()));
        }
        for review in REVIEWS {
            groups.add(&review.group.into(), &review.version.into(), Entry::Review(review));
        }
        groups
    }

    fn add(&mut self, group: &Text, version: &Text, entry: Entry) {
        let at = self.0.iter().position(|(name, _)| name == group).unwrap_or_else(|| {
            self.0.push((group.clone(), Vec::new()));
            self.0.len() - 1
        });
        let versions = &mut self.0[at].1;
        match versions.iter_mut().find(|(name, _)| name == version) {
            Some((_, entries)) => entries.push(entry),
            None => versions.push((version.clone(), vec![entry])),
        }
    }

    fn versions(&self, group: &str) -> &[(Text, Vec<Entry>)] {
        self.0.iter().find(|(name, _)| name == group).map_or(&[], |(_, versions)| versions)
    }

    /// All group-versions: (group, version), core's with an empty group.
    pub fn group_versions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|(group, versions)| {
            versions.iter().map(move |(version, _)| (group.as_ref(), version.as_ref()))
        })
    }

    pub fn has_group(&self, group: &str) -> bool {
        !self.versions(group).is_empty()
    }

    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.versions(group).iter().any(|(name, _)| name == version)
    }
}

/// `GET /api` (core) and `GET /apis` (all other groups), in the form that the client accepts.
pub fn root(served: &Served, core: bool, headers: &HeaderMap, host: &str) -> Result<Response, ApiError> {
    for range in accepted(headers) {
        if !range.is_json() {
            continue;
        }
        let aggregated = range.parameter("g") == Some("apidiscovery.k8s.io")
            && range.parameter("as") == Some("APIGroupDiscoveryList");
        match (aggregated, range.parameter("v"), range.parameter("as")) {
            (true, Some("v2"), _) => return Ok(aggregated_answer(served, core, "v2", headers)),
            (true, Some("v2beta1"), _) => return Ok(aggregated_answer(served, core, "v2beta1", headers)),
            (_, _, None) => {
                let body =
                    if core { core_versions(&served.groups, host) } else { group_list(&served.groups) };
                let mut response = answer::json_value(StatusCode::OK, &body);
                response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
                return Ok(response);
            }
            _ => {}
        }
    }
    Err(ApiError::NotAcceptable { accepted: NOT_ACCEPTABLE })
}

/// Body and ETag by (core or not, version of discovery).
pub type Bodies = BTreeMap<(bool, &'static str), (String, String)>;

fn aggregated_answer(served: &Served, core: bool, version: &'static str, headers: &HeaderMap) -> Response {
    let bodies = served.discovery.get_or_init(|| {
        let all = [(true, "v2"), (true, "v2beta1"), (false, "v2"), (false, "v2beta1")];
        all.into_iter()
            .map(|(core, version)| {
                let body = aggregated(&served.groups, core, version).to_string();
                let etag = format!("\"{}\"", hex::encode_upper(Sha256::digest(&body)));
                ((core, version), (body, etag))
            })
            .collect()
    });
    let (body, etag) = &bodies[&(core, version)];
    let matches =
        headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()) == Some(etag.as_str());
    let mut response = if matches {
        answer::json_bytes(StatusCode::NOT_MODIFIED, "")
    } else {
        answer::json_bytes(StatusCode::OK, body.clone())
    };
    let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    let out = response.headers_mut();
    if let (Ok(content_type), Ok(etag)) = (HeaderValue::from_str(&content_type), HeaderValue::from_str(etag))
    {
        out.insert(header::CONTENT_TYPE, content_type);
        out.insert(header::ETAG, etag);
    }
    out.insert(header::VARY, HeaderValue::from_static("Accept"));
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

fn aggregated(groups: &Groups, core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups
        .0
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|(version, entries)| {
                    let resources: Vec<Value> = entries.iter().map(Entry::aggregated).collect();
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({ "creationTimestamp": null })
            } else {
                json!({ "name": group, "creationTimestamp": null })
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

impl Entry {
    fn aggregated(&self) -> Value {
        match self {
            Entry::Review(review) => json!({
                "resource": review.plural,
                "responseKind": { "group": review.group, "version": review.version, "kind": review.kind },
                "scope": "Cluster",
                "singularResource": review.singular(),
                "verbs": ["create"],
            }),
            Entry::Kind(kind) => {
                let mut resource = json!({
                    "resource": kind.plural,
                    "responseKind": { "group": kind.group, "version": kind.version, "kind": kind.kind },
                    "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
                    "singularResource": kind.singular,
                    "verbs": kind.verbs,
                });
                if !kind.short_names.is_empty() {
                    resource["shortNames"] = json!(kind.short_names);
                }
                if !kind.categories.is_empty() {
                    resource["categories"] = json!(kind.categories);
                }
                if !kind.subresources.is_empty() {
                    resource["subresources"] = kind
                        .subresources
                        .iter()
                        .map(|sub| {
                            json!({
                                "subresource": sub.endpoint.name(),
                                "responseKind": { "group": sub.group, "version": sub.version, "kind": sub.kind },
                                "verbs": sub.verbs,
                            })
                        })
                        .collect();
                }
                resource
            }
        }
    }

    /// The resource and its subresources, as `APIResource`s.
    fn legacy(&self) -> Vec<Value> {
        match self {
            Entry::Review(review) => vec![json!({
                "name": review.plural, "singularName": review.singular(), "namespaced": false, "kind": review.kind,
                "verbs": ["create"],
            })],
            Entry::Kind(kind) => {
                let mut main = json!({
                    "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
                    "kind": kind.kind, "verbs": kind.verbs,
                });
                if !kind.short_names.is_empty() {
                    main["shortNames"] = json!(kind.short_names);
                }
                if !kind.categories.is_empty() {
                    main["categories"] = json!(kind.categories);
                }
                main["storageVersionHash"] = storage_hash(kind).into();
                let subresources = kind.subresources.iter().map(|sub| {
                    let mut entry = json!({
                        "name": format!("{}/{}", kind.plural, sub.endpoint.name()), "singularName": "",
                        "namespaced": kind.namespaced, "kind": sub.kind, "verbs": sub.verbs,
                    });
                    if (&sub.group, &sub.version) != (&kind.group, &kind.version) {
                        entry["group"] = json!(sub.group);
                        entry["version"] = json!(sub.version);
                    }
                    entry
                });
                std::iter::once(main).chain(subresources).collect()
            }
        }
    }
}

/// Eight bytes that change with the stored version.
fn storage_hash(kind: &Kind) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let (stored, kind) = kind.stored_as();
    // Of the core group the version stands alone.
    let slash = if stored.contains('/') { "" } else { "/" };
    let digest = Sha256::digest(format!("{slash}{stored}/{kind}"));
    STANDARD.encode(&digest[..8])
}

fn core_versions(groups: &Groups, host: &str) -> Value {
    let versions: Vec<&Text> = groups.versions("").iter().map(|(version, _)| version).collect();
    json!({
        "kind": "APIVersions",
        "versions": versions,
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": host }],
    })
}

fn group_entry(groups: &Groups, group: &str) -> Value {
    let versions: Vec<Value> = groups
        .versions(group)
        .iter()
        .map(|(version, _)| json!({ "groupVersion": format!("{group}/{version}"), "version": version }))
        .collect();
    let preferred = versions.first().cloned().unwrap_or_default();
    json!({ "name": group, "versions": versions, "preferredVersion": preferred })
}

fn group_list(groups: &Groups) -> Value {
    let groups: Vec<Value> = groups
        .0
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, _)| group_entry(groups, group))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `GET /apis/G`
pub fn group(served: &Served, group: &str) -> Response {
    let mut body = json!({ "kind": "APIGroup", "apiVersion": "v1" });
    if let (Some(map), Value::Object(entry)) = (body.as_object_mut(), group_entry(&served.groups, group)) {
        map.extend(entry);
    }
    answer::json_value(StatusCode::OK, &body)
}

/// `GET /api/v1`, `GET /apis/G/V`
pub fn group_version(served: &Served, group: &str, version: &str) -> Response {
    let versions = served.groups.versions(group).iter();
    let entries = versions.clone().find(|(name, _)| name == version).map(|(_, entries)| entries);
    let mut resources: Vec<Value> = entries.into_iter().flatten().flat_map(Entry::legacy).collect();
    resources.sort_by(|one, other| one["name"].as_str().cmp(&other["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let body = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    });
    answer::json_value(StatusCode::OK, &body)
}
