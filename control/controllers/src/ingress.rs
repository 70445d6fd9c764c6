//! Ingresses that ask for a host which another namespace has: gateways leave it to the older one, and an event says so.

use std::collections::{BTreeMap, BTreeSet};

use coracle_objects::{Object, ObjectKey, ObjectName};
use serde_json::Value;

use crate::{draft::Unreadable, event_record::EventRecord, planner::Planner};

const COMPONENT: &str = "ingress-controller";

/// Hosts that an event names.
const NAMED_MAX: usize = 10;

/// Who asks for each host, the oldest first.
#[derive(Debug, Default)]
pub struct Hosts {
    by_host: BTreeMap<String, BTreeSet<Claim>>,
}

/// When an Ingress was made, and its name: gateways have the same order.
type Claim = (String, ObjectName);

impl Hosts {
    pub fn insert(&mut self, ingress: &Object) {
        for host in hosts_of(ingress) {
            self.by_host.entry(host).or_default().insert(claim(ingress));
        }
    }

    pub fn remove(&mut self, ingress: &Object) {
        for host in hosts_of(ingress) {
            if let Some(claims) = self.by_host.get_mut(&host) {
                claims.remove(&claim(ingress));
                if claims.is_empty() {
                    self.by_host.remove(&host);
                }
            }
        }
    }

    /// The namespace that has a host, by its oldest Ingress that no older wildcard of another keeps from it.
    fn holder(&self, host: &str) -> Option<&str> {
        let above = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        let above = above.and_then(|above| self.by_host.get(&above)?.first());
        let may_have = |claim: &&Claim| {
            above.is_none_or(|above| *claim <= above || claim.1.namespace == above.1.namespace)
        };
        let holder = self.by_host.get(host)?.iter().find(may_have).or(above)?;
        Some(&holder.1.namespace)
    }
}

/// Tells of the hosts that an Ingress asks for and does not have.
pub fn plan(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let key = ObjectKey { resource: "ingresses.networking.k8s.io".into(), name: name.clone() };
    let Some(ingress) = planner.state.get(&key).cloned() else { return Ok(()) };
    let held = hosts_of(&ingress).into_iter().filter_map(|host| {
        let holder = planner.state.hosts.holder(&host).filter(|holder| *holder != &*name.namespace)?;
        Some(format!("{host} (namespace {holder})"))
    });
    let held: Vec<String> = held.take(NAMED_MAX).collect();
    if !held.is_empty() {
        let message = format!(
            "Older Ingresses of other namespaces have these hosts, and the rules for them are not served: {}. Choose other \
             hosts, or let the other Ingress give them up",
            held.join(", ")
        );
        planner.record(EventRecord::warning(&ingress, COMPONENT, "HostHeld", message));
    }
    Ok(())
}

fn claim(ingress: &Object) -> Claim {
    (ingress.meta.creation_timestamp.clone().unwrap_or_default(), ingress.key.name.clone())
}

fn hosts_of(ingress: &Object) -> BTreeSet<String> {
    // One that cannot be read asks for nothing.
    let value: Value = ingress.parse().unwrap_or_default();
    let rules = value.pointer("/spec/rules").and_then(Value::as_array);
    let hosts = rules.into_iter().flatten().filter_map(|rule| rule["host"].as_str());
    hosts.filter(|host| !host.is_empty()).map(str::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ingress(created: &str, namespace: &str, hosts: &[&str]) -> Object {
        let rules: Vec<Value> = hosts.iter().map(|host| json!({"host": host})).collect();
        let value = json!({"metadata": {"name": "i", "namespace": namespace, "creationTimestamp": created},
            "spec": {"rules": rules}});
        let key = ObjectKey::new("ingresses.networking.k8s.io", namespace, "i");
        Object::from_draft(key, value.to_string().as_bytes(), 1).expect("an object")
    }

    #[test]
    fn the_older_one_has_a_host_and_what_its_wildcard_covers() {
        let mut hosts = Hosts::default();
        let old = ingress("2026-01-01T00:00:00Z", "old", &["a.example", "*.wild"]);
        let young =
            ingress("2026-02-01T00:00:00Z", "young", &["A.example", "b.wild", "b.example", "*.example"]);
        hosts.insert(&young);
        assert_eq!(hosts.holder("a.example"), Some("young"));
        hosts.insert(&old);
        for (host, holder) in [
            ("a.example", Some("old")),
            ("b.wild", Some("old")),
            ("b.example", Some("young")),
            ("*.example", Some("young")),
            ("elsewhere", None),
        ] {
            assert_eq!(hosts.holder(host), holder, "{host}");
        }
        hosts.remove(&old);
        assert_eq!(hosts.holder("b.wild"), Some("young"));
        hosts.remove(&young);
        assert!(hosts.by_host.is_empty());
    }
}
