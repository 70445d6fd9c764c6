//! Quantities, limits and the quality-of-service class of a pod.

use std::collections::BTreeMap;

use coracle_objects::quantity::Quantity;

use crate::spec::{Amount, Container, Pod};

/// Share of CPU that a container gets which asks for none, as CFS shares. Source: kubelet `MinShares`.
const CPU_WEIGHT_MIN: u64 = 2;
/// CFS shares of one whole CPU.
const CPU_WEIGHT_ONE: u64 = 1024;

/// A quantity in thousandths of its unit; `None` where it cannot be read.
pub fn milli(amount: &Amount) -> Option<i128> {
    amount.0.parse::<Quantity>().ok().map(|quantity| quantity.milli())
}

/// A quantity in whole units, rounded up.
pub fn units(amount: &Amount) -> Option<u64> {
    let milli = milli(amount)?.max(0);
    u64::try_from((milli + 999) / 1000).ok()
}

/// What a container requests; where it does not say, its limit.
pub fn requested(container: &Container, resource: &str) -> u64 {
    let amounts = [&container.resources.requests, &container.resources.limits];
    amounts.into_iter().find_map(|amounts| amounts.get(resource).and_then(units)).unwrap_or(0)
}

/// What a container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// What it asks for; where it does not say, its limit.
    pub memory_requested: u64,
    /// What a pod's volumes may take of the disk.
    pub disk_bytes: Option<u64>,
    /// In cores.
    pub cpu_quota: Option<f64>,
    /// CFS shares: 1024 a requested core.
    pub cpu_weight: u64,
}

/// The limits of one container.
pub fn container_limits(container: &Container) -> Limits {
    let limits = &container.resources.limits;
    let cpu_limit = limits.get("cpu").and_then(milli).filter(|milli| *milli > 0);
    let cpu_requested = container.resources.requests.get("cpu").and_then(milli).or(cpu_limit);
    let memory_bytes = limits.get("memory").and_then(units).filter(|bytes| *bytes > 0);
    Limits {
        memory_bytes,
        memory_requested: requested(container, "memory"),
        disk_bytes: limits.get("ephemeral-storage").and_then(units).filter(|bytes| *bytes > 0),
        cpu_quota: cpu_limit.map(|milli| milli as f64 / 1000.0),
        cpu_weight: weight(cpu_requested.unwrap_or(0)),
    }
}

/// The limits of a pod: sums over its long-running containers; no limit where one of them has none. Of the disk it is the
/// sum of those that have one, as kubelet has it: volumes are the pod's.
pub fn pod_limits(pod: &Pod) -> Limits {
    let running =
        pod.spec.containers.iter().chain(pod.spec.init_containers.iter().filter(|c| c.is_sidecar()));
    let each: Vec<Limits> = running.map(container_limits).collect();
    let largest_init = pod.spec.init_containers.iter().filter(|c| !c.is_sidecar()).map(container_limits);
    let init_memory =
        largest_init.clone().map(|limits| limits.memory_bytes).try_fold(0, |a, b| Some(a.max(b?)));
    let init_requested = largest_init.map(|limits| limits.memory_requested).max().unwrap_or(0);
    let requested = each.iter().fold(0_u64, |sum, limits| sum.saturating_add(limits.memory_requested));
    let memory: Option<u64> = each.iter().map(|limits| limits.memory_bytes).sum();
    Limits {
        memory_bytes: memory.zip(init_memory).map(|(running, init)| running.max(init)).filter(|b| *b > 0),
        memory_requested: requested.max(init_requested),
        disk_bytes: each.iter().filter_map(|limits| limits.disk_bytes).reduce(u64::saturating_add),
        cpu_quota: each
            .iter()
            .map(|limits| limits.cpu_quota)
            .sum::<Option<f64>>()
            .filter(|quota| *quota > 0.0),
        cpu_weight: each.iter().map(|limits| limits.cpu_weight).sum::<u64>().max(CPU_WEIGHT_MIN),
    }
}

fn weight(milli: i128) -> u64 {
    let milli = u64::try_from(milli.max(0)).unwrap_or(u64::MAX / CPU_WEIGHT_ONE);
    (milli.saturating_mul(CPU_WEIGHT_ONE) / 1000).max(CPU_WEIGHT_MIN)
}

/// The pod's quality-of-service class. Source: Kubernetes `GetPodQOS`.
pub fn qos_class(pod: &Pod) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.all_containers() {
        for resource in ["cpu", "memory"] {
            let request = positive(&container.resources.requests, resource);
            let limit = positive(&container.resources.limits, resource);
            any |= request.is_some() || limit.is_some();
            // A request that is not given takes the limit's value.
            guaranteed &= limit.is_some() && request.or(limit) == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn positive(amounts: &BTreeMap<String, Amount>, resource: &str) -> Option<i128> {
    amounts.get(resource).and_then(milli).filter(|milli| *milli > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &str) -> Pod {
        let json = format!(
            r#"{{"metadata":{{"name":"a","uid":"u"}},"spec":{{"containers":[{{"name":"c","image":"x",
                "resources":{resources}}}]}}}}"#
        );
        Pod::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        assert_eq!(qos_class(&pod("{}")), "BestEffort");
        assert_eq!(qos_class(&pod(r#"{"requests":{"cpu":"100m"}}"#)), "Burstable");
        assert_eq!(qos_class(&pod(r#"{"limits":{"cpu":1,"memory":"1Gi"}}"#)), "Guaranteed");
        let unequal = r#"{"limits":{"cpu":1,"memory":"1Gi"},"requests":{"cpu":"500m"}}"#;
        assert_eq!(qos_class(&pod(unequal)), "Burstable");
    }

    #[test]
    fn limits_are_read_in_bytes_cores_and_shares() {
        let pod = pod(
            r#"{"limits":{"cpu":"1500m","memory":"64Mi","ephemeral-storage":"1Gi"},"requests":{"cpu":"250m"}}"#,
        );
        let limits = container_limits(&pod.spec.containers[0]);
        let memory = Some(64 << 20);
        let expected = Limits {
            memory_bytes: memory,
            memory_requested: 64 << 20,
            disk_bytes: Some(1 << 30),
            cpu_quota: Some(1.5),
            cpu_weight: 256,
        };
        assert_eq!(limits, expected);
        assert_eq!(pod_limits(&pod), limits);
    }
}
