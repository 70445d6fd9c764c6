//! The router of all links, and what runs it.

use std::sync::Arc;

use coracle_api::Storage;
use coracle_leader::router::{Change, Inbox, Router};
use coracle_objects::{Object, Revision};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::storage::ReplicatedStorage;

/// Changes that one link may not have taken yet.
const UNTAKEN_MAX: usize = 8192;

/// What a link begins with.
pub struct Attached {
    /// All that the node needs, as of the revision.
    pub objects: Vec<Arc<Object>>,
    pub revision: Revision,
    /// What changes from then on. It ends where the link is too far behind, or this member leads no longer.
    pub changes: mpsc::Receiver<Change>,
}

struct Sender(mpsc::Sender<Change>);

impl Inbox for Sender {
    fn put(&self, change: Change) -> bool {
        self.0.try_send(change).is_ok()
    }
}

/// The router, while this member leads.
#[derive(Default)]
pub struct Routing {
    router: Mutex<Option<Router<Sender>>>,
    begun: Notify,
}

impl Routing {
    /// Routes for as long as this member leads; never returns. On a thread on which nobody else waits: it begins with a
    /// look at all pods.
    pub async fn run(&self, storage: &ReplicatedStorage) {
        let (view, mut events) = storage.hub().everything();
        *self.router.lock() = Some(Router::begin(view));
        self.begun.notify_waiters();
        loop {
            // Whatever it was, and however much of it was missed: the difference tells.
            if events.next().await.is_err() {
                (_, events) = storage.hub().everything();
            }
            while events.ready().is_ok_and(|more| more.is_some()) {}
            let unreadable = self.router.lock().as_mut().map(|router| router.catch_up(storage.view()));
            for pod in unreadable.into_iter().flatten() {
                tracing::warn!(%pod, "a stored pod cannot be read; what it names is not sent to its node");
            }
        }
    }

    /// Ends what all links are told.
    pub fn stop(&self) {
        *self.router.lock() = None;
    }

    /// Has the link of a node, by its number, told what changes. Waits until the router runs.
    pub async fn attach(&self, node: &str, number: u64) -> Attached {
        loop {
            let begun = self.begun.notified();
            tokio::pin!(begun);
            begun.as_mut().enable();
            if let Some(router) = &mut *self.router.lock() {
                let (sender, changes) = mpsc::channel(UNTAKEN_MAX);
                let objects = router.attach(node, number, Sender(sender));
                return Attached { objects, revision: router.view().revision, changes };
            }
            begun.await;
        }
    }

    /// The link has ended.
    pub fn detach(&self, node: &str, number: u64) {
        if let Some(router) = &mut *self.router.lock() {
            router.detach(node, number);
        }
    }
}
