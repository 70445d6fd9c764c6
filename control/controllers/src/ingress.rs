//! The status of Ingresses: where gateways answer for them, and whether a host that they, or Functions, ask for is another
//! namespace's.
//! Gateways leave such a host to who asked for it first.

mod gateways;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use coracle_objects::{
    Event, EventKind, Object, ObjectKey, ObjectName,
    kinds::{FUNCTIONS, INGRESS_CLASSES, INGRESSES, hosts_since, ingress_class, is_gateway_class},
};
use serde_json::{Value, json};

pub use gateways::{GATEWAY_ANNOTATION, Gateways, gateway};

use crate::{
    controller::Controller,
    draft::{self, Unreadable},
    event_record::EventRecord,
    function,
    index::Index,
    model::{Models, Node},
    planner::Planner,
    queue::Queue,
    state::State,
    task::Task,
};

/// See the module.
pub struct Ingresses;

const NAME: &str = "ingress-controller";

/// What the ports of an Ingress say that asks for a host which another namespace has.
const HOST_HELD: &str = "coracle.dev/HostHeld";

/// Hosts that an event names.
const NAMED_MAX: usize = 10;

/// Who asks gateways for each host, who did first before the others.
#[derive(Debug, Default)]
pub struct Hosts {
    /// The gateways' classes.
    classes: BTreeSet<String>,
    /// Ingresses by the class that they name. They ask for hosts while it is one of the gateways'.
    by_class: BTreeMap<String, BTreeMap<ObjectName, Arc<Object>>>,
    by_host: BTreeMap<String, BTreeSet<Claim>>,
    /// Hosts by their domain: those that a wildcard covers, and itself.
    by_domain: BTreeMap<String, BTreeSet<String>>,
}

/// Since when an Ingress or a Function asks for a host, its name, and its resource: gateways have the same order.
type Claim = (String, ObjectName, &'static str);

impl Index for Hosts {
    fn insert(&mut self, object: &Arc<Object>, _: &Models) {
        match object.key.resource.as_str() {
            INGRESSES => {
                if let Some(class) = ingress_class(&read(object)) {
                    let named = self.by_class.entry(class.to_owned()).or_default();
                    named.insert(object.key.name.clone(), object.clone());
                }
                self.add(&object.key.name, INGRESSES, self.claims_of(object));
            }
            FUNCTIONS => self.add(&object.key.name, FUNCTIONS, self.claims_of(object)),
            INGRESS_CLASSES if is_gateway_class(object) => {
                self.classes.insert(object.name().to_owned());
                for ingress in self.of_class(object.name()) {
                    self.add(&ingress.key.name, INGRESSES, self.claims_of(&ingress));
                }
            }
            _ => {}
        }
    }

    fn remove(&mut self, object: &Arc<Object>, _: &Models) {
        match object.key.resource.as_str() {
            INGRESSES => {
                self.take_away(&object.key.name, INGRESSES, self.claims_of(object));
                if let Some(class) = ingress_class(&read(object))
                    && let Some(named) = self.by_class.get_mut(class)
                {
                    named.remove(&object.key.name);
                    if named.is_empty() {
                        self.by_class.remove(class);
                    }
                }
            }
            FUNCTIONS => self.take_away(&object.key.name, FUNCTIONS, self.claims_of(object)),
            INGRESS_CLASSES if self.classes.contains(object.name()) => {
                for ingress in self.of_class(object.name()) {
                    self.take_away(&ingress.key.name, INGRESSES, self.claims_of(&ingress));
                }
                self.classes.remove(object.name());
            }
            _ => {}
        }
    }
}

impl Hosts {
    fn of_class(&self, class: &str) -> Vec<Arc<Object>> {
        self.by_class.get(class).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Whether gateways serve an Ingress: one that names no class, or a class of theirs.
    fn serves(&self, ingress: &Value) -> bool {
        ingress_class(ingress).is_none_or(|class| self.classes.contains(class))
    }

    /// The hosts that an Ingress or a Function asks gateways for, and since when.
    fn claims_of(&self, ingress: &Object) -> BTreeMap<String, String> {
        let is_function = ingress.key.resource.as_str() == FUNCTIONS;
        let ingress = read(ingress);
        // Functions have no class.
        if is_function || self.serves(&ingress) { hosts_since(&ingress) } else { BTreeMap::new() }
    }

    fn add(&mut self, asker: &ObjectName, resource: &'static str, claims: BTreeMap<String, String>) {
        for (host, since) in claims {
            if let Some((_, domain)) = host.split_once('.') {
                self.by_domain.entry(domain.to_owned()).or_default().insert(host.clone());
            }
            self.by_host.entry(host).or_default().insert((since, asker.clone(), resource));
        }
    }

    fn take_away(&mut self, asker: &ObjectName, resource: &'static str, claims: BTreeMap<String, String>) {
        for (host, since) in claims {
            if let Some(claims) = self.by_host.get_mut(&host) {
                claims.remove(&(since, asker.clone(), resource));
                if claims.is_empty() {
                    self.by_host.remove(&host);
                    self.forget(&host);
                }
            }
        }
    }

    fn forget(&mut self, host: &str) {
        let Some((_, domain)) = host.split_once('.') else { return };
        if let Some(hosts) = self.by_domain.get_mut(domain) {
            hosts.remove(host);
            if hosts.is_empty() {
                self.by_domain.remove(domain);
            }
        }
    }

    /// Ingresses and Functions of other namespaces that may have, or have lost, a host now that the one of this name asks for it since
    /// then, or does so no more. Where it is not, and was not, the first to ask, that changes nothing for others.
    pub fn concerned<'a>(
        &'a self,
        name: &'a ObjectName,
        changed: &'a [(String, String)],
    ) -> impl Iterator<Item = (&'a ObjectName, &'static str)> {
        let first = |host: &str| self.by_host.get(host).and_then(|claims| claims.first());
        let is_first = |host: &str, since: &str| {
            first(host).is_none_or(|first| (since, name) <= (first.0.as_str(), &first.1))
        };
        let decided = changed.iter().any(|(host, since)| is_first(host, since));
        let covered =
            changed.iter().filter_map(|(host, _)| self.by_domain.get(host.strip_prefix("*.")?)).flatten();
        let hosts = changed.iter().map(|(host, _)| host).chain(covered).filter(move |_| decided);
        let claims = hosts.filter_map(|host| self.by_host.get(host)).flatten();
        claims.map(|claim| (&claim.1, claim.2)).filter(|(other, _)| other.namespace != name.namespace)
    }

    /// The namespace that has a host: whose Ingress asked for it first, unless another's asked for the wildcard above it
    /// before.
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

impl Controller for Ingresses {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mark(&self, state: &State, event: &Event, tasks: &mut Queue) {
        let key = &event.object.key;
        match key.resource.as_str() {
            INGRESSES => {
                tasks.insert(Task::new(NAME, key.clone()));
                mark_hosts(state, event, tasks);
            }
            FUNCTIONS => mark_hosts(state, event, tasks),
            // Few, and hardly ever changed.
            INGRESS_CLASSES => mark_all(state, tasks),
            "nodes" => {
                let gateway = |node: &Object| Node::of(node).ok().and_then(|node| node.gateway);
                let before = event.previous.as_ref().and_then(|before| gateway(before));
                let own = gateway(&event.object);
                let is_gone = event.kind == EventKind::Deleted;
                if is_gone && own.is_some() || before != own.filter(|_| !is_gone) {
                    mark_all(state, tasks);
                }
            }
            _ => {}
        }
    }

    fn plan(&self, planner: &mut Planner<'_>, subject: &ObjectKey) -> Result<(), Unreadable> {
        plan(planner, &subject.name)
    }
}

fn mark_all(state: &State, tasks: &mut Queue) {
    tasks.extend(state.view.list(INGRESSES, None).map(|ingress| Task::new(NAME, ingress.key.clone())));
}

/// Marks the Ingresses and Functions of other namespaces to which the hosts that one asks for anew, or no more, make a difference.
fn mark_hosts(state: &State, event: &Event, tasks: &mut Queue) {
    let claims = |ingress| state.hosts.claims_of(ingress).into_iter().collect::<BTreeSet<_>>();
    let now = claims(&event.object);
    let changed: Vec<_> = match (&event.previous, event.kind) {
        (Some(before), EventKind::Modified) => now.symmetric_difference(&claims(before)).cloned().collect(),
        _ => now.into_iter().collect(),
    };
    let concerned = state.hosts.concerned(&event.object.key.name, &changed);
    tasks.extend(concerned.map(|(name, resource)| match resource {
        FUNCTIONS => function::on(name),
        _ => Task::on(NAME, resource, name),
    }));
}

/// Writes where an Ingress is served, and tells of the hosts that it asks for and does not have.
fn plan(planner: &mut Planner<'_>, name: &ObjectName) -> Result<(), Unreadable> {
    let key = ObjectKey { resource: INGRESSES.into(), name: name.clone() };
    let Some(ingress) = planner.state.get(&key).cloned() else { return Ok(()) };
    let mut value = draft::of(&ingress)?;
    if ingress.meta.deletion_timestamp.is_some() {
        return Ok(());
    }
    let State { hosts, gateways, .. } = planner.state;
    let before = &value["status"]["loadBalancer"];
    let served = if hosts.serves(&value) {
        let held = held(hosts, &ingress);
        if !held.is_empty() {
            planner.record(EventRecord::warning(&ingress, NAME, "HostHeld", held_by_others(&held)));
        }
        gateways.load_balancer((!held.is_empty()).then_some(HOST_HELD))
    } else if [None, Some(HOST_HELD)].map(|error| gateways.load_balancer(error)).contains(before) {
        // It was the gateways' before. What another controller says stays.
        json!({})
    } else {
        return Ok(());
    };
    if *before != served {
        draft::child(&mut value, "status").insert("loadBalancer".to_owned(), served);
        planner.propose(draft::put(&ingress, &value));
    }
    Ok(())
}

/// The hosts that an Ingress or a Function asks for and other namespaces have, with their holders.
pub fn held(hosts: &Hosts, ingress: &Object) -> Vec<String> {
    let held = hosts.claims_of(ingress).into_keys().filter_map(|host| {
        let holder = hosts.holder(&host).filter(|holder| *holder != ingress.namespace())?;
        Some(format!("{host} (namespace {holder})"))
    });
    held.take(NAMED_MAX).collect()
}

/// What is told of them.
pub fn held_by_others(held: &[String]) -> String {
    format!(
        "Ingresses or Functions of other namespaces had these hosts before, and the rules for them are not served: {}. Choose \
         other hosts, or let the others give them up",
        held.join(", ")
    )
}

/// One that cannot be read asks for nothing.
fn read(ingress: &Object) -> Value {
    ingress.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(created: &str, namespace: &str, hosts: &[&str]) -> Value {
        let rules: Vec<Value> = hosts.iter().map(|host| json!({"host": host})).collect();
        json!({"metadata": {"name": "i", "namespace": namespace, "creationTimestamp": created, "annotations": {}},
            "spec": {"rules": rules}})
    }

    fn object(draft: &Value) -> Object {
        let namespace = draft["metadata"]["namespace"].as_str().unwrap_or_default();
        let key = ObjectKey::new(INGRESSES, namespace, "i");
        Object::from_draft(key, draft.to_string().as_bytes(), 1).expect("an object")
    }

    fn ingress(created: &str, namespace: &str, hosts: &[&str]) -> Object {
        object(&draft(created, namespace, hosts))
    }

    #[test]
    fn the_older_one_has_a_host_and_what_its_wildcard_covers() {
        let (mut hosts, models) = (Hosts::default(), Models::default());
        let old = ingress("2026-01-01T00:00:00Z", "old", &["a.example", "*.wild"]);
        let young =
            ingress("2026-02-01T00:00:00Z", "young", &["A.example", "b.wild", "b.example", "*.example"]);
        let [old, young] = [old, young].map(Arc::new);
        hosts.insert(&young, &models);
        assert_eq!(hosts.holder("a.example"), Some("young"));
        hosts.insert(&old, &models);
        for (host, holder) in [
            ("a.example", Some("old")),
            ("b.wild", Some("old")),
            ("b.example", Some("young")),
            ("*.example", Some("young")),
            ("elsewhere", None),
        ] {
            assert_eq!(hosts.holder(host), holder, "{host}");
        }
        hosts.remove(&old, &models);
        assert_eq!(hosts.holder("b.wild"), Some("young"));
        hosts.remove(&young, &models);
        assert!(hosts.by_host.is_empty() && hosts.by_domain.is_empty());
    }

    #[test]
    fn what_another_controller_serves_has_no_host_whichever_comes_first() {
        let (mut hosts, models) = (Hosts::default(), Models::default());
        let class = |controller: &str| {
            let value = json!({"metadata": {"name": "c"}, "spec": {"controller": controller}});
            let key = ObjectKey::new(INGRESS_CLASSES, "", "c");
            Arc::new(Object::from_draft(key, value.to_string().as_bytes(), 1).expect("an object"))
        };
        let of_class = |namespace: &str, at: &str, key: &str| {
            let mut value = draft("2026-01-01T00:00:00Z", namespace, &["a.example"]);
            value.pointer_mut(at).expect("an object")[key] = "c".into();
            Arc::new(object(&value))
        };
        let by_field = of_class("field", "/spec", "ingressClassName");
        let by_annotation = of_class("note", "/metadata/annotations", "kubernetes.io/ingress.class");
        hosts.insert(&by_field, &models);
        hosts.insert(&class("example.com/other"), &models);
        hosts.insert(&by_annotation, &models);
        assert_eq!(hosts.holder("a.example"), None);
        hosts.remove(&class("example.com/other"), &models);
        let ours = class("coracle.dev/gateway");
        hosts.insert(&ours, &models);
        assert_eq!(hosts.holder("a.example"), Some("field"));
        hosts.remove(&by_field, &models);
        assert_eq!(hosts.holder("a.example"), Some("note"));
        hosts.remove(&ours, &models);
        assert_eq!(hosts.holder("a.example"), None);
        hosts.remove(&by_annotation, &models);
        let Hosts { classes, by_class, by_host, by_domain } = hosts;
        assert!(classes.is_empty() && by_class.is_empty() && by_host.is_empty() && by_domain.is_empty());
    }
}
