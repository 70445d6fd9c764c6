//! Every function by which a guest makes something larger on the host is bounded, however it is called.

use super::holdings::{SMALL, most_held, none_is_held};
use super::*;
use crate::Exit;

/// Bytes that each call hands over.
const PIECE: usize = 60 << 10;

/// A function of `wasi:http/types`, and how it is called.
struct Function {
    name: &'static str,
    wit: &'static str,
    /// Of the core function.
    signature: &'static str,
    /// Leaves a number that is not 0 where the call was refused.
    call: &'static str,
}

/// Sets several values of a field.
const SET: Function = Function {
    name: "[method]fields.set",
    wit: r#"(param "self" (borrow $fields)) (param "name" string) (param "value" (list (list u8)))
        (result (result (error $error)))"#,
    signature: "(param i32 i32 i32 i32 i32 i32)",
    call: "(call $grow (call $fields)
            (i32.const 0) (i32.const 1) (i32.const 100008) (i32.const 1) (i32.const 100100))
        (i32.load8_u (i32.const 100100))",
};

/// Makes fields of names and values.
const FROM_LIST: Function = Function {
    name: "[static]fields.from-list",
    wit: r#"(param "entries" (list (tuple string (list u8)))) (result (result (own $fields) (error $error)))"#,
    signature: "(param i32 i32 i32)",
    call: "(call $grow (i32.const 100000) (i32.const 1) (i32.const 100100)) (i32.load8_u (i32.const 100100))",
};

const SET_PATH: Function = Function {
    name: "[method]outgoing-request.set-path-with-query",
    wit: r#"(param "self" (borrow $request)) (param "path-with-query" (option string)) (result (result))"#,
    signature: "(param i32 i32 i32 i32) (result i32)",
    call: "(call $grow (call $request (call $fields)) (i32.const 1) (i32.const 0) (i32.const 61440))",
};

const SET_AUTHORITY: Function = Function {
    name: "[method]outgoing-request.set-authority",
    wit: r#"(param "self" (borrow $request)) (param "authority" (option string)) (result (result))"#,
    signature: "(param i32 i32 i32 i32) (result i32)",
    call: "(call $grow (call $request (call $fields)) (i32.const 1) (i32.const 0) (i32.const 61440))",
};

const SET_METHOD: Function = Function {
    name: "[method]outgoing-request.set-method",
    wit: r#"(param "self" (borrow $request)) (param "method" $method) (result (result))"#,
    signature: "(param i32 i32 i32 i32) (result i32)",
    call: "(call $grow (call $request (call $fields)) (i32.const 9) (i32.const 0) (i32.const 61440))",
};

/// A program that calls the function with [`PIECE`] bytes of `letter` until it is refused, and exits with 0 then; with 1
/// after 2,000 times.
fn program(function: &Function, letter: u8) -> String {
    let Function { name, wit, signature, call } = function;
    format!(
        r#"(component
    (import "wasi:http/types@0.2.0" (instance $types
        (export "fields" (type $fields (sub resource)))
        (type $why (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
        (export "header-error" (type $error (eq $why)))
        (export "headers" (type $headers (eq $fields)))
        (type $how (variant (case "get") (case "head") (case "post") (case "put") (case "delete")
            (case "connect") (case "options") (case "trace") (case "patch") (case "other" string)))
        (export "method" (type $method (eq $how)))
        (export "outgoing-request" (type $request (sub resource)))
        (export "[constructor]fields" (func (result (own $fields))))
        (export "[constructor]outgoing-request" (func (param "headers" (own $headers)) (result (own $request))))
        (export "{name}" (func {wit}))))
    (core module $libc (memory (export "memory") 2))
    (core instance $libc (instantiate $libc))
    (alias core export $libc "memory" (core memory $memory))
    (core func $fields (canon lower (func $types "[constructor]fields")))
    (core func $request (canon lower (func $types "[constructor]outgoing-request")))
    (core func $grow (canon lower (func $types "{name}") (memory $memory)))
    (core module $m
        (import "host" "memory" (memory 2))
        (import "host" "fields" (func $fields (result i32)))
        (import "host" "request" (func $request (param i32) (result i32)))
        (import "host" "grow" (func $grow {signature}))
        (func (export "run") (result i32)
            (local $count i32)
            (memory.fill (i32.const 0) (i32.const {letter}) (i32.const {PIECE}))
            (i32.store (i32.const 100004) (i32.const 1))
            (i32.store (i32.const 100012) (i32.const {PIECE}))
            (loop $again
                (if (block (result i32) {call}) (then (return (i32.const 0))))
                (local.set $count (i32.add (local.get $count) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $count) (i32.const 2000))))
            (i32.const 1)))
    (core instance $i (instantiate $m (with "host" (instance
        (export "memory" (memory $memory)) (export "fields" (func $fields))
        (export "request" (func $request)) (export "grow" (func $grow))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $r (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $r)))"#
    )
}

/// The most that is held while the program runs.
async fn most_of(function: &Function, letter: u8) -> u64 {
    let bench = Bench::new(1);
    let pod = bench.pod(SMALL);
    let container = pod.start(bench.spec(bench.prepare(&program(function, letter)).await)).expect("started");
    let (most, exit) = most_held(&pod, &container).await;
    assert_eq!(exit, Exit::Completed { code: 0 }, "{} is refused with an error", function.name);
    none_is_held(&pod).await;
    most
}

#[tokio::test]
async fn whatever_makes_something_larger_is_refused_where_it_would_be_too_much() {
    for (function, letter) in [(SET, b'x'), (FROM_LIST, b'x'), (SET_PATH, b'/')] {
        let most = most_of(&function, letter).await;
        assert!(most <= 33 << 20, "{}: {most} bytes were held", function.name);
    }
}

#[tokio::test]
async fn texts_that_no_server_takes_are_refused_at_once() {
    for function in [SET_AUTHORITY, SET_METHOD] {
        let most = most_of(&function, b'x').await;
        assert!(most <= 1 << 20, "{}: {most} bytes were held", function.name);
    }
}
