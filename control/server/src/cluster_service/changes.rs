//! Carries out what administrators ask of the members, from whichever member they ask.

use std::{collections::BTreeMap, future::Future, time::Duration};

use coracle_api::Storage;
use coracle_proto::cluster::{MemberRequest, ReplaceRequest, cluster_client::ClusterClient};
use coracle_raft::ChangeError;
use coracle_storage::{ReplicatedStorage, peers::members};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status, transport::Channel};

use super::plan::{Members, Operation, Refused, Step};
use crate::{
    bootstrap::{self, CLUSTER_INFO},
    forwarding::{forwarding, not_leading},
    membership::keeper,
};

/// Until an operation must be done, hand-overs of leadership included, and between two tries.
const DONE_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A leader that has just begun has not heard of everybody yet: for so long it does not take that for an answer.
const HEALTH_PATIENCE: Duration = Duration::from_secs(2);

/// Why a try did not do it, and for how long after the first try that is no reason to give up.
struct Failure {
    status: Status,
    patience: Duration,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let patience = if status.code() == Code::Unavailable { DONE_TIMEOUT } else { Duration::ZERO };
        Self { status, patience }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let patience = if refused.depends_on_health() { HEALTH_PATIENCE } else { Duration::ZERO };
        let status = match refused {
            Refused::Unknown(_) => Status::not_found(refused.to_string()),
            Refused::Ambiguous { .. } | Refused::Nobody => Status::invalid_argument(refused.to_string()),
            _ => Status::failed_precondition(refused.to_string()),
        };
        Self { status, patience }
    }
}

/// Carries an operation out here where this member leads, else by the leader; through changes of leadership.
pub async fn carry_out(
    storage: &ReplicatedStorage,
    operation: Operation,
    forwarded: bool,
) -> Result<(), Status> {
    let begun = Instant::now();
    let deadline = begun + DONE_TIMEOUT;
    let mut operation = operation;
    let mut reason = Status::unavailable("no leader is known; the cluster has no quorum, or elects one now");
    while Instant::now() < deadline {
        let tried = if storage.leads() {
            timeout_at(deadline, try_here(storage, &mut operation)).await
        } else if forwarded {
            return Err(not_leading());
        } else {
            match storage.leader_channel() {
                Some(channel) => timeout_at(deadline, hand_on(channel, &operation)).await,
                None => Ok(Err(reason.clone().into())),
            }
        };
        match tried {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => continue,
            Ok(Err(Failure { status, patience })) if begun.elapsed() < patience => reason = status,
            Ok(Err(Failure { status, .. })) => return Err(status),
            Err(_) => break,
        }
        sleep(RETRY_PAUSE).await;
    }
    Err(reason)
}

/// One step on the leader; whether it was the last.
async fn try_here(storage: &ReplicatedStorage, operation: &mut Operation) -> Result<bool, Failure> {
    let view = storage.linearizable().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let status = storage.status();
    if status.progress.is_empty() {
        return Err(Status::unavailable("this member has just begun or ended to lead; try again").into());
    }
    let names: BTreeMap<u64, String> =
        members(&view).into_iter().map(|(id, member)| (id, member.name)).collect();
    let next_id = view.get(&CLUSTER_INFO.key()).map_or(0, |info| bootstrap::next_member_id(info));
    let known = Members { status: &status, names: &names, next_id };
    *operation = operation.by_id(&known)?;
    match known.step(operation)? {
        Step::Done => Ok(true),
        Step::HandOver { to } => {
            storage.raft().transfer_leader(to).await.map_err(change_status)?;
            tracing::info!(to, "leadership handed over as an administrator asked");
            Ok(matches!(operation, Operation::Transfer(_)))
        }
        Step::Change { changes, forget } => {
            if !changes.is_empty() {
                storage.raft().change_members(changes.clone()).await.map_err(change_status)?;
                tracing::info!(?changes, "members changed as an administrator asked");
            }
            for id in forget {
                keeper::forget(storage, id).await;
            }
            Ok(true)
        }
    }
}

async fn hand_on(leader: Channel, operation: &Operation) -> Result<bool, Failure> {
    let mut leader = ClusterClient::new(leader);
    match operation.clone() {
        Operation::Promote(members) => leader.promote(forwarding(MemberRequest { members })).await,
        Operation::Remove(members) => leader.remove(forwarding(MemberRequest { members })).await,
        Operation::Replace { old, new } => leader.replace(forwarding(ReplaceRequest { old, new })).await,
        Operation::Transfer(member) => {
            leader.transfer_leader(forwarding(MemberRequest { members: vec![member] })).await
        }
    }
    .map(|_| true)
    .map_err(Failure::from)
}

/// What may go otherwise when it is tried again is `Unavailable`.
fn change_status(error: ChangeError) -> Status {
    match error {
        ChangeError::UnknownMember { .. } => Status::not_found(error.to_string()),
        ChangeError::NotCaughtUp { .. } | ChangeError::LastVoter | ChangeError::IdUsed { .. } => {
            Status::failed_precondition(error.to_string())
        }
        _ => Status::unavailable(error.to_string()),
    }
}

/// Waits for an answer of another member, but not for long.
pub async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, Status>>) -> Option<T> {
    tokio::time::timeout(limit, answer).await.ok()?.ok()
}
