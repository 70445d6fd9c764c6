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

#[tokio::test]
async fn a_task_that_is_stuck_leaves_the_others_a_thread() {
    let executor = executor();
    let (tell, told) = std::sync::mpsc::channel();
    // The first ones block the only thread, and as many more, until the last has run.
    let stuck: Vec<_> = (0..3)
        .map(|at| {
            let (tell, told) = std::sync::mpsc::channel();
            let group = group(&executor);
            let wait = async move { told.recv_timeout(Duration::from_secs(60)) };
            (at, tell, executor.spawn(&group, None, wait))
        })
        .collect();
    let waiting =
        executor.spawn(&group(&executor), None, async move { told.recv_timeout(Duration::from_secs(60)) });
    executor
        .spawn(&group(&executor), None, async move { tell.send(7) })
        .await
        .expect("it ran")
        .expect("heard");
    assert_eq!(waiting.await.expect("it ran"), Ok(7));
    for (at, tell, stuck) in stuck {
        tell.send(at).expect("heard");
        assert_eq!(stuck.await.expect("it ran"), Ok(at));
    }
}

#[tokio::test]
async fn a_group_that_runs_long_in_one_piece_is_a_heavy_one_for_a_while() {
    let executor = executor();
    let (light, heavy) = (group(&executor), group(&executor));
    let burn = |time: Duration| {
        let mut used_ns = 0;
        take_thread_cpu_ns();
        // What it takes from the account for itself it puts back.
        while used_ns < time.as_nanos() as u64 {
            used_ns += take_thread_cpu_ns();
        }
        CHARGED_NS.with(|charged| charged.set(charged.get() - used_ns));
    };
    executor.spawn(&light, None, async move { burn(Duration::from_millis(2)) }).await.expect("it ran");
    executor.spawn(&heavy, None, async move { burn(Duration::from_millis(30)) }).await.expect("it ran");
    // The outcome is told before the account is kept.
    let now = Instant::now();
    let kept = async {
        while !heavy.is_heavy(now) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), kept).await.expect("it is a heavy one");
    assert!(!light.is_heavy(now) && !heavy.is_heavy(now + crew::HEAVY_FOR * 2));
}
