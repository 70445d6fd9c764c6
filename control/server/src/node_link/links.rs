//! The nodes linked to this member, and when each was last heard of. In memory only.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use coracle_objects::View;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Down, logs::LogRequests};

/// What a node says of itself with each heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

/// All links.
#[derive(Default)]
pub struct Links {
    sessions: Mutex<BTreeMap<String, Session>>,
    heard: Mutex<BTreeMap<String, Heard>>,
    numbers: AtomicU64,
    open: Mutex<bool>,
    /// Wakes the monitor when a node changed what it says.
    pub changed: Notify,
}

/// One node's link.
#[derive(Clone)]
pub struct Session {
    number: u64,
    pub down: Down,
    pub logs: Arc<LogRequests>,
    /// Set once the node's object is written.
    pub registered: Arc<AtomicBool>,
    /// Cancelled when the link must end: a newer one of the same node, or leadership lost.
    pub ended: CancellationToken,
}

/// When a node was last heard of, and what it said.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    pub at: Instant,
    /// `None` before its first heartbeat to this member.
    pub pressures: Option<Pressures>,
}

impl Links {
    /// Begins to take links. Every node that exists has a full grace period to report to the new leader.
    pub fn open(&self, view: &View) {
        let heard = Heard { at: Instant::now(), pressures: None };
        *self.heard.lock() = view.list("nodes", None).map(|node| (node.name().to_owned(), heard)).collect();
        *self.open.lock() = true;
    }

    /// Ends all links; the nodes look for the new leader.
    pub fn close_all(&self) {
        *self.open.lock() = false;
        for session in std::mem::take(&mut *self.sessions.lock()).into_values() {
            session.ended.cancel();
        }
    }

    /// Whether this member leads and has begun its duties.
    pub fn is_open(&self) -> bool {
        *self.open.lock()
    }

    /// A link of this node; an older one ends.
    pub fn begin(&self, node: &str, down: Down) -> Session {
        let session = Session {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            down,
            logs: Arc::default(),
            registered: Arc::default(),
            ended: CancellationToken::new(),
        };
        if let Some(older) = self.sessions.lock().insert(node.to_owned(), session.clone()) {
            older.ended.cancel();
        }
        self.hear(node, None);
        session
    }

    /// Forgets a link, unless a newer one has taken its place.
    pub fn end(&self, node: &str, session: &Session) {
        session.ended.cancel();
        let mut sessions = self.sessions.lock();
        if sessions.get(node).is_some_and(|known| known.number == session.number) {
            sessions.remove(node);
        }
    }

    pub fn hear(&self, node: &str, pressures: Option<Pressures>) {
        let now = Instant::now();
        let mut heard = self.heard.lock();
        let known = heard.entry(node.to_owned()).or_insert(Heard { at: now, pressures: None });
        known.at = now;
        if pressures.is_some() && known.pressures != pressures {
            known.pressures = pressures;
            self.changed.notify_one();
        }
    }

    pub fn heard(&self, node: &str) -> Option<Heard> {
        self.heard.lock().get(node).copied()
    }

    /// Forgets nodes whose objects are gone. One that is linked still must link anew, and so register again.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        let mut sessions = self.sessions.lock();
        sessions.retain(|node, session| {
            let stays = exists(node) || !session.registered.load(Ordering::Relaxed);
            if !stays {
                session.ended.cancel();
            }
            stays
        });
        self.heard.lock().retain(|node, _| exists(node) || sessions.contains_key(node));
    }

    pub fn connected(&self, node: &str) -> bool {
        self.sessions.lock().contains_key(node)
    }

    pub fn session(&self, node: &str) -> Option<Session> {
        self.sessions.lock().get(node).cloned()
    }

    /// Number of nodes linked now.
    pub fn count(&self) -> usize {
        self.sessions.lock().len()
    }
}
