//! What is kept ready in memory has a bound, and so has the code that containers use.

use std::path::Path;

use super::*;
use crate::artifact::room::Scarce;
use crate::{Host, HostConfig};

/// A program that does nothing.
const NOTHING: &str = r#"(component
    (core module $m (func (export "run") (result i32) (i32.const 0)))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#;

fn endless() -> Room {
    Room { bytes_max: u64::MAX, ..Room::for_loaded() }
}

/// Puts copies of one artifact on shelves.
struct Copies {
    of: Arc<Artifact>,
    _host: Host,
    _dir: tempfile::TempDir,
}

impl Copies {
    async fn new() -> Copies {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nothing.wasm");
        std::fs::write(&path, wat::parse_str(NOTHING).expect("valid text")).expect("written");
        let config = HostConfig { cache_dir: dir.path().join("cache"), ..HostConfig::default() };
        let host = Host::new(config).expect("a host");
        let of = host.prepare(&path, "default").await.expect("runnable");
        Copies { of, _host: host, _dir: dir }
    }

    /// One that pins nothing, as the shelf takes it.
    fn again(&self) -> Artifact {
        Artifact { _pin: None, ..self.of.pinned(Arc::<Pins>::default().pin()) }
    }

    fn put(
        &self,
        shelf: &mut Shelf,
        namespace: &str,
        digest: &str,
        bytes: u64,
    ) -> Result<Arc<Artifact>, PrepareError> {
        shelf.put(digest, &namespace.into(), self.again(), bytes, Arc::default())
    }
}

#[tokio::test]
async fn who_uses_much_code_leaves_as_much_to_others() {
    const MIB: u64 = 1 << 20;
    let copies = Copies::new().await;
    let mut shelf = Shelf::new([Room { bytes_max: 400 * MIB, ..Room::for_code(Path::new("/")) }, endless()]);
    let mut put = |namespace: &str, digest: &str| copies.put(&mut shelf, namespace, digest, 50 * MIB);
    let mut greedy: Vec<_> = (0..4).map(|at| put("greedy", &at.to_string()).expect("free")).collect();
    let refused = put("greedy", "4").expect_err("it has half");
    let expected =
        PrepareError::NoShare { of: Scarce::Code, bytes: 50 * MIB, used: 200 * MIB, free: 200 * MIB };
    assert_eq!(refused.to_string(), expected.to_string());
    assert!(refused.may_pass());
    // What it uses already it may use again, and so may others, on whose account it is then as well.
    greedy.push(put("greedy", "0").expect("its own"));
    let others = ["0", "own", "1"].map(|digest| put("modest", digest).expect("free"));
    assert!(matches!(put("modest", "2"), Err(PrepareError::NoShare { used, .. }) if used == 150 * MIB));
    // A little is everybody's, whatever there is left.
    let more: Vec<_> = (0..8).map(|at| put(&format!("n{at}"), &format!("n{at}"))).collect();
    assert!(more.iter().all(Result::is_ok));
    assert!(put("n0", "more").is_err());
    drop((more, others));
    greedy.truncate(1);
    // What nobody uses is there, and takes nothing of the share.
    assert!(put("greedy", "1").is_ok() && put("greedy", "4").is_ok());
}

#[tokio::test]
async fn what_its_namespace_used_longest_ago_goes_first_and_what_runs_does_not() {
    let copies = Copies::new().await;
    let mut shelf = Shelf::new([endless(), endless()]);
    let put = |shelf: &mut Shelf, namespace: &str, digest: &str| {
        copies.put(shelf, namespace, digest, 1).expect("there is no bound")
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

#[tokio::test]
async fn who_has_the_most_bytes_makes_room_for_himself() {
    let copies = Copies::new().await;
    let mut shelf = Shelf::new([endless(), endless()]);
    let put = |shelf: &mut Shelf, namespace: &str, digest: &str, loaded: u64| {
        let artifact = Artifact { loaded, ..copies.again() };
        shelf.put(digest, &namespace.into(), artifact, 1, Arc::default()).expect("there is no bound")
    };
    let quarter = READY_BYTES_MAX / 4;
    let runs = put(&mut shelf, "greedy", "runs", quarter);
    for number in 0..8 {
        put(&mut shelf, "modest", &format!("modest-{number}"), 1 << 10);
    }
    for number in 0..6 {
        put(&mut shelf, "greedy", &number.to_string(), quarter);
    }
    let there = |shelf: &Shelf, digest: &str| shelf.ready.contains_key(digest);
    // Three that nobody uses fit beside the others' little, and one was just put there.
    assert_eq!(["runs", "0", "1", "2", "5"].map(|it| there(&shelf, it)), [true, false, false, true, true]);
    assert!((0..8).all(|number| there(&shelf, &format!("modest-{number}"))), "many, and yet less");
    drop(runs);
    put(&mut shelf, "modest", "last", 0);
    assert!(!there(&shelf, "2"), "what ended counts again");
}

#[tokio::test]
async fn what_is_loaded_and_used_has_shares_too() {
    const MIB: u64 = 1 << 20;
    let copies = Copies::new().await;
    let mut shelf = Shelf::new([endless(), Room { bytes_max: 100 * MIB, ..Room::for_loaded() }]);
    let mut put = |namespace: &str, digest: &str| {
        let artifact = Artifact { loaded: 25 * MIB, ..copies.again() };
        shelf.put(digest, &namespace.into(), artifact, 1, Arc::default())
    };
    let greedy = ["0", "1"].map(|digest| put("greedy", digest).expect("free"));
    let refused = put("greedy", "2").expect_err("it has half");
    assert!(matches!(refused, PrepareError::NoShare { of: Scarce::Loaded, used, .. } if used == 50 * MIB));
    assert!(refused.to_string().ends_with("or give the node more memory"), "{refused}");
    assert!(put("modest", "0").is_ok());
    drop(greedy);
    assert!(put("greedy", "2").is_ok());
}
