//! The files that a project is made of, and when they change.
//!
//! They are looked at again and again: that works in every file system, and a project has few.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, bail};

use crate::project::Project;

const POLL: Duration = Duration::from_millis(200);
/// And so many times what a look takes: a tenth of a core at most.
const POLL_TIMES: u32 = 10;
/// Files that are watched at most.
const FILES_MAX: usize = 20_000;
/// Folders of what is built and fetched, beside those that begin with a dot.
const NOT_WATCHED: [&str; 3] = ["target", "node_modules", "__pycache__"];

/// When a file was last written, and how large it is.
type Seen = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

pub struct Sources {
    paths: Vec<PathBuf>,
    /// What is built, which changes by that alone.
    built: PathBuf,
    seen: Seen,
}

impl Sources {
    pub fn of(project: &Project) -> Result<Self> {
        let mut sources = Self { paths: project.sources(), built: project.component(), seen: Seen::new() };
        sources.look()?;
        Ok(sources)
    }

    /// Takes note of what there is.
    pub fn look(&mut self) -> Result<()> {
        self.seen = self.read()?;
        Ok(())
    }

    /// Resolves once something has changed since the last look, and nothing more has for a moment.
    pub async fn changed(&self) -> Result<()> {
        let mut last = self.read()?;
        let mut took = Duration::ZERO;
        loop {
            tokio::time::sleep(POLL.max(took * POLL_TIMES)).await;
            let begun = Instant::now();
            let now = self.read()?;
            took = begun.elapsed();
            if now == last && now != self.seen {
                return Ok(());
            }
            last = now;
        }
    }

    fn read(&self) -> Result<Seen> {
        let mut seen = Seen::new();
        let mut waiting = self.paths.clone();
        while let Some(path) = waiting.pop() {
            // What goes while it is looked at is gone.
            let Ok(found) = fs::metadata(&path) else { continue };
            if found.is_dir() {
                let entries = fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
                waiting.extend(entries.filter(|path| *path != self.built && is_watched(path)));
            } else {
                seen.insert(path, (found.modified().ok(), found.len()));
            }
            if seen.len() + waiting.len() > FILES_MAX {
                bail!(
                    "more than {FILES_MAX} files would be watched: name those that it is made of as `watch`"
                );
            }
        }
        Ok(seen)
    }
}

fn is_watched(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A link may lead anywhere, and around.
    let leads_away = path.is_symlink() && path.is_dir();
    !(leads_away || name.starts_with('.') || NOT_WATCHED.contains(&&*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_project_is_made_of_is_watched_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("coracle.yaml", "name: a\nbuild: 'true'\ncomponent: a.wasm\n");
        write("src/one", "1");
        let mut sources = Sources::of(&Project::open(folder.path()).unwrap()).unwrap();
        let changed = async |sources: &Sources| {
            let moment = Duration::from_millis(1500);
            tokio::time::timeout(moment, sources.changed()).await.is_ok_and(|changed| changed.is_ok())
        };
        for (file, counts) in
            [("a.wasm", false), ("target/x", false), (".git/x", false), ("src/two", true), ("src/one", true)]
        {
            write(file, "changed");
            assert_eq!(changed(&sources).await, counts, "{file}");
            sources.look().unwrap();
        }
        fs::remove_file(folder.path().join("src/two")).unwrap();
        assert!(changed(&sources).await);
    }
}
