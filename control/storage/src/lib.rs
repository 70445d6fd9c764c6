//! The replicated store as one control node has it: what stands between raft with the store and everybody who reads and
//! writes. [`ReplicatedStorage`] is the one door for changes of state and linearizable reads, at any member, and implements
//! the API's `Storage`; what is agreed on raft hands to the [`machine`], and the [`watch_hub`] publishes it: views, and
//! events without gap or double. Secrets are sealed on the way in and opened on the way out ([`encryption`]). Beside that
//! stands what members need of each other for it: where each is ([`peers`]), whether their states are equal and their disks
//! have room ([`health`]), and what all their builds can read ([`version`]). What shares an entry, what is tried again and
//! where a watch goes on `coracle_member` decides, without I/O; here are the tasks, the calls and the time.

mod batch;
mod forwarding;
mod replicated;

pub mod machine;
pub mod watch_hub;

pub mod encryption;

pub mod health;
pub mod peers;
pub mod version;

pub use forwarding::{forgotten, leader_client, not_done};
pub use replicated::{NotProposed, ReplicatedStorage};
