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
async fn what_its_namespace_used_longest_ago_goes_first_and_what_runs_does_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("nothing.wasm");
    std::fs::write(&path, wat::parse_str(NOTHING).expect("valid text")).expect("written");
    let config = HostConfig { cache_dir: dir.path().join("cache"), ..HostConfig::default() };
    let host = Host::new(config).expect("a host");
    let nothing = host.prepare(&path, "default").await.expect("runnable");
    let Pre::CommandP2(pre) = &nothing.pre else { panic!("it is a command") };
    let mut shelf = Shelf::default();
    let put = |shelf: &mut Shelf, namespace: &str, digest: &str| {
        let (entry, weight, pre) = (nothing.entry, nothing.weight, Pre::CommandP2(pre.clone()));
        let artifact = Artifact { digest: digest.to_owned(), entry, weight, structures: 0, pre };
        shelf.put(digest, &namespace.into(), Arc::new(artifact))
    };
    let runs = put(&mut shelf, "greedy", "runs");
    for name in ["a", "b"] {
        put(&mut shelf, "modest", name);
    }
    for number in 0..READY_MAX - 2 {
        put(&mut shelf, "greedy", &number.to_string());
    }
    // Somebody has asked for it again, and another namespace for another one.
    put(&mut shelf, "greedy", "0");
    put(&mut shelf, "modest", "1");
    for digest in ["one more", "another", "a third"] {
        put(&mut shelf, "greedy", digest);
    }
    let there = |digest: &str| shelf.ready.contains_key(digest);
    assert_eq!(shelf.ready.len(), READY_MAX + 2, "beside what runs, and what was just put there");
    assert_eq!(["runs", "0", "1", "2", "3", "4"].map(there), [true, true, true, false, false, true]);
    assert_eq!(["a", "b"].map(there), [true; 2], "who has many makes room for himself");
    drop(runs);
    put(&mut shelf, "modest", "c");
    assert_eq!(shelf.ready.len(), READY_MAX + 1);
}
