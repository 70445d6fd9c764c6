//! Validation of what nodes say: everything is brought to its type before anything else looks at it, and what does not
//! fit is refused by name.
//!
//! A node speaks of itself and of its pods. It sets the labels that a kubelet may set, and no other of Kubernetes' own.

use coracle_api::conform;
use coracle_objects::{
    Quantity, by_resource,
    schema::types,
    validate::{
        keys::keep_first,
        syntax::{ip_faults, label_value_faults, qualified_name_faults},
    },
};
use coracle_proto::node::Hello;
use serde_json::{Value, json};

/// The largest status of a pod that is taken, in bytes. An object ends at 1.5 MiB.
const STATUS_BYTES_MAX: usize = 1024 * 1024;

/// The largest description of a machine.
const NODE_INFO_BYTES_MAX: usize = 16 * 1024;

/// Labels that a node may give itself, and quantities of either kind.
const LABELS_MAX: usize = 64;
const QUANTITIES_MAX: usize = 64;

/// The longest address, and the longest id of a start.
const ADDRESS_BYTES_MAX: usize = 300;
const BOOT_ID_BYTES_MAX: usize = 64;

const POD_STATUS: &str = "io.k8s.api.core.v1.PodStatus";
const NODE_INFO: &str = "io.k8s.api.core.v1.NodeSystemInfo";

const HOSTNAME: &str = "kubernetes.io/hostname";

/// Of the labels that are reserved for Kubernetes, those that a node may set itself: whole keys, and domains. Source: the
/// admission plugin NodeRestriction.
const OWN_LABELS: [&str; 5] = [
    HOSTNAME,
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESERVED_DOMAINS: [&str; 2] = ["kubernetes.io", "k8s.io"];

/// A pod's status in the form of its type, with nothing in it that its readers do not know.
pub fn pod_status(json: &[u8]) -> Result<Value, String> {
    let mut status = typed(json, POD_STATUS, STATUS_BYTES_MAX)?;
    keep_first(&mut status, POD_STATUS);
    drop_host_names(&mut status);
    let object = json!({ "status": status });
    let faults = by_resource("pods").map(|kind| kind.status_faults(&object, None)).unwrap_or_default();
    match faults.first() {
        Some(fault) => Err(fault.to_string()),
        None => Ok(status),
    }
}

/// A node that is reached by a name, and is of an older build, gives the name for its address.
fn drop_host_names(status: &mut Value) {
    let Some(status) = status.as_object_mut() else { return };
    let is_name = status.get("hostIP").and_then(Value::as_str).is_some_and(|ip| !ip_faults(ip).is_empty());
    if is_name {
        status.shift_remove("hostIP");
        status.shift_remove("hostIPs");
    }
}

/// What a node says of its machine, in the form of its type.
pub fn node_info(json: &[u8]) -> Result<Value, String> {
    typed(json, NODE_INFO, NODE_INFO_BYTES_MAX)
}

fn typed(json: &[u8], schema: &str, bytes_max: usize) -> Result<Value, String> {
    if json.len() > bytes_max {
        return Err(format!("it is larger than {bytes_max} bytes"));
    }
    // The parser stops at 128 levels by itself.
    let mut value: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if !value.is_object() {
        return Err("it is no object".into());
    }
    // What the type does not have is dropped: a newer node may know of more.
    match conform(&mut value, types(), schema).mismatch {
        Some(mismatch) => Err(mismatch),
        None => Ok(value),
    }
}

/// Why a node's Hello is not taken, with the mend.
pub fn check_hello(hello: &Hello) -> Result<(), String> {
    check_labels(&hello.name, hello.labels.iter())?;
    check_quantities("capacity", hello.capacity.iter())?;
    check_quantities("allocatable", hello.allocatable.iter())?;
    for (field, address) in
        [("fabric_address", &hello.fabric_address), ("gateway_address", &hello.gateway_address)]
    {
        let printable = address.bytes().all(|byte| byte.is_ascii_graphic());
        if address.len() > ADDRESS_BYTES_MAX || !printable {
            return Err(format!("{field}: must be host:port of at most {ADDRESS_BYTES_MAX} bytes"));
        }
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if hello.boot_id.len() > BOOT_ID_BYTES_MAX || !hello.boot_id.bytes().all(plain) {
        return Err(format!("boot_id: must be letters, digits and '-', at most {BOOT_ID_BYTES_MAX} of them"));
    }
    if !hello.node_info_json.is_empty() {
        node_info(&hello.node_info_json).map_err(|reason| format!("node_info: {reason}"))?;
    }
    Ok(())
}

fn check_labels<'a>(
    node: &str,
    labels: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("labels: a node may give itself at most {LABELS_MAX}"));
    }
    for (key, value) in labels {
        let shown: String = key.chars().take(80).collect();
        if let Some(fault) = qualified_name_faults(key).into_iter().next() {
            return Err(format!("labels: {shown:?}: {fault}"));
        }
        if let Some(fault) = label_value_faults(value).into_iter().next() {
            return Err(format!("labels: the value of {shown}: {fault}"));
        }
        if !is_own_label(key) {
            return Err(format!(
                "labels: a node may not set {shown} itself; start it without that --label, and have an administrator \
                 set it (`kubectl label node {node} {shown}=...`)"
            ));
        }
        if key == HOSTNAME && value != node {
            return Err(format!("labels: {HOSTNAME} must be the node's name, {node}"));
        }
    }
    Ok(())
}

fn is_own_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let within =
        |of: &&str| domain == *of || domain.strip_suffix(*of).is_some_and(|rest| rest.ends_with('.'));
    !RESERVED_DOMAINS.iter().any(within) || OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(within)
}

fn check_quantities<'a>(
    field: &str,
    quantities: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), String> {
    if quantities.len() > QUANTITIES_MAX {
        return Err(format!("{field}: at most {QUANTITIES_MAX} resources"));
    }
    for (name, quantity) in quantities {
        if let Some(fault) = qualified_name_faults(name).into_iter().next() {
            return Err(format!("{field}: {fault}"));
        }
        match quantity.parse::<Quantity>() {
            Ok(parsed) if !parsed.is_negative() => {}
            _ => return Err(format!("{field}: the quantity of {name} is none")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_of_its_type_or_refused() {
        let status = |value: Value| pod_status(value.to_string().as_bytes());
        let nulls = json!({ "phase": "Running", "containerStatuses": null, "podIP": null });
        assert_eq!(status(nulls).unwrap(), json!({ "phase": "Running" }));
        let newer = json!({ "phase": "Running", "invention": { "a": 1 } });
        assert_eq!(status(newer).unwrap(), json!({ "phase": "Running" }));
        for bad in [
            json!({ "phase": 7 }),
            json!({ "containerStatuses": {} }),
            json!({ "containerStatuses": [{ "name": "c", "restartCount": 4_294_967_296_u64 }] }),
            json!({ "containerStatuses": [{ "name": "c", "restartCount": 1.5 }] }),
            json!({ "startTime": "yesterday" }),
            json!({ "phase": "Weird" }),
            json!({ "podIP": "1.2.3" }),
            json!({ "podIP": "10.128.0.1", "podIPs": [{ "ip": "10.128.0.2" }] }),
            json!({ "containerStatuses": [{ "name": "c", "restartCount": -1 }] }),
            json!({ "conditions": [{ "type": "Ready", "status": "yes" }] }),
            json!({ "conditions": [{ "status": "True" }] }),
            json!([]),
        ] {
            assert!(status(bad.clone()).is_err(), "{bad}");
        }
        let ready = |status: &str| json!({ "type": "Ready", "status": status });
        let twice = json!({ "conditions": [ready("True"), ready("False")], "hostIP": "host", "hostIPs": [{ "ip": "host" }] });
        assert_eq!(status(twice).unwrap(), json!({ "conditions": [ready("True")] }), "the first is kept");
        for deep in [90, 120, 100_000] {
            let text = format!(r#"{{"phase":{}{}}}"#, "[".repeat(deep), "]".repeat(deep));
            assert!(pod_status(text.as_bytes()).is_err(), "{deep} levels");
        }
        let large = json!({ "message": "x".repeat(STATUS_BYTES_MAX) });
        assert!(status(large).unwrap_err().contains("larger"));
    }

    fn hello(change: impl FnOnce(&mut Hello)) -> Result<(), String> {
        let mut hello =
            Hello { name: "n1".into(), fabric_address: "10.0.0.1:7443".into(), ..Hello::default() };
        change(&mut hello);
        check_hello(&hello)
    }

    fn label(key: &str, value: &str) -> Result<(), String> {
        hello(|hello| _ = hello.labels.insert(key.into(), value.into()))
    }

    #[test]
    fn a_node_sets_the_labels_of_a_node() {
        for key in [
            "kubernetes.io/arch",
            "topology.kubernetes.io/zone",
            "node.kubernetes.io/instance-type",
            "kubelet.kubernetes.io/x",
            "disk",
            "example.com/rack",
            "notkubernetes.io/x",
        ] {
            label(key, "v").unwrap();
        }
        label(HOSTNAME, "n1").unwrap();
        for key in [
            "node-restriction.kubernetes.io/pci",
            "deep.node-restriction.kubernetes.io/pci",
            "node-role.kubernetes.io/control-plane",
            "kubernetes.io/other",
            "x.k8s.io/y",
            "k8s.io/y",
            "topology.kubernetes.io/other",
        ] {
            assert!(label(key, "").unwrap_err().contains(key), "{key}");
        }
        assert!(label(HOSTNAME, "n2").is_err(), "who has another's name is given another's pods");
        assert!(label("-", "").is_err() && label("a/b/c", "").is_err() && label("a", "no value").is_err());
        assert!(
            hello(|hello| {
                hello.labels = (0..=LABELS_MAX).map(|number| (format!("l{number}"), String::new())).collect();
            })
            .is_err()
        );
    }

    #[test]
    fn what_a_node_says_of_itself_is_checked() {
        hello(|hello| hello.node_info_json = r#"{"kubeletVersion":"v1","bootID":null}"#.into()).unwrap();
        let deep = format!(r#"{{"machineID":{}{}}}"#, "[".repeat(99), "]".repeat(99));
        assert!(hello(|hello| hello.node_info_json = deep.into()).is_err());
        hello(|hello| _ = hello.capacity.insert("cpu".into(), "2".into())).unwrap();
        for quantity in ["-1", "two", ""] {
            assert!(hello(|hello| _ = hello.capacity.insert("cpu".into(), quantity.into())).is_err());
        }
        assert!(hello(|hello| _ = hello.allocatable.insert("a b".into(), "1".into())).is_err());
        assert!(hello(|hello| hello.fabric_address = "x".repeat(ADDRESS_BYTES_MAX + 1)).is_err());
        assert!(hello(|hello| hello.boot_id = "a\nb".into()).is_err());
    }
}
