//! Kubernetes' own conformance suite against a cluster of two nodes: `cargo xtask conformance build`, and `run`.
//!
//! The suite is upstream's, unmodified, made from the Go module in `xtask/conformance`. What is built lies under
//! `target/conformance`.

mod specs;
mod suite;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use self::{specs::Outcome, suite::Suite};
use crate::{built, cluster::Cluster, exit_code};

/// A red spec of pods waits for five minutes by itself.
const LIMIT: Duration = Duration::from_secs(90);
/// A spec waits more than it works.
const JOBS: usize = 4;
const NODES: &[&str] = &["n1", "n2"];

pub fn main(words: &[&str]) -> ExitCode {
    exit_code(match words {
        ["build"] => suite::build().map(|()| true),
        ["run", options @ ..] => Options::parse(options).and_then(|options| run(&options)),
        _ => Err(anyhow::anyhow!("say `cargo xtask conformance build` or `cargo xtask conformance run`")),
    })
}

struct Options {
    /// Names of specs, a line each; without it all that are Conformance.
    specs: Option<PathBuf>,
    focus: Option<String>,
    binary: PathBuf,
    jobs: usize,
    limit: Duration,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut binary = None;
        let mut options = Self { specs: None, focus: None, binary: PathBuf::new(), jobs: JOBS, limit: LIMIT };
        for pair in words.chunks(2) {
            let [name, value] = pair else { bail!("{} needs a value", pair[0]) };
            match *name {
                "--specs" => options.specs = Some(value.into()),
                "--focus" => options.focus = Some((*value).to_owned()),
                "--binary" => binary = Some(*value),
                "--jobs" => options.jobs = number(name, value)?.max(1),
                "--limit" => options.limit = Duration::from_secs(number(name, value)? as u64),
                _ => bail!("{name} is no option: --specs, --focus, --binary, --jobs, --limit"),
            }
        }
        options.binary = built(binary)?;
        Ok(options)
    }
}

fn number(name: &str, value: &str) -> Result<usize> {
    value.parse().with_context(|| format!("{name}: {value:?} is no number"))
}

/// Runs what the options name: whether all have passed.
fn run(options: &Options) -> Result<bool> {
    let suite = Suite::built()?;
    let focus = options.focus.as_deref();
    let specs = match &options.specs {
        // The suite takes seconds to list what it has.
        Some(file) => specs::named(&read(file)?, focus.map(|focus| suite.list(focus)).transpose()?),
        None => {
            let listed = suite.list(focus.unwrap_or(r"\[Conformance\]"))?;
            listed.into_iter().filter(|spec| spec.contains("[Conformance]")).collect()
        }
    };
    if specs.is_empty() {
        bail!("no spec is of that name");
    }
    let cluster = Cluster::start(&options.binary, "conformance/cluster", NODES)?;
    let outcomes = specs::run(&suite, &cluster, &specs, options.jobs, options.limit)?;
    let (passed, failed): (Vec<_>, Vec<_>) =
        outcomes.iter().partition(|(_, outcome)| *outcome == Outcome::Passed);
    println!("conformance: {} passed, {} failed", passed.len(), failed.len());
    for (spec, outcome) in &failed {
        println!("{outcome}: {spec}");
    }
    if !failed.is_empty() {
        println!("what they said is in {}", suite.output().display());
    }
    Ok(failed.is_empty())
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}
