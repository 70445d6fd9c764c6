//! Secrets encrypted at rest.
//!
//! ```text
//! propose: Transaction with drafts in clear -> SecretBox::seal_transaction -> raft log, store, snapshot: ciphertext
//! read:    the store's view -> clear_view -> WatchHub::view, events: drafts in clear, in memory only
//! ```
//!
//! There is one seam on each way: [`crate::ReplicatedStorage`] seals what it proposes, [`crate::watch_hub`] opens what it
//! publishes. Everything else in a control node sees objects in clear and knows nothing of keys.

mod clear;
mod key;
mod key_ring;
mod sealing;
mod secret_box;

mod follow;
mod rotation;
mod state;

#[cfg(test)]
mod tests;

pub use clear::Published;
pub use follow::follow;
pub use key_ring::KeyRingError;
pub use rotation::{KeysRefused, begin as begin_rotation, drop_key, run as run_rotation};
pub use sealing::concerns;
pub use secret_box::SecretBox;
pub use state::{KEY_HOLDERS, KEY_RINGS, KeyRingState, counts, members_without};

pub(crate) use clear::{clear_event, clear_view};
pub(crate) use sealing::{NotSealed, refused_for_its_keys};
