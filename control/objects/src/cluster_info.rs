//! What every cluster has: the one ordinary object that belongs to the control plane, and the namespaces that stay.

use crate::name::ObjectKey;

/// Where the control plane keeps what it must not forget about the cluster: its version and id, the next member's id.
/// A ConfigMap, so that people can read it with every client; nobody but the control plane writes it.
pub fn cluster_info_key() -> ObjectKey {
    ObjectKey::new("configmaps", "kube-system", "coracle-cluster")
}

/// Why a write of it is refused.
pub const CLUSTER_INFO_KEPT: &str =
    "only the control plane itself writes this object: without it members cannot start";

/// Whether nobody may delete the object with this key: the namespaces that every cluster has.
pub fn is_kept_namespace(key: &ObjectKey) -> bool {
    key.resource.as_str() == "namespaces"
        && ["default", "kube-node-lease", "kube-public", "kube-system"].contains(&&*key.name.name)
}

/// Whether an EndpointSlice of this name in the namespace `default` is the control plane's own, of the service `kubernetes`:
/// it makes those that are missing and removes those that it does not know. Slices of others say nothing of that service.
pub fn is_api_slice(name: &str) -> bool {
    name == "kubernetes" || name.strip_prefix("kubernetes-").is_some_and(|port| port.parse::<u16>().is_ok())
}

/// Whether this is its key.
pub fn is_cluster_info(key: &ObjectKey) -> bool {
    key.resource.as_str() == "configmaps"
        && &*key.name.namespace == "kube-system"
        && &*key.name.name == "coracle-cluster"
}
