//! The conformance program of the OCI distribution specification against the registry of a control node:
//! `cargo xtask oci-conformance`.
//!
//! The program is upstream's, unmodified, fetched by Go. It logs in as registries' clients do: with a token as a password,
//! and without a client certificate. What is built, and its report of each request, lies under `target/oci-conformance`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{built, cluster::Cluster, exit_code, go, root};

/// The program. It has no releases of its own: a version is a commit.
const MODULE: &str =
    "github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111";
/// It needs this Go.
const GO_MINOR_MIN: u32 = 24;

/// The version of the specification, whose every part is checked.
const VERSION: &str = "1.1";
const FOLDER: &str = "oci-conformance";

pub fn main(words: &[&str]) -> ExitCode {
    exit_code(Options::parse(words).and_then(|options| run(&options)))
}

struct Options {
    version: String,
    binary: PathBuf,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let (mut version, mut binary) = (VERSION, None);
        for pair in words.chunks(2) {
            let [name, value] = pair else { bail!("{} needs a value", pair[0]) };
            match *name {
                "--version" => version = value,
                "--binary" => binary = Some(*value),
                _ => bail!("{name} is no option: --version, --binary"),
            }
        }
        Ok(Self { version: version.to_owned(), binary: built(binary)? })
    }
}

/// Builds the program, and runs it against a control node of its own: whether all checks have passed.
fn run(options: &Options) -> Result<bool> {
    let folder = root().join("target").join(FOLDER);
    go::check(GO_MINOR_MIN)?;
    let program = go::install(MODULE, &folder)?.join("conformance");
    let cluster = Cluster::start(&options.binary, &format!("{FOLDER}/cluster"), &[])?;
    let token = cluster.ask(&options.binary, &["token", "create", "--role", "pusher"])?;
    let results = folder.join("results");
    let output = Command::new(program)
        .current_dir(&folder)
        .env("OCI_VERSION", &options.version)
        .env("OCI_REGISTRY", &cluster.address)
        .env("OCI_REPO1", "conformance/one")
        .env("OCI_REPO2", "conformance/two")
        .env("OCI_USERNAME", "token")
        .env("OCI_PASSWORD", token.trim())
        .env("OCI_RESULTS_DIR", &results)
        .env("SSL_CERT_FILE", cluster.authority())
        .output()
        .context("running the conformance program")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let Some(totals) = Totals::read(&said) else {
        bail!("the conformance program gave no totals: {said}{}", String::from_utf8_lossy(&output.stderr));
    };
    if !totals.all_passed() {
        print!("{said}");
    }
    println!("oci-conformance {}: {}", options.version, totals.sentence());
    println!("each request and answer: {}", results.join("report.html").display());
    Ok(totals.all_passed())
}

/// How many checks came to what, as the program names it: `Pass`, `FAIL`, `Error`, `Skip`, `Disabled`.
struct Totals(BTreeMap<String, u64>);

impl Totals {
    /// Reads `  Pass..........: 12` and the like, between the result and the total.
    fn read(said: &str) -> Option<Self> {
        let lines = said.lines().skip_while(|line| !line.starts_with("OCI Conformance Result:")).skip(1);
        let counts = lines.map_while(|line| {
            let (name, count) = line.split_once(':')?;
            Some((name.trim().trim_end_matches('.').to_owned(), count.trim().parse().ok()?))
        });
        let counts: BTreeMap<String, u64> = counts.collect();
        counts.contains_key("Total").then_some(Self(counts))
    }

    fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// What is disabled is of no part of the version.
    fn all_passed(&self) -> bool {
        self.of("Pass") > 0 && self.of("Pass") + self.of("Disabled") == self.of("Total")
    }

    fn sentence(&self) -> String {
        let failed = self.of("FAIL") + self.of("Error");
        let (skipped, disabled) = (self.of("Skip"), self.of("Disabled"));
        let (passed, all) = (self.of("Pass"), self.of("Total"));
        format!(
            "of {all} checks {passed} passed, {failed} failed, {skipped} skipped, {disabled} are not of this version"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_from_what_the_program_says() {
        let said = "Test results\n  x: 3\nOCI Conformance Result: FAIL\n  Pass......:    8\n  FAIL......:    1\n  \
                    Skip......:    1\n  Total.....:   10\n\nAPI conformance:\n  Ping...: Pass\n";
        let totals = Totals::read(said).expect("they are there");
        assert_eq!(
            totals.sentence(),
            "of 10 checks 8 passed, 1 failed, 1 skipped, 0 are not of this version"
        );
        assert!(!totals.all_passed());
        let all = said.replace("   8", "  10").replace("   1\n", "   0\n");
        assert!(Totals::read(&all).expect("they are there").all_passed());
        assert!(Totals::read("failed to load config").is_none());
    }
}
