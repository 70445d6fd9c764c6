//! Hands out to the links what changes for their nodes. One for all: what happens is looked at once, and what is sent is
//! made once, however many links there are.
//!
//! It goes from one view to the next by their difference, so that it can fall behind and never miss anything. A link that
//! falls behind it ends; its node links anew. Pure: fed with views; the shell brings the links' inboxes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Weak},
};

use coracle_objects::{Object, ObjectName, View};
use coracle_proto::node::ObjectEvent;
use prost::Message;

use crate::routes::{Routed, Routes, To};

/// Changes that are kept for links that have not taken them, of all together, and their bytes.
const KEPT_MAX: usize = 65_536;
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Which authorities the cluster has.
pub const TRUSTS: &str = "trusts.coracle.dev";

/// What one link is told.
#[derive(Clone, Debug)]
pub enum Change {
    /// Gone where the link is too far behind.
    Object(Weak<ObjectEvent>),
    /// The cluster's authorities are others.
    Trust,
}

/// Where a link finds what it is told.
pub trait Inbox {
    /// False where it has no room: the link is too far behind, and is told nothing more.
    fn put(&self, change: Change) -> bool;
}

/// All links, and as far as they have been told.
pub struct Router<I> {
    routes: Routes,
    view: Arc<View>,
    links: BTreeMap<Arc<str>, Link<I>>,
    kept: VecDeque<Arc<ObjectEvent>>,
    kept_bytes: usize,
}

struct Link<I> {
    number: u64,
    inbox: I,
}

impl<I: Inbox> Router<I> {
    /// Without links. Linear in the number of pods.
    pub fn begin(view: Arc<View>) -> Self {
        let routes = Routes::of(&view);
        Self { routes, view, links: BTreeMap::new(), kept: VecDeque::new(), kept_bytes: 0 }
    }

    /// As far as all links have been told.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Tells the link of a node, by its number, what changes from [`Self::view`] on; an older one is told nothing more.
    /// All that the node needs as of now.
    pub fn attach(&mut self, node: &str, number: u64, inbox: I) -> Vec<Arc<Object>> {
        self.links.insert(node.into(), Link { number, inbox });
        self.routes.needed_by(node, &self.view)
    }

    /// The link has ended.
    pub fn detach(&mut self, node: &str, number: u64) {
        if self.links.get(node).is_some_and(|link| link.number == number) {
            self.links.remove(node);
        }
    }

    /// Tells the links what a later view brings. Pods that cannot be read: what they name is not sent.
    pub fn catch_up(&mut self, now: Arc<View>) -> Vec<ObjectName> {
        for routed in self.routes.catch_up(&self.view, &now) {
            self.tell(&routed);
        }
        if !now.events_since(&self.view, TRUSTS).is_empty() {
            self.links.retain(|_, link| link.inbox.put(Change::Trust));
        }
        self.view = now;
        self.routes.take_unreadable()
    }

    fn tell(&mut self, Routed { to, message }: &Routed) {
        self.keep(message);
        let tell = |link: &Link<I>| link.inbox.put(Change::Object(Arc::downgrade(message)));
        match to {
            To::All => self.links.retain(|_, link| tell(link)),
            To::Nodes(nodes) => {
                for node in nodes {
                    if self.links.get(node).is_some_and(|link| !tell(link)) {
                        self.links.remove(node);
                    }
                }
            }
        }
    }

    /// Keeps the last ones here alone, so that a link that stands still keeps nothing in memory.
    fn keep(&mut self, message: &Arc<ObjectEvent>) {
        self.kept_bytes += message.encoded_len();
        self.kept.push_back(message.clone());
        while self.kept.len() > 1 && (self.kept.len() > KEPT_MAX || self.kept_bytes > KEPT_BYTES_MAX) {
            let oldest = self.kept.pop_front();
            self.kept_bytes -= oldest.map_or(0, |oldest| oldest.encoded_len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use coracle_objects::{ObjectKey, Revision, Table};
    use serde_json::{Value, json};

    use super::*;

    const ROOM: usize = 100;

    /// What a link has not taken, as the last one to hold it would see it.
    #[derive(Clone, Default)]
    struct Untaken(Rc<RefCell<Vec<Change>>>);

    impl Inbox for Untaken {
        fn put(&self, change: Change) -> bool {
            let mut untaken = self.0.borrow_mut();
            let room = untaken.len() < ROOM;
            if room {
                untaken.push(change);
            }
            room
        }
    }

    impl Untaken {
        fn take(&self) -> Vec<String> {
            let change = |change| match change {
                Change::Object(message) => Weak::upgrade(&message)
                    .map_or("too far behind".to_owned(), |message| message.name.clone()),
                Change::Trust => "trust".to_owned(),
            };
            self.0.borrow_mut().drain(..).map(change).collect()
        }

        /// Whether the router tells it no more.
        fn is_let_go(&self) -> bool {
            Rc::strong_count(&self.0) == 1
        }
    }

    fn attach(router: &mut Router<Untaken>, node: &str, number: u64) -> (Untaken, Vec<String>) {
        let inbox = Untaken::default();
        let needed = router.attach(node, number, inbox.clone());
        (inbox, needed.iter().map(|object| object.name().to_owned()).collect())
    }

    /// A view with these objects: resource, name, body.
    fn view(revision: Revision, objects: &[(&str, &str, Value)]) -> Arc<View> {
        let mut view = View { revision, ..View::default() };
        for (resource, name, body) in objects {
            let key = ObjectKey::new(resource, "default", name);
            let mut draft = json!({ "metadata": { "name": name } });
            draft.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            let object = Object::from_draft(key.clone(), draft.to_string().as_bytes(), revision).unwrap();
            let table: &mut Table = view.tables.entry(key.resource).or_default();
            table.insert(key.name, Arc::new(object));
        }
        Arc::new(view)
    }

    fn pod(node: &str, round: usize) -> Value {
        json!({ "spec": { "nodeName": node, "containers": [] }, "status": { "round": round } })
    }

    #[test]
    fn each_link_is_told_what_its_node_needs_and_an_older_one_of_a_node_nothing() {
        let mut router = Router::begin(view(1, &[("pods", "a", pod("n1", 0)), ("services", "s", json!({}))]));
        let (first, needed) = attach(&mut router, "n1", 1);
        assert_eq!(needed, ["s", "a"]);
        let (other, needed) = attach(&mut router, "n2", 2);
        assert_eq!(needed, ["s"]);
        let pods = [("pods", "a", pod("n1", 1)), ("pods", "b", pod("n2", 1)), ("services", "s", json!({}))];
        router.catch_up(view(2, &pods));
        assert_eq!(
            (first.take(), other.take()),
            (vec!["s".into(), "a".into()], vec!["s".into(), "b".into()])
        );
        let (second, _) = attach(&mut router, "n1", 3);
        assert!(first.is_let_go());
        let mut trust = pods.to_vec();
        trust.push((TRUSTS, "t", json!({})));
        router.catch_up(view(2, &trust));
        assert_eq!((first.take(), second.take()), (vec![], vec!["trust".into()]));
        router.detach("n1", 1);
        assert!(!second.is_let_go(), "that was the older one");
        router.detach("n1", 3);
        assert!(second.is_let_go());
    }

    #[test]
    fn a_link_that_stands_still_keeps_nothing_and_is_let_go() {
        let mut router = Router::begin(view(0, &[]));
        let (still, quick) = (attach(&mut router, "still", 1).0, attach(&mut router, "quick", 2).0);
        for round in 1..=ROOM + 1 {
            router.catch_up(view(round as u64, &[("services", "s", json!({}))]));
            assert_eq!(quick.take(), ["s"]);
        }
        assert!(still.is_let_go() && !quick.is_let_go());
        // By their bytes as well.
        let (still, _) = attach(&mut router, "still", 3);
        let large = "x".repeat(1 << 20);
        for round in 1..=66 {
            router.catch_up(view(1000 + round, &[("services", "s", json!({ "spec": { "a": large } }))]));
        }
        let told = still.take();
        assert_eq!((told[0].as_str(), told[65].as_str()), ("too far behind", "s"));
        assert!(router.kept_bytes <= KEPT_BYTES_MAX);
    }
}
