//! Containers, and their probes.

use super::{
    Part, Rule, Table,
    pod::{NO_LABELS, NO_USERS, NO_WINDOWS},
    refused, served, warned,
};

const NO_HOOK: &str = "hooks other than a preStop sleep are not served yet: do the work in the component or in an init \
    container";
const NO_TERMINAL: &str = "nobody can attach to a container yet: leave the field out";
const NO_HOST_PORT: &str =
    "a pod does not use its node's ports: use a Service of type NodePort or an Ingress";
const NO_PRIVILEGES: &str = "a component runs in a sandbox that knows no privileges: leave the field out";
const HELD: &str = "has no effect: it holds for every component, whose sandbox knows no privileges";
const NO_OTHER_HOST: &str =
    "a probe asks the pod alone: leave the field out, or name the host in `httpHeaders`";

pub static CONTAINER: Table = Table {
    title: "Containers",
    schema: "io.k8s.api.core.v1.Container",
    base: r#"{"name":"c","image":"x:1"}"#,
    rules: CONTAINER_RULES,
    parts: &[
        Part { path: "livenessProbe", table: &PROBE, has_examples: true },
        Part { path: "readinessProbe", table: &PROBE, has_examples: false },
        Part { path: "startupProbe", table: &PROBE, has_examples: false },
    ],
};

const CONTAINER_RULES: &[Rule] = &[
    served("args", r#"["a"]"#),
    served("command", r#"["a"]"#).note("`argv[0]` is its first word"),
    served("env[].name", r#"^{"env":[{"name":"A"}]}"#),
    served("env[].value", r#"^{"env":[{"name":"A","value":"b"}]}"#),
    served(
        "env[].valueFrom.configMapKeyRef",
        r#"^{"env":[{"name":"A","valueFrom":{"configMapKeyRef":{"name":"a","key":"b","optional":true}}}]}"#,
    ),
    served(
        "env[].valueFrom.fieldRef",
        r#"^{"env":[{"name":"A","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}}]}"#,
    ),
    served(
        "env[].valueFrom.resourceFieldRef",
        r#"^{"env":[{"name":"A","valueFrom":{"resourceFieldRef":{"resource":"limits.memory","divisor":"1Mi"}}}]}"#,
    ),
    served(
        "env[].valueFrom.secretKeyRef",
        r#"^{"env":[{"name":"A","valueFrom":{"secretKeyRef":{"name":"a","key":"b","optional":true}}}]}"#,
    ),
    served("envFrom[].configMapRef", r#"^{"envFrom":[{"configMapRef":{"name":"a","optional":true}}]}"#),
    served("envFrom[].prefix", r#"^{"envFrom":[{"prefix":"A_","configMapRef":{"name":"a"}}]}"#),
    served("envFrom[].secretRef", r#"^{"envFrom":[{"secretRef":{"name":"a","optional":true}}]}"#),
    served("image", r#""x:2""#),
    served("imagePullPolicy", r#""Never""#),
    refused("lifecycle.postStart", r#"{"exec":{"command":["a"]}}"#, NO_HOOK),
    refused("lifecycle.preStop.exec", r#"{"command":["a"]}"#, NO_HOOK),
    refused("lifecycle.preStop.httpGet", r#"{"port":80}"#, NO_HOOK),
    served("lifecycle.preStop.sleep", r#"{"seconds":1}"#),
    refused("lifecycle.preStop.tcpSocket", r#"{"port":80}"#, NO_HOOK),
    refused(
        "lifecycle.stopSignal",
        r#""SIGTERM""#,
        "a component gets no signals; what it sees of its end stands at `stdin`: leave the field out",
    ),
    served("name", r#""d""#),
    served("ports[].containerPort", r#"^{"ports":[{"containerPort":80}]}"#)
        .note("a component that exports HTTP is served on the first one"),
    refused("ports[].hostIP", r#"^{"ports":[{"containerPort":80,"hostIP":"127.0.0.1"}]}"#, NO_HOST_PORT),
    refused("ports[].hostPort", r#"^{"ports":[{"containerPort":80,"hostPort":80}]}"#, NO_HOST_PORT)
        .all_but(&["0"]),
    served("ports[].name", r#"^{"ports":[{"containerPort":80,"name":"http"}]}"#),
    served("ports[].protocol", r#"^{"ports":[{"containerPort":80,"protocol":"UDP"}]}"#),
    refused(
        "ports[].protocol",
        r#"^{"ports":[{"containerPort":80,"protocol":"SCTP"}]}"#,
        "components have no SCTP sockets: say TCP or UDP",
    )
    .only(&["SCTP"]),
    warned(
        "resizePolicy",
        r#"[{"resourceName":"cpu","restartPolicy":"NotRequired"}]"#,
        "has no effect: the resources of a pod do not change",
    ),
    refused("resources.claims", r#"[{"name":"a"}]"#, "components have no devices: leave the field out"),
    served("resources.limits", r#"{"cpu":"1","memory":"64Mi","ephemeral-storage":"64Mi"}"#)
        .note("beyond its memory a container ends as OOMKilled; beyond `ephemeral-storage` (of all the pod's containers) its writes fail for want of space, and an event says so"),
    served("resources.requests", r#"{"cpu":"10m","memory":"1Mi","ephemeral-storage":"1Mi"}"#),
    served("restartPolicy", "").note("of `initContainers[]` alone: `Always` makes a sidecar"),
    refused("securityContext.allowPrivilegeEscalation", "true", NO_PRIVILEGES),
    warned("securityContext.allowPrivilegeEscalation", "false", HELD).only(&["false"]),
    warned("securityContext.appArmorProfile", r#"{"type":"RuntimeDefault"}"#, NO_LABELS),
    refused(
        "securityContext.capabilities.add[]",
        r#"["SYS_ADMIN"]"#,
        "a component has no Linux capabilities: leave the field out",
    )
    .all_but(&["NET_BIND_SERVICE"]),
    warned(
        "securityContext.capabilities.add[]",
        r#"["NET_BIND_SERVICE"]"#,
        "has no effect: every component may listen on every port of its pod",
    )
    .only(&["NET_BIND_SERVICE"]),
    warned("securityContext.capabilities.drop", r#"["ALL"]"#, HELD),
    refused("securityContext.privileged", "true", NO_PRIVILEGES),
    served("securityContext.privileged", "false").only(&["false"]),
    refused("securityContext.procMount", r#""Unmasked""#, "a component has no /proc: leave the field out")
        .all_but(&["Default"]),
    served("securityContext.procMount", r#""Default""#).only(&["Default"]),
    warned(
        "securityContext.readOnlyRootFilesystem",
        "true",
        "has no effect: a component has no files but those that it mounts",
    ),
    warned("securityContext.runAsGroup", "1000", NO_USERS),
    warned("securityContext.runAsNonRoot", "true", NO_USERS),
    warned("securityContext.runAsUser", "1000", NO_USERS),
    warned("securityContext.seLinuxOptions", r#"{"level":"s0:c123,c456"}"#, NO_LABELS),
    warned("securityContext.seccompProfile", r#"{"type":"RuntimeDefault"}"#, NO_LABELS),
    refused("securityContext.windowsOptions", r#"{"runAsUserName":"a"}"#, NO_WINDOWS),
    served("stdin", "true").note(
        "with it standard input is open and silent, and at its end once the container is asked to stop; without it, it is \
         at its end from the start. What a program that is asked to stop sees otherwise: its listeners accept no more. One \
         that has neither is ended at once, as a process is that handles no SIGTERM; a preStop sleep gives it time",
    ),
    refused("stdinOnce", r#"^{"stdin":true,"stdinOnce":true}"#, NO_TERMINAL),
    served("terminationMessagePath", r#""/dev/termination-log""#)
        .note("its folder is one of 64 KiB that the container can write, unless it mounts a volume there"),
    served("terminationMessagePolicy", r#""FallbackToLogsOnError""#),
    refused("tty", "true", NO_TERMINAL),
    refused(
        "volumeDevices",
        r#"[{"name":"v","devicePath":"/dev/a"}]"#,
        "a component has no block devices: mount a volume instead",
    ),
    served("volumeMounts[].mountPath", MOUNT),
    refused(
        "volumeMounts[].mountPropagation",
        r#"^{"volumeMounts":[{"name":"v","mountPath":"/a","mountPropagation":"Bidirectional"}]}"#,
        "nothing is mounted within a volume: leave the field out",
    )
    .all_but(&["None"]),
    served(
        "volumeMounts[].mountPropagation",
        r#"^{"volumeMounts":[{"name":"v","mountPath":"/a","mountPropagation":"None"}]}"#,
    )
    .only(&["None"]),
    served("volumeMounts[].name", MOUNT),
    served("volumeMounts[].readOnly", r#"^{"volumeMounts":[{"name":"v","mountPath":"/a","readOnly":true}]}"#),
    served(
        "volumeMounts[].recursiveReadOnly",
        r#"^{"volumeMounts":[{"name":"v","mountPath":"/a","readOnly":true,"recursiveReadOnly":"Enabled"}]}"#,
    ),
    served("volumeMounts[].subPath", r#"^{"volumeMounts":[{"name":"v","mountPath":"/a","subPath":"b"}]}"#)
        .note("of a directory: WASI mounts no single file"),
    served("volumeMounts[].subPathExpr", r#"^{"volumeMounts":[{"name":"v","mountPath":"/a","subPathExpr":"$(B)"}]}"#),
    served("workingDir", r#"^{"workingDir":"/a/b","volumeMounts":[{"name":"v","mountPath":"/a"}]}"#)
        .note("a directory within one that the container mounts, as it has no other files"),
];

const MOUNT: &str = r#"^{"volumeMounts":[{"name":"v","mountPath":"/a"}]}"#;

pub static PROBE: Table = Table {
    title: "Probes",
    schema: "io.k8s.api.core.v1.Probe",
    base: r#"{"tcpSocket":{"port":80}}"#,
    rules: PROBE_RULES,
    parts: &[],
};

const PROBE_RULES: &[Rule] = &[
    refused(
        "exec",
        r#"^{"tcpSocket":null,"exec":{"command":["true"]}}"#,
        "a component has no other program to run: use httpGet or tcpSocket",
    ),
    served("failureThreshold", "5"),
    refused(
        "grpc",
        r#"^{"tcpSocket":null,"grpc":{"port":80}}"#,
        "gRPC probes are not served yet: use httpGet or tcpSocket",
    ),
    refused("httpGet.host", r#"^{"tcpSocket":null,"httpGet":{"port":80,"host":"a.example"}}"#, NO_OTHER_HOST),
    served(
        "httpGet.httpHeaders",
        r#"^{"tcpSocket":null,"httpGet":{"port":80,"httpHeaders":[{"name":"Host","value":"a.example"}]}}"#,
    ),
    served("httpGet.path", r#"^{"tcpSocket":null,"httpGet":{"port":80,"path":"/a"}}"#),
    served("httpGet.port", r#"^{"tcpSocket":null,"httpGet":{"port":80}}"#),
    served("httpGet.scheme", r#"^{"tcpSocket":null,"httpGet":{"port":80,"scheme":"HTTPS"}}"#)
        .note("the certificate is not verified"),
    served("initialDelaySeconds", "5"),
    served("periodSeconds", "5"),
    served("successThreshold", "1"),
    refused("tcpSocket.host", r#""a.example""#, NO_OTHER_HOST),
    served("tcpSocket.port", "80"),
    served("terminationGracePeriodSeconds", "5"),
    served("timeoutSeconds", "5"),
];
