//! Lines of pods, turns of namespaces, and what hangs.

use std::sync::mpsc;

use futures::FutureExt as _;

use super::*;
use crate::shares::Certain;

fn holder(namespace: &str, pod: u8) -> Holder {
    Holder { namespace: namespace.into(), pod: Some([10, 128, 0, pod].into()) }
}

/// Calls that wait until they are let go.
struct Stuck {
    calls: Vec<Call<()>>,
    lets_go: Vec<mpsc::Sender<()>>,
}

fn stuck(pool: &Pool, holder: &Holder, count: usize) -> Stuck {
    let (lets_go, waits): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel::<()>()).unzip();
    let calls = waits.into_iter().map(|wait| pool.call(holder, move || wait.recv().unwrap_or(()))).collect();
    Stuck { calls, lets_go }
}

/// Waits for what comes to an end, where the pool does as it should.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it comes to an end")
}

async fn until(holds: impl Fn() -> bool) {
    let reached = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    soon(reached).await;
}

#[tokio::test]
async fn what_hangs_keeps_its_place_and_holds_up_nobody_else() {
    let pool = Pool::new("test", 12, 0);
    let first = stuck(&pool, &holder("a", 1), 20);
    assert_eq!((pool.running(), pool.waiting()), (4, 16), "a pod has a third");
    let second = stuck(&pool, &holder("a", 2), 20);
    assert_eq!((pool.running(), pool.waiting()), (6, 34), "a namespace has half");
    assert_eq!(soon(pool.call(&holder("b", 3), || 7)).await, Ok(7));
    // Given up: what waits is gone, what runs is not. What is done is told before its place is free.
    drop((first.calls, second.calls));
    until(|| (pool.running(), pool.waiting()) == (6, 0)).await;
    let mut again = pool.call(&holder("a", 2), || 7);
    assert_eq!((&mut again).now_or_never(), None, "who comes back has no more places");
    assert_eq!(soon(pool.call(&holder("b", 3), || 8)).await, Ok(8));
    assert!(pool.threads() <= 12);
    drop((first.lets_go, second.lets_go));
    assert_eq!(soon(again).await, Ok(7));
    until(|| pool.running() == 0).await;
}

#[tokio::test]
async fn all_that_waits_is_done_once_in_its_order() {
    // A pod has one place of two, and two of four: of these either may be held up in the midst of its call.
    for (size, places) in [(2, 1), (4, 2)] {
        let pool = Pool::new("test", size, 0);
        let held = stuck(&pool, &holder("a", 1), places);
        let (told, order) = mpsc::channel();
        let mut calls = Vec::new();
        for number in 0..1_000 {
            let told = told.clone();
            calls.push(pool.call(&holder("a", 1), move || told.send(number)));
        }
        assert_eq!((pool.running(), pool.waiting()), (places, 1_000));
        drop(held.lets_go);
        for call in calls {
            soon(call).await.expect("done").expect("somebody listens");
        }
        drop(told);
        let mut order: Vec<usize> = order.iter().collect();
        if places > 1 {
            order.sort_unstable();
        }
        assert!(order.into_iter().eq(0..1_000), "{places} at once");
        assert!(pool.threads() <= size);
    }
}

#[tokio::test]
async fn a_panic_costs_its_call_alone() {
    let pool = Pool::new("test", 2, 0);
    for _ in 0..10 {
        assert_eq!(
            soon(pool.call(&holder("a", 1), || Vec::<u8>::new()[usize::from(true)])).await,
            Err(NotDone::Lost)
        );
    }
    assert_eq!(soon(pool.call(&holder("a", 1), || 7)).await, Ok(7));
    until(|| pool.running() == 0).await;
}

#[tokio::test]
async fn a_line_has_an_end_for_calls_and_none_for_what_frees() {
    let pool = Pool::new("test", 2, 0);
    let held = stuck(&pool, &holder("a", 1), 1 + WAITING_MAX);
    assert_eq!(pool.waiting(), WAITING_MAX);
    assert_eq!(soon(pool.call(&holder("a", 1), || 7)).await, Err(NotDone::Full));
    assert!(pool.call(&holder("a", 2), || 7).now_or_never().is_none(), "another pod's line is its own");
    let (told, freed) = mpsc::channel();
    pool.post(&holder("a", 1), move || told.send(()).expect("somebody listens"));
    drop(held.lets_go);
    freed.recv_timeout(Duration::from_secs(60)).expect("freed");
}

#[tokio::test]
async fn a_pool_that_goes_frees_what_waits() {
    let pool = Pool::new("test", 2, 0);
    let mut held = stuck(&pool, &holder("a", 1), 3);
    drop(pool);
    for call in held.calls.drain(1..) {
        assert_eq!(soon(call).await, Err(NotDone::Lost));
    }
    drop(held.lets_go);
    assert_eq!(held.calls.remove(0).await, Ok(()), "what runs is not ended");
}

#[test]
fn namespaces_and_pods_take_turns() {
    let mut lines = Lines::new(Shares::new(What::Calls, 1_000));
    for number in 0..100 {
        lines.join(&holder("a", 1), number, "a1");
    }
    lines.join(&holder("a", 2), 100, "a2");
    lines.join(&holder("b", 3), 101, "b3");
    lines.join(&holder("b", 3), 102, "left");
    assert_eq!(lines.leave(&holder("b", 3), 102), Some("left"));
    assert_eq!(lines.leave(&holder("b", 3), 102), None);
    let order: Vec<_> = std::iter::from_fn(|| lines.next()).take(4).map(|(_, what)| what).collect();
    assert_eq!(order, ["a1", "b3", "a2", "a1"]);
    assert_eq!((lines.len(), lines.waiting(&holder("a", 1))), (98, 98));
    assert_eq!(lines.waiting(&holder("b", 3)), 0);
}

#[test]
fn who_has_a_share_is_passed_over() {
    let shares = Shares::new(What::Calls, 12);
    let mut lines = Lines::new(Arc::clone(&shares));
    let held: Vec<_> = std::iter::from_fn(|| shares.take(&holder("a", 1)).ok()).collect();
    lines.join(&holder("a", 1), 0, "sated");
    lines.join(&holder("a", 2), 1, "a2");
    lines.join(&holder("b", 3), 2, "b3");
    let mut places = Vec::new();
    let mut order = Vec::new();
    while let Some((place, what)) = lines.next() {
        places.push(place);
        order.push(what);
    }
    assert_eq!(order, ["a2", "b3"]);
    drop((places, held));
    assert_eq!(lines.next().map(|(_, what)| what), Some("sated"));
    lines.join(&holder("c", 4), 3, "given up");
    assert_eq!(lines.leave(&holder("c", 4), 3), Some("given up"));
    assert_eq!((lines.len(), lines.namespaces()), (0, 0), "nothing is left of those who waited");
}

#[test]
fn who_has_a_share_is_passed_over_where_something_is_certain() {
    let shares = Shares::with_certain(What::Calls, 2, Certain { each: 1, all: 4 });
    let mut lines = Lines::new(Arc::clone(&shares));
    let mut held: Vec<_> = ["a", "x"]
        .iter()
        .flat_map(|name| std::iter::from_fn(|| shares.take(&holder(name, 1)).ok()))
        .collect();
    assert_eq!(held.len(), 4, "all that is shared, and what is certain of each");
    // The pod that holds the namespace's place is passed over, and not the next of the namespace.
    for (number, (name, pod)) in [("a", 1), ("a", 2), ("x", 1), ("b", 3), ("c", 4)].into_iter().enumerate() {
        lines.join(&holder(name, pod), number as u64, number);
    }
    let mut order = Vec::new();
    while let Some((place, what)) = lines.next() {
        held.push(place);
        order.push(what);
    }
    assert_eq!((order, shares.held()), (vec![1, 3], shares.size()));
    drop(held);
    let rest: Vec<_> = std::iter::from_fn(|| lines.next()).map(|(_, what)| what).collect();
    assert_eq!(rest.len(), 3);
}

#[tokio::test]
async fn a_pod_whose_neighbours_have_all_threads_wait_for_ever_has_one_of_its_own() {
    let shares = Shares::with_certain(What::Calls, 8, Certain { each: 1, all: 16 });
    let pool = Pool::with("test", shares, 0);
    let greedy: Vec<_> = (0..6).map(|at| stuck(&pool, &holder(&at.to_string(), 1), 20)).collect();
    assert_eq!(pool.running(), 8 + 6, "all that is shared, and one each");
    for pod in 1..4 {
        assert_eq!(soon(pool.call(&holder("modest", pod), || 7)).await, Ok(7));
    }
    drop(greedy);
    until(|| pool.running() == 0).await;
}

#[test]
fn a_thread_between_two_calls_is_one_of_those_that_there_may_be() {
    let pool = Pool::new("test", 1, 0);
    let ((begun, begins), (end, ends)) = (mpsc::channel(), mpsc::channel::<()>());
    let _first = pool.call(&holder("a", 1), move || {
        let _ = begun.send(());
        let _ = ends.recv();
    });
    begins.recv().expect("it begins");
    let mut state = pool.shared.state.lock();
    drop(end);
    // It has given its place back, and is about to look for more.
    while state.lines.shares().held() > 0 {
        std::thread::yield_now();
    }
    let (told, done) = mpsc::channel();
    state.lines.join(&holder("b", 2), 7, Box::new(move || told.send(()).unwrap_or(())));
    drop(pool.shared.admit(&mut state, 0));
    assert_eq!(state.threads, 1);
    drop(state);
    done.recv().expect("done by the thread that there is");
}
