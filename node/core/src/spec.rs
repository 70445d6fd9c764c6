//! A pod as the node reads it: the fields of v1.Pod that mean something here, everything else skipped.
//!
//! Source: Kubernetes v1.33 `core/v1` types.

mod outline;

mod volumes;

mod probes;

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::CoreError;

pub use outline::{Names, Outline};
pub use probes::*;
pub use volumes::*;

/// `metadata.uid` of a pod: what the node tells pods apart by. A new pod of an old name has another uid.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(transparent)]
pub struct PodUid(Arc<str>);

impl PodUid {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodUid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

impl Borrow<str> for PodUid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One pod object. Immutable; shared as `Arc<Pod>`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    pub metadata: Metadata,
    pub spec: PodSpec,
    /// v1.PodStatus as the API server has it: what this node or another part reported before.
    pub status: Value,
    /// Found in the rest when it is read.
    #[serde(skip)]
    pub outline: Outline,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
    pub uid: PodUid,
    pub resource_version: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub deletion_timestamp: Option<Timestamp>,
    /// Seconds.
    pub deletion_grace_period_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub init_containers: Vec<Container>,
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    pub restart_policy: RestartPolicy,
    pub termination_grace_period_seconds: Option<i64>,
    pub active_deadline_seconds: Option<i64>,
    pub service_account_name: String,
    pub node_name: String,
    pub priority: Option<i32>,
    pub hostname: String,
    pub enable_service_links: Option<bool>,
    pub readiness_gates: Vec<ReadinessGate>,
    pub host_aliases: Vec<HostAlias>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessGate {
    pub condition_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub image: String,
    pub image_pull_policy: Option<PullPolicy>,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub env: Vec<EnvVar>,
    pub env_from: Vec<EnvFrom>,
    pub ports: Vec<ContainerPort>,
    pub resources: Resources,
    pub volume_mounts: Vec<VolumeMount>,
    pub liveness_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
    pub startup_probe: Option<Probe>,
    pub lifecycle: Lifecycle,
    /// Standard input is open, though nobody can say anything there.
    pub stdin: bool,
    /// Where relative paths begin, empty for the root.
    pub working_dir: String,
    pub termination_message_path: String,
    pub termination_message_policy: MessagePolicy,
    /// Only of init containers: `Always` makes it a sidecar, which is started in order and then kept running.
    pub restart_policy: Option<RestartPolicy>,
}

/// Where the message of a container's end comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum MessagePolicy {
    #[default]
    File,
    FallbackToLogsOnError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: u16,
    pub protocol: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    pub requests: BTreeMap<String, Amount>,
    pub limits: BTreeMap<String, Amount>,
}

/// A quantity as written; JSON allows a bare number too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amount(pub String);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(String),
            Number(serde_json::Number),
        }
        Ok(match Raw::deserialize(deserializer)? {
            Raw::Text(text) => Self(text),
            Raw::Number(number) => Self(number.to_string()),
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvVar {
    pub name: String,
    pub value: String,
    pub value_from: Option<EnvVarSource>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvVarSource {
    pub config_map_key_ref: Option<KeyRef>,
    pub secret_key_ref: Option<KeyRef>,
    pub field_ref: Option<FieldRef>,
    pub resource_field_ref: Option<ResourceFieldRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyRef {
    pub name: String,
    pub key: String,
    pub optional: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FieldRef {
    pub field_path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceFieldRef {
    pub container_name: String,
    pub resource: String,
    pub divisor: Amount,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvFrom {
    pub prefix: String,
    pub config_map_ref: Option<ObjectRef>,
    pub secret_ref: Option<ObjectRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectRef {
    pub name: String,
    pub optional: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    pub pre_stop: Option<Hook>,
    pub post_start: Option<Hook>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    pub sleep: Option<SleepHook>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SleepHook {
    pub seconds: i64,
}

/// Seconds that a pod is given to end by itself where nothing says otherwise. Source: v1.PodSpec.
pub const GRACE_SECONDS_DEFAULT: i64 = 30;

impl Pod {
    /// Reads a pod's JSON. Nulls count as absent, as in the API.
    pub fn parse(json: &[u8]) -> Result<Self, CoreError> {
        let mut pod: Pod = parse_without_nulls(json, "pod")?;
        if pod.metadata.uid.as_str().is_empty() {
            return Err(CoreError::Missing { what: "pod", field: "metadata.uid" });
        }
        if pod.metadata.name.is_empty() {
            return Err(CoreError::Missing { what: "pod", field: "metadata.name" });
        }
        let containers = pod.all_containers().map(|container| container.name.as_str());
        let volumes = pod.spec.volumes.iter().map(|volume| volume.name.as_str());
        let mut names = containers.chain(volumes).chain([pod.metadata.uid.as_str()]);
        let bad = names.find(|name| !is_file_name(name)).map(str::to_owned);
        drop(names);
        pod.outline = Outline::of(&pod);
        bad.map_or(Ok(pod), |name| Err(CoreError::Name { name }))
    }

    /// What stands for a pod that cannot be read: nothing of it runs, and its deletion is carried out. None where it
    /// cannot even be told which pod it is.
    pub fn unreadable(json: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(json).ok()?;
        let metadata = value.get("metadata")?;
        let text = |field: &str| metadata[field].as_str().unwrap_or("").to_owned();
        let (name, uid) = (text("name"), text("uid"));
        if name.is_empty() || !is_file_name(&uid) {
            return None;
        }
        let metadata = Metadata {
            name,
            namespace: text("namespace"),
            uid: uid.as_str().into(),
            resource_version: text("resourceVersion"),
            deletion_timestamp: metadata["deletionTimestamp"].as_str().and_then(|at| at.parse().ok()),
            deletion_grace_period_seconds: Some(0),
            ..Metadata::default()
        };
        let status = serde_json::json!({ "phase": "Failed" });
        Some(Self { metadata, spec: PodSpec::default(), status, outline: Outline::default() })
    }

    /// The same for one that the node is not sent, and that may run there as it was before.
    pub fn withheld(json: &[u8]) -> Option<Self> {
        let mut pod = Self::unreadable(json)?;
        let value: Value = serde_json::from_slice(json).ok()?;
        pod.metadata.deletion_grace_period_seconds = value["metadata"]["deletionGracePeriodSeconds"].as_i64();
        Some(pod)
    }

    pub fn uid(&self) -> &PodUid {
        &self.metadata.uid
    }

    /// `name_namespace(uid)`, as kubelet writes a pod in messages.
    pub fn full_name(&self) -> String {
        format!("{}_{}({})", self.metadata.name, self.metadata.namespace, self.metadata.uid)
    }

    /// The name that the pod's containers see as theirs.
    pub fn hostname(&self) -> &str {
        if self.spec.hostname.is_empty() { &self.metadata.name } else { &self.spec.hostname }
    }

    /// All containers in the order in which they are looked at: init containers, then the others.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    pub fn container(&self, name: &str) -> Option<&Container> {
        self.container_at(self.place(name)?)
    }

    pub fn is_init(&self, name: &str) -> bool {
        self.place(name).is_some_and(|at| at < self.spec.init_containers.len())
    }

    /// The place of a container in [`Self::all_containers`].
    fn place(&self, name: &str) -> Option<usize> {
        self.outline.place(name, |at| Some(self.container_at(at)?.name.as_str()))
    }

    fn container_at(&self, at: usize) -> Option<&Container> {
        let init = &self.spec.init_containers;
        init.get(at).or_else(|| self.spec.containers.get(at.checked_sub(init.len())?))
    }

    /// How long the pod may take to end, once its deletion was asked for.
    pub fn grace(&self) -> Duration {
        let seconds = self
            .metadata
            .deletion_grace_period_seconds
            .or(self.spec.termination_grace_period_seconds)
            .unwrap_or(GRACE_SECONDS_DEFAULT);
        Duration::from_secs(seconds.max(0).cast_unsigned())
    }

    /// Whether the services of its namespace go into its environments.
    pub fn has_service_links(&self) -> bool {
        self.spec.enable_service_links.unwrap_or(true)
    }

    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The pod has ended for good: what was reported last says so.
    pub fn was_terminal(&self) -> bool {
        matches!(self.status["phase"].as_str(), Some("Succeeded" | "Failed"))
    }
}

impl Container {
    pub fn is_sidecar(&self) -> bool {
        self.restart_policy == Some(RestartPolicy::Always)
    }

    /// The pull policy; by default `Always` for the tag `latest` or none, else `IfNotPresent`.
    pub fn pull_policy(&self) -> PullPolicy {
        self.image_pull_policy.unwrap_or_else(|| {
            let name = self.image.rsplit('/').next().unwrap_or_default();
            let pinned = name.contains('@') || name.split_once(':').is_some_and(|(_, tag)| tag != "latest");
            if pinned || self.image.starts_with("file://") {
                PullPolicy::IfNotPresent
            } else {
                PullPolicy::Always
            }
        })
    }

    /// The port on which a component that exports HTTP is served.
    pub fn http_port(&self) -> u16 {
        self.ports.first().map_or(80, |port| port.container_port)
    }

    /// The TCP ports that it declares, each once: a core module finds a listening socket for each.
    pub fn listen_ports(&self) -> Vec<u16> {
        let mut ports = Vec::new();
        for port in self.ports.iter().filter(|port| port.protocol.is_empty() || port.protocol == "TCP") {
            if !ports.contains(&port.container_port) {
                ports.push(port.container_port);
            }
        }
        ports
    }
}

/// Names of pods' parts become names of directories. The API server checks them more strictly.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// Parses JSON into `T` with every null member dropped first.
pub(crate) fn parse_without_nulls<T: serde::de::DeserializeOwned>(
    json: &[u8],
    what: &'static str,
) -> Result<T, CoreError> {
    let mut value: Value = serde_json::from_slice(json).map_err(|source| CoreError::Json { what, source })?;
    strip_nulls(&mut value);
    serde_json::from_value(value).map_err(|source| CoreError::Json { what, source })
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_bare_numbers_are_read_as_the_api_reads_them() {
        let json =
            br#"{"metadata":{"name":"a","namespace":"d","uid":"u","labels":null,"creationTimestamp":null},
            "spec":{"containers":[{"name":"c","image":"x","resources":{"limits":{"cpu":1}},"ports":null}]},
            "status":{"startTime":null}}"#;
        let pod = Pod::parse(json).unwrap();
        assert_eq!(pod.spec.containers[0].resources.limits["cpu"].0, "1");
        assert!(pod.status.get("startTime").is_none());
        assert!(Pod::parse(br#"{"metadata":{"name":"a"}}"#).is_err());
    }

    #[test]
    fn a_socket_is_opened_once_for_each_tcp_port() {
        let port = |container_port, protocol: &str| ContainerPort {
            name: String::new(),
            container_port,
            protocol: protocol.into(),
        };
        let ports = vec![port(80, ""), port(53, "UDP"), port(443, "TCP"), port(80, "TCP")];
        let container = Container { ports, ..Default::default() };
        assert_eq!((container.http_port(), container.listen_ports()), (80, vec![80, 443]));
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        let policy = |image: &str| Container { image: image.into(), ..Default::default() }.pull_policy();
        assert_eq!(policy("hello"), PullPolicy::Always);
        assert_eq!(policy("hello:latest"), PullPolicy::Always);
        assert_eq!(policy("hello:1.0"), PullPolicy::IfNotPresent);
        assert_eq!(policy("localhost:5000/hello"), PullPolicy::Always);
        assert_eq!(policy("a/hello@sha256:00"), PullPolicy::IfNotPresent);
        assert_eq!(policy("file:///tmp/hello.wasm"), PullPolicy::IfNotPresent);
    }
}
