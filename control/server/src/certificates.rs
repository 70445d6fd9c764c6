//! The certificates that this control node shows, renewed while it runs.
//!
//! Each is made by this process, with the keys of the authorities that every control node holds: nothing is asked of
//! another one. Every connection takes what is current when it begins, and goes on with it.

mod authority_change;
mod authority_state;
mod credentials;
mod kubeconfig_file;
mod renewal;

pub use authority_change::{
    ChangeRefused, Waiting, begin as begin_change, follow as follow_authorities, run as run_change,
};
pub use authority_state::{TrustState, forget as forget_authorities, node_announcement};
pub use credentials::Credentials;
pub use kubeconfig_file::{KUBECONFIG, KubeconfigFile};
pub use renewal::renew_nodes_certificate;
pub use renewal::run as run_renewal;
