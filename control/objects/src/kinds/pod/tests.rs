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
            spec.initContainers[0].livenessProbe.exec: Forbidden: a component has no other program to run: use httpGet or tcpSocket
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
            spec.volumes[2].configMap.name: Required value
            spec.volumes[2].secret: Forbidden: may not specify more than 1 volume type
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
            spec.volumes[1].hostPath: Forbidden: a pod has no access to its node's files: use emptyDir, configMap or secret
            spec.volumes[3].nfs: Forbidden: this kind of volume cannot be given to a WebAssembly component: use configMap, downwardAPI, emptyDir, projected or secret
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
            spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution: Forbidden: required affinity between pods is not served yet: prefer it, or use a nodeSelector
            spec.hostAliases: Forbidden: names of a pod's own are not served yet: use a Service
            spec.topologySpreadConstraints[0].whenUnsatisfiable: Forbidden: spreading as a condition is not served yet: say ScheduleAnyway; pods of one owner are spread over nodes by themselves
            spec.containers[0].lifecycle.postStart: Forbidden: hooks other than a preStop sleep are not served yet: do the work in the component or in an init container
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
            spec.hostIPC: Forbidden: a pod has no access to its node's interprocess communication: leave the field out
            spec.hostNetwork: Forbidden: a pod has no access to its node's network: use a Service of type NodePort or an Ingress
            spec.hostPID: Forbidden: a pod has no access to its node's processes: leave the field out
            spec.os: Forbidden: a pod runs WebAssembly components, which have no operating system: leave the field out
            spec.securityContext.sysctls: Forbidden: a component has no kernel parameters: leave the field out
            spec.shareProcessNamespace: Forbidden: a component has no processes that could be shared: leave the field out
            spec.containers[0].ports[0].hostPort: Forbidden: a pod does not use its node's ports: use a Service of type NodePort or an Ingress
            spec.containers[0].securityContext.capabilities.add[0]: Forbidden: a component has no Linux capabilities: leave the field out
            spec.containers[0].securityContext.privileged: Forbidden: a component runs in a sandbox that knows no privileges: leave the field out
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

#[test]
fn references_to_what_can_never_be_are_refused() {
    check(
        json!({"containers": [{"name": "c", "image": "x",
            "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "$%^", "key": "bad key"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "Bad_Name", "key": ".."}}},
                {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['bad key']", "apiVersion": "v2"}}},
                {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name['a']"}}},
                {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a'"}}},
                {"name": "F", "valueFrom": {"resourceFieldRef": {"resource": "limits.nonsense", "divisor": "x"}}},
                {"name": "G", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "containerName": "other", "divisor": "-1"}}},
                {"name": "H", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['Example.com/a']"}}}],
            "envFrom": [{"configMapRef": {"name": "A"}}]}],
            "volumes": [{"name": "m", "configMap": {"name": "A", "items": [{"key": "k", "path": "..data"}, {"key": "a/b", "path": "a//b"}]}},
                {"name": "s", "secret": {"secretName": "s_"}},
                {"name": "d", "downwardAPI": {"items": [{"path": "a"}, {"path": "b", "fieldRef": {"fieldPath": "status.podIP"}},
                    {"path": "c", "resourceFieldRef": {"resource": "limits.cpu"}}]}},
                {"name": "p", "projected": {"sources": [{}, {"configMap": {}}]}}]}),
        expect![[r#"
            spec.volumes[0].configMap.name: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.volumes[0].configMap.items[0].path: Invalid value: "..data": must not start with '..'
            spec.volumes[0].configMap.items[1].key: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
            spec.volumes[0].configMap.items[1].path: Invalid value: "a//b": must not have empty parts
            spec.volumes[1].secret.secretName: Invalid value: "s_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.volumes[2].downwardAPI.items[0].fieldRef: Required value: one of fieldRef and resourceFieldRef is required
            spec.volumes[2].downwardAPI.items[1].fieldRef.fieldPath: Unsupported value: "status.podIP": supported values: "metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"
            spec.volumes[2].downwardAPI.items[2].resourceFieldRef.containerName: Required value
            spec.volumes[3].projected.sources[0]: Required value: must specify a source
            spec.volumes[3].projected.sources[1].configMap.name: Required value
            spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Invalid value: "$%^": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.containers[0].env[0].valueFrom.configMapKeyRef.key: Invalid value: "bad key": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
            spec.containers[0].env[1].valueFrom.secretKeyRef.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.containers[0].env[1].valueFrom.secretKeyRef.key: Invalid value: "..": must not be '..'
            spec.containers[0].env[2].valueFrom.fieldRef.apiVersion: Unsupported value: "v2": supported values: "v1"
            spec.containers[0].env[2].valueFrom.fieldRef.fieldPath: Invalid value: "metadata.labels['bad key']": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.containers[0].env[3].valueFrom.fieldRef.fieldPath: Invalid value: "metadata.name['a']": only labels and annotations have keys: metadata.labels['KEY'], metadata.annotations['KEY']
            spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Invalid value: "metadata.labels['a'": only labels and annotations have keys: metadata.labels['KEY'], metadata.annotations['KEY']
            spec.containers[0].env[5].valueFrom.resourceFieldRef.resource: Unsupported value: "limits.nonsense": supported values: "limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"
            spec.containers[0].env[5].valueFrom.resourceFieldRef.divisor: Invalid value: "x": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
            spec.containers[0].env[6].valueFrom.resourceFieldRef.containerName: Not found: "other"
            spec.containers[0].env[6].valueFrom.resourceFieldRef.divisor: Invalid value: "-1": must be greater than or equal to 0
            spec.containers[0].envFrom[0].configMapRef.name: Invalid value: "A": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
        "#]],
    );
}

#[test]
fn a_path_of_a_volume_has_one_source() {
    let map = |path: &str| json!({"configMap": {"name": "m", "items": [{"key": "k", "path": path}]}});
    let of = |paths: &[&str]| {
        let sources: Vec<Value> = paths.iter().map(|path| map(path)).collect();
        let volume = json!({"name": "v", "projected": {"sources": sources}});
        let pod = pod(json!({"containers": [{"name": "c", "image": "i"}], "volumes": [volume]}));
        let faults = validate(&pod, None).into_iter();
        faults.map(|fault| fault.field.replace("spec.volumes[0].projected.", "")).collect::<Vec<_>>()
    };
    assert_eq!(of(&["a", "a-b", "a.b/c", "b/a", "b/c"]), [""; 0]);
    assert_eq!(of(&["same", "other", "same"]), ["sources[2].configMap.items[0].path"]);
    assert_eq!(of(&["a/b", "a-b", "a"]), ["sources[0].configMap.items[0].path"]);
    assert_eq!(of(&["a/b/c", "a/b"]), ["sources[0].configMap.items[0].path"]);
    let long = "x".repeat(256);
    assert_eq!(of(&["y".repeat(255).as_str(), long.as_str()]), ["sources[1].configMap.items[0].path"]);
}

#[test]
fn mounts_folders_and_message_files_are_checked() {
    let container = |name: &str, fields: Value| {
        let mut container =
            json!({"name": name, "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/data"}]});
        crate::patch::merge(&mut container, &fields);
        container
    };
    check(
        json!({"volumes": [{"name": "v"}, {"name": "m", "configMap": {"name": "m"}}], "containers": [
            container("a", json!({"workingDir": "/data/in/it", "terminationMessagePath": "/data/why"})),
            container("b", json!({"workingDir": "/", "terminationMessagePath": "/dev/termination-log"})),
            container("c", json!({"workingDir": "/database", "terminationMessagePath": "why"})),
            container("d", json!({"workingDir": "data", "terminationMessagePath": "/why"})),
            container("e", json!({"workingDir": "/data/../etc", "terminationMessagePath": "/dev/../why"})),
            container("f", json!({"workingDir": "/data", "volumeMounts": [{"name": "v", "mountPath": "/"}]})),
            container("h", json!({"terminationMessagePath": "/map/why", "volumeMounts": [{"name": "m", "mountPath": "/map"}]})),
            container("i", json!({"terminationMessagePath": "/data/in/why",
                "volumeMounts": [{"name": "v", "mountPath": "/data"}, {"name": "v", "mountPath": "/data/in", "readOnly": true}]})),
            container("g", json!({"volumeMounts": [{"name": "v", "mountPath": "/a/"}, {"name": "v", "mountPath": "/a"},
                {"name": "v", "mountPath": "/b:c"}, {"name": "v", "mountPath": "/b/../c"},
                {"name": "v", "mountPath": "/d", "recursiveReadOnly": "Enabled"}]})),
        ]}),
        expect![[r#"
            spec.containers[2].workingDir: Invalid value: "/database": must lie in a volume that the container mounts: a component has no other files
            spec.containers[2].terminationMessagePath: Invalid value: "why": must be the absolute path of a file in a folder, such as /dev/termination-log
            spec.containers[3].workingDir: Invalid value: "data": must be an absolute path without '..'
            spec.containers[3].terminationMessagePath: Invalid value: "/why": must be the absolute path of a file in a folder, such as /dev/termination-log
            spec.containers[4].workingDir: Invalid value: "/data/../etc": must be an absolute path without '..'
            spec.containers[4].terminationMessagePath: Invalid value: "/dev/../why": must be the absolute path of a file in a folder, such as /dev/termination-log
            spec.containers[5].workingDir: Invalid value: "/data": cannot be another than / where a volume is mounted there: programs take relative paths for such of /
            spec.containers[6].terminationMessagePath: Invalid value: "/map/why": lies in a volume that the container cannot write: choose a path outside of it
            spec.containers[7].terminationMessagePath: Invalid value: "/data/in/why": lies in a volume that the container cannot write: choose a path outside of it
            spec.containers[8].volumeMounts[1].mountPath: Invalid value: "/a": must be unique
            spec.containers[8].volumeMounts[2].mountPath: Invalid value: "/b:c": must not contain ':'
            spec.containers[8].volumeMounts[3].mountPath: Invalid value: "/b/../c": must not contain '..'
            spec.containers[8].volumeMounts[4].recursiveReadOnly: Forbidden: may only be specified when readOnly is true
        "#]],
    );
}

#[test]
fn affinity_to_nodes_is_checked() {
    let term = |requirement: Value| json!({"matchExpressions": [requirement]});
    check(
        json!({"containers": [{"name": "a", "image": "x"}], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                term(json!({"key": "zone", "operator": "In", "values": ["a"]})),
                term(json!({"key": "bad key", "operator": "In", "values": []})),
                term(json!({"key": "zone", "operator": "Exists", "values": ["a b"]})),
                term(json!({"key": "zone", "operator": "Gt", "values": ["many"]})),
                term(json!({"key": "zone", "operator": "Near"})),
                {"matchFields": [{"key": "metadata.uid", "operator": "In", "values": ["a"]}]}]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "preference": {}}]}}}),
        expect![[r#"
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[1].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[1].matchExpressions[0].key: Invalid value: "bad key": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[2].matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[2].matchExpressions[0].values[0]: Invalid value: "a b": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[3].matchExpressions[0].values: Invalid value: "many": must be an integer
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[4].matchExpressions[0].operator: Unsupported value: "Near": supported values: "DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"
            spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[5].matchFields[0].key: Unsupported value: "metadata.uid": supported values: "metadata.name"
            spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100
        "#]],
    );
}

#[test]
fn what_a_pod_has_twice_is_warned_of() {
    let variables = vec![json!({"name": "A", "value": "x"}); 3];
    let port = json!({"containerPort": 80});
    let pod = pod(json!({"containers": [{"name": "c", "image": "x", "env": variables, "ports": [port, port],
        "securityContext": {"runAsUser": 1}}]}));
    assert_eq!(lines(&pod, None), "");
    let told = super::warnings::of_spec(&pod["spec"], "spec");
    assert!(told[0].starts_with("spec.containers[0].securityContext.runAsUser: "));
    assert_eq!(
        told[1..],
        [
            "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
            "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
            "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
        ]
    );
}

#[test]
fn an_account_by_its_old_name_is_the_pods() {
    let named = |fields: Value| {
        let mut spec = json!({"containers": []});
        crate::patch::merge(&mut spec, &fields);
        let spec = pod(spec)["spec"].clone();
        (spec["serviceAccountName"].clone(), spec["serviceAccount"].clone())
    };
    let both = |name: &str| (json!(name), json!(name));
    assert_eq!(named(json!({})), both("default"));
    assert_eq!(named(json!({"serviceAccount": "old"})), both("old"));
    assert_eq!(named(json!({"serviceAccount": "old", "serviceAccountName": "new"})), both("new"));
}
