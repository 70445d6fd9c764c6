//! Specs, each in a process of its own: one that panics or hangs costs only itself.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File},
    process::{Child, Command},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::suite::Suite;
use crate::cluster::Cluster;

const POLL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    /// The spec gave up by itself: nothing was shown.
    Skipped,
    /// It was ended at the limit.
    TooLong,
    /// The process ended before it said how the spec went.
    Aborted,
    /// The suite has no spec of that name.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::TooLong => "took too long",
            Self::Aborted => "aborted",
            Self::Unknown => "no such spec",
        })
    }
}

/// The lines of a file of names that are no comments; of those that a focus has matched, if there was one.
pub fn named(text: &str, matched: Option<Vec<String>>) -> Vec<String> {
    let names = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let is_matched =
        |name: &&str| matched.as_ref().is_none_or(|matched| matched.iter().any(|spec| spec == name));
    names.filter(is_matched).map(str::to_owned).collect()
}

/// Runs them, so many at once, and those that must run alone after the others.
///
/// # Errors
/// Where no process can be started.
pub fn run(
    suite: &Suite,
    cluster: &Cluster,
    specs: &[String],
    jobs: usize,
    limit: Duration,
) -> Result<Vec<(String, Outcome)>> {
    let (alone, together): (Vec<_>, Vec<_>) =
        specs.iter().cloned().partition(|spec| spec.contains("[Serial]") || spec.contains("[Disruptive]"));
    let mut outcomes = Vec::with_capacity(specs.len());
    for (specs, jobs) in [(together, jobs), (alone, 1)] {
        let lane = Lane {
            waiting: Mutex::new(specs.into_iter().enumerate().collect()),
            outcomes: Mutex::new(Vec::new()),
        };
        thread::scope(|scope| {
            let workers: Vec<_> =
                (0..jobs).map(|_| scope.spawn(|| lane.work(suite, cluster, limit))).collect();
            workers.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked")))
            })
        })?;
        let mut ended = lane.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        ended.sort_by_key(|(number, ..)| *number);
        outcomes.extend(ended.into_iter().map(|(_, spec, outcome)| (spec, outcome)));
    }
    Ok(outcomes)
}

/// Specs that wait, and those that have ended, with their place in the order.
struct Lane {
    waiting: Mutex<VecDeque<(usize, String)>>,
    outcomes: Mutex<Vec<(usize, String, Outcome)>>,
}

impl Lane {
    fn work(&self, suite: &Suite, cluster: &Cluster, limit: Duration) -> Result<()> {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((number, spec)) = next else { return Ok(()) };
            let begun = Instant::now();
            let outcome = one(suite, cluster, (number, &spec), limit)?;
            println!("{outcome} in {:.1} s: {spec}", begun.elapsed().as_secs_f64());
            let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.push((number, spec, outcome));
        }
    }
}

/// The output of one that has not passed stays, in a folder named after it.
fn one(suite: &Suite, cluster: &Cluster, (number, spec): (usize, &str), limit: Duration) -> Result<Outcome> {
    let folder = suite.output().join(format!("{number:03}-{}", folder_name(spec)));
    fs::create_dir_all(&folder)?;
    let log = File::create(folder.join("log"))?;
    let mut command: Command = suite.spec(spec, &cluster.kubeconfig());
    let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
    let outcome = match ended(child, limit)? {
        true => judged(&String::from_utf8_lossy(&fs::read(folder.join("log"))?)),
        false => Outcome::TooLong,
    };
    if outcome == Outcome::Passed {
        fs::remove_dir_all(&folder)?;
    }
    Ok(outcome)
}

/// Waits for a process: whether it ended by itself within the limit.
fn ended(mut child: Child, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        thread::sleep(POLL);
    }
}

/// By the suite's last word alone: a process that matched nothing ends well, too.
fn judged(output: &str) -> Outcome {
    let last = |wanted: &[&str]| {
        output.lines().rev().find(|line| wanted.iter().any(|start| line.starts_with(start)))
    };
    if last(&["Will run "]).is_some_and(|line| line.starts_with("Will run 0 of ")) {
        return Outcome::Unknown;
    }
    match last(&["SUCCESS! -- ", "FAIL! -- "]) {
        Some(line) if line.starts_with("SUCCESS! -- 1 Passed | 0 Failed ") => Outcome::Passed,
        Some(line) if line.starts_with("SUCCESS! -- 0 Passed | 0 Failed ") => Outcome::Skipped,
        Some(_) => Outcome::Failed,
        None => Outcome::Aborted,
    }
}

/// Letters and digits of the name, at most 100 of them, so that it is a name of a file on each system.
fn folder_name(spec: &str) -> String {
    let letters = spec.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' });
    letters.take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_what_the_focus_leaves_out_are_not_chosen() {
        let listed = vec!["a [Conformance]".to_owned(), "b [Conformance]".to_owned()];
        let text = "# kept\n\na [Conformance]\nc [Conformance]\n";
        assert_eq!(named(text, None), ["a [Conformance]", "c [Conformance]"]);
        assert_eq!(named(text, Some(listed)), ["a [Conformance]"]);
    }

    #[test]
    fn a_spec_counts_as_the_suite_says_at_the_end() {
        let said =
            |will: u32, end: &str| judged(&format!("Will run {will} of 7355 specs\n1 Passed\n{end}\n"));
        assert_eq!(
            said(1, "SUCCESS! -- 1 Passed | 0 Failed | 0 Pending | 7354 Skipped\nPASS"),
            Outcome::Passed
        );
        assert_eq!(said(1, "SUCCESS! -- 0 Passed | 0 Failed | 0 Pending | 7355 Skipped"), Outcome::Skipped);
        assert_eq!(said(1, "FAIL! -- 0 Passed | 1 Failed | 0 Pending | 7354 Skipped"), Outcome::Failed);
        assert_eq!(said(1, "panic: no such kind"), Outcome::Aborted);
        assert_eq!(said(0, "SUCCESS! -- 0 Passed | 0 Failed | 0 Pending | 7355 Skipped"), Outcome::Unknown);
        assert_eq!(judged(""), Outcome::Aborted);
    }
}
