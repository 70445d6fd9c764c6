//! A pod's quality of service: what its resources promise it.

use serde_json::Value;

use crate::{fields::list, quantity::Quantity};

/// `Guaranteed` where every container has limits of CPU and memory that equal its requests, `BestEffort` where none
/// has any, else `Burstable`. Takes the pod's spec.
pub fn qos_class(spec: &Value) -> &'static str {
    let containers = || list(spec, "/containers").iter().chain(list(spec, "/initContainers"));
    let amount = |container: &Value, part: &str, resource: &str| {
        let value = container.pointer(&format!("/resources/{part}/{resource}"))?;
        Quantity::from_json(value).ok().filter(|quantity| !quantity.is_zero())
    };
    let mut any = false;
    let mut guaranteed = true;
    for container in containers() {
        for resource in ["cpu", "memory"] {
            let (request, limit) =
                (amount(container, "requests", resource), amount(container, "limits", resource));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes() {
        let full =
            json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}});
        let some = json!({"requests": {"cpu": "1"}});
        let other = json!({"requests": {"example.com/x": "1"}});
        let cases = [
            (json!([{"resources": full}]), "Guaranteed"),
            (json!([{"resources": full}, {"resources": some}]), "Burstable"),
            (json!([{"resources": full}, {}]), "Burstable"),
            (json!([{}, {"resources": other}]), "BestEffort"),
            (json!([]), "BestEffort"),
        ];
        for (containers, expected) in cases {
            assert_eq!(qos_class(&json!({"containers": containers})), expected, "{containers}");
        }
    }
}
