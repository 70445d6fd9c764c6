//! Protobuf bodies as kubectl sends them, decoded against the table of fields.

use super::*;

/// A field with bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    out.extend_from_slice(bytes);
    out
}

fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
}

#[test]
fn the_table_is_whole() {
    for fields in table().values() {
        for field in fields {
            if let Type::Message(message) = field.type_ {
                assert!(table().contains_key(message), "{message}");
            }
        }
    }
    for (api_version, kind) in [
        ("v1", "Pod"),
        ("v1", "Binding"),
        ("apps/v1", "Deployment"),
        ("rbac.authorization.k8s.io/v1", "Role"),
        ("networking.k8s.io/v1", "Ingress"),
        ("apps/v1", "DeleteOptions"),
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
    ] {
        assert!(message_name(api_version, kind).is_some(), "{api_version} {kind}");
    }
}

#[test]
fn a_deployment_is_decoded() {
    let container = [field(1, b"web"), field(2, b"hello:1.0"), field(8, &[])].concat();
    let volume = [field(1, b"v"), field(2, &field(2, &[]))].concat();
    let pod_spec = [field(1, &volume), field(2, &container), field(3, b"")].concat();
    let template = field(2, &pod_spec);
    let rolling = field(1, &[number(1, 1), number(2, 0), field(3, b"25%")].concat());
    let spec = [number(1, 0), field(3, &template), field(4, &field(2, &rolling)), number(5, 0)].concat();
    let labels = field(11, &[field(1, b"app"), field(2, b"web")].concat());
    let metadata = [field(1, b"web"), field(2, b""), field(8, &[]), labels].concat();
    let raw = [field(1, &metadata), field(2, &spec), field(3, &number(1, 0))].concat();
    assert_eq!(
        decode(&envelope("apps/v1", "Deployment", &raw)).unwrap(),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "web", "labels": { "app": "web" } },
            "spec": {
                "replicas": 0,
                "template": { "spec": {
                    "volumes": [{ "name": "v", "emptyDir": {} }],
                    "containers": [{ "name": "web", "image": "hello:1.0", "resources": {} }],
                } },
                "strategy": { "rollingUpdate": { "maxUnavailable": "25%" } },
            },
            "status": {},
        })
    );
}

#[test]
fn bytes_times_and_extra_values_are_decoded() {
    let raw = field(2, &[field(1, b"key"), field(2, b"value")].concat());
    let secret = decode(&envelope("v1", "Secret", &raw)).unwrap();
    assert_eq!(secret["data"]["key"], "dmFsdWU=");
    let extra = field(5, &[field(1, b"scopes"), field(2, &field(1, b"a"))].concat());
    let review =
        decode(&envelope("authorization.k8s.io/v1", "SubjectAccessReview", &field(2, &extra))).unwrap();
    assert_eq!(review["spec"]["extra"]["scopes"], json!(["a"]));
    assert_eq!(time(&number(1, 60), 0).unwrap(), Some("1970-01-01T00:01:00Z".into()));
    assert_eq!(time(&number(1, 60), 6).unwrap(), Some("1970-01-01T00:01:00.000000Z".into()));
    assert_eq!(duration(1_500_000_000), "1.5s");
}

#[test]
fn broken_bodies_are_refused() {
    assert_eq!(decode(b"{}").unwrap_err(), ProtobufError::NoMagic);
    let whole = envelope("v1", "Secret", &field(2, &[field(1, b"key"), field(2, b"value")].concat()));
    // Where one field ends and the next begins, a cut body reads as one whose message is empty.
    let boundary = MAGIC.len() + 2 + usize::from(whole[MAGIC.len() + 1]);
    for cut in (MAGIC.len() + 1..whole.len()).filter(|cut| *cut != boundary) {
        assert!(decode(&whole[..cut]).is_err(), "cut at {cut}");
    }
    assert!(decode(&whole[..boundary]).unwrap().get("data").is_none());
    assert!(matches!(decode(&envelope("v1", "Nonsense", b"")), Err(ProtobufError::UnknownKind(_))));
}

#[test]
fn what_is_written_reads_the_same() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "p", "namespace": "default", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": { "a": "b", "c": "" }, "generation": 3,
            "managedFields": [{ "manager": "m", "operation": "Update", "fieldsV1": { "f:spec": {} } }],
        },
        "spec": {
            "containers": [{
                "name": "c", "image": "i:1", "args": ["a", "-1"],
                "ports": [{ "containerPort": 80, "protocol": "TCP" }],
                "resources": { "limits": { "cpu": "100m", "memory": "64Mi" } },
                "livenessProbe": { "httpGet": { "path": "/", "port": "web" }, "periodSeconds": 10 },
                "readinessProbe": { "tcpSocket": { "port": 80 } },
            }],
            "volumes": [{ "name": "v", "emptyDir": {} }, { "name": "w", "secret": { "secretName": "s" } }],
            "terminationGracePeriodSeconds": 0, "enableServiceLinks": false,
        },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }], "startTime": "2026-01-02T03:04:06Z" },
    });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "data": { "k": "AP8=" }, "type": "Opaque",
    });
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "l" },
        "spec": { "renewTime": "2026-01-02T03:04:05.000006Z", "leaseDurationSeconds": 40 },
    });
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": 404, "reason": "NotFound",
    });
    for object in [&pod, &secret, &lease, &status] {
        assert_eq!(decode(&encode(object).unwrap()).unwrap(), *object);
    }
}

#[test]
fn a_list_has_its_metadata_and_its_items() {
    let list = json!({
        "apiVersion": "v1", "kind": "ConfigMapList", "metadata": { "resourceVersion": "7" },
        "items": [{ "metadata": { "name": "a" } }, { "metadata": { "name": "b" }, "data": { "k": "v" } }],
    });
    let item = |name: &str, rest: &[u8]| {
        let metadata = field(1, &field(1, name.as_bytes()));
        field(2, &[metadata, rest.to_vec()].concat())
    };
    let entry = field(2, &[field(1, b"k"), field(2, b"v")].concat());
    let raw = [field(1, &field(2, b"7")), item("a", b""), item("b", &entry)].concat();
    let expected = [envelope("v1", "ConfigMapList", &raw), field(3, b""), field(4, b"")].concat();
    assert_eq!(encode(&list).unwrap(), expected);
}

#[test]
fn a_declared_kind_is_not_written_whatever_its_name() {
    for api_version in ["apps.example.com/v1", "example.com/v1"] {
        let object = json!({ "apiVersion": api_version, "kind": "Deployment", "metadata": { "name": "d" } });
        assert!(matches!(encode(&object), Err(ProtobufError::UnknownKind(_))));
    }
    assert!(has("meta.k8s.io/v1", "PartialObjectMetadata"));
}
