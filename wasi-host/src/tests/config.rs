//! `wasi:config/store`: a component reads its container's environment by name.

use super::*;
use crate::Exit;

/// A program that looks for one variable that there is and one that there is not, and at all of them, and exits with 0 where
/// it finds exactly `A=one` and `B=two`, as far as it looks. `more` is a further import.
fn reader(more: &str) -> String {
    format!(
        r#"(component
    {more}
    (import "wasi:config/store@0.2.0-rc.1" (instance $config
        (type $error' (variant (case "upstream" string) (case "io" string)))
        (export "error" (type $error (eq $error')))
        (export "get" (func (param "key" string) (result (result (option string) (error $error)))))
        (export "get-all" (func (result (result (list (tuple string string)) (error $error)))))))
    (core module $libc
        (memory (export "memory") 1)
        (global $free (mut i32) (i32.const 4096))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32)
            (global.set $free (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
            (global.get $free)
            (global.set $free (i32.add (global.get $free) (local.get 3)))))
    (core instance $libc (instantiate $libc))
    (alias core export $libc "memory" (core memory $memory))
    (alias core export $libc "realloc" (core func $realloc))
    (core func $get (canon lower (func $config "get") (memory $memory) (realloc $realloc)))
    (core func $all (canon lower (func $config "get-all") (memory $memory) (realloc $realloc)))
    (core module $m
        (import "libc" "memory" (memory 1))
        (import "host" "get" (func $get (param i32 i32 i32)))
        (import "host" "all" (func $all (param i32)))
        (data (i32.const 0) "BC")
        ;; Whether the string whose place is written at `at` has this length and ends with this byte.
        (func $is (param $at i32) (param $length i32) (param $last i32) (result i32)
            (i32.and
                (i32.eq (i32.load (i32.add (local.get $at) (i32.const 4))) (local.get $length))
                (i32.eq (local.get $last)
                    (i32.load8_u (i32.sub (i32.add (i32.load (local.get $at)) (local.get $length)) (i32.const 1))))))
        (func $need (param $holds i32) (if (i32.eqz (local.get $holds)) (then unreachable)))
        (func (export "run") (result i32)
            (local $list i32)
            (call $get (i32.const 0) (i32.const 1) (i32.const 16))
            (call $need (i32.eqz (i32.load8_u (i32.const 16))))
            (call $need (i32.load8_u (i32.const 20)))
            (call $need (call $is (i32.const 24) (i32.const 3) (i32.const 0x6f)))
            (call $get (i32.const 1) (i32.const 1) (i32.const 16))
            (call $need (i32.eqz (i32.load8_u (i32.const 16))))
            (call $need (i32.eqz (i32.load8_u (i32.const 20))))
            (call $all (i32.const 16))
            (call $need (i32.eqz (i32.load8_u (i32.const 16))))
            (call $need (i32.eq (i32.load (i32.const 24)) (i32.const 2)))
            (local.set $list (i32.load (i32.const 20)))
            (call $need (call $is (local.get $list) (i32.const 1) (i32.const 0x41)))
            (call $need (call $is (i32.add (local.get $list) (i32.const 8)) (i32.const 3) (i32.const 0x65)))
            (call $need (call $is (i32.add (local.get $list) (i32.const 16)) (i32.const 1) (i32.const 0x42)))
            (call $need (call $is (i32.add (local.get $list) (i32.const 24)) (i32.const 3) (i32.const 0x6f)))
            (i32.const 0)))
    (core instance $i (instantiate $m
        (with "libc" (instance $libc))
        (with "host" (instance (export "get" (func $get)) (export "all" (func $all))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#
    )
}

/// How the program ends with this environment.
async fn run(text: &str, env: &[(&str, &str)]) -> Exit {
    let bench = Bench::new(1);
    let mut spec = bench.spec(bench.prepare(text).await);
    spec.env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let container = bench.pod(PodLimits::default()).start(spec).expect("started");
    container.wait().await
}

#[tokio::test]
async fn a_component_reads_its_containers_environment_by_name() {
    let text = reader("");
    assert_eq!(run(&text, &[("A", "one"), ("B", "two")]).await, Exit::Completed { code: 0 });
    for other in [&[("A", "one")][..], &[("B", "two")], &[("A", "one"), ("B", "two"), ("C", "three")]] {
        let exit = run(&text, other).await;
        assert!(matches!(exit, Exit::Trapped { .. }), "{other:?}: {exit}");
    }
}

#[tokio::test]
async fn so_does_one_that_has_something_of_0_3() {
    let clock = r#"(import "wasi:clocks/monotonic-clock@0.3.0" (instance
        (export "get-resolution" (func (result u64)))))"#;
    assert_eq!(run(&reader(clock), &[("A", "one"), ("B", "two")]).await, Exit::Completed { code: 0 });
}
