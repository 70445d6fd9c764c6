//! What planners' plans and the answers to them are to the leader.

use std::time::Duration;

use coracle_api::ProposeError;
use coracle_controllers::{EventRecord, EventType, Outcome};
use coracle_objects::{Applied, Expect, Precondition, Refusal, Transaction, View, Write};
use coracle_scheduler::{Decisions, Fault};

/// After a plan of which nothing could be proposed.
pub const FAILURE_PAUSE: Duration = Duration::from_millis(500);

/// The transactions of all decisions, and for each the event that tells of it once it is applied.
pub fn of_decisions(decisions: Decisions) -> (Vec<Transaction>, Vec<EventRecord>) {
    let placed = decisions.placements.into_iter().map(|placement| {
        let message = placement.message();
        let record = EventRecord {
            regarding: placement.pod,
            uid: placement.uid,
            type_: EventType::Normal,
            reason: "Scheduled".into(),
            message,
            reporting_component: coracle_scheduler::BINDING_COMPONENT,
        };
        (placement.transaction, record)
    });
    let unplaced = decisions.failures.into_iter().map(|failure| {
        let record = EventRecord {
            regarding: failure.pod,
            uid: failure.uid,
            type_: EventType::Warning,
            reason: "FailedScheduling".into(),
            message: failure.message,
            reporting_component: coracle_scheduler::BINDING_COMPONENT,
        };
        (failure.transaction, record)
    });
    placed.chain(unplaced).unzip()
}

/// What tells of a pod or node of which the scheduler could make nothing.
pub fn warning_of(fault: &Fault) -> EventRecord {
    EventRecord {
        regarding: fault.regarding.clone(),
        uid: fault.uid.clone(),
        type_: EventType::Warning,
        reason: fault.reason.into(),
        message: fault.message.clone(),
        reporting_component: coracle_scheduler::BINDING_COMPONENT,
    }
}

/// What an answer means for the task that planned the transaction.
pub fn outcome(answer: Result<Result<Applied, Refusal>, ProposeError>) -> Outcome {
    match answer {
        Ok(Ok(_)) => Outcome::Applied,
        Ok(Err(refusal)) => refusal.into(),
        Err(error @ (ProposeError::TooLarge { .. } | ProposeError::NoSpace)) => {
            Outcome::Impossible(error.to_string())
        }
        Err(ProposeError::Unavailable(_) | ProposeError::Unknown(_)) => Outcome::Unknown,
    }
}

/// Adds to a transaction that deletes services what else goes with them: their addresses and node ports.
pub fn releasing(view: &View, mut transaction: Transaction) -> Transaction {
    let deleted = transaction.writes.iter().filter_map(|write| match write {
        Write::Delete { key } if key.resource.as_str() == "services" => view.get(key).cloned(),
        _ => None,
    });
    for service in deleted.collect::<Vec<_>>() {
        let extra = coracle_api::release(view, &service);
        // A service that has changed meanwhile may hold other claims.
        let expect = Expect::Revision(service.revision);
        transaction.preconditions.push(Precondition { key: service.key.clone(), expect });
        transaction.preconditions.extend(extra.preconditions);
        transaction.writes.extend(extra.writes);
    }
    transaction
}

#[cfg(test)]
mod tests {
    use coracle_objects::{Object, ObjectKey};
    use serde_json::{Value, json};

    use super::*;

    fn put(view: &mut View, key: &ObjectKey, body: Value) {
        let mut draft = json!({ "metadata": { "name": *key.name.name, "namespace": *key.name.namespace } });
        draft["spec"] = body;
        let object = Object::from_draft(key.clone(), draft.to_string().as_bytes(), 1).unwrap();
        view.tables.entry(key.resource.clone()).or_default().insert(key.name.clone(), object.into());
    }

    #[test]
    fn a_service_goes_with_its_claims() {
        let mut view = View::default();
        let service = ObjectKey::new("services", "default", "web");
        let address = ObjectKey::new("ipaddresses.networking.k8s.io", "", "10.96.1.2");
        let port = ObjectKey::new("portallocations.coracle.dev", "", "30080");
        let ports = json!([{ "port": 80, "nodePort": 30080 }]);
        put(&mut view, &service, json!({ "type": "NodePort", "clusterIP": "10.96.1.2", "ports": ports }));
        put(&mut view, &address, json!({ "parentRef": { "namespace": "default", "name": "web" } }));
        put(&mut view, &port, json!({ "service": "default/web" }));
        let extended = releasing(&view, Transaction::delete(service.clone(), 1));
        let deleted: Vec<&ObjectKey> = extended.writes.iter().map(Write::key).collect();
        assert_eq!(deleted, [&service, &address, &port]);
        let pod = Transaction::delete(ObjectKey::new("pods", "default", "web"), 1);
        assert_eq!(releasing(&view, pod.clone()), pod);
    }
}
