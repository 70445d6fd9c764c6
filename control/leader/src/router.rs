//! Hands out to the links what changes for their nodes. One for all: what happens is looked at once, however many links
//! there are.
//!
//! It goes from one view to the next by their difference, so that it can fall behind and never miss anything, and so can
//! each link. Pure: fed with views; the shell brings what wakes the links.

use std::{collections::BTreeMap, sync::Arc};

use coracle_objects::{ObjectKey, ObjectName, View};

use crate::{
    routes::{Change, Routed, Routes, To},
    untaken::{Taken, Untaken},
};

/// Which authorities the cluster has.
pub const TRUSTS: &str = "trusts.coracle.dev";

/// Wakes who takes what a link has not taken.
pub trait Wake {
    fn wake(&self);
}

/// The link is not the node's present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced;

/// All links, and what they have not taken.
pub struct Router<W> {
    routes: Routes,
    view: Arc<View>,
    links: BTreeMap<Arc<str>, Link<W>>,
}

struct Link<W> {
    number: u64,
    untaken: Untaken,
    wake: W,
}

impl<W> Link<W> {
    fn mark(&mut self, key: &ObjectKey, change: Change)
    where
        W: Wake,
    {
        self.untaken.mark(key.clone(), change);
        self.wake.wake();
    }
}

impl<W: Wake> Router<W> {
    /// Without links. Linear in the number of pods.
    pub fn begin(view: Arc<View>) -> Self {
        Self { routes: Routes::of(&view), view, links: BTreeMap::new() }
    }

    /// The link of a node, by its number, has everything to take that the node needs; an older one has nothing more,
    /// whichever comes first.
    pub fn attach(&mut self, node: &str, number: u64, wake: W) {
        if self.links.get(node).is_some_and(|link| link.number > number) {
            return;
        }
        let untaken = Untaken::first(self.routes.needed_by(node, &self.view));
        self.links.insert(node.into(), Link { number, untaken, wake });
    }

    /// The link has ended.
    pub fn detach(&mut self, node: &str, number: u64) {
        if self.links.get(node).is_some_and(|link| link.number == number) {
            self.links.remove(node);
        }
    }

    /// What a link takes next, if there is anything.
    pub fn take(&mut self, node: &str, number: u64) -> Result<Option<Taken>, Replaced> {
        let link = self.links.get_mut(node).filter(|link| link.number == number);
        Ok(link.ok_or(Replaced)?.untaken.take(&self.view))
    }

    /// Marks for the links what a later view brings. Pods that cannot be read: what they name is not sent.
    pub fn catch_up(&mut self, now: Arc<View>) -> Vec<ObjectName> {
        for Routed { to, key, change } in self.routes.catch_up(&self.view, &now) {
            match to {
                To::All => self.links.values_mut().for_each(|link| link.mark(&key, change)),
                To::Nodes(nodes) => {
                    for node in nodes {
                        if let Some(link) = self.links.get_mut(&node) {
                            link.mark(&key, change);
                        }
                    }
                }
            }
        }
        if !now.events_since(&self.view, TRUSTS).is_empty() {
            for link in self.links.values_mut() {
                link.untaken.mark_trust();
                link.wake.wake();
            }
        }
        self.view = now;
        self.routes.take_unreadable()
    }
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Object, Revision, Table};
    use coracle_proto::node::object_event::Type;
    use serde_json::{Value, json};

    use super::*;

    impl Wake for () {
        fn wake(&self) {}
    }

    fn taken(router: &mut Router<()>, node: &str, number: u64) -> Vec<String> {
        let one = |taken| match taken {
            Taken::Object(object) => {
                let sign = match object.r#type() {
                    Type::Put => '+',
                    Type::Delete => '-',
                    Type::Withheld => '~',
                };
                format!("{sign}{} {}", object.name, object.revision)
            }
            Taken::Synced(revision) => format!("synced {revision}"),
            Taken::Trust => "trust".to_owned(),
        };
        std::iter::from_fn(|| router.take(node, number).unwrap()).map(one).collect()
    }

    /// A view with these objects: resource, name, body, revision.
    fn view(revision: Revision, objects: &[(&str, &str, Value, Revision)]) -> Arc<View> {
        let mut view = View { revision, ..View::default() };
        for (resource, name, body, revision) in objects {
            let key = ObjectKey::new(resource, "default", name);
            let mut draft = json!({ "metadata": { "name": name } });
            draft.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let object = Object::from_draft(key.clone(), draft.to_string().as_bytes(), *revision).unwrap();
            let table: &mut Table = view.tables.entry(key.resource).or_default();
            table.insert(key.name, Arc::new(object));
        }
        Arc::new(view)
    }

    fn pod(node: &str, config: &str) -> Value {
        let from = json!([{ "configMapRef": { "name": config } }]);
        json!({ "spec": { "nodeName": node, "containers": [{ "name": "c", "envFrom": from }] } })
    }

    #[test]
    fn each_link_takes_what_its_node_needs_and_an_older_one_of_a_node_nothing() {
        let service = ("services", "s", json!({}), 1);
        let mut router = Router::begin(view(1, &[("pods", "a", pod("n1", "x"), 1), service.clone()]));
        router.attach("n1", 1, ());
        router.attach("n2", 2, ());
        assert_eq!(taken(&mut router, "n1", 1), ["+s 1", "+a 1", "synced 1"]);
        assert_eq!(taken(&mut router, "n2", 2), ["+s 1", "synced 1"]);
        let pods = [("pods", "a", pod("n1", "x"), 2), ("pods", "b", pod("n2", "x"), 2), service];
        router.catch_up(view(2, &pods));
        assert_eq!(taken(&mut router, "n1", 1), ["+a 2"]);
        assert_eq!(taken(&mut router, "n2", 2), ["+b 2"]);
        router.attach("n1", 3, ());
        router.attach("n1", 1, ());
        assert_eq!(router.take("n1", 1), Err(Replaced));
        router.detach("n1", 1);
        let mut trust = pods.to_vec();
        trust.push((TRUSTS, "t", json!({}), 3));
        router.catch_up(view(3, &trust));
        assert_eq!(taken(&mut router, "n1", 3), ["+s 1", "+a 2", "synced 3", "trust"]);
        router.detach("n1", 3);
        assert_eq!(router.take("n1", 3), Err(Replaced));
    }

    #[test]
    fn a_link_that_stands_still_takes_each_object_once_and_as_it_is_by_then() {
        let mut router =
            Router::begin(view(1, &[("services", "gone", json!({}), 1), ("services", "s", json!({}), 1)]));
        router.attach("n1", 1, ());
        for revision in 2..1000 {
            router.catch_up(view(revision, &[("services", "s", json!({}), revision)]));
        }
        let first = router.take("n1", 1).unwrap();
        assert!(matches!(first, Some(Taken::Object(object)) if object.name == "gone"));
        assert_eq!(taken(&mut router, "n1", 1), ["+s 999", "synced 999"]);
        assert_eq!(router.take("n1", 1), Ok(None));
    }

    #[test]
    fn what_a_pod_names_comes_before_it_and_nothing_of_the_first_comes_behind_their_end() {
        let config = |name: &'static str| ("configmaps", name, json!({}), 1);
        let pod_of = |config, revision| ("pods", "p", pod("n1", config), revision);
        let mut router = Router::begin(view(1, &[config("a"), config("b"), pod_of("a", 1)]));
        router.attach("n1", 1, ());
        router.catch_up(view(2, &[config("a"), config("b"), pod_of("b", 2)]));
        let gone = ["-a 2", "+p 2", "synced 2", "+b 1"];
        assert_eq!(taken(&mut router, "n1", 1), gone, "the pod keeps its place among the first");
        router.catch_up(view(3, &[config("a"), config("b"), pod_of("b", 3)]));
        router.catch_up(view(4, &[config("a"), config("b"), pod_of("a", 4)]));
        assert_eq!(taken(&mut router, "n1", 1), ["+a 1", "+p 4", "-b 4"]);
    }

    #[test]
    fn what_a_node_has_no_room_for_it_is_told_of_without_its_content() {
        let large = |name: &'static str, revision| {
            ("configmaps", name, json!({ "data": { "k": "x".repeat(30 << 20) } }), revision)
        };
        let from: Vec<Value> =
            ["a", "b", "c"].iter().map(|name| json!({ "configMapRef": { "name": name } })).collect();
        let spec = json!({ "spec": { "nodeName": "n1", "containers": [{ "name": "c", "envFrom": from }] } });
        let mut all = vec![large("a", 1), large("b", 1), large("c", 1), ("pods", "p", spec, 1)];
        let mut router = Router::begin(view(1, &all));
        router.attach("n1", 1, ());
        let first: Vec<Taken> = std::iter::from_fn(|| router.take("n1", 1).unwrap()).collect();
        let Taken::Object(withheld) = &first[2] else { panic!("{first:?}") };
        assert_eq!((withheld.r#type(), &*withheld.name, withheld.revision), (Type::Withheld, "c", 1));
        assert!(withheld.object_json.is_empty());
        assert_eq!(
            withheld.reason,
            "the ConfigMaps and Secrets that pods of namespace \"default\" name here take more than 64 MiB, or \
             than others leave free of 512 MiB; make them smaller, or spread the pods over nodes"
        );
        all.remove(0);
        router.catch_up(view(2, &all));
        assert_eq!(taken(&mut router, "n1", 1), ["-a 2", "+c 1"]);
        // A new link hears the same; what has changed its mind since keeps its place, before the pod.
        router.attach("n1", 2, ());
        all.insert(0, large("a", 3));
        router.catch_up(view(3, &all));
        assert_eq!(taken(&mut router, "n1", 2), ["+b 1", "+c 1", "+p 1", "synced 3", "~a 3"]);
        router.attach("n1", 3, ());
        all.remove(1);
        router.catch_up(view(4, &all));
        assert_eq!(taken(&mut router, "n1", 3), ["+a 3", "-b 4", "+c 1", "+p 1", "synced 4"]);
    }

    #[test]
    fn of_a_pod_that_has_no_room_a_node_is_told_which_it_is_and_when_it_is_deleted() {
        let containers = vec![json!({ "name": "c", "env": vec![json!({ "name": "A" }); 40_000] }); 10];
        let mut fat = json!({ "spec": { "nodeName": "n1", "containers": containers } });
        let all = |fat: &Value, revision| {
            let pod = |name: &'static str, revision| ("pods", name, fat.clone(), revision);
            view(revision, &[pod("a", 1), pod("b", 1), pod("c", revision)])
        };
        let mut router = Router::begin(all(&fat, 1));
        router.attach("n1", 1, ());
        let told = |router: &mut Router<()>| {
            let taken: Vec<Taken> = std::iter::from_fn(|| router.take("n1", 1).unwrap()).collect();
            let pod = |taken| match taken {
                Taken::Object(object) if object.resource == "pods" && object.name == "c" => Some(object),
                _ => None,
            };
            taken.into_iter().find_map(pod).unwrap()
        };
        let first = told(&mut router);
        assert_eq!(first.r#type(), Type::Withheld);
        assert_eq!(
            first.reason,
            "the specs of the pods of namespace \"default\" on this node take more than 256 MiB, or than others leave \
             free of 512 MiB; give them fewer containers and variables, or spread them over nodes"
        );
        assert!(first.object_json.is_empty(), "nodes that do not know of it go by this");
        let outline: Value = serde_json::from_slice(&first.outline_json).unwrap();
        assert_eq!(outline["metadata"]["name"], "c");
        assert!(outline.get("spec").is_none() && outline["metadata"]["deletionTimestamp"].is_null());
        fat["metadata"] = json!({ "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z",
            "deletionGracePeriodSeconds": 7 });
        fat["metadata"]["name"] = "c".into();
        router.catch_up(all(&fat, 2));
        let outline: Value = serde_json::from_slice(&told(&mut router).outline_json).unwrap();
        let metadata = &outline["metadata"];
        assert_eq!((&metadata["uid"], &metadata["deletionGracePeriodSeconds"]), (&json!("u"), &json!(7)));
        assert_eq!(metadata["deletionTimestamp"], "2026-01-01T00:00:00Z");
    }
}
