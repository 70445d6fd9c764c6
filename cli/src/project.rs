//! A folder that a component is built in: what its `coracle.yaml` says, and the build itself.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::fd::AsFd,
    path::{Component, Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use coracle_wasi_host::{Entry, examine};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::process::Command;

use crate::{
    commands::{push::WASM_BYTES_MAX, run::Ended, up::stop_signal},
    input, names, output,
};

/// What says how a project is built.
pub const FILE: &str = "coracle.yaml";
/// The largest that is read.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// How long it may take to see whether something is on the machine.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Where tools of a project are, and those of its user, beside what PATH says: below the project, and below the home.
const TOOLS: [&str; 2] = ["node_modules/.bin", ".venv/bin"];
const HOME_TOOLS: [&str; 3] = [".cargo/bin", "wasm-tools/bin", "go/bin"];

/// `coracle.yaml`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// What it is called in a cluster.
    name: String,
    /// A shell's command that makes the component.
    build: String,
    /// One that tests what it is made of.
    test: Option<String>,
    /// The file that is made.
    component: PathBuf,
    /// The port that it listens on, where it is a program.
    port: Option<u16>,
    /// The files and folders that it is made of; all where none is named.
    #[serde(default)]
    watch: Vec<PathBuf>,
    /// What has to be on the machine.
    #[serde(default)]
    needs: Vec<Need>,
}

/// Something that a build needs.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Need {
    /// A shell's command that succeeds where it is there.
    check: String,
    /// How it is had.
    install: String,
}

#[derive(Clone, Debug)]
pub struct Project {
    root: PathBuf,
    settings: Settings,
}

impl Project {
    /// The project of a folder.
    pub fn open(root: &Path) -> Result<Self> {
        let file = root.join(FILE);
        if !root.is_dir() {
            bail!("{} is no folder", root.display());
        }
        if !file.is_file() {
            bail!(
                "there is no {FILE} in {}, which says how it is built: `coracle new` makes a project with one",
                root.display()
            );
        }
        let settings = read(&input::text(&file, FILE_BYTES_MAX)?);
        Ok(Self {
            root: root.to_owned(),
            settings: settings.with_context(|| format!("reading {}", file.display()))?,
        })
    }

    /// What it is called in a cluster.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The port that its program listens on.
    pub fn port(&self) -> Option<u16> {
        self.settings.port
    }

    /// The files and folders that it is made of, with what says so.
    pub fn sources(&self) -> Vec<PathBuf> {
        let watched = self.settings.watch.iter().map(|path| self.root.join(path));
        let watched: Vec<PathBuf> = watched.chain([self.root.join(FILE)]).collect();
        if self.is_watched_whole() { vec![self.root.clone()] } else { watched }
    }

    /// Whether all that lies in its folder is among them, also what a build leaves there.
    pub fn is_watched_whole(&self) -> bool {
        self.settings.watch.is_empty()
    }

    /// The file that a build makes.
    pub fn component(&self) -> PathBuf {
        self.root.join(&self.settings.component)
    }

    /// Builds it, and looks at what came of it: the file.
    pub async fn build(&self) -> Result<PathBuf> {
        self.execute(&self.settings.build).await?;
        let file = self.component();
        if !file.is_file() {
            let (build, file) = (&self.settings.build, file.display());
            bail!("`{build}` went well and made no {file}, which {FILE} names");
        }
        let made = input::bytes(&file, WASM_BYTES_MAX)?;
        let examined =
            examine(&made).with_context(|| format!("what was built, {}, does not run", file.display()))?;
        let entry = match examined.entry {
            Entry::Command => "a program",
            Entry::HttpP2 => "WASI 0.2 HTTP",
            Entry::HttpP3 => "WASI 0.3 HTTP",
        };
        output::note(format!("built {} ({} KiB, {entry})", file.display(), made.len().div_ceil(1024)));
        Ok(file)
    }

    /// Runs its tests.
    pub async fn test(&self) -> Result<()> {
        match &self.settings.test {
            Some(test) => self.execute(test).await,
            None => bail!("{FILE} has no `test`, a command that runs the tests"),
        }
    }

    /// Runs a command of the project. What it prints is told beside the output.
    async fn execute(&self, script: &str) -> Result<()> {
        let told = || Ok::<_, io::Error>(Stdio::from(io::stderr().as_fd().try_clone_to_owned()?));
        let mut shell = self.shell(script);
        shell.stdin(Stdio::null()).stdout(told()?).stderr(told()?).process_group(0);
        let mut child = shell.spawn().with_context(|| format!("running `{script}`"))?;
        // Whatever it has begun ends with it, where this is stopped or given up.
        let group = Group(child.id());
        let status = tokio::select! {
            status = child.wait() => status.with_context(|| format!("running `{script}`"))?,
            code = stop_signal() => return Err(Ended(code).into()),
        };
        group.has_ended();
        if status.success() {
            return Ok(());
        }
        let missing = self.missing().await;
        if missing.is_empty() {
            bail!("`{script}` failed ({status})");
        }
        let missing: String = missing.iter().map(|need| format!("\n  {}", need.install)).collect();
        bail!("`{script}` failed ({status}); what it needs is not here. To install it:{missing}")
    }

    /// What the project needs and the machine does not have.
    async fn missing(&self) -> Vec<&Need> {
        let mut missing = Vec::new();
        for need in &self.settings.needs {
            let mut check = self.shell(&need.check);
            let check = check.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            let checked = tokio::time::timeout(CHECK_TIMEOUT, check).await;
            if !checked.is_ok_and(|status| status.is_ok_and(|status| status.success())) {
                missing.push(need);
            }
        }
        missing
    }

    fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).current_dir(&self.root).env("PATH", self.path()).kill_on_drop(true);
        shell
    }

    /// Where its commands find programs: where the user's shell does, and then where tools of projects are.
    fn path(&self) -> OsString {
        let root = fs::canonicalize(&self.root).unwrap_or_else(|_| self.root.clone());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let mut all: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let of_home = home.iter().flat_map(|home| HOME_TOOLS.map(|tools| home.join(tools)));
        all.extend(
            TOOLS.map(|tools| root.join(tools)).into_iter().chain(of_home).filter(|tools| tools.is_dir()),
        );
        std::env::join_paths(all).unwrap_or(path)
    }
}

/// The processes of a command, until they have ended: ended with this.
struct Group(Option<u32>);

impl Group {
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| Pid::from_raw(id.try_into().ok()?));
        // Those that have ended already are no fault.
        let _ = leader.map(|leader| kill_process_group(leader, Signal::TERM));
    }
}

fn read(text: &str) -> Result<Settings> {
    let settings: Settings = serde_yaml_ng::from_str(text)?;
    let paths: BTreeSet<&PathBuf> = settings.watch.iter().chain([&settings.component]).collect();
    for path in paths {
        let is_inside =
            path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !is_inside {
            bail!("`{}` is no path within the project", path.display());
        }
    }
    if let Err(fault) = names::project(&settings.name) {
        bail!("name: {fault}");
    }
    if settings.port == Some(0) {
        bail!("port: nothing listens on port 0");
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "name: a\nbuild: make\ncomponent: out/a.wasm\n";

    #[test]
    fn settings_say_what_is_wrong_with_them() {
        assert!(read(MINIMAL).is_ok());
        for (more, said) in [
            ("watch: [../other]", "no path within the project"),
            ("watch: [/etc]", "no path within the project"),
            ("port: 0", "port 0"),
            ("biuld: make", "unknown field `biuld`"),
            ("port: many", "port"),
            ("watch: [a]\nname: ../x", "name"),
        ] {
            let error = format!("{:#}", read(&format!("{MINIMAL}{more}\n")).unwrap_err());
            assert!(error.contains(said), "{more}: {error}");
        }
        assert!(format!("{:#}", read("name: a\n").unwrap_err()).contains("missing field `build`"));
    }

    #[tokio::test]
    async fn a_build_that_fails_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let write = |settings: &str| fs::write(folder.path().join(FILE), settings).unwrap();
        let built = async || {
            let built = Project::open(folder.path()).unwrap().build().await;
            format!("{:#}", built.expect_err("it fails"))
        };
        assert!(Project::open(folder.path()).unwrap_err().to_string().contains("there is no coracle.yaml"));
        // What a build has begun ends with it.
        write("name: a\nbuild: 'sleep 600 & echo $! > pid; wait'\ncomponent: a.wasm\n");
        let pid = folder.path().join("pid");
        let given_up = Project::open(folder.path()).unwrap();
        tokio::select! {
            _ = given_up.build() => panic!("it does not end"),
            () = async { while fs::read_to_string(&pid).unwrap_or_default().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            } } => {}
        }
        let process = Path::new("/proc").join(fs::read_to_string(&pid).unwrap().trim());
        let is_over = || fs::read_to_string(process.join("stat")).map_or(true, |stat| stat.contains(") Z "));
        while !is_over() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        write("name: a\nbuild: exit 3\ncomponent: a.wasm\nneeds: [{check: 'true', install: nothing}]\n");
        assert_eq!(built().await, "`exit 3` failed (exit status: 3)");
        write("name: a\nbuild: exit 3\ncomponent: a.wasm\nneeds: [{check: 'false', install: from there}]\n");
        assert!(built().await.ends_with("To install it:\n  from there"));
        write("name: a\nbuild: 'true'\ncomponent: a.wasm\n");
        assert!(built().await.contains("went well and made no"));
        write("name: a\nbuild: echo > a.wasm\ncomponent: a.wasm\n");
        assert!(built().await.contains("does not run"));
        // Its own tools are found.
        fs::create_dir_all(folder.path().join(".venv/bin")).unwrap();
        let tool = folder.path().join(".venv/bin/make-it");
        fs::write(&tool, "#!/bin/sh\nexit 7\n").unwrap();
        fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        write("name: a\nbuild: make-it\ncomponent: a.wasm\n");
        assert_eq!(built().await, "`make-it` failed (exit status: 7)");
    }
}
