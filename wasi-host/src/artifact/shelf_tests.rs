//! What is kept ready in memory has a bound.

use super::*;
use crate::{Host, HostConfig};

/// A program that does nothing.
const NOTHING: &str = r#"(component
    (core module $m (func (export "run") (result i32) (i32.const 0)))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#;

#[tokio::test]
async fn what_is_ready_and_used_longest_ago_goes_first_and_what_runs_does_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("nothing.wasm");
    std::fs::write(&path, wat::parse_str(NOTHING).expect("valid text")).expect("written");
    let config = HostConfig { cache_dir: dir.path().join("cache"), ..HostConfig::default() };
    let host = Host::new(config).expect("a host");
    let nothing = host.prepare(&path, "default").await.expect("runnable");
    let Pre::CommandP2(pre) = &nothing.pre else { panic!("it is a command") };
    let mut shelf = Shelf::default();
    let mut put = |digest: &str| {
        let (entry, weight, pre) = (nothing.entry, nothing.weight, Pre::CommandP2(pre.clone()));
        shelf.put(digest, Arc::new(Artifact { digest: digest.to_owned(), entry, weight, structures: 0, pre }))
    };
    let runs = put("runs");
    for number in 0..READY_MAX - 1 {
        put(&number.to_string());
    }
    // Somebody has asked for it again.
    put("0");
    put("one more");
    put("and another");
    let there = |digest: &str| shelf.ready.contains_key(digest);
    assert_eq!(shelf.ready.len(), READY_MAX);
    assert_eq!(["runs", "0", "1", "2", "3"].map(there), [true, true, false, false, true]);
    drop(runs);
}
