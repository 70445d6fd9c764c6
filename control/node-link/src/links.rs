//! The nodes linked to this member, and when each was last heard of. In memory only.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use coracle_leader::{hearing::Hearing, node_object::Pressures};
use coracle_objects::View;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{demands::Demands, down::Down, logs::LogRequests, routing::Routing};

/// All links: from when this member begins to lead until it no longer does.
pub struct Links {
    sessions: Mutex<Sessions>,
    hearing: Mutex<Hearing>,
    /// The moment from which those of the hearing are counted.
    begun: Instant,
    numbers: AtomicU64,
    /// Wakes the monitor when a node changed what it says.
    pub(crate) changed: Notify,
    /// Tells each link what changes for its node.
    pub routing: Routing,
    /// What is asked of functions.
    pub demands: Demands,
}

/// The links, and whether there may be any: both under one lock, so that no link begins after all were ended.
#[derive(Default)]
struct Sessions {
    open: bool,
    by_node: BTreeMap<String, Session>,
}

/// One node's link.
#[derive(Clone)]
pub struct Session {
    /// Later ones have higher numbers.
    pub number: u64,
    pub down: Down,
    pub logs: Arc<LogRequests>,
    /// Set once the node's object is written.
    pub registered: Arc<AtomicBool>,
    /// Cancelled when the link must end: a newer one of the same node, or leadership lost.
    pub ended: CancellationToken,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            sessions: Mutex::default(),
            hearing: Mutex::default(),
            begun: Instant::now(),
            numbers: AtomicU64::default(),
            changed: Notify::default(),
            routing: Routing::default(),
            demands: Demands::default(),
        }
    }
}

impl Links {
    /// The present moment as the hearing counts it.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// One of its moments on the clock of this process.
    pub(crate) fn instant(&self, moment: Duration) -> Instant {
        self.begun + moment
    }

    /// Begins to take links. Every node that exists has a full grace period to report to the new leader.
    pub fn open(&self, view: &View) {
        *self.hearing.lock() = Hearing::begin(view, self.now());
        self.sessions.lock().open = true;
    }

    /// Ends all links; the nodes look for the new leader.
    pub fn close_all(&self) {
        self.routing.stop();
        let sessions = std::mem::take(&mut *self.sessions.lock());
        for session in sessions.by_node.into_values() {
            session.ended.cancel();
        }
    }

    /// A link of this node; an older one ends. `None` where this member does not lead or has not begun its duties.
    /// `flow_control` tells whether the node sends no more of a log than it is granted.
    pub(crate) fn begin(&self, node: &str, down: &Down, flow_control: bool) -> Option<Session> {
        let session = Session {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            down: down.clone(),
            logs: Arc::new(LogRequests::new(flow_control)),
            registered: Arc::default(),
            ended: CancellationToken::new(),
        };
        {
            let mut sessions = self.sessions.lock();
            if !sessions.open {
                return None;
            }
            if let Some(older) = sessions.by_node.insert(node.to_owned(), session.clone()) {
                older.ended.cancel();
            }
        }
        self.hear(node, None);
        Some(session)
    }

    /// Forgets a link, unless a newer one has taken its place.
    pub(crate) fn end(&self, node: &str, session: &Session) {
        session.logs.close();
        session.ended.cancel();
        self.routing.detach(node, session.number);
        let mut sessions = self.sessions.lock();
        if sessions.by_node.get(node).is_some_and(|known| known.number == session.number) {
            sessions.by_node.remove(node);
            self.hearing.lock().lose(node, self.now());
            self.changed.notify_one();
        }
    }

    /// This process did not run for `gap`.
    pub(crate) fn away(&self, gap: Duration) {
        self.hearing.lock().away(gap, self.now());
    }

    /// What was heard of all nodes.
    pub(crate) fn hearing(&self) -> Hearing {
        self.hearing.lock().clone()
    }

    /// A node was heard of, and what it says of itself where it says that. Its time to be silent begins anew.
    pub fn hear(&self, node: &str, pressures: Option<Pressures>) {
        if self.hearing.lock().hear(node, pressures, self.now()) {
            self.changed.notify_one();
        }
    }

    /// Forgets nodes whose objects are gone. One that is linked still must link anew, and so register again.
    pub(crate) fn retain(&self, exists: impl Fn(&str) -> bool) {
        let sessions = &mut self.sessions.lock().by_node;
        sessions.retain(|node, session| {
            let stays = exists(node) || !session.registered.load(Ordering::Relaxed);
            if !stays {
                session.ended.cancel();
            }
            stays
        });
        self.hearing.lock().retain(|node| exists(node) || sessions.contains_key(node));
    }

    /// Whether a node is linked here now.
    pub fn connected(&self, node: &str) -> bool {
        self.sessions.lock().by_node.contains_key(node)
    }

    /// A node's present link.
    pub(crate) fn session(&self, node: &str) -> Option<Session> {
        self.sessions.lock().by_node.get(node).cloned()
    }

    /// Number of nodes linked now.
    pub fn count(&self) -> usize {
        self.sessions.lock().by_node.len()
    }
}

#[cfg(test)]
mod tests {
    use coracle_leader::hearing::AWAY_MIN;

    use super::*;
    use crate::down;

    #[tokio::test(start_paused = true)]
    async fn a_broken_link_is_lost_until_the_node_links_anew() {
        let links = Links::default();
        links.open(&View::default());
        let (down, _messages) = down::channel_of(1);
        let lost = || links.hearing().nodes["n1"].lost;
        let (first, second) =
            (links.begin("n1", &down, true).unwrap(), links.begin("n1", &down, true).unwrap());
        links.end("n1", &first);
        assert_eq!(lost(), None, "a newer link is there");
        tokio::time::advance(Duration::from_secs(1)).await;
        links.end("n1", &second);
        assert_eq!(lost(), Some(links.now()));
        links.begin("n1", &down, true).unwrap();
        assert_eq!(lost(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_absence_of_ours_is_no_silence_of_nodes() {
        let links = Links::default();
        links.open(&View::default());
        let (down, _messages) = down::channel_of(1);
        let (office, session) = (links.now(), links.begin("n1", &down, true).unwrap());
        tokio::time::advance(Duration::from_secs(60)).await;
        links.hear("n1", None);
        let heard = links.now();
        tokio::time::advance(AWAY_MIN / 2).await;
        links.end("n1", &session);
        links.away(AWAY_MIN / 4);
        let Hearing { since, nodes } = links.hearing();
        assert_eq!((since, nodes["n1"].at), (office, heard + AWAY_MIN / 4));
        assert_eq!(nodes["n1"].lost, Some(links.now()), "never later than now");
        tokio::time::advance(Duration::from_secs(15)).await;
        links.away(Duration::from_secs(15));
        let Hearing { since, nodes } = links.hearing();
        assert_eq!(since, links.now());
        assert_eq!(nodes["n1"].at, heard + AWAY_MIN / 4 + Duration::from_secs(15));
    }

    #[test]
    fn links_begin_only_while_open() {
        let links = Links::default();
        let (down, _messages) = down::channel_of(1);
        assert!(links.begin("n1", &down, true).is_none());
        links.open(&View::default());
        let session = links.begin("n1", &down, true).unwrap();
        links.close_all();
        assert!(session.ended.is_cancelled());
        assert!(!links.connected("n1"));
        assert!(links.begin("n1", &down, true).is_none());
    }
}
