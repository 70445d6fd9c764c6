//! Keeps the claims of service addresses and node ports: what a service has is claimed as long as it lives.

use coracle_api::{ApiConfig, Storage, WriteError, lost_claims, write};
use coracle_controllers::{EventRecord, EventType};
use coracle_objects::{
    EventKind, Object, ObjectKey, View,
    claims::{ADDRESSES, PORTS, claimed_by},
};
use coracle_storage::ReplicatedStorage;
use tokio::{task::consume_budget, time::sleep};

use crate::{events::EventRecorder, membership::RETRY_PAUSE};

const COMPONENT: &str = "ipallocator-repair-controller";

/// Puts back what is missing, at once and whenever a claim goes, as long as this member leads.
pub async fn keep(storage: &ReplicatedStorage, recorder: &EventRecorder) {
    loop {
        let (view, mut events) = storage.hub().follow();
        let services: Vec<ObjectKey> =
            view.list("services", None).map(|service| service.key.clone()).collect();
        // No view is held while writes wait.
        drop(view);
        for service in &services {
            repair(storage, recorder, service).await;
            consume_budget().await;
        }
        // Where events were lost, all services are looked at again.
        while let Ok(happened) = events.next().await {
            let lost = happened.iter().filter(|event| event.kind == EventKind::Deleted);
            for service in lost.filter_map(|event| claimant(&event.object)) {
                repair(storage, recorder, &service).await;
            }
        }
    }
}

/// The service that a claim was of.
fn claimant(object: &Object) -> Option<ObjectKey> {
    if ![ADDRESSES, PORTS].contains(&object.key.resource.as_str()) {
        return None;
    }
    let owner = claimed_by(object);
    let (namespace, name) = owner.split_once('/')?;
    Some(ObjectKey::new("services", namespace, name))
}

async fn repair(storage: &ReplicatedStorage, recorder: &EventRecorder, service: &ObjectKey) {
    let config = ApiConfig::new("", "");
    let lost =
        |view: &View| view.get(service).map(|object| lost_claims(view, &config, object)).unwrap_or_default();
    loop {
        match write(storage, |view| lost(view).transaction).await {
            Ok(None) => break,
            Ok(Some(_)) => {
                tracing::warn!(%service, "claims of a service were missing and are put back");
                break;
            }
            // What is refused is refused again.
            Err(WriteError::Refused(refusal)) => {
                tracing::error!(?refusal, %service, "the claims of a service cannot be put back");
                break;
            }
            Err(error) => {
                tracing::debug!(%error, %service, "the claims of a service are not put back yet");
                sleep(RETRY_PAUSE).await;
            }
        }
    }
    let view = storage.view();
    for (claim, other) in lost(&view).taken {
        tracing::warn!(%service, %claim, other, "a service has what another one claims");
        let Some(object) = view.get(service) else { continue };
        recorder.record(&EventRecord {
            regarding: service.clone(),
            uid: object.meta.uid.clone(),
            type_: EventType::Warning,
            reason: "ClaimedByAnother".into(),
            message: format!(
                "{} is claimed by the service {other}, which alone has its traffic: delete one of the two services and \
                 make it anew",
                claim.name.name
            ),
            reporting_component: COMPONENT,
        });
    }
}
