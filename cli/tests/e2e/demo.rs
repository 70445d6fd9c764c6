//! `coracle demo` does all it says and exits 0.

use crate::harness::{alone, run};

#[test]
fn the_demo_tells_its_whole_story() {
    let _turn = alone();
    let account = run(&["demo"]);
    for line in [
        "A cluster of three control nodes and two nodes",
        "GET hello-http.localhost",
        "GET hello-http-p3.localhost",
        "the second Deployment read the same 2 lines",
        "tcp-echo:7 answered: hello through the service",
        "pi-job: 3.14159265358979",
        "pi-legacy: arguments: pi-legacy old but fine",
        "spinning pods",
        "OOMKilled",
        "CrashLoopBackOff",
        "The demo took",
    ] {
        assert!(account.contains(line), "the demo did not say {line:?}:\n{account}");
    }
}
