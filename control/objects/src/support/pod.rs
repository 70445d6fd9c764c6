//! Pods.

use super::{CONTAINER, Part, Rule, Table, refused, served, volume::VOLUME, warned};

/// Of users and groups.
pub(super) const NO_USERS: &str =
    "has no effect: a component has no users or groups, and reaches only what its pod's spec grants";
/// Of what else confines processes.
pub(super) const NO_LABELS: &str =
    "has no effect: a component is confined by its sandbox, which makes no system calls for it";
pub(super) const NO_WINDOWS: &str =
    "a pod runs WebAssembly components, not processes of Windows: leave the field out";

/// Of accounts that have to be there, and are not where examples are walked.
const NO_TOKEN: &str =
    "its token is not mounted yet: the account has to be there, and a pod sees no more of it than its name";
const NOT_PREFERRED: &str =
    "is not considered yet: pods of one owner are spread over nodes, others go where there is room";
const NO_REQUIRED_AFFINITY: &str =
    "required affinity between pods is not served yet: prefer it, or use a nodeSelector";

pub static POD_SPEC: Table = Table {
    title: "Pod, and the `template` of workloads",
    schema: "io.k8s.api.core.v1.PodSpec",
    base: r#"{"containers":[{"name":"c","image":"x:1"}],"volumes":[{"name":"v"}]}"#,
    rules: RULES,
    parts: &[
        Part { path: "containers[]", table: &CONTAINER, has_examples: true },
        Part { path: "initContainers[]", table: &CONTAINER, has_examples: false },
        Part { path: "volumes[]", table: &VOLUME, has_examples: true },
    ],
};

const RULES: &[Rule] = &[
    served("activeDeadlineSeconds", "60"),
    served(
        "affinity.nodeAffinity",
        r#"{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"Exists"}]}]}}"#,
    ),
    warned(
        "affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution",
        r#"[{"weight":1,"podAffinityTerm":{"topologyKey":"kubernetes.io/hostname"}}]"#,
        NOT_PREFERRED,
    ),
    refused(
        "affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution",
        r#"[{"topologyKey":"kubernetes.io/hostname"}]"#,
        NO_REQUIRED_AFFINITY,
    ),
    warned(
        "affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution",
        r#"[{"weight":1,"podAffinityTerm":{"topologyKey":"kubernetes.io/hostname"}}]"#,
        NOT_PREFERRED,
    ),
    refused(
        "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution",
        r#"[{"topologyKey":"kubernetes.io/hostname"}]"#,
        NO_REQUIRED_AFFINITY,
    ),
    served("automountServiceAccountToken", "false").only(&["false"]),
    warned(
        "automountServiceAccountToken",
        "true",
        "has no effect: tokens of service accounts are not mounted yet",
    ),
    refused("dnsConfig", r#"{"options":[{"name":"ndots","value":"2"}]}"#, "names are resolved by the cluster's own resolver, as under dnsPolicy ClusterFirst: leave the field out"),
    served("dnsPolicy", r#""ClusterFirst""#),
    warned(
        "dnsPolicy",
        r#""Default""#,
        "has no effect: a pod resolves the cluster's names as well, as under ClusterFirst",
    )
    .only(&["Default"]),
    refused("dnsPolicy", r#""None""#, "dnsConfig is not served yet: say ClusterFirst, or leave the field out")
        .only(&["None"]),
    served("enableServiceLinks", "false").only(&["true", "false"]),
    refused(
        "ephemeralContainers",
        r#"[{"name":"e","image":"x:1"}]"#,
        "containers cannot be added to a pod yet: leave the field out",
    ),
    refused(
        "hostAliases",
        r#"[{"ip":"10.0.0.1","hostnames":["a"]}]"#,
        "names of a pod's own are not served yet: use a Service",
    ),
    refused("hostIPC", "true", "a pod has no access to its node's interprocess communication: leave the field out"),
    refused(
        "hostNetwork",
        "true",
        "a pod has no access to its node's network: use a Service of type NodePort or an Ingress",
    ),
    refused("hostPID", "true", "a pod has no access to its node's processes: leave the field out"),
    served("hostUsers", "true"),
    warned("hostUsers", "false", NO_USERS).only(&["false"]),
    served("hostname", r#""a""#),
    warned(
        "imagePullSecrets",
        r#"[{"name":"a"}]"#,
        "has no effect: images come from the cluster's own registry, which asks nodes for no secret",
    ),
    served("nodeName", r#""node-9""#),
    served("nodeSelector", r#"{"a":"b"}"#),
    refused("os", r#"{"name":"linux"}"#, "a pod runs WebAssembly components, which have no operating system: leave the field out"),
    refused("overhead", r#"{"cpu":"1"}"#, "is a RuntimeClass's, and there are none: leave the field out"),
    served("preemptionPolicy", r#""Never""#)
        .note("all pods have priority 0: under `PreemptLowerPriority` as well none is preempted for another"),
    served("priority", "0").only(&["0"]),
    refused("priority", "1000", "is a PriorityClass's, and there are none yet: leave the field out").all_but(&["0"]),
    warned(
        "priorityClassName",
        r#""system-cluster-critical""#,
        "has no effect: pods of all priorities are alike yet, and none is preempted for another",
    )
    .only(&["system-cluster-critical", "system-node-critical"]),
    refused(
        "priorityClassName",
        r#""high""#,
        "there is no PriorityClass of this name, since they are not served yet: leave the field out",
    )
    .all_but(&["system-cluster-critical", "system-node-critical"]),
    served("readinessGates", r#"[{"conditionType":"example.com/ready"}]"#),
    refused("resourceClaims", r#"[{"name":"a","resourceClaimName":"b"}]"#, "components have no devices: leave the field out"),
    refused(
        "resources",
        r#"{"limits":{"cpu":"1"}}"#,
        "resources of a whole pod are not served yet: set those of its containers",
    ),
    served("restartPolicy", r#""Never""#),
    refused(
        "runtimeClassName",
        r#""gvisor""#,
        "there are no RuntimeClasses, since every pod runs WebAssembly components: leave the field out",
    ),
    served("schedulerName", r#""mine""#).note("a pod that names another scheduler is left to it"),
    served("schedulingGates", r#"[{"name":"a"}]"#),
    warned("securityContext.appArmorProfile", r#"{"type":"RuntimeDefault"}"#, NO_LABELS),
    warned("securityContext.fsGroup", "1000", NO_USERS),
    warned("securityContext.fsGroupChangePolicy", r#""OnRootMismatch""#, NO_USERS),
    warned("securityContext.runAsGroup", "1000", NO_USERS),
    warned("securityContext.runAsNonRoot", "true", NO_USERS),
    warned("securityContext.runAsUser", "1000", NO_USERS),
    warned("securityContext.seLinuxChangePolicy", r#""Recursive""#, NO_LABELS),
    warned("securityContext.seLinuxOptions", r#"{"level":"s0:c123,c456"}"#, NO_LABELS),
    warned("securityContext.seccompProfile", r#"{"type":"RuntimeDefault"}"#, NO_LABELS),
    warned("securityContext.supplementalGroups", "[1000]", NO_USERS),
    warned("securityContext.supplementalGroupsPolicy", r#""Merge""#, NO_USERS),
    refused(
        "securityContext.sysctls",
        r#"[{"name":"net.core.somaxconn","value":"1024"}]"#,
        "a component has no kernel parameters: leave the field out",
    ),
    refused("securityContext.windowsOptions", r#"{"runAsUserName":"a"}"#, NO_WINDOWS),
    served("serviceAccount", r#""default""#).only(&["default"]).note("an old name of `serviceAccountName`"),
    warned("serviceAccount", "", NO_TOKEN).all_but(&["default"]),
    served("serviceAccountName", r#""default""#).only(&["default"]),
    warned("serviceAccountName", "", NO_TOKEN).all_but(&["default"]),
    refused("setHostnameAsFQDN", "true", "a pod's hostname is not its whole name in the DNS: leave the field out"),
    refused(
        "shareProcessNamespace",
        "true",
        "a component has no processes that could be shared: leave the field out",
    ),
    served("subdomain", r#""a""#),
    served("terminationGracePeriodSeconds", "5"),
    served("tolerations", r#"[{"key":"a","operator":"Exists","effect":"NoExecute","tolerationSeconds":5}]"#),
    warned(
        "topologySpreadConstraints",
        r#"[{"maxSkew":1,"topologyKey":"kubernetes.io/hostname","whenUnsatisfiable":"ScheduleAnyway"}]"#,
        NOT_PREFERRED,
    ),
    refused(
        "topologySpreadConstraints[].whenUnsatisfiable",
        r#"^{"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"a","whenUnsatisfiable":"DoNotSchedule"}]}"#,
        "spreading as a condition is not served yet: say ScheduleAnyway; pods of one owner are spread over nodes by \
         themselves",
    )
    .all_but(&["ScheduleAnyway"]),
];
