//! Why a control node does not start, in words for the person who starts it.

use std::{io, net::SocketAddr, path::PathBuf};

use thiserror::Error;

/// What keeps a control node from starting. Each says what is wrong and the mend.
#[derive(Debug, Error)]
pub enum ServerError {
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the data directory {0} is in use by another process; stop that process or choose another directory"
    )]
    Locked(PathBuf),
    #[error(
        "the data directory {path} belongs to a {role} of cluster {cluster_id}, not to a control node; choose another \
         directory"
    )]
    OtherRole { path: PathBuf, role: String, cluster_id: String },
    #[error(
        "the data directory {path} belongs to another cluster ({cluster_id}) than the join token; choose an empty \
         directory, or start without --join to resume that cluster"
    )]
    OtherCluster { path: PathBuf, cluster_id: String },
    #[error("the data directory {path} is not for this build: {refusal}; nothing in it was changed")]
    OldBuild { path: PathBuf, refusal: String },
    #[error(
        "the data directory {path} was made by a newer version of Coracle (its layout is {found}, this build knows up \
         to {known}); use that version or a newer one. Nothing in it was changed"
    )]
    NewerLayout { path: PathBuf, found: u32, known: u32 },
    #[error(
        "the data directory {path} holds something that is not Coracle's ({found}); choose an empty directory, or move \
         that away"
    )]
    NotEmpty { path: PathBuf, found: String },
    #[error(
        "the data directory {0} holds no cluster; start with --init for a new one or with --join for an existing one"
    )]
    NothingToResume(PathBuf),
    #[error(
        "the data directory {0} holds no stopped control node to recover; name the one with the longest log, and use \
         `coracle snapshot restore` where there is only a backup"
    )]
    NothingToRecover(PathBuf),
    #[error("the recovery of the data directory {0} was cut short: run `coracle recover` again to finish it")]
    Recovering(PathBuf),
    #[error("the data directory {path} is not empty ({found}): a backup is restored into a new or empty one")]
    NotVacant { path: PathBuf, found: String },
    #[error("{path} is no backup that can be used: {reason}; nothing was changed")]
    Backup { path: PathBuf, reason: String },
    #[error(
        "{path} is damaged: {reason}; restore it from a backup, or join again as a new member with an empty directory"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "cannot listen on {address}; another process may use the port: choose another --listen address (port 0 is any)"
    )]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error(
        "the join token is for a {found}, this is a control node; make one with `coracle token create --role control`"
    )]
    TokenRole { found: &'static str },
    #[error("the cluster answered the join without {0}")]
    JoinAnswer(&'static str),
    #[error(transparent)]
    KeyRing(#[from] coracle_storage::encryption::KeyRingError),
    #[error(transparent)]
    Pki(#[from] coracle_pki::PkiError),
    #[error("the TLS settings could not be made")]
    Tls(#[from] coracle_proto::tls::TlsError),
    #[error(transparent)]
    Join(#[from] coracle_proto::join::JoinError),
    #[error("the replicated log cannot be opened")]
    Raft(#[from] coracle_raft::Error),
    #[error("the control node did not become ready within {seconds} s: {reason}")]
    NotReady { seconds: u64, reason: String },
}

impl ServerError {
    /// For `map_err`: what was done to which path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
