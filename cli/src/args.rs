//! The command line of the one binary.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use coracle_objects::validate::syntax::{label_value_faults, qualified_name_faults};

use crate::{commands::security::SecurityCommand, join_token::TokenArgs, names};

/// Kubernetes for WebAssembly in one binary.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to log: a level (error, warn, info, debug, trace) or a filter as `coracle_raft=debug,info`.
    #[arg(long, global = true, env = "CORACLE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in this process until Ctrl-C; a second start resumes it.
    Up(UpArgs),
    /// Show what Coracle does: a cluster of three control nodes and two nodes, with the sample workloads on it.
    Demo(DemoArgs),
    /// Run a control node.
    Control(ControlArgs),
    /// Run a node: it joins the cluster and runs pods.
    Node(NodeArgs),
    /// Make, list and revoke join tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look at the cluster's members and change them.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Back a cluster up, look into a backup, make a new cluster of one.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make a new cluster of one stopped control node, after a quorum was lost for good.
    Recover(RecoverArgs),
    /// Print an admin kubeconfig.
    Kubeconfig(KubeconfigArgs),
    /// Push a component into the cluster's own registry.
    Push(PushArgs),
    /// Deploy a component and print the URL that answers.
    Deploy(DeployArgs),
    /// List or show objects.
    Get(GetArgs),
    /// Print the logs of a pod.
    Logs(LogsArgs),
    /// Delete objects.
    Delete(DeleteArgs),
    /// Check this machine and the cluster; say what is wrong and how to mend it.
    Doctor(DoctorArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell to complete in.
        shell: Shell,
    },
    /// Compile one component to native code: run by nodes in a limited child process.
    #[command(hide = true)]
    CompileComponent {
        /// Arguments between a node and its compiler; not for people.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// How a client command finds the cluster.
#[derive(Clone, Debug, Args)]
pub struct Connection {
    /// The kubeconfig to use. Without it: $KUBECONFIG, the one of `coracle up`, ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of the objects; by default the kubeconfig's, else `default`.
    #[arg(short, long, value_name = "NAMESPACE", value_parser = names::namespace)]
    pub namespace: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Where the cluster lives on disk; by default $XDG_DATA_HOME/coracle or ~/.local/share/coracle.
    #[arg(long, value_name = "DIR", env = "CORACLE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Control nodes: 1, 3 or 5. Fixed when the cluster is made.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub control: u32,
    /// Nodes that run pods.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub nodes: u32,
    /// Address of the first control node's API; further ones take free ports. Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Address of the first node's gateway; further nodes take free ports. Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub gateway: SocketAddr,
}

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Leave the cluster running until Ctrl-C, to look around in it.
    #[arg(long)]
    pub keep: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// Where this control node lives on disk.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Address of REST, gRPC and raft. Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// The host:port under which others reach this control node; by default the listen address.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// This member's name; by default the machine's name and the port.
    #[arg(long, value_name = "NAME", value_parser = names::machine)]
    pub name: Option<String>,
    /// Make a new cluster. Resumes it where the data dir already holds it.
    #[arg(long, conflicts_with = "join")]
    pub init: bool,
    /// Join the cluster at these addresses. Resumes the membership where the data dir already holds it.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub join: Vec<String>,
    #[command(flatten)]
    pub token: TokenArgs,
    /// Make a snapshot, and drop the log before it, after so many raft entries.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_entries: u64,
    /// While this member leads: a member that was not heard of for so long is dead. A learner takes its place, or
    /// `coracle cluster status` tells of it. As 30s or 5m.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub member_dead: std::time::Duration,
    /// The file with the keys that Secrets are encrypted with; by default keys/secrets.ring in the data dir.
    #[arg(long, value_name = "FILE")]
    pub key_ring: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Where this node lives on disk.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Control nodes to join at.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub join: Vec<String>,
    #[command(flatten)]
    pub token: TokenArgs,
    /// The node's name; by default the machine's.
    #[arg(long, value_name = "NAME", value_parser = names::machine)]
    pub name: Option<String>,
    /// Address of the tunnels between nodes. Port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDR")]
    pub fabric: SocketAddr,
    /// Address of the gateway for the outside; without it the node has none.
    #[arg(long, value_name = "ADDR")]
    pub gateway: Option<SocketAddr>,
    /// Addresses of proxies before the gateway, as 10.0.0.0/8. Only what they say in X-Forwarded-* headers is believed.
    /// Repeat for more.
    #[arg(long = "trusted-proxy", value_name = "CIDR")]
    pub trusted_proxies: Vec<coracle_agent::Cidr>,
    /// Address of /metrics, over plain HTTP and without any check: one that only this machine's monitoring reaches.
    /// Without it there is none.
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Pods that the node offers to run; 0 is as many as it can hold, and more than that it never offers.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub pods: u32,
    /// Instances of components that may be alive at once; 0 is as many as vm.max_map_count has room for, up to 4,000. How
    /// many pods the node can hold follows from it.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub max_instances: u32,
    /// A label of the node, as `zone=a`. Repeat for more.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Allow the pods of all namespaces to open connections to beyond the cluster. Without it only those may whose
    /// namespace has the label coracle.dev/egress=allow.
    #[arg(long)]
    pub allow_egress: bool,
    /// Allow images of the form file:///x.wasm: whoever may create pods can then read such files of this machine.
    #[arg(long)]
    pub allow_local_artifacts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A control node.
    Control,
    /// A node.
    Node,
    /// Nothing: it is a bearer token with which to see all but Secrets, and the metrics.
    Reader,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it alone on stdout.
    Create {
        /// What may join with it, or `reader`.
        #[arg(long, value_enum, default_value_t = Role::Node)]
        role: Role,
        /// How long it is good for: 30m, 24h, 7d.
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: std::time::Duration,
        /// The one node that may join with it, which may exist: one that names none is good for new names only.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the tokens, without their secrets.
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Revoke a token.
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
    Status {
        /// How to print: as text without it.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
        #[command(flatten)]
        connection: Connection,
    },
    /// List the control members.
    Members {
        /// How to print: as a table without it.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Make voters of learners. The cluster does so by itself where that makes an odd number of voters.
    Promote {
        /// Each by its id or name.
        #[arg(required = true, value_name = "ID|NAME", value_parser = names::given)]
        members: Vec<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Remove members, all in one change. A leader hands over first.
    Remove {
        /// Each by its id or name.
        #[arg(required = true, value_name = "ID|NAME", value_parser = names::given)]
        members: Vec<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Let a learner take the place of a voter, in one change.
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
    Inspect {
        file: PathBuf,
        /// How to print: as text without it.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Make a new cluster of a backup. Its first control node is started with `coracle control` then.
    Restore {
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

/// For programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Json,
    Yaml,
}

#[derive(Clone, Debug, Args)]
pub struct KubeconfigArgs {
    /// The data dir of `coracle up` or `coracle control`; by default that of `up`.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct PushArgs {
    /// The component (or preview 1 module) to push.
    pub file: PathBuf,
    /// The name it gets, as `hello` or `hello:1.0`; the tag is `latest` where none is given.
    pub name: String,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Clone, Debug, Args)]
pub struct DeployArgs {
    /// A .wasm file, which is pushed first, or the name of an image.
    #[arg(value_parser = names::given)]
    pub image: String,
    /// The name of the Deployment, Service and Ingress; by default the file's or image's.
    #[arg(long)]
    pub name: Option<String>,
    /// The host that the gateway answers for; by default NAME.localhost.
    #[arg(long, value_parser = names::given)]
    pub host: Option<String>,
    /// How many pods.
    #[arg(long, default_value_t = 1)]
    pub replicas: u32,
    /// The port that the component serves on.
    #[arg(long, default_value_t = 80)]
    pub port: u16,
    /// An environment variable, as `KEY=VALUE`. Repeat for more.
    #[arg(long = "env", value_name = "KEY=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Arguments of the component.
    #[arg(last = true)]
    pub args: Vec<String>,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// The kind, by plural, singular or short name: pods, deploy, svc.
    pub kind: String,
    /// The object; all of the kind without it.
    pub name: Option<String>,
    /// Objects of every namespace.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only objects with these labels: `app=hello,tier!=test`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The pod.
    pub pod: String,
    /// The container, where the pod has several.
    #[arg(short, long, value_parser = names::given)]
    pub container: Option<String>,
    /// Go on printing as lines are written.
    #[arg(short, long)]
    pub follow: bool,
    /// The previous instance's logs, after a restart.
    #[arg(short, long)]
    pub previous: bool,
    /// Only the last lines.
    #[arg(long, value_name = "N")]
    pub tail: Option<u64>,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    /// The kind, by plural, singular or short name.
    pub kind: String,
    /// The objects.
    #[arg(required = true)]
    pub names: Vec<String>,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub connection: Connection,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err(format!("`{text}` is not of the form KEY=VALUE")),
    }
}

/// A label that a node may have.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = key_value(text)?;
    let faults = |of: &str, faults: Vec<String>| match faults.first() {
        Some(fault) => Err(format!("`{of}` in `{text}`: {fault}")),
        None => Ok(()),
    };
    faults(&key, qualified_name_faults(&key))?;
    faults(&value, label_value_faults(&value))?;
    Ok((key, value))
}

pub fn duration(text: &str) -> Result<std::time::Duration, String> {
    let mend = || format!("`{text}` is no duration: write a number and s, m, h or d, as 24h");
    let unit = text.chars().last().ok_or_else(mend)?;
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| mend())?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(mend()),
    };
    number
        .checked_mul(seconds)
        .filter(|total| *total > 0)
        .map(std::time::Duration::from_secs)
        .ok_or_else(mend)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_numbers_with_a_unit() {
        assert_eq!(duration("90m").unwrap().as_secs(), 5400);
        assert_eq!(duration("7d").unwrap().as_secs(), 604_800);
        for bad in ["", "h", "12", "0s", "-1h", "1y", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn environment_variables_need_a_name() {
        assert_eq!(key_value("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        assert!(key_value("=x").is_err());
        assert!(key_value("x").is_err());
    }

    #[test]
    fn labels_are_such_as_objects_have() {
        assert_eq!(label("example.com/zone=a").unwrap(), ("example.com/zone".into(), "a".into()));
        assert_eq!(label("zone=").unwrap().1, "");
        for bad in ["zone", "=a", "a b=c", "zone=a b", "/zone=a", "A_/zone=a"] {
            assert!(label(bad).is_err(), "{bad}");
        }
    }
}
