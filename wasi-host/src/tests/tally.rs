//! What guests have come to, and compiles, as it is counted.

use super::*;
use crate::Exit;

fn ends(host: &Host, how: &str) -> u64 {
    let totals = host.totals();
    totals.ends.iter().find(|(name, _)| *name == how).expect("a way to end").1
}

#[tokio::test]
async fn ends_are_counted_by_how_and_cpu_time_stays_counted() {
    let bench = Bench::new(1);
    let guests = [("completed", ""), ("failed", "(call $exit (i32.const 5))"), ("trapped", "(unreachable)")];
    for (how, body) in guests {
        let path = bench.write(&format!("{how}.wasm"), &module(body));
        let artifact = bench.host.prepare(&path, "default").await.expect("runnable");
        bench.start(artifact).wait().await;
        assert_eq!(ends(&bench.host, how), 1, "{how}");
    }
    let spinning = bench.start(bench.prepare(&spinner()).await);
    while bench.host.totals().cpu.is_zero() {
        tokio::task::yield_now().await;
    }
    spinning.kill();
    assert_eq!(spinning.wait().await, Exit::Killed);
    drop(spinning);
    let totals = bench.host.totals();
    assert!(!totals.cpu.is_zero(), "what used it is gone");
    assert_eq!(totals.ends.iter().map(|(_, count)| count).sum::<u64>(), 4);
    assert_eq!(ends(&bench.host, "killed"), 1);
}

#[tokio::test]
async fn compiles_are_counted_by_what_comes_of_them_and_so_are_those_that_were_spared() {
    let bench = Bench::new(1);
    let path = bench.write("guest.wasm", &module(""));
    bench.host.prepare(&path, "default").await.expect("runnable");
    let library = bench.write("library.wasm", r#"(module (func (export "add")))"#);
    bench.host.prepare(&library, "default").await.expect_err("nothing to run");
    let read = bench.host.compiles();
    assert_eq!((read.started, read.succeeded, read.failed, read.spared), (2, 1, 1, 0));
    assert!(!read.took.is_zero());
    let next = host(&bench.dir, 1);
    next.prepare(&path, "default").await.expect("from the store");
    let read = next.compiles();
    assert_eq!((read.started, read.ended(), read.spared), (0, 0, 1));
}
