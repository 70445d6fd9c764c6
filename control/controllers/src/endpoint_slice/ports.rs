//! Which ports of a pod answer for the ports of a service.

use serde_json::{Value, json};

use crate::model::{Pod, Service, ServicePort};

/// The ports in the form of EndpointSlices. Pods of which a named port means different numbers have different lists.
pub fn resolve(service: &Service, pod: &Pod) -> Vec<Value> {
    service.ports.iter().filter_map(|port| Some(entry(port, target(port, pod)?))).collect()
}

fn entry(port: &ServicePort, number: i64) -> Value {
    let mut value = json!({"name": port.name, "protocol": protocol(port), "port": number});
    if let Some(app_protocol) = &port.app_protocol {
        value["appProtocol"] = app_protocol.as_str().into();
    }
    value
}

/// None where the pod has no port of the name that the service asks for.
fn target(port: &ServicePort, pod: &Pod) -> Option<i64> {
    match &port.target_port {
        Value::Number(number) => number.as_i64().filter(|number| *number != 0).or(Some(port.port)),
        Value::String(name) => {
            let named =
                |known: &&crate::model::NamedPort| known.name == *name && known.protocol == protocol(port);
            pod.ports.iter().find(named).map(|known| known.port)
        }
        _ => Some(port.port),
    }
}

fn protocol(port: &ServicePort) -> &str {
    if port.protocol.is_empty() { "TCP" } else { &port.protocol }
}
