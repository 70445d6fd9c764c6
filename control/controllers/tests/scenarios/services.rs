//! EndpointSlices and Endpoints of services.

use coracle_objects::ObjectKey;
use serde_json::{Value, json};

use crate::harness::{Cluster, deployment, web};

fn service(ports: Value) -> (ObjectKey, Value) {
    let value = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "svc", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.20", "ports": ports},
    });
    (ObjectKey::new("services", "default", "web"), value)
}

fn slices(cluster: &Cluster) -> Vec<Value> {
    cluster.view.list("endpointslices.discovery.k8s.io", None).map(|slice| slice.parse().unwrap()).collect()
}

fn endpoints(cluster: &Cluster) -> Value {
    cluster.get(&ObjectKey::new("endpoints", "default", "web"))
}

#[test]
fn ready_pods_answer_and_others_do_not() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let (key, value) = service(json!([{"name": "", "port": 80, "targetPort": 8080, "protocol": "TCP"}]));
    cluster.put(key.clone(), value);
    cluster.settle();
    assert_eq!(slices(&cluster).len(), 1, "an empty slice tells that the service is known");
    cluster.put(web(), deployment(2));
    cluster.run(1_000);
    let all = slices(&cluster);
    assert_eq!(all.len(), 1);
    let slice = &all[0];
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(slice["metadata"]["labels"]["team"], "a");
    assert_eq!(slice["addressType"], "IPv4");
    assert_eq!(slice["ports"], json!([{"name": "", "protocol": "TCP", "port": 8080}]));
    assert_eq!(slice["endpoints"].as_array().unwrap().len(), 2);
    let endpoint = &slice["endpoints"][0];
    assert_eq!(endpoint["conditions"], json!({"ready": true, "serving": true, "terminating": false}));
    assert_eq!(endpoint["nodeName"], "n1");
    assert_eq!(endpoint["targetRef"]["kind"], "Pod");
    let subsets = endpoints(&cluster)["subsets"].clone();
    assert_eq!(subsets[0]["addresses"].as_array().unwrap().len(), 2);
    assert_eq!(subsets[0]["ports"], json!([{"protocol": "TCP", "port": 8080}]));

    let pod = cluster.view.list("pods", None).next().unwrap().key.clone();
    cluster.delete(&pod, None);
    cluster.pass(1_000);
    cluster.settle();
    let slice = slices(&cluster)[0].clone();
    let name = &*pod.name.name;
    let leaving = slice["endpoints"].as_array().unwrap().iter().find(|one| one["targetRef"]["name"] == name);
    assert_eq!(leaving.unwrap()["conditions"], json!({"ready": false, "serving": true, "terminating": true}));
    cluster.delete(&key, None);
    cluster.settle();
    assert!(slices(&cluster).is_empty());
    assert!(cluster.names("endpoints").is_empty());
}

#[test]
fn what_is_no_address_is_no_endpoint() {
    let mut cluster = Cluster::new();
    let (key, value) = service(json!([{"port": 80}]));
    cluster.put(key, value);
    for (name, ip) in [("a", "1.2.3"), ("b", "127.0.0.1"), ("c", "10.128.0.3"), ("d", "x")] {
        let pod = ObjectKey::new("pods", "default", name);
        let value = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Pending"},
        });
        cluster.put(pod.clone(), value);
        cluster.make_ready(&pod, ip);
    }
    cluster.settle();
    let all = slices(&cluster);
    let addresses: Vec<&Value> = all
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().unwrap())
        .map(|endpoint| &endpoint["addresses"])
        .collect();
    assert_eq!(addresses, [&json!(["10.128.0.3"])]);
    assert_eq!(endpoints(&cluster)["subsets"][0]["addresses"].as_array().unwrap().len(), 1);
}

#[test]
fn a_slice_that_its_kind_refuses_is_not_proposed() {
    let mut cluster = Cluster::new();
    // As it may have been stored before Services were checked.
    let (key, value) = service(json!([{"port": 80, "protocol": "NONE"}]));
    let pod = ObjectKey::new("pods", "default", "a");
    let backend = json!({
        "metadata": {"name": "a", "namespace": "default", "uid": "a", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Pending"},
    });
    cluster.put(pod.clone(), backend);
    cluster.make_ready(&pod, "10.128.0.3");
    cluster.put(key, value);
    cluster.settle();
    assert!(slices(&cluster).is_empty());
    assert!(cluster.names("endpoints").is_empty());
}

#[test]
fn a_named_port_may_differ_from_pod_to_pod() {
    let mut cluster = Cluster::new();
    let (key, value) = service(json!([{"name": "http", "port": 80, "targetPort": "web"}]));
    cluster.put(key, value);
    for (name, port, ip) in [("a", 8080, "10.128.0.1"), ("b", 9090, "10.128.0.2"), ("c", 8080, "10.128.0.3")]
    {
        let pod = ObjectKey::new("pods", "default", name);
        let value = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Pending"},
        });
        cluster.put(pod.clone(), value);
        cluster.make_ready(&pod, ip);
    }
    cluster.settle();
    let ports: Vec<(i64, usize)> = slices(&cluster)
        .iter()
        .map(|slice| {
            (slice["ports"][0]["port"].as_i64().unwrap(), slice["endpoints"].as_array().unwrap().len())
        })
        .collect();
    assert_eq!(ports.len(), 2);
    assert!(ports.contains(&(8080, 2)) && ports.contains(&(9090, 1)), "{ports:?}");
    assert_eq!(endpoints(&cluster)["subsets"].as_array().unwrap().len(), 2);
}

#[test]
fn large_services_have_several_slices_and_few_of_them_change() {
    let mut cluster = Cluster::new();
    cluster.node("n1", "True");
    let (key, value) = service(json!([{"port": 80}]));
    cluster.put(key, value);
    cluster.put(web(), deployment(250));
    cluster.run(10_000);
    let sizes = |cluster: &Cluster| -> Vec<usize> {
        slices(cluster).iter().map(|slice| slice["endpoints"].as_array().unwrap().len()).collect()
    };
    assert_eq!(sizes(&cluster).iter().sum::<usize>(), 250);
    assert_eq!(sizes(&cluster).len(), 3);
    cluster.read();
    let pod = cluster.view.list("pods", None).next().unwrap().key.clone();
    cluster.edit(&pod, |pod| pod["status"]["conditions"][0]["status"] = "False".into());
    cluster.run(1_000);
    let written = cluster.read().lines().filter(|line| line.contains("endpointslices")).count();
    assert_eq!(written, 1);
}

#[test]
fn services_without_a_selector_are_left_alone() {
    let mut cluster = Cluster::new();
    let (key, mut value) = service(json!([{"port": 80}]));
    value["spec"].as_object_mut().unwrap().shift_remove("selector");
    cluster.put(key.clone(), value);
    let own = ObjectKey::new("endpoints", "default", "web");
    cluster.put(own.clone(), json!({"metadata": {"name": "web", "namespace": "default", "uid": "e"}}));
    cluster.settle();
    assert!(slices(&cluster).is_empty());
    cluster.delete(&key, None);
    cluster.settle();
    assert!(cluster.find(&own).is_some(), "made by someone else");
}

#[test]
fn endpoints_that_were_written_by_hand_are_mirrored_to_slices() {
    let mut cluster = Cluster::new();
    let service = ObjectKey::new("services", "default", "ext");
    let spec = json!({"clusterIP": "10.96.0.21", "ports": [{"port": 80}]});
    let value = json!({"metadata": {"name": "ext", "namespace": "default", "uid": "ext"}, "spec": spec});
    cluster.put(service.clone(), value);
    let key = ObjectKey::new("endpoints", "default", "ext");
    let value = json!({
        "metadata": {"name": "ext", "namespace": "default", "uid": "ep", "labels": {"team": "a"}},
        "subsets": [
            {"addresses": [{"ip": "192.0.2.1", "hostname": "h"}], "notReadyAddresses": [{"ip": "192.0.2.2"}],
                "ports": [{"port": 80, "protocol": "TCP"}]},
            {"addresses": [{"ip": "2001:db8::1"}], "ports": [{"port": 80, "protocol": "TCP"}]},
        ],
    });
    cluster.put(key.clone(), value);
    cluster.settle();
    let mut all = slices(&cluster);
    all.sort_by_key(|slice| slice["addressType"].to_string());
    assert_eq!(all.len(), 2);
    let labels = &all[0]["metadata"]["labels"];
    assert_eq!(labels["kubernetes.io/service-name"], "ext");
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "endpointslicemirroring-controller.k8s.io");
    assert_eq!(labels["team"], "a");
    assert_eq!(all[0]["ports"], json!([{"port": 80, "protocol": "TCP", "name": ""}]));
    assert_eq!(
        all[0]["endpoints"],
        json!([
            {"addresses": ["192.0.2.1"], "conditions": {"ready": true}, "hostname": "h"},
            {"addresses": ["192.0.2.2"], "conditions": {"ready": false}},
        ])
    );
    assert_eq!(all[1]["endpoints"][0]["addresses"], json!(["2001:db8::1"]));

    // A change changes the slice that there is; what somebody does to a slice is undone.
    let name = all[0]["metadata"]["name"].clone();
    cluster.edit(&key, |value| {
        value["subsets"] = json!([{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 81}]}])
    });
    cluster.settle();
    let all = slices(&cluster);
    assert_eq!((all.len(), &all[0]["metadata"]["name"]), (1, &name));
    assert_eq!(all[0]["endpoints"][0]["addresses"], json!(["192.0.2.9"]));
    let slice = ObjectKey::new("endpointslices.discovery.k8s.io", "default", name.as_str().unwrap());
    cluster.edit(&slice, |value| value["endpoints"] = json!([]));
    cluster.settle();
    assert_eq!(slices(&cluster)[0]["endpoints"][0]["addresses"], json!(["192.0.2.9"]));

    // Not where the service finds its own, nor where that is not wanted, and no longer than the Endpoints are.
    cluster.edit(&key, |value| {
        value["metadata"]["labels"]["endpointslice.kubernetes.io/skip-mirror"] = json!("true")
    });
    cluster.settle();
    assert!(slices(&cluster).is_empty());
    cluster.edit(&key, |value| value["metadata"]["labels"] = json!({}));
    // What was made and is gone soon after is made again ever more slowly.
    cluster.run(60_000);
    assert_eq!(slices(&cluster).len(), 1);
    cluster.edit(&service, |value| value["spec"]["selector"] = json!({"app": "none"}));
    cluster.settle();
    let all = slices(&cluster);
    assert_eq!(all.len(), 1, "that of the other controller");
    assert_eq!(all[0]["endpoints"], json!([]));
    cluster.delete(&service, None);
    cluster.settle();
    assert!(slices(&cluster).is_empty());
}

#[test]
fn endpoints_of_many_ports_and_labels_make_few_slices() {
    let mut cluster = Cluster::new();
    let service = ObjectKey::new("services", "default", "ext");
    let spec = json!({"clusterIP": "10.96.0.21", "ports": [{"port": 80}]});
    let value = json!({"metadata": {"name": "ext", "namespace": "default", "uid": "ext"}, "spec": spec});
    cluster.put(service, value);
    let subsets: Vec<Value> = (1..2_000)
        .map(|port| json!({"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "ports": [{"port": port}]}))
        .collect();
    let labels: serde_json::Map<String, Value> =
        (0..500).map(|at| (format!("label-{at}"), "x".repeat(60).into())).collect();
    let value = json!({
        "metadata": {"name": "ext", "namespace": "default", "uid": "ep", "labels": labels}, "subsets": subsets,
    });
    cluster.put(ObjectKey::new("endpoints", "default", "ext"), value);
    cluster.settle();
    let said = cluster.read();
    assert!(said.contains("TooManySlices"), "{said}");
    let all = slices(&cluster);
    assert_eq!(all.len(), 100);
    assert_eq!(all[0]["metadata"]["labels"].as_object().unwrap().len(), 2, "of the labels only its own");
}
