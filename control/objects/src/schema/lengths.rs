//! How long the lists of a document may be. It is asked before anything is filled in or checked: an element that is two
//! bytes of a body can take a kilobyte once it has its defaults, and a sentence for each of its faults.

/// Elements of a list of structs, and of any other list, of which nothing else is said.
pub const STRUCTS_MAX: usize = 10_000;
pub const PLAIN_MAX: usize = 100_000;

/// Structs in all lists of a document, those in lists of lists among them.
pub const ELEMENTS_MAX: usize = 50_000;

/// What is said of some lists: the struct that has it, the field, and how long it may be. Sorted.
const LENGTHS: &[(&str, &str, usize)] = &[
    ("Container", "args", 10_000),
    ("Container", "command", 10_000),
    ("Container", "envFrom", 1000),
    ("Container", "ports", 1000),
    ("Container", "volumeDevices", 1000),
    ("Container", "volumeMounts", 1000),
    ("Endpoint", "addresses", 100),
    ("EndpointSlice", "endpoints", 1000),
    ("EndpointSlice", "ports", 20_000),
    ("EphemeralContainer", "args", 10_000),
    ("EphemeralContainer", "command", 10_000),
    ("EphemeralContainer", "envFrom", 1000),
    ("EphemeralContainer", "ports", 1000),
    ("EphemeralContainer", "volumeDevices", 1000),
    ("EphemeralContainer", "volumeMounts", 1000),
    ("HTTPIngressRuleValue", "paths", 1000),
    ("IngressSpec", "rules", 1000),
    ("IngressSpec", "tls", 1000),
    ("IngressTLS", "hosts", 1000),
    ("LoadBalancerStatus", "ingress", 1000),
    ("NodeSpec", "podCIDRs", 64),
    ("NodeSpec", "taints", 1000),
    ("PodDNSConfig", "nameservers", 100),
    ("PodDNSConfig", "options", 100),
    ("PodDNSConfig", "searches", 100),
    ("PodSpec", "containers", 1000),
    ("PodSpec", "ephemeralContainers", 1000),
    ("PodSpec", "hostAliases", 1000),
    ("PodSpec", "imagePullSecrets", 100),
    ("PodSpec", "initContainers", 1000),
    ("PodSpec", "readinessGates", 100),
    ("PodSpec", "resourceClaims", 100),
    ("PodSpec", "schedulingGates", 100),
    ("PodSpec", "tolerations", 1000),
    ("PodSpec", "topologySpreadConstraints", 100),
    ("PodSpec", "volumes", 1000),
    ("PodStatus", "containerStatuses", 1000),
    ("PodStatus", "ephemeralContainerStatuses", 1000),
    ("PodStatus", "initContainerStatuses", 1000),
    ("ServiceSpec", "clusterIPs", 16),
    ("ServiceSpec", "externalIPs", 1000),
    ("ServiceSpec", "loadBalancerSourceRanges", 1000),
    ("ServiceSpec", "ports", 2000),
];

/// What is said of a struct's list.
pub fn stated(struct_: &str, field: &str) -> Option<usize> {
    let at = LENGTHS.binary_search_by(|(known, name, _)| (*known, *name).cmp(&(struct_, field))).ok()?;
    Some(LENGTHS[at].2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(LENGTHS.is_sorted_by(|one, other| (one.0, one.1) < (other.0, other.1)));
    }
}
