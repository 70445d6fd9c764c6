//! `docs/build-a-component.md` and README's first deployment, followed word for word: files written, commands run, outputs
//! compared.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::harness::{Daemon, Kubectl, alone, up};

/// The gateway's address in the texts, which is another one here.
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

#[test]
fn the_guide_is_followed_in_go() {
    follow(&Language { heading: "Go", probe: "go tool dist list | grep -qx wasip1/wasm", of_ci: true });
}

#[test]
fn the_readme_is_followed_to_a_first_deployment() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join(".local/share/coracle/kubeconfig");
    if !installed("README", "command -v curl", "", true) || Kubectl::find(&kubeconfig).is_none() {
        return;
    }
    let _turn = alone();
    let daemon = up(kubeconfig.parent().unwrap());
    let mut reader = Reader::new(folder.path(), &kubeconfig, &daemon, "");
    reader.home = Some(folder.path().into());
    reader.stands_in = root();
    let mut said = String::new();
    for Block { lines, .. } in blocks(&text, "A first deployment") {
        // The first of all builds the binary and starts the cluster, as was done here.
        if !lines.contains(&"coracle up") {
            // Who follows a log would never come to an end.
            let script: String = lines.iter().flat_map(|line| [*line, "\n"]).collect();
            let script = script.replace("kubectl logs -f ", "kubectl logs ");
            said += &reader.run(&script).unwrap_or_else(|error| panic!("{script}\nfailed: {error}"));
        }
    }
    for wanted in ["hello from Coracle, served by hello-", "good morning, served by greet-"] {
        assert!(said.contains(wanted), "no {wanted:?} in:\n{said}");
    }
}

fn follow(language: &Language) {
    let Language { heading, probe, of_ci } = language;
    let chapter = Chapter::of(heading);
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("cluster/kubeconfig");
    let present =
        ["command -v curl", probe].iter().all(|probe| installed(heading, probe, &chapter.exports, *of_ci));
    if !present || Kubectl::find(&kubeconfig).is_none() {
        return;
    }
    let _turn = alone();
    let daemon = up(&folder.path().join("cluster"));
    let mut reader = Reader::new(folder.path(), &kubeconfig, &daemon, &chapter.exports);
    for step in &chapter.steps {
        reader.take(step);
    }
}

/// Whether what a probe asks for is here; says so where it is not.
///
/// # Panics
/// Where it is not, `CORACLE_REQUIRE_CLIENTS` is set and `.ci/clients` installs it.
pub fn installed(chapter: &str, probe: &str, exports: &str, of_ci: bool) -> bool {
    let script = format!("{exports}{probe}");
    let found =
        Command::new("bash").args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.unwrap().success() {
        return true;
    }
    let required = of_ci && std::env::var_os("CORACLE_REQUIRE_CLIENTS").is_some();
    assert!(!required, "what {chapter} needs is required and not installed: `{probe}` fails");
    eprintln!("skipped: {chapter}: `{probe}` fails (to install it: docs/build-a-component.md, \"Install\")");
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
        let text = fs::read_to_string(root().join("docs/build-a-component.md")).unwrap();
        let (mut exports, mut steps) = (String::new(), Vec::new());
        for Block { kind, before, lines } in blocks(&text, heading) {
            if kind == "sh install" {
                let of_shells = lines.iter().filter(|line| line.starts_with("export "));
                exports.extend(of_shells.flat_map(|line| [*line, "\n"]));
            } else {
                add(&mut steps, kind, before, &lines);
            }
        }
        Self { exports, steps }
    }
}

/// What stands between fences.
struct Block<'a> {
    kind: &'a str,
    /// The last line before it.
    before: &'a str,
    lines: Vec<&'a str>,
}

/// The blocks below a heading of the second order.
fn blocks<'a>(text: &'a str, heading: &str) -> Vec<Block<'a>> {
    let heading = format!("## {heading}");
    let mut lines = text.lines().skip_while(|line| *line != heading).skip(1).peekable();
    let (mut blocks, mut before) = (Vec::new(), "");
    while let Some(line) = lines.next_if(|line| !line.starts_with("## ")) {
        if let Some(kind) = line.strip_prefix("```") {
            let lines = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { kind, before, lines });
        }
        before = if line.is_empty() { before } else { line };
    }
    assert!(!blocks.is_empty(), "nothing to follow under {heading:?}");
    blocks
}

/// The project's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Adds what a block asks for.
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

/// Who follows the texts, in a shell.
struct Reader {
    /// Where the shell stands, and the file in which it leaves that.
    stands_in: PathBuf,
    stood_in: PathBuf,
    /// Another home than the machine's user has, whose toolchains may lie there.
    home: Option<PathBuf>,
    /// Where curl finds how it is to ask.
    curl: PathBuf,
    path: OsString,
    kubeconfig: PathBuf,
    gateway: String,
    exports: String,
}

impl Reader {
    fn new(folder: &Path, kubeconfig: &Path, daemon: &Daemon, exports: &str) -> Self {
        let programs = folder.join("bin");
        fs::create_dir(&programs).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_coracle"), programs.join("coracle")).unwrap();
        // A route is there an instant after what it leads to.
        fs::write(folder.join(".curlrc"), "fail\nretry = 20\nretry-delay = 1\nretry-all-errors\n").unwrap();
        let others = std::env::var_os("PATH").unwrap();
        let all = std::iter::once(programs).chain(std::env::split_paths(&others));
        let gateway = daemon.said("gateway     ");
        Self {
            stands_in: folder.into(),
            stood_in: folder.join("stood-in"),
            home: None,
            curl: folder.into(),
            path: std::env::join_paths(all).unwrap(),
            kubeconfig: kubeconfig.into(),
            gateway: format!("localhost:{}", gateway.rsplit_once(':').unwrap().1),
            exports: exports.into(),
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { file, text } => fs::write(self.stands_in.join(file), text).unwrap(),
            Step::Run { script, shows } => {
                let said = self.run(script).unwrap_or_else(|error| panic!("{script}\nfailed: {error}"));
                assert!(
                    shows.as_ref().is_none_or(|wanted| said == *wanted),
                    "{script}\nsaid {said:?}, not {shows:?}"
                );
            }
        }
    }

    /// Runs commands where the shell stands: their stdout, or all that they said where one failed.
    fn run(&mut self, script: &str) -> Result<String, String> {
        let script = script.replace(GATEWAY, &self.gateway);
        let whole = format!("set -euo pipefail\n{}{script}pwd > {}\n", self.exports, self.stood_in.display());
        let mut shell = Command::new("bash");
        shell.args(["-c", &whole]).current_dir(&self.stands_in).stdin(Stdio::null());
        shell.env("PATH", &self.path).env("KUBECONFIG", &self.kubeconfig).env("CURL_HOME", &self.curl);
        // What `cargo test` was told is not for the builds of others.
        shell.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
        shell.envs(self.home.iter().map(|home| ("HOME", home)));
        let output = shell.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            return Err(text(&output.stdout) + &text(&output.stderr));
        }
        self.stands_in = PathBuf::from(fs::read_to_string(&self.stood_in).unwrap().trim_end());
        Ok(text(&output.stdout))
    }
}
