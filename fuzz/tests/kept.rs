//! Inputs that made a target fail once, and must not again: `kept/<target>/*`.

use std::path::Path;

fn run(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kept").join(target);
    let Ok(inputs) = std::fs::read_dir(&folder) else { return };
    for input in inputs {
        let path = input.unwrap().path();
        eprintln!("{}", path.display());
        check(&std::fs::read(path).unwrap());
    }
}

#[test]
fn kept_inputs_pass() {
    run("wal_recovery", coracle_fuzz::wal_recovery);
    run("raft_decode", coracle_fuzz::raft_decode);
    run("raft_step", coracle_fuzz::raft_step);
    run("snapshot_stream", coracle_fuzz::snapshot_stream);
    run("join_token", coracle_fuzz::join_token);
    run("store_command", coracle_fuzz::store_command);
    run("admitted_workloads", coracle_fuzz::admitted_workloads);
}
