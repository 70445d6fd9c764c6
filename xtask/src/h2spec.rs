//! The conformance program of HTTP/2 against the API and a gateway: `cargo xtask h2spec`.
//!
//! The program is upstream's, unmodified, fetched by Go. What it says of each case is left under `target/h2spec`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{built, cluster::Cluster, exit_code, go, root};

const MODULE: &str = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";
const GO_MINOR_MIN: u32 = 24;
const FOLDER: &str = "h2spec";

/// How long the program waits for what it expects, in seconds.
const PATIENCE: &str = "3";

/// What a port that speaks HTTP/1.1 too cannot pass: what is no preface it takes for a request line that is wrong, answers 400,
/// and only then closes the connection.
const OF_TWO_VERSIONS: &[&str] = &["Sends invalid connection preface"];

pub fn main(words: &[&str]) -> ExitCode {
    let binary = match words {
        [] => built(None),
        ["--binary", file] => built(Some(file)),
        _ => Err(anyhow::anyhow!("{} is no option: --binary", words[0])),
    };
    exit_code(binary.and_then(|binary| run(&binary)))
}

/// Builds the program, and runs it against a cluster of its own: whether all has passed that can.
fn run(binary: &Path) -> Result<bool> {
    go::check(GO_MINOR_MIN)?;
    let folder = root().join("target").join(FOLDER);
    let program = go::install(MODULE, &folder)?.join("h2spec");
    let cluster = Cluster::start(binary, &format!("{FOLDER}/cluster"), &["n1"])?;
    let guest = guest()?;
    let guest = guest.to_str().context("the path of the sample is not UTF-8")?;
    cluster.ask(binary, &["deploy", guest, "--name", "hello", "--host", "localhost"])?;
    let gateway = cluster.gateways.first().context("the node has no gateway")?;
    let mut all_passed = true;
    for (name, address, more, known) in [
        ("api", &cluster.address, &["-t", "-k", "-P", "/livez?verbose"][..], &[][..]),
        ("gateway", gateway, &["-P", "/"], OF_TWO_VERSIONS),
    ] {
        let port = address.rsplit_once(':').map_or("", |(_, port)| port);
        let mut command = Command::new(&program);
        command.args(["-h", "localhost", "-p", port, "-o", PATIENCE]).args(more);
        let output = command.output().context("running h2spec")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let Some(totals) = totals(&said) else {
            bail!("h2spec gave no totals: {said}{}", String::from_utf8_lossy(&output.stderr));
        };
        let report = folder.join(format!("{name}.txt"));
        fs::write(&report, &*said)?;
        println!("h2spec {name}: {totals}; each case: {}", report.display());
        for case in failed(&said) {
            let is_known = known.contains(&case);
            println!("  {case}{}", if is_known { ": known, see the docs" } else { "" });
            all_passed &= is_known;
        }
    }
    Ok(all_passed)
}

/// A component behind the gateway.
fn guest() -> Result<PathBuf> {
    let samples = root().join("sample-workloads");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--target", "wasm32-wasip2", "-p", "hello-http"]);
    // Where the workspace's own build has left them.
    cargo.current_dir(&samples).env("CARGO_TARGET_DIR", samples.join("target"));
    if !cargo.status().context("running cargo")?.success() {
        bail!("the sample hello-http could not be built");
    }
    Ok(samples.join("target/wasm32-wasip2/release/hello_http.wasm"))
}

/// `145 tests, 144 passed, 1 skipped, 0 failed`
fn totals(said: &str) -> Option<&str> {
    said.lines().rev().find(|line| line.contains(" tests, ") && line.contains(" passed, "))
}

/// The cases that have failed, each once.
fn failed(said: &str) -> Vec<&str> {
    let cases = said.split("Failures:").nth(1).unwrap_or_default().lines();
    cases.filter_map(|line| line.split_once("× ")?.1.split_once(": ").map(|(_, case)| case.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_and_totals_are_read_from_what_the_program_says() {
        let said = "Generic tests\n  × 1: first\n  ✔ 2: second\n\nFailures: \n\nGeneric tests\n  × 1: first\n    -> Expected\n\n\
                    Finished in 0.1 seconds\n2 tests, 1 passed, 0 skipped, 1 failed\n";
        assert_eq!(totals(said), Some("2 tests, 1 passed, 0 skipped, 1 failed"));
        assert_eq!(failed(said), ["first"]);
        assert_eq!(totals("Error: dial tcp"), None);
        assert!(failed("1 tests, 1 passed, 0 skipped, 0 failed").is_empty());
    }
}
