//! `docs/build-a-component.md`, followed word for word: its files written, its commands run, its outputs compared.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::harness::{Kubectl, alone, eventually, up};

/// The gateway's address in the guide, which is another one here.
const GATEWAY: &str = "localhost:8080";

/// A language of the guide, by its heading.
struct Language {
    heading: &'static str,
    /// A command that succeeds where the toolchain is installed.
    probe: &'static str,
    /// Whether `.ci/clients` installs it.
    of_ci: bool,
}

#[test]
fn the_guide_is_followed_in_rust() {
    follow(&Language { heading: "Rust", probe: "cargo --version", of_ci: true });
}

#[test]
fn the_guide_is_followed_in_javascript() {
    follow(&Language { heading: "JavaScript", probe: "command -v componentize-js", of_ci: true });
}

#[test]
fn the_guide_is_followed_in_python() {
    follow(&Language { heading: "Python", probe: "command -v componentize-py", of_ci: true });
}

#[test]
fn the_guide_is_followed_in_c() {
    follow(&Language { heading: "C", probe: "command -v python-zig", of_ci: true });
}

/// Go is too large to be installed for this alone: where it is on the machine, CI follows it too.
#[test]
fn the_guide_is_followed_in_go() {
    follow(&Language { heading: "Go", probe: "go tool dist list | grep -qx wasip1/wasm", of_ci: false });
}

fn follow(language: &Language) {
    let chapter = Chapter::of(language.heading);
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("cluster/kubeconfig");
    if !installed(language, &chapter) || Kubectl::find(&kubeconfig).is_none() {
        return;
    }
    let _turn = alone();
    let daemon = up(&folder.path().join("cluster"));
    let port = daemon.said("gateway     ").rsplit_once(':').unwrap().1.to_string();
    let mut reader = Reader::new(folder.path(), &kubeconfig, &port, &chapter.exports);
    for step in &chapter.steps {
        reader.take(step);
    }
}

/// Whether the toolchain is here; says so where it is not.
///
/// # Panics
/// Where it is not, `CORACLE_REQUIRE_CLIENTS` is set and `.ci/clients` installs it.
fn installed(language: &Language, chapter: &Chapter) -> bool {
    let missing = [language.probe, "command -v curl"].into_iter().find(|probe| {
        let script = format!("{}\n{probe}", chapter.exports);
        !Command::new("bash").arg("-c").arg(script).stdout(Stdio::null()).status().unwrap().success()
    });
    let Some(missing) = missing else { return true };
    let required = language.of_ci && std::env::var_os("CORACLE_REQUIRE_CLIENTS").is_some();
    assert!(
        !required,
        "what the guide needs for {} is required and not installed: {missing}",
        language.heading
    );
    eprintln!(
        "skipped: {}, since `{missing}` fails; install it as docs/build-a-component.md says under {}, Install",
        language.heading, language.heading
    );
    false
}

/// What the guide says of one language.
struct Chapter {
    /// The lines of its installation that a shell needs every time.
    exports: String,
    steps: Vec<Step>,
}

/// What its reader does.
enum Step {
    Write { file: String, text: String },
    Run { script: String, shows: Option<String> },
}

impl Chapter {
    fn of(heading: &str) -> Self {
        let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/build-a-component.md");
        let text = fs::read_to_string(guide).unwrap();
        let heading = format!("## {heading}");
        let mut lines = text.lines().skip_while(|line| *line != heading).skip(1).peekable();
        assert!(lines.peek().is_some(), "the guide has no chapter {heading:?}");
        let (mut exports, mut steps, mut before) = (String::new(), Vec::new(), "");
        while let Some(line) = lines.next_if(|line| !line.starts_with("## ")) {
            if let Some(kind) = line.strip_prefix("```") {
                let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                match kind {
                    "sh install" => {
                        block
                            .iter()
                            .filter(|line| line.starts_with("export "))
                            .for_each(|line| exports = (*line).into());
                    }
                    kind => add(&mut steps, kind, before, &block),
                }
            }
            before = if line.is_empty() { before } else { line };
        }
        Self { exports, steps }
    }
}

/// Adds what a block asks for. `before` is the last line before it.
fn add(steps: &mut Vec<Step>, kind: &str, before: &str, block: &[&str]) {
    let text: String = block.iter().flat_map(|line| [*line, "\n"]).collect();
    match (kind, steps.last_mut()) {
        ("sh", _) => steps.push(Step::Run { script: text, shows: None }),
        ("text", Some(Step::Run { shows, .. })) => *shows = Some(text),
        _ => {
            let file = before
                .strip_prefix('`')
                .and_then(|rest| rest.split_once('`'))
                .map(|(file, _)| file.to_string());
            let file =
                file.unwrap_or_else(|| panic!("the guide names no file for a block of {kind:?}: {before:?}"));
            steps.push(Step::Write { file, text });
        }
    }
}

/// Who follows the guide, in a shell of a folder.
struct Reader {
    /// Where the shell stands.
    folder: PathBuf,
    stands: PathBuf,
    path: OsString,
    kubeconfig: PathBuf,
    gateway: String,
    exports: String,
}

impl Reader {
    fn new(folder: &Path, kubeconfig: &Path, port: &str, exports: &str) -> Self {
        let programs = folder.join("bin");
        fs::create_dir(&programs).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_coracle"), programs.join("coracle")).unwrap();
        let others = std::env::var_os("PATH").unwrap();
        let all = std::iter::once(programs).chain(std::env::split_paths(&others));
        Self {
            folder: folder.into(),
            stands: folder.join("stands"),
            path: std::env::join_paths(all).unwrap(),
            kubeconfig: kubeconfig.into(),
            gateway: format!("localhost:{port}"),
            exports: exports.into(),
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { file, text } => fs::write(self.folder.join(file), text).unwrap(),
            Step::Run { script, shows: None } => {
                self.run(script).unwrap_or_else(|said| panic!("{script}\nfailed: {said}"));
            }
            // A route is there an instant after what it leads to.
            Step::Run { script, shows: Some(wanted) } => eventually(script, || match self.run(script) {
                Ok(output) if output == *wanted => Ok(()),
                other => Err(format!("{other:?} instead of {wanted:?}")),
            }),
        }
    }

    /// Runs commands where the shell stands: their stdout, or all that they said where one failed.
    fn run(&mut self, script: &str) -> Result<String, String> {
        let script = script.replace(GATEWAY, &self.gateway);
        let whole = format!("set -euo pipefail\n{}\n{script}pwd > {}\n", self.exports, self.stands.display());
        let output = Command::new("bash")
            .args(["-c", &whole])
            .current_dir(&self.folder)
            .env("PATH", &self.path)
            .env("KUBECONFIG", &self.kubeconfig)
            // What `cargo test` was told is not for the guide's own builds.
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            return Err(text(&output.stdout) + &text(&output.stderr));
        }
        self.folder = PathBuf::from(fs::read_to_string(&self.stands).unwrap().trim_end());
        Ok(text(&output.stdout))
    }
}
