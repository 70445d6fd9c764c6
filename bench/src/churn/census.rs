//! What a process holds at one moment: by the kernel, by its folder, and by its own account.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

/// Of a control node's metrics: what it holds.
const CONTROL: &[&str] = &[
    "coracle_process_tasks",
    "coracle_store_watchers",
    "coracle_store_watch_window_events",
    "coracle_node_links",
    "coracle_planning_",
    "coracle_raft_commit_index",
    "coracle_server_proposals_pending",
    "apiserver_storage_objects",
    "apiserver_longrunning_requests",
    "apiserver_current_inflight_requests",
];

pub struct Process<'a> {
    pub name: &'a str,
    pub id: u32,
    pub data_dir: &'a Path,
}

/// Figures by process and what they count.
#[derive(Clone, Default)]
pub struct Census {
    pub figures: BTreeMap<(String, String), i64>,
}

impl Census {
    pub fn take(&mut self, process: &Process<'_>, metrics: &[u8]) -> Result<()> {
        let proc = format!("/proc/{}", process.id);
        let mut add = |what: String, count: i64| {
            *self.figures.entry((process.name.to_owned(), what)).or_default() += count;
        };
        let status = fs::read_to_string(format!("{proc}/status"))?;
        for (field, what, unit) in [("Threads:", "threads", 1), ("VmRSS:", "resident MiB", 1024)] {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let count = line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok());
            add(what.to_owned(), count.with_context(|| format!("no {field} in {proc}/status"))? / unit);
        }
        for kind in ["sockets", "files", "pipes", "others"] {
            add(format!("open {kind}"), 0);
        }
        for open in fs::read_dir(format!("{proc}/fd"))? {
            // What was closed meanwhile is no matter.
            if let Ok(target) = fs::read_link(open?.path()) {
                add(format!("open {}", kind_of(&target.to_string_lossy())), 1);
            }
        }
        for line in fs::read_to_string(format!("{proc}/maps"))?.lines() {
            let of_file = line.split_whitespace().nth(5).is_some_and(|path| path.starts_with('/'));
            add(if of_file { "mappings of files" } else { "mappings of memory" }.to_owned(), 1);
        }
        for (folder, (files, bytes)) in folders(process.data_dir) {
            add(format!("files in {folder}"), files);
            add(format!("KiB in {folder}"), bytes / 1024);
        }
        for line in String::from_utf8_lossy(metrics).lines() {
            if let Some((name, count)) = line.rsplit_once(' ')
                && !name.starts_with('#')
                && let Some(name) = wanted(name)
                && let Ok(count) = count.parse::<f64>()
            {
                add(name, count as i64);
            }
        }
        Ok(())
    }

    /// The most telling figures of all processes.
    pub fn summary(&self) -> String {
        let mut parts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((process, what), count) in &self.figures {
            if ["resident MiB", "threads", "open sockets", "mappings of memory"].contains(&what.as_str())
                || what.ends_with("_tasks")
            {
                parts.entry(process).or_default().push(format!("{what} {count}"));
            }
        }
        let each = parts.into_iter().map(|(process, figures)| format!("{process}: {}", figures.join(", ")));
        each.collect::<Vec<_>>().join("; ")
    }
}

fn kind_of(target: &str) -> &'static str {
    match target {
        socket if socket.starts_with("socket:") => "sockets",
        pipe if pipe.starts_with("pipe:") => "pipes",
        file if file.starts_with('/') => "files",
        _ => "others",
    }
}

/// The name under which a sample is counted, where it is a figure of what is held.
fn wanted(name: &str) -> Option<String> {
    if let Some(held) = name.strip_prefix("coracle_node_held{what=\"") {
        return Some(held.trim_end_matches("\"}").to_owned());
    }
    let of_control = CONTROL.iter().any(|prefix| name.starts_with(prefix)) && !name.contains("_total");
    // A lag is a time.
    let counts = of_control && !name.contains("_seconds");
    (counts || name == "coracle_node_tasks").then(|| name.to_owned())
}

/// Files and bytes of each folder right below this one, and of the files beside them.
fn folders(root: &Path) -> BTreeMap<String, (i64, i64)> {
    let mut found = BTreeMap::new();
    let mut left = vec![(root.to_owned(), None::<String>)];
    while let Some((folder, top)) = left.pop() {
        // What is removed meanwhile is no matter.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(metadata) = entry.metadata() else { continue };
            let of = top.clone().or_else(|| metadata.is_dir().then_some(name));
            let count = found.entry(of.clone().unwrap_or_else(|| ".".into())).or_insert((0, 0));
            count.0 += 1;
            if metadata.is_dir() {
                left.push((entry.path(), of));
            } else {
                count.1 += metadata.len() as i64;
            }
        }
    }
    found
}
