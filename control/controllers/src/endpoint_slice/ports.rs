//! Which ports of a pod answer for the ports of a service.

use std::{collections::BTreeMap, rc::Rc};

use serde_json::{Value, json};

use crate::model::{NamedPort, Pod, Service, ServicePort};

/// The ports that answer for one service, worked out once for all pods that declare the same ports: a service of many
/// ports has many pods as well.
pub struct Resolver<'a> {
    service: &'a Service,
    /// Whether some port is asked for by its name on the pod; otherwise all pods are alike.
    by_name: bool,
    known: BTreeMap<&'a [NamedPort], Rc<Resolved>>,
}

/// Ports that answer.
pub struct Resolved {
    /// In the form of EndpointSlices. Pods of which a named port means different numbers have different lists.
    pub ports: Vec<Value>,
    /// Their JSON.
    pub key: String,
}

impl<'a> Resolver<'a> {
    pub fn new(service: &'a Service) -> Self {
        let by_name = service.ports.iter().any(|port| port.target_port.is_string());
        Self { service, by_name, known: BTreeMap::new() }
    }

    pub fn of(&mut self, pod: &'a Pod) -> Rc<Resolved> {
        let declared = if self.by_name { pod.ports.as_slice() } else { &[] };
        let resolve = || Rc::new(resolve(self.service, declared));
        self.known.entry(declared).or_insert_with(resolve).clone()
    }
}

fn resolve(service: &Service, declared: &[NamedPort]) -> Resolved {
    // Of two that are alike the first counts.
    let numbers: BTreeMap<(&str, &str), i64> =
        declared.iter().rev().map(|port| ((port.name.as_str(), port.protocol.as_str()), port.port)).collect();
    let ports: Vec<Value> =
        service.ports.iter().filter_map(|port| Some(entry(port, target(port, &numbers)?))).collect();
    let key = json_of(&ports);
    Resolved { ports, key }
}

/// The JSON of a list of ports.
pub fn json_of(ports: &[Value]) -> String {
    let texts: Vec<String> = ports.iter().map(Value::to_string).collect();
    format!("[{}]", texts.join(","))
}

fn entry(port: &ServicePort, number: i64) -> Value {
    let mut value = json!({"name": port.name, "protocol": protocol(port), "port": number});
    if let Some(app_protocol) = &port.app_protocol {
        value["appProtocol"] = app_protocol.as_str().into();
    }
    value
}

/// None where the pod has no port of the name that the service asks for.
fn target(port: &ServicePort, numbers: &BTreeMap<(&str, &str), i64>) -> Option<i64> {
    match &port.target_port {
        Value::Number(number) => number.as_i64().filter(|number| *number != 0).or(Some(port.port)),
        Value::String(name) => numbers.get(&(name.as_str(), protocol(port))).copied(),
        _ => Some(port.port),
    }
}

fn protocol(port: &ServicePort) -> &str {
    if port.protocol.is_empty() { "TCP" } else { &port.protocol }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_objects::{Object, ObjectKey};

    use super::*;

    fn object(resource: &str, value: &Value) -> Arc<Object> {
        let key = ObjectKey::new(resource, "d", "x");
        Arc::new(Object::from_draft(key, value.to_string().as_bytes(), 1).unwrap())
    }

    #[test]
    fn ports_are_worked_out_once_for_pods_that_declare_the_same() {
        let ports: Vec<Value> =
            (1..2000).map(|at| json!({"name": format!("p{at}"), "port": at, "targetPort": "web"})).collect();
        let service = json!({"metadata": {"name": "x"}, "spec": {"selector": {"a": "b"}, "ports": ports}});
        let service = Service::of(&object("services", &service)).unwrap().unwrap();
        let pod = |number: i64| {
            let declared = json!([{"name": "web", "containerPort": number}]);
            let pod = json!({"metadata": {"name": "x"},
                "spec": {"containers": [{"name": "c", "image": "i", "ports": declared}]}});
            Pod::of(&object("pods", &pod)).unwrap()
        };
        let pods: Vec<Pod> = (0..1000).map(|at| pod(80 + at / 500)).collect();
        let mut resolver = Resolver::new(&service);
        let resolved: Vec<Rc<Resolved>> = pods.iter().map(|pod| resolver.of(pod)).collect();
        assert_eq!(resolver.known.len(), 2);
        assert_eq!(resolved[0].ports[7], json!({"name": "p8", "protocol": "TCP", "port": 80}));
        assert_eq!(resolved[999].ports[7]["port"], 81);
        assert!(Rc::ptr_eq(&resolved[0], &resolved[499]) && resolved[0].key != resolved[500].key);
    }
}
