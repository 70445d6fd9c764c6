//! Read, decide, propose, and again where the state has moved on meanwhile.

use std::sync::Arc;

use bytes::Bytes;
use coracle_objects::{
    CLUSTER_INFO_KEPT, Object, ObjectKey, Precondition, Transaction, View, Write, is_cluster_info,
};

use crate::{error::ApiError, storage::Storage};

/// How often a write is decided anew because its preconditions no longer held.
const ATTEMPTS_MAX: usize = 16;

/// What a request has decided to do, given a state.
#[derive(Clone, Debug)]
pub struct Plan {
    pub subject: Subject,
    /// What must hold beside the subject's own precondition, and what else is written with it.
    pub extra: Extra,
}

/// Preconditions and writes that belong to a plan's main write.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    pub preconditions: Vec<Precondition>,
    pub writes: Vec<Write>,
}

impl Extra {
    pub fn and(&mut self, other: Extra) {
        self.preconditions.extend(other.preconditions);
        self.writes.extend(other.writes);
    }
}

/// The object that a request is about.
#[derive(Clone, Debug)]
pub enum Subject {
    Create { key: ObjectKey, draft: Bytes },
    Update { old: Arc<Object>, draft: Bytes },
    Delete { old: Arc<Object> },
}

/// What has been done.
#[derive(Clone, Debug)]
pub struct Done {
    /// The object as it now is; of a deletion, as it last was.
    pub object: Arc<Object>,
    pub deleted: bool,
}

/// Carries out what `decide` plans. It is called with the local state first, and with a linearizable one whenever the
/// local state led to an error or the plan's preconditions did not hold.
pub async fn transact<S: Storage>(
    storage: &S,
    dry_run: bool,
    mut decide: impl FnMut(&View) -> Result<Plan, ApiError> + Send,
) -> Result<Done, ApiError> {
    let mut view = storage.view();
    let mut fresh = false;
    let mut refusal = None;
    for _ in 0..ATTEMPTS_MAX {
        let plan = match decide(&view) {
            Ok(plan) => plan,
            Err(error) if fresh => return Err(error),
            Err(_) => decide(&*storage.linearizable().await?)?,
        };
        refuse_cluster_info(&plan)?;
        if dry_run {
            return would_be(plan);
        }
        match storage.propose(transaction(&plan)).await? {
            Ok(applied) => {
                // The subject is the first write.
                let revision = applied.revisions.first().copied().unwrap_or(applied.revision);
                return done(plan, revision);
            }
            Err(refused) => {
                refusal = Some(refused);
                view = storage.linearizable().await?;
                fresh = true;
            }
        }
    }
    Err(refusal.map_or_else(|| ApiError::Internal("no attempt was made".to_owned()), ApiError::from_refusal))
}

/// Every write of a client comes by here.
fn refuse_cluster_info(plan: &Plan) -> Result<(), ApiError> {
    let key = match &plan.subject {
        Subject::Create { key, .. } => key,
        Subject::Update { old, .. } | Subject::Delete { old } => &old.key,
    };
    if !is_cluster_info(key) {
        return Ok(());
    }
    let (resource, name) = (Some(key.resource.clone()), key.name.name.to_string());
    Err(ApiError::Forbidden { resource, name, reason: CLUSTER_INFO_KEPT.to_owned() })
}

fn transaction(plan: &Plan) -> Transaction {
    let mut transaction = match &plan.subject {
        Subject::Create { key, draft } => Transaction::create(key.clone(), draft.clone()),
        Subject::Update { old, draft } => Transaction::update(old.key.clone(), draft.clone(), old.revision),
        Subject::Delete { old } => Transaction::delete(old.key.clone(), old.revision),
    };
    transaction.preconditions.extend(plan.extra.preconditions.iter().cloned());
    transaction.writes.extend(plan.extra.writes.iter().cloned());
    transaction
}

fn would_be(plan: Plan) -> Result<Done, ApiError> {
    let revision = match &plan.subject {
        Subject::Create { .. } => 0,
        Subject::Update { old, .. } | Subject::Delete { old } => old.revision,
    };
    done(plan, revision)
}

fn done(plan: Plan, revision: u64) -> Result<Done, ApiError> {
    let broken = |error: coracle_objects::ObjectError| ApiError::Internal(error.to_string());
    match plan.subject {
        Subject::Create { key, draft } => {
            let object = Object::from_draft(key, &draft, revision).map_err(broken)?;
            Ok(Done { object: Arc::new(object), deleted: false })
        }
        Subject::Update { old, draft } => {
            let object = Object::from_draft(old.key.clone(), &draft, revision).map_err(broken)?;
            Ok(Done { object: Arc::new(object), deleted: false })
        }
        Subject::Delete { old } => Ok(Done { object: Arc::new(old.at_revision(revision)), deleted: true }),
    }
}
