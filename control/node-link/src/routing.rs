//! The router of all links, and what runs it.

use std::sync::Arc;

use coracle_api::Storage;
use coracle_leader::{
    router::{Replaced, Router, Wake},
    untaken::Taken,
};
use coracle_storage::ReplicatedStorage;
use parking_lot::Mutex;
use tokio::sync::Notify;

struct Wakes(Arc<Notify>);

impl Wake for Wakes {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// The router, while this member leads.
#[derive(Default)]
pub struct Routing {
    router: Mutex<Option<Router<Wakes>>>,
    begun: Notify,
}

impl Routing {
    /// Routes for as long as this member leads; never returns. On a thread on which nobody else waits: it begins with a
    /// look at all pods.
    pub async fn run(&self, storage: &ReplicatedStorage) {
        let (view, mut events) = storage.hub().follow();
        let router = Router::begin(view);
        *self.router.lock() = Some(router);
        self.begun.notify_waiters();
        loop {
            // Whatever it was, and however much of it was missed: the difference tells.
            if events.next().await.is_err() {
                (_, events) = storage.hub().follow();
            }
            while events.ready().is_ok_and(|more| more.is_some()) {}
            let unreadable = self.router.lock().as_mut().map(|router| router.catch_up(storage.view()));
            for pod in unreadable.into_iter().flatten() {
                tracing::warn!(%pod, "a stored pod cannot be read; what it names is not sent to its node");
            }
        }
    }

    /// No link has anything to take any more.
    pub fn stop(&self) {
        *self.router.lock() = None;
    }

    /// Has the link of a node, by its number, take from now on what the node needs. Waits until the router runs. What is
    /// given back is told when there is something to take.
    pub(crate) async fn attach(&self, node: &str, number: u64) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        loop {
            let begun = self.begun.notified();
            tokio::pin!(begun);
            begun.as_mut().enable();
            if let Some(router) = &mut *self.router.lock() {
                router.attach(node, number, Wakes(wake.clone()));
                return wake;
            }
            begun.await;
        }
    }

    /// What the link takes next, if there is anything; an error where it is not the node's present one, or this member
    /// leads no longer.
    pub(crate) fn take(&self, node: &str, number: u64) -> Result<Option<Taken>, Replaced> {
        self.router.lock().as_mut().ok_or(Replaced)?.take(node, number)
    }

    /// The link has ended.
    pub(crate) fn detach(&self, node: &str, number: u64) {
        if let Some(router) = &mut *self.router.lock() {
            router.detach(node, number);
        }
    }
}
