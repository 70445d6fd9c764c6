//! `coracle new`, `build`, `run`, `dev` and `deploy` of a project, in every language.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::{
    guide::installed,
    harness::{Daemon, alone, coracle, eventually, get, run, sample, up},
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
    dev.stop();
}

#[test]
fn a_project_is_built_and_deployed() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    let daemon = up(&folder.path().join("cluster"));
    let config = folder.path().join("cluster/kubeconfig");
    copied(folder.path());
    let deploy = ["deploy", ".", "--kubeconfig", config.to_str().unwrap()];
    let url = String::from_utf8(done(folder.path(), &deploy).stdout).unwrap();
    assert!(url.starts_with("http://copy.localhost:"), "{url}");
    let (status, _) = get(&daemon.said("gateway     "), "copy.localhost");
    assert_eq!(status, 200);
    let images = run(&["get", "artifacts", "-o", "name", "--kubeconfig", config.to_str().unwrap()]);
    assert_eq!(images.lines().count(), 1, "{images}");
    fs::write(folder.path().join("source.wasm"), "").unwrap();
    let refused = within(folder.path(), &deploy).output().unwrap();
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("failed (exit status")
    );
}
