//! Downward fields: what a pod may learn about itself through env and volumes.
//!
//! Source: kubelet `podFieldSelectorRuntimeValue`, `ExtractContainerResourceValue`, `FormatMap`.

use core::net::IpAddr;
use std::collections::BTreeMap;

use crate::{
    resources,
    spec::{Amount, Container, Pod, ResourceFieldRef},
};

/// What the node knows of a pod's place beyond its object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodFacts {
    pub node_name: String,
    pub host_ip: String,
    pub addresses: Vec<IpAddr>,
    /// Allocatable of the node: thousandths of a core, and bytes. A container without a limit sees these.
    pub node_cpu_milli: u64,
    pub node_memory_bytes: u64,
}

/// The value of a `fieldRef`, or why there is none.
pub fn field(pod: &Pod, facts: &PodFacts, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    if let Some((base, key)) = subscript(path) {
        let map = match base {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.get(key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.to_string(),
        "metadata.labels" => format_map(&metadata.labels),
        "metadata.annotations" => format_map(&metadata.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" => facts.addresses.first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => facts.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// `metadata.labels['x']` into (`metadata.labels`, `x`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (base, rest) = path.split_once("['")?;
    Some((base, rest.strip_suffix("']")?))
}

/// One `key="value"` a line, in order of keys; the value escaped as in Go.
fn format_map(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
pub fn resource(
    pod: &Pod,
    facts: &PodFacts,
    container: Option<&Container>,
    reference: &ResourceFieldRef,
) -> Result<String, String> {
    let container = if reference.container_name.is_empty() {
        container.ok_or_else(|| "resourceFieldRef needs containerName in a volume".to_owned())?
    } else {
        let name = &reference.container_name;
        pod.container(name).ok_or_else(|| format!("container {name} not found"))?
    };
    let (list, kind) =
        reference.resource.split_once('.').ok_or_else(|| unsupported_resource(&reference.resource))?;
    let amounts = match list {
        "limits" => &container.resources.limits,
        "requests" => &container.resources.requests,
        _ => return Err(unsupported_resource(&reference.resource)),
    };
    let node = match kind {
        "cpu" => i128::from(facts.node_cpu_milli),
        "memory" => i128::from(facts.node_memory_bytes) * 1000,
        "ephemeral-storage" => 0,
        _ => return Err(unsupported_resource(&reference.resource)),
    };
    let given = amounts.get(kind).and_then(resources::milli);
    let milli = given.unwrap_or(if list == "limits" { node } else { 0 });
    let divisor = divisor_milli(&reference.divisor)?;
    Ok(((milli + divisor - 1) / divisor).to_string())
}

fn divisor_milli(divisor: &Amount) -> Result<i128, String> {
    if divisor.0.is_empty() || divisor.0 == "0" {
        return Ok(1000);
    }
    resources::milli(divisor).filter(|milli| *milli > 0).ok_or_else(|| format!("bad divisor {:?}", divisor.0))
}

fn unsupported_resource(resource: &str) -> String {
    format!("unsupported container resource : {resource}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_resources_resolve() {
        let json = br#"{"metadata":{"name":"a","namespace":"d","uid":"u","labels":{"x":"1","y":"a \"b\""}},
            "spec":{"containers":[{"name":"c","image":"i","resources":{"limits":{"memory":"100M"}}}]}}"#;
        let pod = Pod::parse(json).unwrap();
        let facts = PodFacts {
            addresses: vec!["10.128.0.7".parse().unwrap()],
            node_cpu_milli: 1500,
            ..Default::default()
        };
        assert_eq!(field(&pod, &facts, "metadata.labels['y']").unwrap(), "a \"b\"");
        assert_eq!(field(&pod, &facts, "metadata.labels").unwrap(), "x=\"1\"\ny=\"a \\\"b\\\"\"");
        assert_eq!(field(&pod, &facts, "status.podIP").unwrap(), "10.128.0.7");
        assert!(field(&pod, &facts, "spec.nonsense").is_err());
        let reference = |resource: &str, divisor: &str| ResourceFieldRef {
            container_name: "c".into(),
            resource: resource.into(),
            divisor: Amount(divisor.into()),
        };
        let value = |resource, divisor| self::resource(&pod, &facts, None, &reference(resource, divisor));
        assert_eq!(value("limits.memory", "1Mi").unwrap(), "96");
        assert_eq!(value("limits.cpu", "").unwrap(), "2");
        assert_eq!(value("limits.cpu", "1m").unwrap(), "1500");
        assert_eq!(value("requests.cpu", "").unwrap(), "0");
    }
}
