//! How code that is in memory is used, for the store that has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

/// The use of one component's code since it was loaded.
pub(crate) struct Pins {
    pins: AtomicUsize,
    used_at: Mutex<SystemTime>,
}

impl Default for Pins {
    /// Code that is used for the first time.
    fn default() -> Pins {
        Pins { pins: AtomicUsize::new(0), used_at: Mutex::new(SystemTime::now()) }
    }
}

impl Pins {
    /// Keeps the code in the store: it is mapped, and takes its room there as long as containers use it.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        self.pins.fetch_add(1, Ordering::Relaxed);
        Pin(Arc::clone(self))
    }

    /// Somebody asked for it.
    pub(crate) fn touch(&self) {
        *self.used_at.lock() = SystemTime::now();
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Relaxed) > 0
    }

    /// When it was used last; none where it is used now.
    pub(crate) fn last_use(&self) -> Option<SystemTime> {
        (!self.is_pinned()).then(|| *self.used_at.lock())
    }
}

/// Code that is used, as long as this lives.
pub(crate) struct Pin(Arc<Pins>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::Relaxed);
    }
}
