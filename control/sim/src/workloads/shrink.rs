//! Takes out of a script what is not needed for what it found.

use super::{
    Violation,
    script::{Act, Script},
};

/// Entries that the runs of shrinking may write together: what it may take.
const ENTRIES_MAX: u64 = 20_000;

/// The smallest script found that breaks the same promise, as the violation that it leads to.
pub fn shrink(
    script: Script,
    violation: Violation,
    mut play: impl FnMut(&Script) -> (u64, Option<Violation>),
) -> Violation {
    let mut best = (script, violation);
    let mut written = 0;
    // Many at a time first.
    let mut chunk = count(&best.0).div_ceil(2);
    while chunk > 0 {
        let mut smaller = false;
        let mut at = 0;
        while at < count(&best.0) && written < ENTRIES_MAX {
            let candidate = without(&best.0, at, chunk);
            let (entries, ended) = play(&candidate);
            written += entries;
            match ended {
                Some(found) if found.broken.class == best.1.broken.class => {
                    best = (candidate, found);
                    smaller = true;
                }
                _ => at += chunk,
            }
        }
        if written >= ENTRIES_MAX {
            break;
        }
        chunk = if chunk == 1 && smaller { 1 } else { chunk / 2 };
    }
    best.1
}

/// How many things can be taken out: steps, last first, and edits.
fn count(script: &Script) -> usize {
    script.steps.len() + script.steps.iter().map(edits).sum::<usize>()
}

fn edits(step: &super::script::Step) -> usize {
    match &step.act {
        Act::Write(write) => write.edits.len(),
        _ => 0,
    }
}

/// Without so many of them from one on.
fn without(script: &Script, at: usize, chunk: usize) -> Script {
    let mut smaller = script.clone();
    if at < script.steps.len() {
        let end = script.steps.len() - at;
        smaller.steps.drain(end.saturating_sub(chunk)..end);
        return smaller;
    }
    let mut at = at - script.steps.len();
    for step in &mut smaller.steps {
        let has = edits(step);
        if let Act::Write(write) = &mut step.act
            && at < has
        {
            write.edits.drain(at..(at + chunk).min(has));
            return smaller;
        }
        at = at.saturating_sub(has);
    }
    smaller
}
