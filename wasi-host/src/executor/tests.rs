//! The executor without WebAssembly: wakes, aborts, panics, shares.

use super::*;

fn executor() -> Executor {
    Executor::start(1, &tokio::runtime::Handle::current(), || {}).expect("threads")
}

fn group(executor: &Executor) -> Arc<Group> {
    executor.group(DEFAULT_WEIGHT, Vec::new(), Arc::new(AtomicU64::new(0)))
}

#[tokio::test]
async fn tasks_run_wake_and_may_use_the_runtimes_timers() {
    let executor = executor();
    let group = group(&executor);
    let task = executor.spawn(&group, None, async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
        7
    });
    assert_eq!(task.await.expect("it ran"), 7);
}

#[tokio::test]
async fn a_panic_ends_its_task_and_no_other() {
    let executor = executor();
    let group = group(&executor);
    let failing = executor.spawn(&group, None, async { panic!("on purpose") });
    assert!(matches!(failing.await, Err(JoinError::Panicked(message)) if message == "on purpose"));
    assert_eq!(executor.spawn(&group, None, async { 1 }).await.expect("it ran"), 1);
}

#[tokio::test]
async fn a_kill_drops_what_waits_and_what_comes_later() {
    let executor = executor();
    let group = group(&executor);
    let held = Arc::new(());
    let kept = Arc::clone(&held);
    let waiting = executor.spawn(&group, None, async move {
        std::future::pending::<()>().await;
        drop(kept);
    });
    group.kill();
    assert!(matches!(waiting.await, Err(JoinError::Aborted)));
    assert_eq!(Arc::strong_count(&held), 1);
    assert!(matches!(executor.spawn(&group, None, async {}).await, Err(JoinError::Aborted)));
}

#[tokio::test]
async fn expired_tasks_are_ended_where_they_wait() {
    let executor = executor();
    let group = group(&executor);
    let now = Instant::now();
    let waiting = executor.spawn(&group, Some(now), std::future::pending::<()>());
    let later = executor.spawn(&group, Some(now + Duration::from_secs(60)), async { 2 });
    group.abort_expired(now);
    assert!(matches!(waiting.await, Err(JoinError::Aborted)));
    assert_eq!(later.await.expect("not due"), 2);
}
