//! The node link at the leader: nodes report here and learn here what they shall run. Heartbeats stay in the leader's
//! memory ([`Links`]); only what changes for others is written ([`monitor`], and each node's link in its own name). A member
//! that does not lead sends nodes on to the one that does, and asks it for the logs of their pods ([`nodes`]). What is made
//! of all this is decided in `coracle_leader`, without I/O. Who calls is decided before a call comes here: a node is known
//! by the user in the extensions of its request.

mod events;
mod service;
mod woken;

mod session;

mod acknowledgements;
pub mod demands;
mod description;
mod down;
mod pod_blocks;
mod pod_status;

mod links;
mod logs;
mod monitor;
mod routing;

pub mod nodes;

pub use events::EventSink;
pub use links::Links;
pub use monitor::monitor;
pub use service::NodeLinkService;
