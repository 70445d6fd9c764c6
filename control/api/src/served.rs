//! What this server serves: the catalog of kinds, and what describes it to clients (discovery, OpenAPI). It follows from the
//! state and is swapped as a whole; what describes it is made when somebody asks.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use coracle_objects::{Catalog, View};
use parking_lot::Mutex;

use crate::{
    discovery::{Bodies, Groups},
    openapi::{Document, Documents},
};

/// One catalog and its descriptions.
pub struct Served {
    /// The newest state of which this is known to be the catalog.
    revision: AtomicU64,
    pub catalog: Arc<Catalog>,
    pub(crate) groups: Groups,
    pub(crate) discovery: OnceLock<Bodies>,
    pub(crate) documents: OnceLock<Documents>,
    pub(crate) index: OnceLock<Document>,
    pub(crate) document_v2: OnceLock<Bytes>,
}

impl Served {
    pub fn of(catalog: Arc<Catalog>) -> Self {
        Self {
            revision: AtomicU64::new(0),
            groups: Groups::of(&catalog),
            catalog,
            discovery: OnceLock::new(),
            documents: OnceLock::new(),
            index: OnceLock::new(),
            document_v2: OnceLock::new(),
        }
    }

    /// Whether this is served in a state, or in a newer one: what that has shown an older one does not take back.
    fn is_of(&self, view: &View) -> bool {
        if view.revision <= self.revision.load(Relaxed) {
            return true;
        }
        let same = self.catalog.is_of(view);
        if same {
            self.revision.fetch_max(view.revision, Relaxed);
        }
        same
    }
}

/// What is served at this moment.
pub struct Serving {
    now: ArcSwap<Served>,
    /// One makes the next, and others wait for it: what definitions ask for is made once.
    making: Mutex<()>,
}

impl Default for Serving {
    fn default() -> Self {
        let now = ArcSwap::from_pointee(Served::of(Catalog::native().clone()));
        Self { now, making: Mutex::default() }
    }
}

impl Serving {
    /// What is served in a state. Cheap unless a definition has changed.
    pub fn at(&self, view: &View) -> Arc<Served> {
        let served = self.now.load_full();
        if served.is_of(view) {
            return served;
        }
        let _making = self.making.lock();
        let served = self.now.load_full();
        if served.is_of(view) {
            return served;
        }
        let next = Served::of(Arc::new(served.catalog.next(view)));
        next.revision.store(view.revision, Relaxed);
        let next = Arc::new(next);
        self.now.store(next.clone());
        next
    }
}
