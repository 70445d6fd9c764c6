//! CPU time: guests that never stop are ended, shared with, and held to their quota.

use std::time::{Duration, Instant};

use super::*;
use crate::Exit;

/// Waits until the containers have used so much CPU time together. How long that takes is the machine's affair.
async fn until_used(containers: &[&Container], cpu: Duration) -> Vec<Duration> {
    loop {
        let used: Vec<_> =
            containers.iter().map(|container| Duration::from_nanos(container.usage().cpu_ns)).collect();
        if used.iter().sum::<Duration>() >= cpu {
            return used;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_endless_loop_is_killed_at_once() {
    let bench = Bench::alone();
    let artifact = bench.prepare(&spinner()).await;
    // The best of a few: another process may hold the core for longer than the limit.
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let container = bench.start(artifact.clone());
        until_used(&[&container], Duration::from_millis(10)).await;
        let begun = Instant::now();
        container.kill();
        assert_eq!(container.wait().await, Exit::Killed);
        best = best.min(begun.elapsed());
    }
    assert!(best < Duration::from_millis(50), "{best:?}");
}

#[tokio::test]
async fn spinners_share_a_core_by_their_weights() {
    let bench = Bench::alone();
    let artifact = bench.prepare(&spinner()).await;
    let start = |weight| {
        let mut spec = bench.spec(artifact.clone());
        spec.limits.cpu_weight = weight;
        bench.pod(PodLimits::default()).start(spec).expect("started")
    };
    let (light, heavy) = (start(100), start(300));
    let used = until_used(&[&light, &heavy], Duration::from_millis(400)).await;
    let share = used[0].as_secs_f64() / (used[0] + used[1]).as_secs_f64();
    assert!((0.20..=0.30).contains(&share), "a quarter was promised, it had {share:.3}");
}

#[tokio::test]
async fn a_spinner_leaves_room_for_short_work() {
    let bench = Bench::alone();
    let spinning = bench.start(bench.prepare(&spinner()).await);
    let short = bench.prepare(&module("(call $exit (i32.const 3))")).await;
    until_used(&[&spinning], Duration::from_millis(5)).await;
    for _ in 0..20 {
        assert_eq!(bench.start(short.clone()).wait().await, Exit::Completed { code: 3 });
    }
    assert_eq!(spinning.exit(), None);
}

#[tokio::test]
async fn a_quota_holds_for_a_container_and_for_a_pod() {
    let bench = Bench::alone();
    let artifact = bench.prepare(&spinner()).await;
    let mut spec = bench.spec(artifact.clone());
    spec.limits.cpu_quota = Some(0.2);
    let begun = Instant::now();
    let container = bench.pod(PodLimits::default()).start(spec).expect("started");
    let used = until_used(&[&container], Duration::from_millis(80)).await;
    // 80 ms at a fifth of a core take 400 ms, less the burst at the start.
    assert!(begun.elapsed() > Duration::from_millis(330), "{used:?} in {:?}", begun.elapsed());
    container.kill();
    let pod = bench.pod(PodLimits { cpu_quota: Some(0.4), ..PodLimits::default() });
    let begun = Instant::now();
    let both = [0, 1].map(|_| pod.start(bench.spec(artifact.clone())).expect("started"));
    until_used(&[&both[0], &both[1]], Duration::from_millis(80)).await;
    assert!(begun.elapsed() > Duration::from_millis(150), "{:?}", begun.elapsed());
    assert!(pod.usage().cpu_ns >= 80_000_000);
}

#[tokio::test]
async fn a_throttled_guest_is_killed_at_once_too() {
    let bench = Bench::alone();
    let mut spec = bench.spec(bench.prepare(&spinner()).await);
    spec.limits.cpu_quota = Some(0.001);
    let container = bench.pod(PodLimits::default()).start(spec).expect("started");
    until_used(&[&container], Duration::from_millis(1)).await;
    container.kill();
    assert_eq!(container.wait().await, Exit::Killed);
}

/// Fills half a gigabyte sixteen times between two turns of its loop, which takes a second or more.
fn filler() -> String {
    let fill = "(memory.fill (i32.const 0) (i32.const 1) (i32.const 0x1fff0000))";
    format!(
        r#"(module (memory (export "memory") 8192) (func (export "_start") (loop $again {} (br $again))))"#,
        fill.repeat(16)
    )
}

#[tokio::test]
async fn an_instruction_that_takes_a_second_stalls_nobody_else() {
    let bench = Bench::alone();
    let short = bench.prepare(&module("(call $exit (i32.const 3))")).await;
    let artifact = bench.prepare(&filler()).await;
    // More of them than guest threads.
    let fillers: Vec<Container> = (0..3).map(|_| bench.start(artifact.clone())).collect();
    let mut waits = Vec::new();
    for _ in 0..40 {
        let begun = Instant::now();
        assert_eq!(bench.start(short.clone()).wait().await, Exit::Completed { code: 3 });
        waits.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    waits.sort();
    assert!(fillers.iter().all(|filler| filler.exit().is_none()));
    // A single one of the sixteen takes about as long.
    assert!(waits[waits.len() / 2] < Duration::from_millis(60), "{waits:?}");
}
