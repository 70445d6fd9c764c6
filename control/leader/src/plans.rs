//! What planners' plans and the answers to them are to the leader.

use std::time::Duration;

use coracle_api::ProposeError;
use coracle_controllers::{EventRecord, EventType, Outcome};
use coracle_objects::{Applied, Refusal, Transaction};
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
        // What it is for goes with it.
        Err(ProposeError::Denied(error)) if error.is_of_ending_namespace() => Outcome::Stale,
        Err(error @ ProposeError::Denied(_)) => Outcome::Impossible(error.to_string()),
        Err(ProposeError::Unavailable(_) | ProposeError::Unknown(_)) => Outcome::Unknown,
    }
}
