//! What a control node is told when it starts, and the bounds and periods that belong to no single file.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use coracle_pki::LEAF_LIFE;
use coracle_raft::SNAPSHOT_ENTRIES;
use coracle_storage::version::Build;

/// How a control node comes into its cluster. A data directory that has a cluster already is resumed in each mode.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Makes a new cluster.
    Init,
    /// Becomes a member of an existing one, through any of these control nodes (`host:port`), with a join token.
    Join { addresses: Vec<String>, token: String },
    /// Only resumes.
    Resume,
}

/// The settings of one control node.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Belongs to this control node alone. Created where it does not exist.
    pub data_dir: PathBuf,
    /// Where the one TLS port listens. Port 0 takes the port of the last start, or a free one.
    pub listen: SocketAddr,
    /// `host` or `host:port` under which members, nodes and clients reach this control node. By default the listening
    /// address, or where that is unspecified the address of this machine's default route.
    pub advertise: Option<String>,
    pub mode: Mode,
    /// `host:port` at which other members may be found where none is where it was: all may have moved.
    pub seek: Vec<String>,
    /// The member's name, a DNS label.
    pub name: String,
    /// The file with the keys for Secrets; by default `keys/secrets.ring` in the data directory.
    pub key_ring: Option<PathBuf>,
    /// For how long certificates are good that this control node signs; renewed after two thirds. At least some seconds.
    pub certificate_life: Duration,
    /// For how long a learner must be healthy before it is promoted to a voter.
    pub learner_healthy: Duration,
    /// A snapshot of the state is made, and the log before it dropped, when so many entries were applied since the last.
    pub snapshot_entries: u64,
    /// What this control node announces of its build. Another one than this is for trying out upgrades.
    pub build: Build,
    /// Of the files that this process may have open this control node uses one part of so many; 1 where nothing else runs
    /// in the process.
    pub open_files_part: u64,
    /// A member that was not heard of for so long is dead: a learner takes its place, or an alarm tells of it.
    pub member_dead: Duration,
}

impl ControlConfig {
    /// The settings for production.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        name: impl Into<String>,
        listen: SocketAddr,
        mode: Mode,
    ) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen,
            advertise: None,
            mode,
            seek: Vec::new(),
            name: name.into(),
            key_ring: None,
            certificate_life: LEAF_LIFE,
            learner_healthy: Duration::from_secs(10),
            snapshot_entries: SNAPSHOT_ENTRIES,
            build: Build::default(),
            open_files_part: 1,
            member_dead: Duration::from_secs(30),
        }
    }

    /// Where the keys for Secrets are kept.
    pub fn key_ring_path(&self) -> PathBuf {
        self.key_ring.clone().unwrap_or_else(|| self.data_dir.join("keys/secrets.ring"))
    }
}

/// Services have their addresses in 10.96.0.0/12; these two are fixed.
pub(crate) use coracle_objects::claims::{DNS_SERVICE_IP, KUBERNETES_SERVICE_IP};
