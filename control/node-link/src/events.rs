//! Where the events go that nodes tell of.

use serde_json::Value;

/// Has events written, beside those of the control plane's own parts.
pub trait EventSink: Send + Sync + 'static {
    /// Takes a core v1 Event without a name, and does not wait for it to be written. `false` where too many are waiting.
    fn take(&self, event: Value) -> bool;
}
