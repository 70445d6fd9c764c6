//! What the compiler does not check: imports along the ring, pure cores, headers, leftovers, sizes.
//!
//! Errors fail the run; files past the usual size are only reported.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Lines without tests from which a file is worth another look.
const FILE_LINES_REPORTED: usize = 500;

/// Which of our crates a crate may depend on outside of its tests. The map is ARCHITECTURE.md's.
const MAY_USE: &[(&str, &[&str])] = &[
    ("coracle-objects", &[]),
    ("coracle-proto", &[]),
    ("coracle-wasi-host", &[]),
    ("coracle-store", &["coracle-objects"]),
    ("coracle-scheduler", &["coracle-objects"]),
    ("coracle-controllers", &["coracle-objects"]),
    ("coracle-api", &["coracle-objects"]),
    ("coracle-core", &["coracle-objects"]),
    ("coracle-raft", &["coracle-proto"]),
    ("coracle-member", &["coracle-objects", "coracle-store"]),
    (
        "coracle-registry",
        &["coracle-api", "coracle-leader", "coracle-objects", "coracle-proto", "coracle-raft"],
    ),
    ("coracle-pki", &["coracle-objects", "coracle-proto"]),
    (
        "coracle-storage",
        &[
            "coracle-api",
            "coracle-member",
            "coracle-objects",
            "coracle-proto",
            "coracle-raft",
            "coracle-store",
        ],
    ),
    (
        "coracle-leader",
        &["coracle-api", "coracle-controllers", "coracle-objects", "coracle-proto", "coracle-scheduler"],
    ),
    (
        "coracle-node-link",
        &["coracle-api", "coracle-leader", "coracle-objects", "coracle-proto", "coracle-storage"],
    ),
    (
        "coracle-sim",
        &[
            "coracle-api",
            "coracle-controllers",
            "coracle-core",
            "coracle-leader",
            "coracle-member",
            "coracle-objects",
            "coracle-proto",
            "coracle-raft",
            "coracle-scheduler",
            "coracle-store",
        ],
    ),
    ("coracle-fabric", &["coracle-proto", "coracle-wasi-host"]),
    (
        "coracle-server",
        &[
            "coracle-api",
            "coracle-controllers",
            "coracle-leader",
            "coracle-node-link",
            "coracle-objects",
            "coracle-pki",
            "coracle-proto",
            "coracle-raft",
            "coracle-registry",
            "coracle-scheduler",
            "coracle-storage",
            "coracle-store",
        ],
    ),
    (
        "coracle-agent",
        &["coracle-core", "coracle-fabric", "coracle-objects", "coracle-proto", "coracle-wasi-host"],
    ),
    (
        "coracle",
        &[
            "coracle-agent",
            "coracle-objects",
            "coracle-proto",
            "coracle-sample-artifacts",
            "coracle-server",
            "coracle-wasi-host",
        ],
    ),
];

/// Crates whose sources must not reach for the outside world.
const PURE: &[&str] = &[
    "control/objects",
    "control/store",
    "control/scheduler",
    "control/controllers",
    "control/leader",
    "control/member",
    "node/core",
];

/// What a pure crate must not name.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::fs",
    // Addresses are values: they are in `core::net`.
    "std::net",
    "std::env",
    "std::thread",
    "tracing::",
    "rand::",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
];

/// Assembled from halves so that this file does not find itself.
const LEFTOVERS: &[(&str, &str)] =
    &[("TO", "DO"), ("FIX", "ME"), ("XX", "X:"), ("#[ign", "ore]"), ("#[should_", "panic]"), ("todo", "!(")];

/// Runs every check; prints one line a finding.
pub fn run() -> ExitCode {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_path_buf();
    let mut findings = Vec::new();
    imports(&root, &mut findings);
    for path in rust_files(&root) {
        let text = fs::read_to_string(root.join(&path)).expect("tracked sources are UTF-8");
        source(&path, &text, &mut findings);
    }
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: clean");
        ExitCode::SUCCESS
    } else {
        println!("tidy: {} findings", findings.len());
        ExitCode::FAILURE
    }
}

fn rust_files(root: &Path) -> Vec<String> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .output()
        .expect("git runs");
    let listing = String::from_utf8(output.stdout).expect("paths are UTF-8");
    listing.lines().filter(|path| root.join(path).exists()).map(str::to_string).collect()
}

fn imports(root: &Path, findings: &mut Vec<String>) {
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else { continue };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let normal = dependency["kind"].is_null();
            if normal && used.starts_with("coracle") && !allowed.contains(&used) {
                findings
                    .push(format!("{name} must not depend on {used}: imports never follow the ring back"));
            }
        }
    }
}

fn source(path: &str, text: &str, findings: &mut Vec<String>) {
    if !text.starts_with("//!") && !text.starts_with("// Generated") {
        findings.push(format!("{path}: begins without a //! line that says what it is for"));
    }
    for (number, line) in text.lines().enumerate() {
        for (first, second) in LEFTOVERS {
            if line.contains(&format!("{first}{second}")) {
                findings.push(format!("{path}:{}: leftover {first}{second}", number + 1));
            }
        }
    }
    let body = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    if PURE.iter().any(|folder| path.starts_with(&format!("{folder}/src/"))) {
        // Its tests, which measure, lie outside of it: here clippy.toml has no exception.
        for (number, _) in text.lines().enumerate().filter(|(_, line)| line.contains("clippy::disallowed")) {
            findings.push(format!("{path}:{}: an exception from what a pure crate may use", number + 1));
        }
        for (number, line) in body.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                continue;
            }
            if let Some(word) = IMPURE.iter().find(|word| code.contains(**word)) {
                findings.push(format!("{path}:{}: a pure crate names {word}", number + 1));
            }
        }
    }
    let lines = body.lines().count();
    if lines > FILE_LINES_REPORTED && !text.contains("Generated table") {
        println!("note: {path} has {lines} lines without its tests: is it still one thing?");
    }
}
