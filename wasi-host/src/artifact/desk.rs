//! Where what may take long with a component is done, on account of a namespace.

use std::sync::Arc;

use super::PrepareError;
use crate::pool::{NotDone, Pool};
use crate::shares::Holder;

/// Threads, and on whose account they work.
#[derive(Clone)]
pub(crate) struct Desk {
    pool: Arc<Pool>,
    holder: Holder,
}

impl Desk {
    pub(super) fn new(pool: &Arc<Pool>, namespace: &Arc<str>) -> Desk {
        let holder = Holder { namespace: Arc::clone(namespace), pod: None };
        Desk { pool: Arc::clone(pool), holder }
    }

    /// Does it when the namespace's turn comes. Dropping this before that gives it up.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PrepareError> + Send + 'static,
    ) -> Result<T, PrepareError> {
        match self.pool.call(&self.holder, work).await {
            Ok(done) => done,
            Err(NotDone::Full) => Err(PrepareError::Busy),
            Err(NotDone::Lost) => {
                let message = "internal error of the host while the component was made ready".to_owned();
                Err(PrepareError::GivenUp { message })
            }
        }
    }
}
