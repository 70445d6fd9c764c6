//! What services are given, keep and give up.

use std::sync::Arc;

use coracle_objects::{
    Precondition, View, by_plural,
    claims::{ADDRESSES, PORTS, release},
    transaction,
};
use jiff::Timestamp;

use super::*;
use crate::{ApiConfig, UserInfo};

fn check(view: &View, old: Option<&Value>, service: &mut Value) -> Result<Transaction, ApiError> {
    let kind = by_plural("", "v1", "services").unwrap();
    let key = ObjectKey::new("services", "default", "web");
    let config = ApiConfig::new("c", "0");
    kind.defaults(service);
    let user = UserInfo::anonymous();
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    allocate(&Write { operation, kind, key: &key, view, config: &config, user: &user, old }, old, service)
}

fn put(view: &mut View, along: &Transaction) {
    for write in &along.writes {
        let transaction::Write::Put { key, draft } = write else { continue };
        let object = Arc::new(Object::from_draft(key.clone(), draft, 3).unwrap());
        view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object);
    }
}

#[test]
fn a_service_claims_keeps_and_releases() {
    let mut view = View::default();
    let mut service =
        json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80 }, { "port": 81, "name": "b" }] } });
    let along = check(&view, None, &mut service).unwrap();
    assert_eq!(along.writes.len(), 3);
    let address: Ipv4Addr = fields::text(&service, "/spec/clusterIP").parse().unwrap();
    assert!(ApiConfig::new("c", "0").service_network.contains(address));
    put(&mut view, &along);

    let mut update = json!({ "spec": { "type": "ClusterIP", "ports": [{ "port": 80 }] } });
    let along = check(&view, Some(&service), &mut update).unwrap();
    assert_eq!(update["spec"]["clusterIP"], service["spec"]["clusterIP"]);
    assert_eq!(
        along.writes.iter().filter(|write| matches!(write, transaction::Write::Delete { .. })).count(),
        2
    );

    let key = ObjectKey::new("services", "default", "web");
    let stored = Object::from_draft(key, &metadata::draft("Service", "v1", &service), 4).unwrap();
    assert_eq!(release(&view, &stored).writes.len(), 3);
}

#[test]
fn what_is_taken_or_out_of_range_is_refused() {
    let mut view = View::default();
    let mut first = json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{ "port": 80, "nodePort": 30080 }] } });
    let along = check(&view, None, &mut first).unwrap();
    put(&mut view, &along);
    let error = check(&view, None, &mut first).unwrap_err().to_string();
    assert!(error.contains("failed to allocate IP 10.96.0.10: provided IP is already allocated"), "{error}");
    assert!(
        error.contains("spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated")
    );
    let mut outside = json!({ "spec": { "type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{ "port": 80, "nodePort": 80 }] } });
    let error = check(&view, None, &mut outside).unwrap_err().to_string();
    assert!(error.contains("does not match the current range"), "{error}");
    assert!(error.contains("The range of valid ports is 30000-32767"), "{error}");
}

#[test]
fn an_address_is_never_only_written_down() {
    let mut view = View::default();
    let mut victim = json!({ "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] } });
    let along = check(&view, None, &mut victim).unwrap();
    put(&mut view, &along);
    for spec in [
        json!({ "type": "ExternalName", "externalName": "a.b", "clusterIPs": ["10.96.0.10"] }),
        json!({ "type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.0.10" }),
        json!({ "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 80 }] }),
        json!({ "clusterIP": "10.96.9.9", "clusterIPs": ["10.96.9.9", "10.96.0.10"], "ports": [{ "port": 80 }] }),
        json!({ "clusterIP": "::ffff:10.96.0.10", "ports": [{ "port": 80 }] }),
        json!({ "clusterIP": "fd00::1", "ports": [{ "port": 80 }] }),
    ] {
        assert!(check(&view, None, &mut json!({ "spec": spec })).is_err(), "{spec}");
        // An update of what was stored before such things were refused does not keep it either.
        let stored = json!({ "spec": spec });
        let mut again = stored.clone();
        let kept = check(&view, Some(&stored), &mut again).is_ok();
        assert!(!kept || again["spec"].get("clusterIPs").is_none(), "{spec}");
    }
    let stored = json!({ "spec": { "clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77"], "ports": [] } });
    let along = check(&view, Some(&stored), &mut stored.clone()).unwrap();
    assert_eq!(along.writes.len(), 1, "what was never claimed is claimed");
    // On its way out it may go, but take nothing along.
    let mut ending = json!({ "metadata": { "deletionTimestamp": "x" }, "spec": {
        "type": "ExternalName", "externalName": "a.b" } });
    let mut taking = ending.clone();
    taking["spec"]["clusterIPs"] = json!(["10.96.0.10"]);
    assert!(check(&view, Some(&ending.clone()), &mut taking).is_err());
    assert!(check(&view, Some(&ending.clone()), &mut ending).unwrap().writes.is_empty());
}

#[test]
fn a_service_that_becomes_external_gives_up_its_address() {
    let mut view = View::default();
    let mut service = json!({ "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] } });
    let along = check(&view, None, &mut service).unwrap();
    put(&mut view, &along);
    for left in [json!({}), json!({ "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"] })] {
        let mut update = json!({ "spec": { "type": "ExternalName", "externalName": "a.b" } });
        update["spec"].as_object_mut().unwrap().extend(left.as_object().unwrap().clone());
        let along = check(&view, Some(&service), &mut update).unwrap();
        assert!(matches!(&along.writes[..], [transaction::Write::Delete { .. }]));
        assert!(update["spec"].get("clusterIP").is_none() && update["spec"].get("clusterIPs").is_none());
    }
    let mut other =
        json!({ "spec": { "type": "ExternalName", "externalName": "a.b", "clusterIPs": ["10.96.0.1"] } });
    assert!(check(&view, Some(&service), &mut other).is_err());
}

fn stored(service: &Value) -> Arc<Object> {
    let key = ObjectKey::new("services", "default", "web");
    Object::from_draft(key, &metadata::draft("Service", "v1", service), 4).unwrap().into()
}

fn put_object(view: &mut View, object: &Arc<Object>) {
    let key = &object.key;
    view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object.clone());
}

#[test]
fn what_a_service_has_stays_claimed_and_is_claimed_again() {
    let mut view = View::default();
    let mut service =
        json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.77", "ports": [{ "port": 80 }] } });
    let along = check(&view, None, &mut service).unwrap();
    put(&mut view, &along);
    let service = stored(&service);
    let claim = view.get(&address_key("10.96.0.77".parse().unwrap())).unwrap().clone();
    assert_eq!(keeps(&view, &claim), None, "its service is not there yet");
    put_object(&mut view, &service);
    assert!(keeps(&view, &claim).unwrap().contains("service default/web"));
    let config = ApiConfig::new("c", "0");
    assert_eq!(lost_claims(&view, &config, &service), LostClaims::default());
    for table in [ADDRESSES, PORTS] {
        view.tables.remove(table);
    }
    let lost = lost_claims(&view, &config, &service).transaction.unwrap();
    assert_eq!(lost.writes.len(), 2);
    assert_eq!(lost.preconditions[2].expect, Expect::Revision(4), "only as long as the service is so");
    put(&mut view, &Transaction { writes: lost.writes, preconditions: vec![] });
    assert_eq!(lost_claims(&view, &config, &service), LostClaims::default());
    let mut thief = address_claim(&ObjectKey::new("services", "default", "other"));
    thief["metadata"]["name"] = "10.96.0.77".into();
    let draft = metadata::draft("IPAddress", "networking.k8s.io/v1", &thief);
    put_object(&mut view, &Object::from_draft(claim.key.clone(), &draft, 5).unwrap().into());
    let lost = lost_claims(&view, &config, &service);
    assert_eq!((lost.transaction, lost.taken), (None, vec![(claim.key.clone(), "default/other".into())]));
}

#[test]
fn an_address_of_the_cluster_outlives_its_service_and_comes_back_with_it() {
    let key = ObjectKey::new("services", "kube-system", "kube-dns");
    let (config, kind) = (ApiConfig::new("c", "0"), by_plural("", "v1", "services").unwrap());
    let mut view = View::default();
    let mut along = Transaction::default();
    let address = address_key("10.96.0.10".parse().unwrap());
    claim(address.clone(), address_claim(&key), Timestamp::UNIX_EPOCH, &mut along);
    put(&mut view, &along);
    let mut service = json!({ "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 53 }] } });
    assert!(check(&view, None, &mut service.clone()).is_err(), "another service does not get it");
    kind.defaults(&mut service);
    let (operation, user) = (Operation::Create, UserInfo::anonymous());
    let write = Write { operation, kind, key: &key, view: &view, config: &config, user: &user, old: None };
    let along = allocate(&write, None, &mut service).unwrap();
    assert!(along.writes.is_empty());
    assert_eq!(along.preconditions[0], Precondition { key: address.clone(), expect: Expect::Revision(3) });
    let draft = metadata::draft("Service", "v1", &service);
    let service = Object::from_draft(key, &draft, 4).unwrap();
    assert_eq!(release(&view, &service).writes, []);
    assert!(keeps(&view, view.get(&address).unwrap()).is_some());
}

#[test]
fn fields_of_the_old_type_go_with_it() {
    let old = json!({ "spec": { "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30100,
        "allocateLoadBalancerNodePorts": false, "loadBalancerClass": "a", "ports": [{ "port": 80 }] } });
    let mut new = old.clone();
    new["spec"]["type"] = "ClusterIP".into();
    check(&View::default(), Some(&old), &mut new).unwrap();
    for field in SERVICE_FIELDS_OF_A_TYPE {
        assert!(new["spec"].get(field).is_none(), "{field}");
    }
    let mut other = old.clone();
    other["spec"]["externalTrafficPolicy"] = "Cluster".into();
    check(&View::default(), Some(&old), &mut other).unwrap();
    assert!(other["spec"].get("healthCheckNodePort").is_none());
    assert_eq!(other["spec"]["loadBalancerClass"], "a");
}

#[test]
fn many_ports_keep_and_find_their_node_ports_at_once() {
    let ports: Vec<Value> = (0..2000).map(|at| json!({ "name": format!("p{at}"), "port": at + 1 })).collect();
    let mut view = View::default();
    let mut service = json!({ "spec": { "type": "NodePort", "ports": ports } });
    let began = std::time::Instant::now();
    let along = check(&view, None, &mut service).unwrap();
    assert_eq!(along.writes.len(), 2001);
    put(&mut view, &along);
    let mut update = json!({ "spec": { "type": "NodePort", "ports": ports } });
    assert!(check(&view, Some(&service), &mut update).unwrap().writes.is_empty());
    assert_eq!(update["spec"]["ports"], service["spec"]["ports"]);
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn headless_and_external_services_claim_nothing() {
    for spec in [
        json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }),
        json!({ "type": "ExternalName", "externalName": "x.y" }),
    ] {
        let mut service = json!({ "spec": spec });
        assert!(check(&View::default(), None, &mut service).unwrap().writes.is_empty());
    }
}
