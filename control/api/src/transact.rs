//! Read, decide, propose, and again where the state has moved on meanwhile.

use std::{
    convert::Infallible,
    future::{Future, ready},
    sync::Arc,
};

use bytes::Bytes;
use coracle_objects::{Applied, Object, ObjectKey, Refusal, Transaction, View};
use thiserror::Error;

use crate::{
    error::ApiError,
    storage::{ProposeError, Storage, Unavailable},
};

/// How often a write is decided: anew where its preconditions no longer held.
const ATTEMPTS_MAX: usize = 16;

/// What a request has decided to do, given a state.
#[derive(Clone, Debug)]
pub struct WritePlan {
    pub subject: Subject,
    /// What must hold beside the subject's own precondition, and what else is written with it.
    pub along: Transaction,
    /// What the client should hear of it.
    pub warnings: Vec<String>,
}

impl WritePlan {
    pub fn new(subject: Subject, along: Transaction) -> Self {
        Self { subject, along, warnings: Vec::new() }
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
pub struct Written {
    /// The object as it now is; of a deletion, as it last was.
    pub object: Arc<Object>,
    pub deleted: bool,
    pub warnings: Vec<String>,
}

/// How a decision came out.
#[derive(Clone, Debug)]
pub enum Settled<T> {
    Applied(T, Applied),
    /// Nothing was proposed, as the newest state already is as decided, or the write was a dry run.
    Unchanged(T),
    /// There was nothing to be done.
    Nothing,
}

/// Why a decision was not carried out.
#[derive(Debug)]
pub enum Unsettled<E> {
    /// It could not be made, also not by the newest state.
    Undecided(E),
    Unavailable(Unavailable),
    NotProposed(ProposeError),
    Refused(Refusal),
}

/// The one loop of read, decide and propose. `decide` is called with the local state first. Whatever is told without a
/// write (a failure, a dry run, that nothing is to be done or all is done already) is told by a linearizable state. What that state itself
/// refuses is not proposed; a decision that draws by chance may be another when it is made again.
pub async fn settle<S, T, E, F>(
    storage: &S,
    dry_run: bool,
    mut decide: impl FnMut(Arc<View>) -> F + Send,
) -> Result<Settled<T>, Unsettled<E>>
where
    S: Storage,
    T: Send,
    E: Send,
    F: Future<Output = Result<Option<(Transaction, T)>, E>> + Send,
{
    let mut view = storage.view();
    let mut fresh = false;
    let mut last = None;
    for _ in 0..ATTEMPTS_MAX {
        let (transaction, plan) = match decide(view.clone()).await {
            Ok(Some(decided)) => decided,
            Ok(None) if fresh => return Ok(Settled::Nothing),
            Err(error) if fresh => return Err(Unsettled::Undecided(error)),
            Ok(None) | Err(_) => {
                view = storage.linearizable().await.map_err(Unsettled::Unavailable)?;
                fresh = true;
                continue;
            }
        };
        let refused = transaction.refused_by(&view);
        let silent = dry_run || refused.is_some() || transaction.is_idle(&view);
        if silent && !fresh {
            view = storage.linearizable().await.map_err(Unsettled::Unavailable)?;
            fresh = true;
            continue;
        }
        match refused {
            Some(refusal) if !refusal.depends_on_state() || last.as_ref() == Some(&refusal) => {
                return Err(Unsettled::Refused(refusal));
            }
            Some(refusal) => {
                last = Some(refusal);
                continue;
            }
            None if silent => return Ok(Settled::Unchanged(plan)),
            None => {}
        }
        match storage.propose(transaction.clone()).await.map_err(Unsettled::NotProposed)? {
            Ok(applied) => return Ok(Settled::Applied(plan, applied)),
            Err(refusal) if !refusal.depends_on_state() => return Err(Unsettled::Refused(refusal)),
            Err(refusal) => {
                // The local state is as new as the refusal, unless this member is cut off: then it shows no reason.
                (view, fresh) = (storage.view(), false);
                if transaction.refused_by(&view).is_none() {
                    view = storage.linearizable().await.map_err(Unsettled::Unavailable)?;
                    fresh = true;
                }
                last = Some(refusal);
            }
        }
    }
    // An attempt that neither ends nor is refused gets a newer state, and the next one does either.
    let refusal = last.expect("the last attempt was refused");
    Err(Unsettled::Refused(refusal))
}

/// Why a write of the control plane's own did not take place.
#[derive(Debug, Error)]
pub enum WriteError {
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("the write was refused: {0:?}")]
    Refused(Refusal),
    #[error("the write is not admitted: {0}")]
    Denied(Box<ApiError>),
    #[error("the object kept changing")]
    Contended,
}

/// Writes what `plan` makes of the present state, planning again where the state has moved on: see [`settle`]. `plan`
/// gives `None` where nothing is to be done. `None` where nothing was written, also because all of it is there already.
pub async fn write<S, P>(storage: &S, mut plan: P) -> Result<Option<Applied>, WriteError>
where
    S: Storage,
    P: FnMut(&View) -> Option<Transaction> + Send,
{
    let decide =
        |view: Arc<View>| ready(Ok::<_, Infallible>(plan(&view).map(|transaction| (transaction, ()))));
    match settle(storage, false, decide).await {
        Ok(Settled::Applied((), applied)) => Ok(Some(applied)),
        Ok(Settled::Unchanged(()) | Settled::Nothing) => Ok(None),
        Err(Unsettled::Undecided(never)) => match never {},
        Err(Unsettled::Unavailable(error)) => Err(error.into()),
        Err(Unsettled::NotProposed(ProposeError::Denied(error))) => Err(WriteError::Denied(error)),
        Err(Unsettled::NotProposed(error)) => Err(error.into()),
        Err(Unsettled::Refused(refusal)) if refusal.depends_on_state() => Err(WriteError::Contended),
        Err(Unsettled::Refused(refusal)) => Err(WriteError::Refused(refusal)),
    }
}

/// Carries out what `decide` plans: see [`settle`].
pub async fn transact<S, F>(
    storage: &S,
    dry_run: bool,
    mut decide: impl FnMut(Arc<View>) -> F + Send,
) -> Result<Written, ApiError>
where
    S: Storage,
    F: Future<Output = Result<WritePlan, ApiError>> + Send,
{
    let decide = |view: Arc<View>| {
        let planned = decide(view);
        async move {
            let plan = planned.await?;
            Ok(Some((transaction(&plan), plan)))
        }
    };
    match settle(storage, dry_run, decide).await {
        Ok(Settled::Applied(plan, applied)) => {
            // The subject is the first write.
            let revision = applied.revisions.first().copied().unwrap_or(applied.revision);
            done(plan, revision)
        }
        Ok(Settled::Unchanged(plan)) => would_be(plan),
        Ok(Settled::Nothing) => Err(ApiError::Internal("a request without a plan".to_owned())),
        Err(Unsettled::Undecided(error)) => Err(error),
        Err(Unsettled::Unavailable(error)) => Err(error.into()),
        Err(Unsettled::NotProposed(error)) => Err(error.into()),
        Err(Unsettled::Refused(refusal)) => Err(ApiError::from_refusal(refusal)),
    }
}

fn transaction(plan: &WritePlan) -> Transaction {
    let mut transaction = match &plan.subject {
        Subject::Create { key, draft } => Transaction::create(key.clone(), draft.clone()),
        Subject::Update { old, draft } => Transaction::update(old.key.clone(), draft.clone(), old.revision),
        Subject::Delete { old } => Transaction::delete(old.key.clone(), old.revision),
    };
    transaction.join(plan.along.clone());
    transaction
}

fn would_be(plan: WritePlan) -> Result<Written, ApiError> {
    let revision = match &plan.subject {
        Subject::Create { .. } => 0,
        Subject::Update { old, .. } | Subject::Delete { old } => old.revision,
    };
    done(plan, revision)
}

fn done(plan: WritePlan, revision: u64) -> Result<Written, ApiError> {
    let broken = |error: coracle_objects::ObjectError| ApiError::Internal(error.to_string());
    let warnings = plan.warnings;
    match plan.subject {
        Subject::Create { key, draft } => {
            let object = Object::from_draft(key, &draft, revision).map_err(broken)?;
            Ok(Written { object: Arc::new(object), deleted: false, warnings })
        }
        Subject::Update { old, draft } => {
            let object = Object::from_draft(old.key.clone(), &draft, revision).map_err(broken)?;
            Ok(Written { object: Arc::new(object), deleted: false, warnings })
        }
        Subject::Delete { old } => {
            Ok(Written { object: Arc::new(old.at_revision(revision)), deleted: true, warnings })
        }
    }
}
