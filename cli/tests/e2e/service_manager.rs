//! What a service manager and what gathers logs get to see.

use std::os::unix::net::UnixDatagram;

use serde_json::Value;

use crate::harness::{Daemon, PATIENCE, alone, coracle};

#[test]
fn readiness_is_told_and_logs_are_json_where_that_is_asked_for() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).expect("a message in time");
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    let data = dir.path().join("control").display().to_string();
    let mut command = coracle(&[
        "control",
        "--init",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--log",
        "info",
        "--log-format",
        "json",
    ]);
    command.env("NOTIFY_SOCKET", dir.path().join("notify"));
    let daemon = Daemon::run(command, "control node started");
    assert_eq!(told(), "READY=1");
    let output = daemon.output();
    let lines = output.lines().filter(|line| line.starts_with('{'));
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).expect(line)).collect();
    let started = lines.iter().find(|line| line["message"] == "control node started").expect(&output);
    assert!(
        started["level"] == "INFO" && started["member"] == 1 && started["timestamp"].is_string(),
        "{started}"
    );
    daemon.stop();
    assert_eq!(told(), "STOPPING=1");
}
