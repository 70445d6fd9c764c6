//! What is asked of the control plane itself: tokens, members, backups.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{Connection, OutputArgs, examples, values};
use crate::{commands::security::SecurityCommand, names};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A control node.
    Control,
    /// A node.
    Node,
    /// Nothing: it is a bearer token with which to see all but Secrets, and the metrics.
    Reader,
    /// Nothing: it is a token with which to push to and pull from the cluster's registry.
    Pusher,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it alone on stdout.
    #[command(after_help = examples::TOKEN_CREATE)]
    Create {
        /// What may join with it, or `reader` or `pusher`, who join nothing.
        #[arg(long, value_enum, default_value_t = Role::Node)]
        role: Role,
        /// How long it is good for: 30m, 24h, 7d, at most 3650d.
        #[arg(long, default_value = "24h", value_parser = values::token_ttl, value_name = "TIME")]
        ttl: Duration,
        /// The one node that may join with it, which may exist: one that names none is good for new names only.
        #[arg(long, value_name = "NAME", value_parser = names::machine)]
        node: Option<String>,
        /// Write the token into this new file, which its owner alone can read, and print nothing.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the tokens, without their secrets.
    #[command(after_help = examples::TOKEN_LIST)]
    List {
        #[command(flatten)]
        format: OutputArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Revoke a token.
    #[command(after_help = examples::TOKEN_REVOKE)]
    Revoke {
        /// The token's id: the part before the dot.
        #[arg(value_parser = names::given)]
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show how the cluster is: leader, members with their lag, disks and certificates, and what should be mended.
    #[command(after_help = examples::CLUSTER_STATUS)]
    Status {
        #[command(flatten)]
        format: OutputArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the control members.
    #[command(after_help = examples::CLUSTER_MEMBERS)]
    Members {
        #[command(flatten)]
        format: OutputArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Make voters of learners. The cluster does so by itself where that makes an odd number of voters.
    #[command(after_help = examples::CLUSTER_PROMOTE)]
    Promote {
        /// Each by its id or name.
        #[arg(required = true, value_name = "ID|NAME", value_parser = names::given)]
        members: Vec<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove members, all in one change. A leader hands over first.
    #[command(after_help = examples::CLUSTER_REMOVE)]
    Remove {
        /// Each by its id or name.
        #[arg(required = true, value_name = "ID|NAME", value_parser = names::given)]
        members: Vec<String>,
        /// Yes, also where no further voter may fail afterwards. Without it a person is asked, and a program refused.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Let a learner take the place of a voter, in one change.
    #[command(after_help = examples::CLUSTER_REPLACE)]
    Replace {
        /// The voter that goes, by its id or name.
        #[arg(value_name = "OLD", value_parser = names::given)]
        old: String,
        /// The learner that comes, by its id or name.
        #[arg(value_name = "NEW", value_parser = names::given)]
        new: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Hand leadership to another voter.
    #[command(after_help = examples::CLUSTER_TRANSFER)]
    TransferLeader {
        /// The voter that shall lead, by its id or name.
        #[arg(value_name = "ID|NAME", value_parser = names::given)]
        member: String,
        #[command(flatten)]
        connection: Connection,
    },
    #[command(flatten)]
    Security(SecurityCommand),
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a backup of a live cluster, from any control node. It holds everything acknowledged before.
    #[command(after_help = examples::SNAPSHOT_SAVE)]
    Save {
        /// The file to write. It appears when it is whole and checked.
        file: PathBuf,
        /// Replace the file where it exists.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Check a backup and show what is in it.
    #[command(after_help = examples::SNAPSHOT_INSPECT)]
    Inspect {
        /// The backup.
        file: PathBuf,
        #[command(flatten)]
        format: OutputArgs,
    },
    /// Make a new cluster of a backup. Its first control node is started with `coracle control` then.
    #[command(after_help = examples::SNAPSHOT_RESTORE)]
    Restore {
        /// The backup.
        file: PathBuf,
        /// Where the first control node will live on disk: a new or empty directory.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// The first control node's name; by default the machine's.
        #[arg(long, value_name = "NAME", value_parser = names::machine)]
        name: Option<String>,
        /// The old cluster's key ring file: the backup's Secrets are sealed with its keys.
        #[arg(long, value_name = "FILE")]
        key_ring: Option<PathBuf>,
        /// Leave the sealed Secrets out, where the key ring is lost.
        #[arg(long, conflicts_with = "key_ring")]
        drop_secrets: bool,
    },
}

#[derive(Clone, Debug, Args)]
pub struct RecoverArgs {
    /// The data dir of the stopped control node; where there are several, of the one with the longest log.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Yes: make a new cluster, to which the other members do not belong.
    #[arg(long)]
    pub force_new_cluster: bool,
}
