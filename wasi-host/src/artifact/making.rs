//! Components that are being compiled: at most one compile of the same bytes at a time, for all that wait for it, as long as
//! anybody does.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use super::PrepareError;
use super::check::Source;
use super::pipeline::Pipeline;
use super::turns::{Job, Waiting};

/// Whether a component was compiled.
type Outcome = Result<(), PrepareError>;

/// A component that is compiled. It ends with the last one that waits for it.
pub(super) struct Making {
    outcome: WeakShared<BoxFuture<'static, Outcome>>,
    job: Arc<Job>,
}

/// One that waits for a compile. Fields are dropped in this order.
pub(super) struct Waiter {
    outcome: Shared<BoxFuture<'static, Outcome>>,
    _waiting: Waiting,
    _leaving: Leaving,
}

/// Takes the compile off the shelf where nobody waits for it.
struct Leaving {
    pipeline: Arc<Pipeline>,
    digest: String,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let making = &mut self.pipeline.shelf.lock().making;
        if making.get(&self.digest).is_some_and(|making| making.outcome.upgrade().is_none()) {
            making.remove(&self.digest);
        }
    }
}

impl Waiter {
    /// Waits for the compile with those that wait already, or has it made.
    pub(super) fn join(
        pipeline: &Arc<Pipeline>,
        source: Source,
        namespace: &Arc<str>,
    ) -> Result<Waiter, PrepareError> {
        let mut shelf = pipeline.shelf.lock();
        let digest = source.digest.clone();
        let under_way = shelf.making.get(&digest).and_then(|making| {
            let outcome = making.outcome.upgrade()?;
            Some((outcome, Arc::clone(&making.job)))
        });
        let (outcome, job) = under_way.unwrap_or_else(|| {
            let job = pipeline.turns.job();
            let making = make(Arc::clone(pipeline), source, Arc::clone(&job));
            (making.boxed().shared(), job)
        });
        let waiting = pipeline.turns.wait(&job, namespace)?;
        if let Some(weak) = outcome.downgrade() {
            shelf.making.insert(digest.clone(), Making { outcome: weak, job });
        }
        let leaving = Leaving { pipeline: Arc::clone(pipeline), digest };
        Ok(Waiter { outcome, _waiting: waiting, _leaving: leaving })
    }

    /// What comes of it.
    pub(super) async fn outcome(mut self) -> Outcome {
        (&mut self.outcome).await
    }
}

async fn make(pipeline: Arc<Pipeline>, source: Source, job: Arc<Job>) -> Outcome {
    let made = pipeline.compile(&source, &job).await;
    // The disk may have room in a moment, and nothing was tried.
    if let Err(error) = &made
        && !matches!(error, PrepareError::NoRoom)
    {
        pipeline.failures.remember(&source.digest, error);
    }
    made
}
