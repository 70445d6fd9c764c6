//! The command line of the one binary.

mod cluster;
mod daemons;
pub mod examples;
mod functions;
mod invoke;
mod objects;
mod run;
mod values;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use self::{
    cluster::{ClusterCommand, RecoverArgs, Role, SnapshotCommand, TokenCommand},
    daemons::{ControlArgs, DemoArgs, NodeArgs, UpArgs},
    functions::{FunctionsArgs, RevisionsArgs, RollbackArgs, Share, TrafficArgs},
    invoke::InvokeArgs,
    objects::{Cascade, DeleteArgs, DeployArgs, DryRun, EnvSource, GetArgs, LogsArgs, Output, PushArgs},
    run::{BuildArgs, DevArgs, Given, Language, MappedDir, NewArgs, Published, RunArgs},
    values::grace,
};
use crate::names;

/// Kubernetes for WebAssembly in one binary.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, about, arg_required_else_help = true, after_help = examples::CORACLE)]
pub struct Cli {
    /// What to log: a level (error, warn, info, debug, trace) or a filter as `coracle_raft=debug,info`.
    #[arg(long, env = "CORACLE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster in this process until Ctrl-C; a second start resumes it.
    #[command(after_help = examples::UP)]
    Up(UpArgs),
    /// Show what Coracle does: a cluster of three control nodes and two nodes, with the sample workloads on it.
    #[command(after_help = examples::DEMO)]
    Demo(DemoArgs),
    /// Run a control node.
    #[command(after_help = examples::CONTROL)]
    Control(ControlArgs),
    /// Run a node: it joins the cluster and runs pods.
    #[command(after_help = examples::NODE)]
    Node(NodeArgs),
    /// Make, list and revoke join tokens.
    #[command(subcommand, after_help = examples::TOKEN)]
    Token(TokenCommand),
    /// Look at the cluster's members and change them.
    #[command(subcommand, after_help = examples::CLUSTER)]
    Cluster(ClusterCommand),
    /// Back a cluster up, look into a backup, make a new cluster of one.
    #[command(subcommand, after_help = examples::SNAPSHOT)]
    Snapshot(SnapshotCommand),
    /// Make a new cluster of one stopped control node, after a quorum was lost for good.
    #[command(after_help = examples::RECOVER)]
    Recover(RecoverArgs),
    /// Print an admin kubeconfig.
    #[command(after_help = examples::KUBECONFIG)]
    Kubeconfig(KubeconfigArgs),
    /// Make a small project that answers HTTP requests, with its tests and a README.
    #[command(after_help = examples::NEW)]
    New(NewArgs),
    /// Build the component of a project as its coracle.yaml says, and print its path.
    #[command(after_help = examples::BUILD)]
    Build(BuildArgs),
    /// Build a project and run it, again at each change, without a cluster.
    #[command(after_help = examples::DEV)]
    Dev(DevArgs),
    /// Run a component in this process, without a cluster, and end with its exit code.
    #[command(after_help = examples::RUN)]
    Run(RunArgs),
    /// Push a component into the cluster's own registry.
    #[command(after_help = examples::PUSH)]
    Push(PushArgs),
    /// Deploy a component and print the URL that answers.
    #[command(after_help = examples::DEPLOY)]
    Deploy(DeployArgs),
    /// Call what was deployed, through the cluster's gateway, and print its answer.
    #[command(after_help = examples::INVOKE)]
    Invoke(InvokeArgs),
    /// List functions.
    #[command(after_help = examples::FUNCTIONS)]
    Functions(FunctionsArgs),
    /// List the revisions of a function.
    #[command(after_help = examples::REVISIONS)]
    Revisions(RevisionsArgs),
    /// Show, or say, which revisions of a function have which part of the requests.
    #[command(after_help = examples::TRAFFIC)]
    Traffic(TrafficArgs),
    /// Give all requests of a function to an earlier revision.
    #[command(after_help = examples::ROLLBACK)]
    Rollback(RollbackArgs),
    /// List or show objects.
    #[command(after_help = examples::GET)]
    Get(GetArgs),
    /// Print what the containers of a pod, or of the pods of a Deployment, have written.
    #[command(after_help = examples::LOGS)]
    Logs(LogsArgs),
    /// Delete objects, or what `coracle deploy` made.
    #[command(after_help = examples::DELETE)]
    Delete(DeleteArgs),
    /// Check this machine and the cluster; say what is wrong and how to mend it.
    #[command(after_help = examples::DOCTOR)]
    Doctor(DoctorArgs),
    /// Print the versions of this program and of the cluster.
    #[command(after_help = examples::VERSION)]
    Version(VersionArgs),
    /// Print a completion script for a shell.
    #[command(visible_alias = "completion", after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell to complete in.
        shell: Shell,
    },
    /// Print the manual page of a command, or write those of all, and completions, below a prefix.
    #[command(after_help = examples::MAN)]
    Man(ManArgs),
    /// Compile one component to native code: run by nodes in a limited child process.
    #[command(hide = true)]
    CompileComponent {
        /// Arguments between a node and its compiler; not for people.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// What a daemon logs, and how.
#[derive(Clone, Debug, Default, Args)]
pub struct LogArgs {
    /// What to log: a level (error, warn, info, debug, trace) or a filter as `coracle_raft=debug,info`.
    #[arg(long, env = "CORACLE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How log lines are written: as text, or each as a JSON object for what gathers logs.
    #[arg(long, env = "CORACLE_LOG_FORMAT", value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
}

/// How a client command finds the cluster.
#[derive(Clone, Debug, Args)]
pub struct Connection {
    /// The kubeconfig to use. Without it: $KUBECONFIG, the one of `coracle up`, ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// The same, for commands that work in a namespace.
#[derive(Clone, Debug, Args)]
pub struct Namespaced {
    #[command(flatten)]
    pub connection: Connection,
    /// The namespace of the objects; by default the kubeconfig's, else `default`.
    #[arg(short, long, value_name = "NAMESPACE", value_parser = names::namespace)]
    pub namespace: Option<String>,
}

/// For programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Json,
    Yaml,
}

/// How a listing is printed.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// How to print: for people without it.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,
}

#[derive(Clone, Debug, Args)]
pub struct KubeconfigArgs {
    /// The data dir of `coracle up` or `coracle control`; by default that of `up`.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// The data dir of `coracle up`, `control` or `node` to look at; by default that of `up`, where there is one.
    #[arg(long, value_name = "DIR", env = "CORACLE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub format: OutputArgs,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Clone, Debug, Args)]
pub struct VersionArgs {
    /// This program's alone: no cluster is asked.
    #[arg(long)]
    pub client: bool,
    #[command(flatten)]
    pub format: OutputArgs,
    #[command(flatten)]
    pub connection: Connection,
}

#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// The command whose page is printed, as `token create`; without it that of `coracle`.
    #[arg(value_name = "COMMAND", conflicts_with = "prefix")]
    pub command: Vec<String>,
    /// Write the pages of all commands, and completions for bash, zsh and fish, below DIR/share, as /usr/local.
    #[arg(long, value_name = "DIR")]
    pub prefix: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
