//! Since when an Ingress, or a Function, asks for its hosts: who asked first has a host, whatever else an older Ingress is edited to ask
//! for.
//!
//! An Ingress asks for the hosts that it was made with since its creation. For others the API server notes the time in an
//! annotation of its own. One that was another controller's asks for all of them anew when gateways are to serve it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::class::is_for_gateways;
use crate::{
    fields::{list, text},
    kinds::function_hosts,
    view::View,
};

/// Annotation: hosts by the time since when they are asked for, as JSON: `{"2026-01-01T00:00:00Z": ["a.example"]}`.
const HOSTS_SINCE: &str = "coracle.dev/hosts-since";

/// The hosts that an Ingress asks for, in lower case, and since when: RFC 3339, which sorts as text.
pub fn hosts_since(ingress: &Value) -> BTreeMap<String, String> {
    let created = text(ingress, "/metadata/creationTimestamp");
    let later = noted(ingress);
    let since = |host: &String| later.get(host).cloned().unwrap_or_else(|| created.to_owned());
    hosts(ingress).into_iter().map(|host| (host.clone(), since(&host))).collect()
}

/// Notes which hosts an Ingress asks for since `now` only, by the classes of `view`. `old` is what it was before the write,
/// if it was there. What the writer says of it himself is not heard.
pub fn note_hosts(view: &View, old: Option<&Value>, new: &mut Value, now: &str) {
    let later = old.map(|old| {
        let begins = !is_for_gateways(view, old) && is_for_gateways(view, new);
        later_hosts(if begins { &Value::Null } else { old }, new, now)
    });
    let later = later.unwrap_or_default();
    let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if !later.is_empty() {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        annotations[HOSTS_SINCE] = json!(later).to_string().into();
    } else if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
        annotations.shift_remove(HOSTS_SINCE);
    }
}

/// By the time, the hosts that are asked for since then and not since the creation.
fn later_hosts(old: &Value, new: &Value, now: &str) -> BTreeMap<String, BTreeSet<String>> {
    let (before, noted) = (hosts(old), noted(old));
    let mut later: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for host in hosts(new) {
        let since = if before.contains(&host) { noted.get(&host).map(String::as_str) } else { Some(now) };
        if let Some(since) = since {
            later.entry(since.to_owned()).or_default().insert(host);
        }
    }
    later
}

fn hosts(ingress: &Value) -> BTreeSet<String> {
    if ingress["kind"] == "Function" {
        return function_hosts(ingress);
    }
    let rules = list(ingress, "/spec/rules").iter().filter_map(|rule| rule["host"].as_str());
    rules.filter(|host| !host.is_empty()).map(str::to_ascii_lowercase).collect()
}

/// What the annotation says, by host.
fn noted(ingress: &Value) -> BTreeMap<String, String> {
    let annotation = ingress["metadata"]["annotations"][HOSTS_SINCE].as_str().unwrap_or_default();
    let by_time: BTreeMap<String, Vec<String>> = serde_json::from_str(annotation).unwrap_or_default();
    let of_time =
        |(since, hosts): (String, Vec<String>)| hosts.into_iter().map(move |host| (host, since.clone()));
    by_time.into_iter().flat_map(of_time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingress(hosts: &[&str], annotations: Value) -> Value {
        let rules: Vec<Value> = hosts.iter().map(|host| json!({ "host": host })).collect();
        let metadata = json!({ "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations });
        json!({ "metadata": metadata, "spec": { "rules": rules } })
    }

    #[test]
    fn hosts_are_asked_for_since_they_were_named() {
        let classes = View::default();
        let forged = json!({ HOSTS_SINCE: r#"{"2000-01-01T00:00:00Z":["b.example"]}"#, "own": "kept" });
        let mut made = ingress(&["A.example"], forged.clone());
        note_hosts(&classes, None, &mut made, "2026-02-01T00:00:00Z");
        assert_eq!(made["metadata"]["annotations"], json!({ "own": "kept" }));
        let mut edited = ingress(&["a.example", "b.example"], forged);
        note_hosts(&classes, Some(&made), &mut edited, "2026-02-01T00:00:00Z");
        let since = |ingress: &Value| {
            let pairs = hosts_since(ingress).into_iter();
            pairs.map(|(host, since)| format!("{host} {since}")).collect::<Vec<_>>()
        };
        let both = ["a.example 2026-01-01T00:00:00Z", "b.example 2026-02-01T00:00:00Z"];
        assert_eq!(since(&edited), both);
        // What is written without the annotation changes nothing, and what was given up begins anew.
        let mut replaced = ingress(&["b.example", "c.example"], json!({}));
        note_hosts(&classes, Some(&edited), &mut replaced, "2026-03-01T00:00:00Z");
        assert_eq!(since(&replaced), ["b.example 2026-02-01T00:00:00Z", "c.example 2026-03-01T00:00:00Z"]);
        let mut back = ingress(&["a.example"], json!({}));
        note_hosts(&classes, Some(&replaced), &mut back, "2026-04-01T00:00:00Z");
        assert_eq!(since(&back), ["a.example 2026-04-01T00:00:00Z"]);
        let mut same = back.clone();
        note_hosts(&classes, Some(&back), &mut same, "2026-05-01T00:00:00Z");
        assert_eq!(same, back);
        // While another controller served it, it asked gateways for nothing.
        let mut left = ingress(&["a.example"], json!({}));
        left["spec"]["ingressClassName"] = "nginx".into();
        note_hosts(&classes, Some(&back), &mut left, "2026-05-01T00:00:00Z");
        assert_eq!(since(&left), ["a.example 2026-04-01T00:00:00Z"]);
        let mut ours = ingress(&["a.example"], json!({}));
        note_hosts(&classes, Some(&left), &mut ours, "2026-06-01T00:00:00Z");
        assert_eq!(since(&ours), ["a.example 2026-06-01T00:00:00Z"]);
    }
}
