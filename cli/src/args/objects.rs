//! What is done to objects, and what runs components.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

pub use super::values::EnvSource;
use super::{Connection, Namespaced, values};
use crate::names;

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
    /// A .wasm file, which is pushed first, the folder of a project, which is built and pushed, or the name of an image.
    #[arg(value_parser = names::given)]
    pub image: String,
    /// The name of the Deployment, Service and Ingress; by default the file's or image's.
    #[arg(long)]
    pub name: Option<String>,
    /// The host that the gateway answers for; by default NAME.localhost.
    #[arg(long, value_parser = names::given)]
    pub host: Option<String>,
    /// As a Function: it has instances while it is called, and each change makes a revision. What is one stays one.
    #[arg(long, conflicts_with = "replicas")]
    pub function: bool,
    /// How many pods; 1 at first, and what there are when it is deployed again.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub replicas: Option<u32>,
    /// The port that the component serves on; 80 at first.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// An environment variable, as `KEY=VALUE`. Repeat for more.
    #[arg(long = "env", value_name = "KEY=VALUE", value_parser = values::key_value)]
    pub env: Vec<(String, String)>,
    /// A file of environment variables, a KEY=VALUE a line; `#` begins a comment, and KEY alone is the one of this shell.
    /// Repeat for more; --env goes before.
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// All that a ConfigMap or a Secret holds as environment variables, as `configmap/NAME` or `secret/NAME`. Repeat for
    /// more.
    #[arg(long, value_name = "KIND/NAME", value_parser = values::env_source)]
    pub env_from: Vec<values::EnvSource>,
    /// An environment variable that is kept in a Secret of the deployment's name, as `KEY=VALUE`, or `KEY` for the variable
    /// of this shell. Repeat for more.
    #[arg(long = "secret", value_name = "KEY[=VALUE]", value_parser = values::secret)]
    pub secrets: Vec<(String, String)>,
    /// How long to wait until its pods are available.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = values::wait)]
    pub timeout: Duration,
    /// Arguments of the component.
    #[arg(last = true)]
    pub args: Vec<String>,
    #[command(flatten)]
    pub namespaced: Namespaced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Kinds by plural, singular or short name, as `pods,svc`, or `all`, and names; or each as KIND/NAME.
    #[arg(required_unless_present = "filenames", value_name = "KIND[,KIND] [NAME] | KIND/NAME")]
    pub what: Vec<String>,
    /// The objects that these manifests name: a file, a folder, or `-` for stdin. Repeat for more.
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with_all = ["what", "selector", "all_namespaces"])]
    pub filenames: Vec<PathBuf>,
    /// Objects of every namespace.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only objects with these labels: `app=hello,tier!=test`.
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = names::given)]
    pub selector: Option<String>,
    /// Only objects with these fields: `status.phase=Running`.
    #[arg(long, value_name = "SELECTOR", value_parser = names::given)]
    pub field_selector: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<Output>,
    /// Leave out the line with the columns' names.
    #[arg(long)]
    pub no_headers: bool,
    /// Labels as a last column.
    #[arg(long)]
    pub show_labels: bool,
    /// What is not there is no fault.
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Go on printing as the objects change.
    #[arg(short, long, conflicts_with = "filenames")]
    pub watch: bool,
    #[command(flatten)]
    pub namespaced: Namespaced,
}

#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The pod, or the Deployment or Function of that name; or KIND/NAME of a pod, deployment, replicaset, service and others that
    /// select pods.
    #[arg(value_name = "NAME | KIND/NAME", required_unless_present = "selector", value_parser = names::given)]
    pub target: Option<String>,
    /// The pods with these labels, all of them.
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "target", value_parser = names::given)]
    pub selector: Option<String>,
    /// The container, where a pod has several; by default its first.
    #[arg(short, long, value_parser = names::given)]
    pub container: Option<String>,
    /// All containers of the pods.
    #[arg(long, conflicts_with = "container")]
    pub all_containers: bool,
    /// All pods of a Deployment or other owner, not one of them. Lines begin with pod and container.
    #[arg(long)]
    pub all_pods: bool,
    /// Begin each line with the pod and the container that wrote it.
    #[arg(long)]
    pub prefix: bool,
    /// Go on printing as lines are written.
    #[arg(short, long, conflicts_with = "previous")]
    pub follow: bool,
    /// The previous instance's logs, after a restart.
    #[arg(short, long)]
    pub previous: bool,
    /// Only the last lines; -1 is all. With a selector 10 where nothing is said.
    #[arg(long, value_name = "N", value_parser = values::tail, allow_negative_numbers = true)]
    pub tail: Option<i64>,
    /// Only lines that are not older: 30s, 2h.
    #[arg(long, value_name = "TIME", value_parser = values::since, conflicts_with = "since_time")]
    pub since: Option<Duration>,
    /// Only lines since this moment, as 2026-01-02T15:04:05Z.
    #[arg(long, value_name = "RFC3339")]
    pub since_time: Option<jiff::Timestamp>,
    /// Begin each line with its time.
    #[arg(long)]
    pub timestamps: bool,
    /// At most so many bytes of each container.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub limit_bytes: Option<u64>,
    #[command(flatten)]
    pub namespaced: Namespaced,
}

/// What becomes of the objects that belong to a deleted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cascade {
    /// They go afterwards.
    Background,
    /// They go before.
    Foreground,
    /// They stay.
    Orphan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Delete.
    None,
    /// Say what would be deleted.
    Client,
    /// Let the cluster check it, and delete nothing.
    Server,
}

#[derive(Clone, Debug, Args)]
pub struct DeleteArgs {
    /// Kinds by plural, singular or short name, and names; or each as KIND/NAME; or the NAME alone of what `coracle
    /// deploy` made.
    #[arg(required_unless_present = "filenames", value_name = "KIND[,KIND] NAME | KIND/NAME | NAME")]
    pub what: Vec<String>,
    /// The objects that these manifests name: a file, a folder, or `-` for stdin. Repeat for more.
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with_all = ["what", "selector", "all"])]
    pub filenames: Vec<PathBuf>,
    /// All objects of the kinds.
    #[arg(long, conflicts_with = "selector")]
    pub all: bool,
    /// The objects of the kinds with these labels.
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = names::given)]
    pub selector: Option<String>,
    /// With --all or --selector: in every namespace.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// What is not there is no fault.
    #[arg(long)]
    pub ignore_not_found: bool,
    /// What becomes of what belongs to the objects.
    #[arg(long, value_enum, default_value_t = Cascade::Background)]
    pub cascade: Cascade,
    /// Seconds that pods have to end; by default what each asks for.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub grace_period: Option<u32>,
    /// Pods end at once: as --grace-period 1.
    #[arg(long, conflicts_with_all = ["grace_period", "force"])]
    pub now: bool,
    /// With --grace-period 0, which it is by default: forget pods without waiting for their nodes.
    #[arg(long)]
    pub force: bool,
    /// Wait until the objects are gone.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pub wait: bool,
    /// How long to wait for them.
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = values::wait)]
    pub timeout: Duration,
    /// Delete nothing, and say what would be.
    #[arg(long, value_enum, default_value_t = DryRun::None, value_name = "WHERE")]
    pub dry_run: DryRun,
    #[command(flatten)]
    pub namespaced: Namespaced,
}
