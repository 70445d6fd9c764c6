//! What a look saw, and the rows of the tables.

use super::{
    acts::{Act, Against},
    bystander::Figures,
};
use crate::process::Usage;

#[derive(Clone, Default)]
pub struct Look {
    pub control: Usage,
    pub node: Usage,
    /// CPU time that the node used in a second of it.
    pub node_cores: f64,
    /// Entries of raft's log a second, without those of the other user's writes.
    pub entries: f64,
    pub calls_a_second: f64,
    pub seen: Figures,
}

type Of = fn(&Look) -> String;

/// The columns behind the act's name and its answer.
fn columns(against: Against) -> &'static [(&'static str, Of)] {
    match against {
        Against::Control => CONTROL,
        Against::Node => NODE,
    }
}

const CONTROL: &[(&str, Of)] = &[
    ("control node, MiB", |look| look.control.mib.to_string()),
    ("node, MiB", |look| look.node.mib.to_string()),
    ("node, threads", |look| look.node.threads.to_string()),
    ("node, open files", |look| look.node.descriptors.to_string()),
    ("log entries a second", |look| format!("{:.1}", look.entries)),
    ("writes, p99 (worst) ms", |look| look.seen.writes.to_string()),
    ("reads, p99 (worst) ms", |look| look.seen.reads.to_string()),
    ("calls of a pod, p99 (worst) ms", |look| look.seen.calls.to_string()),
    ("failed", |look| look.seen.failed.to_string()),
];

const NODE: &[(&str, Of)] = &[
    ("node, MiB", |look| look.node.mib.to_string()),
    ("cores", |look| format!("{:.1}", look.node_cores)),
    ("threads", |look| look.node.threads.to_string()),
    ("open files", |look| look.node.descriptors.to_string()),
    ("calls of a pod a second", |look| format!("{:.0}", look.calls_a_second)),
    ("calls, p99 (worst) ms", |look| look.seen.calls.to_string()),
    ("a new pod is Ready after, worst s", |look| {
        look.seen.slowest_start.map_or("-".into(), |time| format!("{:.1}", time.as_secs_f64()))
    }),
    ("writes, p99 (worst) ms", |look| look.seen.writes.to_string()),
    ("failed", |look| look.seen.failed.to_string()),
];

/// The first two lines of a table.
pub fn head(against: Against) -> String {
    let columns = columns(against);
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    format!("| act | answer | {} |\n|---|---|{}", names.join(" | "), "---|".repeat(columns.len()))
}

/// Three figures in each column: before, during and after.
pub fn row(act: &Act, answer: &str, looks: [Look; 3]) -> String {
    let three = |of: &Of| looks.each_ref().map(of).join(", ");
    let cells: Vec<String> = columns(act.against).iter().map(|(_, of)| three(of)).collect();
    format!("| {} | {answer} | {} |", act.name, cells.join(" | "))
}
