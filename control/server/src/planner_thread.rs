//! Threads of the leader's planners: a plan takes up to a tenth of a second and a look at the whole state longer, and
//! nobody's request may wait behind that.
//!
//! What a planner waits for (events, outcomes, time) is of the runtime that it was begun on; only its own work is not.

use std::{
    convert::Infallible,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

/// Those who must know when all threads of a leadership have ended.
pub struct Muster(mpsc::Receiver<Infallible>);

/// Held by each thread until its end.
#[derive(Clone)]
pub struct OnDuty {
    _held: mpsc::Sender<Infallible>,
}

/// For one leadership.
pub fn muster() -> (OnDuty, Muster) {
    let (on_duty, muster) = mpsc::channel(1);
    (OnDuty { _held: on_duty }, Muster(muster))
}

impl Muster {
    /// Returns once nobody is on duty any more.
    pub async fn dismissed(mut self) {
        // Nothing is ever sent.
        let _: Option<Infallible> = self.0.recv().await;
    }
}

/// Does the work on a thread of its own and returns once that has ended: by itself, or because it panicked. Where this is
/// dropped before, the thread ends as soon as the work waits for something.
pub async fn run<W: Future<Output = ()>>(
    name: &'static str,
    on_duty: OnDuty,
    work: impl FnOnce() -> W + Send + 'static,
) {
    let dropped = CancellationToken::new();
    let _dropped = dropped.clone().drop_guard();
    let (end, ended) = oneshot::channel::<Infallible>();
    let runtime = Handle::current();
    let body = move || {
        let worked = AssertUnwindSafe(|| runtime.block_on(dropped.run_until_cancelled(work())));
        // While the whole process stops, the runtime may be gone before its threads.
        if catch_unwind(worked).is_err() && !dropped.is_cancelled() {
            tracing::error!(thread = name, "a planner of the leader panicked");
        }
        drop(end);
        drop(on_duty);
    };
    match thread::Builder::new().name(name.to_owned()).spawn(body) {
        Ok(_) => drop(ended.await),
        Err(error) => tracing::error!(%error, thread = name, "a planner of the leader has no thread"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_plan_that_takes_long_holds_up_nobody() {
        let (on_duty, muster) = muster();
        let (go_on, held_up) = sync_channel::<()>(1);
        let (tell, mut told) = mpsc::channel(1);
        let planner = run("planner", on_duty, move || async move {
            // With the thread of this runtime it would wait for ever.
            held_up.recv().unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            tell.send(thread::current().name().map(str::to_owned)).await.unwrap();
        });
        let others = async {
            tokio::task::yield_now().await;
            go_on.send(()).unwrap();
        };
        tokio::join!(planner, others);
        assert_eq!(told.recv().await.flatten().as_deref(), Some("planner"));
        muster.dismissed().await;
    }

    #[tokio::test]
    async fn a_planner_ends_with_its_leadership_and_is_waited_for() {
        let (on_duty, muster) = muster();
        let (begun, has_begun) = oneshot::channel();
        let (go_on, held_up) = sync_channel::<()>(1);
        let work = move || async move {
            begun.send(()).unwrap();
            held_up.recv().unwrap();
            std::future::pending::<()>().await;
        };
        let planner = tokio::spawn(run("planner", on_duty, work));
        has_begun.await.unwrap();
        planner.abort();
        assert!(planner.await.unwrap_err().is_cancelled());
        let mut dismissed = std::pin::pin!(muster.dismissed());
        assert!(dismissed.as_mut().now_or_never().is_none(), "it is in the middle of a plan");
        go_on.send(()).unwrap();
        dismissed.await;
    }

    #[tokio::test]
    async fn a_planner_that_panics_is_noticed() {
        let (on_duty, muster) = muster();
        run("planner", on_duty, || async { panic!("a fault of ours") }).await;
        muster.dismissed().await;
    }
}
