//! `coracle new`, `build`, `run`, `dev` and `deploy` of a project, in every language.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::{
    guide::installed,
    harness::{Daemon, alone, coracle, eventually, get, run, sample},
};

/// Where the guide has some tools installed.
const EXPORTS: &str = "export PATH=~/wasm-tools/bin:$PATH\n";

fn within(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = coracle(arguments);
    // Of the tests' own build.
    command.current_dir(folder).env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    command
}

fn done(folder: &Path, arguments: &[&str]) -> Output {
    let output = within(folder, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn follow(language: &str, probe: &str) {
    if !installed(language, probe, EXPORTS, true) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let said = done(folder, &["new", "web", "--lang", language]).stdout;
    assert!(String::from_utf8_lossy(&said).contains("cd web"));
    let again = within(folder, &["new", "web", "--lang", language]).output().unwrap();
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("is there already"));
    let built = done(folder, &["build", "web", "--test"]);
    let file = String::from_utf8(built.stdout).unwrap();
    assert!(folder.join(file.trim()).is_file(), "{file}");
    let served = Daemon::run(within(folder, &["run", "--port", "0", "web"]), "127.0.0.1:");
    let address = format!("127.0.0.1:{}", served.said("127.0.0.1:").trim_end_matches('/'));
    assert_eq!(get(&address, "localhost"), (200, "hello from web at /\n".into()));
}

#[test]
fn a_project_in_rust() {
    follow("rust", "cargo --version");
}

#[test]
fn a_project_in_javascript() {
    follow("js", "command -v componentize-js");
}

#[test]
fn a_project_in_python() {
    follow("python", "command -v componentize-py");
}

#[test]
fn a_project_in_c() {
    follow("c", "command -v python-zig");
}

#[test]
fn a_project_in_go() {
    follow("go", "go tool dist list | grep -qx wasip1/wasm");
}

/// A project whose component is a copy of a file.
fn copied(folder: &Path) {
    let settings = "name: copy\nbuild: test -s source.wasm && cp source.wasm made.wasm\ncomponent: made.wasm\n\
                    watch: [source.wasm]\n";
    fs::write(folder.join("coracle.yaml"), settings).unwrap();
    fs::copy(sample("hello-http"), folder.join("source.wasm")).unwrap();
}

#[test]
fn a_project_is_built_and_run_again_at_each_change() {
    let folder = tempfile::tempdir().unwrap();
    copied(folder.path());
    let mut dev = within(folder.path(), &["dev", "--port", "0:80"]);
    dev.env("RUST_BACKTRACE", "0");
    let dev = Daemon::run(dev, "http://");
    let address = dev.said("http://").trim_end_matches('/').to_owned();
    let said = |wanted: &str, times: usize| {
        eventually(&format!("{wanted:?} {times} times"), || {
            let output = dev.output();
            if output.matches(wanted).count() >= times { Ok(()) } else { Err(output) }
        });
    };
    let (status, first) = get(&address, "localhost");
    assert_eq!(status, 200, "{first}");
    // A build that fails leaves what runs.
    fs::write(folder.path().join("source.wasm"), "").unwrap();
    said("failed (exit status: 1)", 1);
    assert_eq!(get(&address, "localhost").0, 200);
    // Another component takes its place, and whoever comes meanwhile waits for it.
    fs::copy(sample("tcp-echo"), folder.path().join("source.wasm")).unwrap();
    said("listening on port", 1);
    fs::copy(sample("crash"), folder.path().join("source.wasm")).unwrap();
    said("it is started again at the next change", 1);
    fs::copy(sample("hello-http-p3"), folder.path().join("source.wasm")).unwrap();
    assert_eq!(get(&address, "localhost").0, 200);
    assert_eq!(dev.output().matches("http://").count(), 1, "one address for all: {}", dev.output());
    // What says how it is built is read anew.
    let settings = fs::read_to_string(folder.path().join("coracle.yaml")).unwrap();
    fs::write(folder.path().join("coracle.yaml"), settings.replace("test -s source.wasm", "exit 9")).unwrap();
    said("failed (exit status: 9)", 1);
    dev.stop();
}

/// What was deployed is called by its name.
fn invoked(config: &Path) {
    let invoke = |arguments: &[&str]| {
        let words = [&["invoke", "--kubeconfig", config.to_str().unwrap()], arguments].concat();
        let output = coracle(&words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, answer, _) = invoke(&["copy"]);
    assert!(code == 0 && answer.starts_with("hello from Coracle, served by copy-"), "{answer}");
    let (code, answer, told) = invoke(&["copy", "--path", "/echo", "--data", "some words", "--timing"]);
    assert_eq!((code, answer.as_str()), (0, "some words"));
    assert!(told.starts_with("connected ") && told.contains("whole "), "{told}");
    let (code, answer, told) = invoke(&["copy", "--path", "/env/NONE", "--include"]);
    assert!(code == 4 && answer.starts_with("404 Not Found\ncontent-"), "{code} {answer}");
    assert!(answer.ends_with("\n\nno such variable\n") && told.is_empty(), "{answer} {told}");
    let (code, answer, _) = invoke(&["copy", "--times", "3", "-o", "json", "-H", "x-request-id: mine"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, &answer["status"], &answer["timing"]["calls"]), (0, &200.into(), &3.into()));
    let (code, _, told) = invoke(&["other"]);
    assert!(code == 1 && told.contains("there is no Function and no Ingress \"other\""), "{told}");
}

/// What the gateway tells of the calls.
fn told(log: &Path) {
    let line = |path: &str| {
        eventually(&format!("a line of {path}"), || {
            let text = fs::read_to_string(log).unwrap();
            let mut lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            lines.find(|line| line["path"] == path).ok_or(text)
        })
    };
    let echo = line("/echo");
    for (field, value) in [("method", "POST"), ("host", "copy.localhost"), ("service", "default/copy")] {
        assert_eq!(echo[field], value, "{echo}");
    }
    assert_eq!((&echo["status"], &echo["bytes"], &echo["complete"]), (&200.into(), &10.into(), &true.into()));
    assert_eq!(line("/env/NONE")["status"], 404);
    assert!(fs::read_to_string(log).unwrap().contains(r#""requestId":"mine""#));
}

#[test]
fn a_project_is_built_and_deployed() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let (data, log) = (folder.path().join("cluster"), folder.path().join("access.log"));
    let any = "127.0.0.1:0";
    let of_log = ["--access-log", log.to_str().unwrap()];
    let up = [&["up", "--data-dir", data.to_str().unwrap(), "--listen", any, "--gateway", any], &of_log[..]];
    let daemon = Daemon::start(&up.concat(), "The cluster is up");
    let config = folder.path().join("cluster/kubeconfig");
    copied(folder.path());
    let deploy = ["deploy", ".", "--kubeconfig", config.to_str().unwrap()];
    let url = String::from_utf8(done(folder.path(), &deploy).stdout).unwrap();
    assert!(url.starts_with("http://copy.localhost:"), "{url}");
    let (status, _) = get(&daemon.said("gateway     "), "copy.localhost");
    assert_eq!(status, 200);
    invoked(&config);
    told(&log);
    let images = run(&["get", "artifacts", "-o", "name", "--kubeconfig", config.to_str().unwrap()]);
    assert_eq!(images.lines().count(), 1, "{images}");
    fs::write(folder.path().join("source.wasm"), "").unwrap();
    let refused = within(folder.path(), &deploy).output().unwrap();
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("failed (exit status")
    );
}
