//! A minute of the fault soak, where it is asked for: it needs root and makes network namespaces.

use std::{path::Path, process::Command};

#[test]
fn a_minute_of_faults_loses_nothing() {
    if std::env::var_os("CORACLE_SOAK").is_none() {
        eprintln!("skipped: CORACLE_SOAK=1 runs it, as root, with the binary built before (cargo build)");
        return;
    }
    let bench = Path::new(env!("CARGO_BIN_EXE_coracle-bench"));
    let status = Command::new(bench)
        .args(["soak", "--minutes", "1", "--and-seconds", "10", "--small-mb", "0"])
        .status()
        .expect("the bench starts");
    assert!(status.success(), "the soak found violations; its output says which");
}
