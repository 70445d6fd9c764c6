//! Whole pods: filled in, checked, updated.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::{pod_defaults, validate};

fn pod(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "a"}, "spec": spec});
    pod_defaults(&mut pod);
    pod
}

fn check(spec: Value, expected: Expect) {
    expected.assert_eq(&lines(&pod(spec), None));
}

fn lines(pod: &Value, old: Option<&Value>) -> String {
    validate(pod, old).iter().map(|error| format!("{error}\n")).collect()
}

fn good() -> Value {
    json!({"containers": [{"name": "a", "image": "hello:1", "ports": [{"containerPort": 80, "name": "http"}],
            "env": [{"name": "A", "value": "b"}, {"name": "P", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}}],
            "envFrom": [{"configMapRef": {"name": "c"}}], "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "64Mi"}},
            "livenessProbe": {"tcpSocket": {"port": "http"}}, "readinessProbe": {"httpGet": {"port": 80}},
            "securityContext": {"runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"}}}],
        "initContainers": [{"name": "i", "image": "init:1"}], "volumes": [{"name": "v"}], "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]})
}

#[test]
fn a_pod_is_born_pending() {
    let pod = pod(good());
    assert_eq!(lines(&pod, None), "");
    assert_eq!(lines(&pod, Some(&pod)), "");
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["requests"],
        json!({"cpu": "100m", "memory": "64Mi"})
    );
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
    assert!(pod["spec"].get("tolerations").is_some_and(|all| all.as_array().unwrap().len() == 1));
}

#[test]
fn containers_are_checked() {
    check(
        json!({}),
        expect![[r#"
        spec.containers: Required value
    "#]],
    );
    check(
        json!({"containers": [{}, {"name": "a", "image": " x"}, {"name": "a", "image": "x", "imagePullPolicy": "Maybe"},
            {"name": "b", "image": "x", "ports": [{"containerPort": 99999, "name": "p"}, {"name": "p", "protocol": "ICMP"}],
                "restartPolicy": "Always"}],
            "initContainers": [{"name": "a", "image": "x", "livenessProbe": {"exec": {"command": ["x"]}}}],
            "restartPolicy": "Sometimes"}),
        expect![[r#"
            spec.containers[0].name: Required value
            spec.containers[0].image: Required value
            spec.containers[1].image: Invalid value: " x": must not have leading or trailing whitespace
            spec.containers[2].name: Duplicate value: "a"
            spec.containers[2].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"
            spec.containers[3].ports[0].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive
            spec.containers[3].ports[1].name: Duplicate value: "p"
            spec.containers[3].ports[1].containerPort: Required value
            spec.containers[3].ports[1].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"
            spec.containers[3].restartPolicy: Forbidden: may not be set for non-init containers
            spec.initContainers[0].name: Duplicate value: "a"
            spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always
            spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"
        "#]],
    );
}

#[test]
fn environment_mounts_resources_and_probes_are_checked() {
    check(
        json!({"containers": [{"name": "a", "image": "x",
            "env": [{"value": "x"}, {"name": "a=b"}, {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s"}}}, {"name": "C", "valueFrom": {}}],
            "envFrom": [{}, {"secretRef": {}}],
            "volumeMounts": [{"name": "nothing", "mountPath": "/a"}, {"name": "v", "mountPath": "/a", "subPath": "../x"}, {"name": "v"}],
            "resources": {"requests": {"cpu": "2", "memory": "-1", "disk": "1"}, "limits": {"cpu": "1", "memory": "x"}},
            "livenessProbe": {"successThreshold": 2}, "readinessProbe": {"httpGet": {}, "tcpSocket": {"port": 0}, "periodSeconds": -1}}],
            "volumes": [{"name": "v"}, {"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "configMap": {}, "secret": {}}, {"name": "n", "nfs": {}}]}),
        expect![[r#"
            spec.volumes[1].name: Duplicate value: "v"
            spec.volumes[1].hostPath: Forbidden: a pod has no access to its node's files: use emptyDir, configMap or secret
            spec.volumes[2].configMap.name: Required value
            spec.volumes[2].secret: Forbidden: may not specify more than 1 volume type
            spec.volumes[3].nfs: Forbidden: this kind of volume cannot be given to a WebAssembly component; supported: configMap, downwardAPI, emptyDir, projected, secret
            spec.containers[0].env[0].name: Required value
            spec.containers[0].env[1].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='
            spec.containers[0].env[2].valueFrom: Invalid value: "": may not be specified when `value` is not empty
            spec.containers[0].env[2].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.x": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"
            spec.containers[0].env[3].valueFrom.secretKeyRef.key: Required value
            spec.containers[0].env[4].valueFrom: Invalid value: "": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`
            spec.containers[0].envFrom[0]: Invalid value: "": must specify one of: `configMapRef` or `secretRef`
            spec.containers[0].envFrom[1].secretRef.name: Required value
            spec.containers[0].volumeMounts[0].name: Not found: "nothing"
            spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/a": must be unique
            spec.containers[0].volumeMounts[1].subPath: Invalid value: "../x": must not contain '..'
            spec.containers[0].volumeMounts[2].mountPath: Required value
            spec.containers[0].resources.limits[memory]: Invalid value: "x": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
            spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0
            spec.containers[0].resources.requests[disk]: Invalid value: "disk": must be a standard resource type or fully qualified
            spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1
            spec.containers[0].livenessProbe: Required value: must specify a handler type
            spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1
            spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type
            spec.containers[0].readinessProbe.httpGet.port: Required value
            spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0
        "#]],
    );
}

#[test]
fn what_is_not_served_yet_is_refused() {
    let terms = json!([{"topologyKey": "kubernetes.io/hostname"}]);
    check(
        json!({"containers": [{"name": "a", "image": "x", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}],
            "hostAliases": [{"ip": "10.0.0.1"}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms},
                "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]}},
            "topologySpreadConstraints": [{"whenUnsatisfiable": "DoNotSchedule"}, {"whenUnsatisfiable": "ScheduleAnyway"}]}),
        expect![[r#"
            spec.containers[0].lifecycle.postStart: Forbidden: hooks after a start are not served yet: do the work in the component or an init container
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution: Forbidden: required affinity between pods is not served yet: prefer it, or use a nodeSelector
            spec.topologySpreadConstraints[0].whenUnsatisfiable: Forbidden: spreading as a condition is not served yet: say ScheduleAnyway; pods of one owner are spread over nodes by themselves
            spec.hostAliases: Forbidden: names of a pod's own are not served yet: use a Service
        "#]],
    );
}

#[test]
fn what_means_nothing_here_is_refused() {
    check(
        json!({"containers": [{"name": "a", "image": "x", "securityContext": {"privileged": true, "runAsUser": 0,
                "capabilities": {"add": ["NET_ADMIN"]}}, "ports": [{"containerPort": 1, "hostPort": 1}]}],
            "hostNetwork": true, "hostPID": true, "hostIPC": true, "shareProcessNamespace": true, "os": {"name": "windows"},
            "securityContext": {"fsGroup": 1, "sysctls": [{"name": "a"}], "seccompProfile": {"type": "Unconfined"}}}),
        expect![[r#"
            spec.containers[0].securityContext.runAsUser: Forbidden: a WebAssembly component has no users or groups: its sandbox grants only what the pod's spec names; leave the field out
            spec.containers[0].securityContext.privileged: Forbidden: a WebAssembly component runs in a sandbox that knows no privileges: leave the field out
            spec.containers[0].securityContext.capabilities.add: Forbidden: a WebAssembly component has no Linux capabilities: leave the field out
            spec.containers[0].ports[0].hostPort: Forbidden: a pod does not use its node's ports: use a Service of type NodePort or an Ingress
            spec.hostNetwork: Forbidden: a pod has no access to its node's network: use a Service of type NodePort or an Ingress
            spec.hostPID: Forbidden: a pod has no access to its node's processes: leave the field out
            spec.hostIPC: Forbidden: a pod has no access to its node's interprocess communication: leave the field out
            spec.shareProcessNamespace: Forbidden: a WebAssembly component has no processes that could be shared: leave the field out
            spec.os: Forbidden: a pod runs WebAssembly components, which have no operating system: leave the field out
            spec.securityContext.seccompProfile: Forbidden: a WebAssembly component is confined by its sandbox, not by the host's security modules; leave the field out
            spec.securityContext.fsGroup: Forbidden: a WebAssembly component has no users or groups: its sandbox grants only what the pod's spec names; leave the field out
            spec.securityContext.sysctls: Forbidden: a WebAssembly component has no kernel parameters: leave the field out
        "#]],
    );
}

#[test]
fn tolerations_and_gates_are_checked() {
    let containers = json!([{"name": "a", "image": "x"}]);
    check(
        json!({"containers": containers, "nodeName": "n", "schedulingGates": [{"name": "g"}, {"name": "g"}],
            "tolerations": [{"operator": "Equal"}, {"key": "k", "operator": "Exists", "value": "v"},
                {"key": "k", "operator": "In", "effect": "Never"}, {"key": "k", "tolerationSeconds": 1}],
            "nodeSelector": {"-": "a b"}, "activeDeadlineSeconds": 0, "hostname": "A"}),
        expect![[r#"
            spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive
            spec.hostname: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')
            spec.nodeSelector: Invalid value: "-": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.nodeSelector: Invalid value: "a b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
            spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists when `key` is empty, which means "match all values and all keys"
            spec.tolerations[1].operator: Invalid value: "v": value must be empty when `operator` is 'Exists'
            spec.tolerations[2].operator: Unsupported value: "In": supported values: "Equal", "Exists"
            spec.tolerations[2].effect: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"
            spec.tolerations[3].effect: Invalid value: "": effect must be 'NoExecute' when `tolerationSeconds` is set
            spec.schedulingGates[1]: Duplicate value: "g"
            spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared
        "#]],
    );
}

#[test]
fn images_tolerations_and_a_shorter_deadline_may_change() {
    let mut old = pod(good());
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "hello:2".into();
    new["spec"]["initContainers"][0]["image"] = "init:2".into();
    new["spec"]["activeDeadlineSeconds"] = 5.into();
    new["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"operator": "Exists"}));
    assert_eq!(lines(&new, Some(&old)), "");
    old["spec"]["schedulingGates"] = json!([{"name": "g"}]);
    new["spec"]["nodeSelector"]["more"] = "yes".into();
    assert_eq!(lines(&new, Some(&old)), "");
}

#[test]
fn the_rest_of_the_spec_stays() {
    let old = pod(good());
    let mut new = old.clone();
    new["spec"]["containers"][0]["args"] = json!(["x"]);
    new["spec"]["nodeName"] = "n".into();
    new["spec"]["tolerations"] = json!([]);
    new["spec"]["schedulingGates"] = json!([{"name": "g"}]);
    new["spec"]["activeDeadlineSeconds"] = 10.into();
    let mut before = old.clone();
    before["spec"]["activeDeadlineSeconds"] = 5.into();
    expect![[r#"
        spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared
        spec.activeDeadlineSeconds: Invalid value: 10: must be less than or equal to previous value of 5
        spec.schedulingGates: Forbidden: only deletion is allowed, but found new scheduling gate 'g'
        spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative); changed: spec.containers, spec.nodeName, spec.tolerations
    "#]]
    .assert_eq(&lines(&new, Some(&before)));
    let mut fewer = old.clone();
    fewer["spec"]["initContainers"] = json!([]);
    assert_eq!(
        lines(&fewer, Some(&old)),
        "spec.initContainers: Forbidden: pod updates may not add or remove containers\n"
    );
}

#[test]
fn modes_and_paths_of_projected_files_are_checked() {
    let item = json!({"path": "../x", "mode": -1, "fieldRef": {"fieldPath": "metadata.name"}});
    let source = json!({"downwardAPI": {"items": [item]}});
    let volume = json!({"name": "p", "projected": {"sources": [source], "defaultMode": 512}});
    let pod = pod(json!({"containers": [{"name": "c", "image": "i"}], "volumes": [volume]}));
    let faults: Vec<String> = validate(&pod, None).iter().map(|error| error.field.clone()).collect();
    let at = "spec.volumes[0].projected";
    let item = format!("{at}.sources[0].downwardAPI.items[0]");
    assert_eq!(faults, [format!("{at}.defaultMode"), format!("{item}.mode"), format!("{item}.path")]);
}

#[test]
fn a_pod_with_gates_says_why_it_has_no_node() {
    let kind = crate::by_resource("pods").unwrap();
    let mut pod = json!({"spec": {"containers": [], "schedulingGates": [{"name": "g"}]}, "status": {}});
    kind.defaults(&mut pod);
    let conditions = pod["status"]["conditions"].clone();
    assert_eq!(
        (&conditions[0]["status"], &conditions[0]["reason"]),
        (&json!("False"), &json!("SchedulingGated"))
    );
    kind.defaults(&mut pod);
    assert_eq!(pod["status"]["conditions"], conditions);
    let mut free = json!({"spec": {"containers": []}, "status": {}});
    kind.defaults(&mut free);
    assert_eq!(free["status"].get("conditions"), None);
}
