//! Start, end and difference, and which differences are no leak.

use super::census::Census;

/// What may be more at the end than at the start, and why.
struct Tolerance {
    /// What it is about: the beginning of a figure's name, with its process before it or without.
    what: &'static str,
    /// By how much; `None` for what has a bound of its own.
    by: Option<i64>,
    why: &'static str,
}

/// The first that fits counts.
const TOLERATED: &[Tolerance] = &[
    Tolerance {
        what: "control resident MiB",
        by: Some(128),
        why: "against half way: the log between two snapshots is in memory, 10,000 entries of it and more",
    },
    Tolerance {
        what: "resident MiB",
        by: Some(64),
        why: "against half way: the allocator and the pools keep pages; 2 KiB a pod would be more in half of 100,000",
    },
    Tolerance {
        what: "control threads",
        by: Some(4),
        why: "threads for calls that block end after 10 s without one",
    },
    Tolerance { what: "files in raft", by: None, why: "the log between two snapshots" },
    Tolerance { what: "KiB in raft", by: None, why: "the log between two snapshots" },
    Tolerance { what: "coracle_raft_commit_index", by: None, why: "counts the entries of the log" },
    Tolerance {
        what: "apiserver_storage_objects{resource=\"events\"}",
        by: Some(50),
        why: "events of the nodes themselves are kept for an hour",
    },
    Tolerance { what: "coracle_store_watch_window", by: None, why: "the watch window is bounded" },
    Tolerance { what: "KiB in .", by: Some(64 * 1024), why: "the node's wishes: written anew at 64 MiB" },
    Tolerance {
        what: "files in artifacts",
        by: Some(22),
        why: "images are kept: eleven were pulled, two files each",
    },
    Tolerance { what: "KiB in artifacts", by: None, why: "images are kept" },
    Tolerance {
        what: "files in cache",
        by: Some(22),
        why: "compiled code is kept, up to 4 GiB: two files each",
    },
    Tolerance { what: "KiB in cache", by: None, why: "compiled code is kept" },
    Tolerance { what: "names of images", by: Some(11), why: "the images are still there" },
    Tolerance { what: "images", by: Some(11), why: "the images are still there" },
    Tolerance { what: "artifacts in memory", by: Some(11), why: "512 are kept" },
    Tolerance { what: "known files", by: Some(11), why: "4,096 are kept" },
    Tolerance {
        what: "open files",
        by: Some(11),
        why: "the code of an artifact in memory keeps its file open",
    },
    Tolerance {
        what: "mappings of files",
        by: Some(512),
        why: "the code of artifacts in memory, and slots of the pools that keep a component's first memory, up to 100 each",
    },
    Tolerance {
        what: "mappings of memory",
        by: Some(512),
        why: "each instance pool keeps up to 100 slots as they were used, and the allocator keeps some",
    },
];

/// Half of the tenths.
const HALF: usize = 5;

pub struct Table {
    start: Census,
    half: Census,
    end: Census,
}

pub struct Row<'a> {
    process: &'a str,
    what: &'a str,
    start: i64,
    end: i64,
    tolerance: Option<&'static Tolerance>,
}

impl Row<'_> {
    fn is_left(&self) -> bool {
        match self.tolerance {
            None => self.end > self.start,
            Some(Tolerance { by, .. }) => by.is_some_and(|by| self.end - self.start > by),
        }
    }
}

impl Table {
    pub fn new(start: Census) -> Self {
        Self { half: start.clone(), end: start.clone(), start }
    }

    pub fn middle(&mut self, tenth: usize, census: Census) {
        if tenth == HALF {
            self.half = census;
        }
    }

    pub fn end(&mut self, census: Census) {
        self.end = census;
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.end.figures.iter().map(|(key, end)| {
            let (process, what) = key;
            let of = if what == "resident MiB" { &self.half } else { &self.start };
            let start = of.figures.get(key).copied().unwrap_or(0);
            let full = format!("{process} {what}");
            let fits =
                |tolerance: &&Tolerance| what.starts_with(tolerance.what) || full.starts_with(tolerance.what);
            let tolerance = TOLERATED.iter().find(fits);
            Row { process, what, start, end: *end, tolerance }
        })
    }

    /// What is left that was not there.
    pub fn left(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows().filter(Row::is_left)
    }

    pub fn print(&self) {
        println!("| process | what | start | end | difference | |");
        println!("|---|---|---|---|---|---|");
        for row in self.rows().filter(|row| row.start != 0 || row.end != 0) {
            let verdict = match row.tolerance {
                _ if row.is_left() => "LEFT",
                Some(tolerance) if row.end > row.start => tolerance.why,
                _ => "",
            };
            let difference = row.end - row.start;
            println!(
                "| {} | {} | {} | {} | {difference:+} | {verdict} |",
                row.process, row.what, row.start, row.end
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(figures: &[(&str, i64)]) -> Census {
        let figures = figures.iter().map(|(what, count)| (("n1".to_owned(), (*what).to_owned()), *count));
        Census { figures: figures.collect() }
    }

    #[test]
    fn what_grows_is_left_but_for_what_has_a_reason() {
        let mut table =
            Table::new(census(&[("threads", 9), ("logs", 1), ("resident MiB", 60), ("images", 4)]));
        table.middle(HALF, census(&[("resident MiB", 100)]));
        table.end(census(&[
            ("threads", 9),
            ("logs", 0),
            ("resident MiB", 164),
            ("images", 15),
            ("files in raft", 99),
        ]));
        assert_eq!(table.left().count(), 0);
        table.end(census(&[("threads", 10), ("new", 1), ("resident MiB", 165), ("images", 16)]));
        let left: Vec<&str> = table.left().map(|row| row.what).collect();
        assert_eq!(left, ["images", "new", "resident MiB", "threads"]);
    }
}
