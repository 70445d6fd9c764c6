//! The clients that people have for registries, unmodified, against the cluster's own: with a token and no certificate.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::harness::{Daemon, Kubectl, alone, eventually, run, sample, up};

/// A cluster with `pi:1` in its registry, and what a client needs to log in.
struct Bench {
    folder: tempfile::TempDir,
    _daemon: Daemon,
    kubectl: Kubectl,
    registry: String,
    token: String,
}

impl Bench {
    /// `None` where kubectl is not installed.
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let daemon = up(&folder.path().join("cluster"));
        let kubeconfig = folder.path().join("cluster/kubeconfig");
        let kubectl = Kubectl::find(&kubeconfig)?;
        let config = kubeconfig.to_str().unwrap();
        run(&["push", "--kubeconfig", config, &sample("pi-job"), "pi:1"]);
        let token = run(&["token", "create", "--role", "pusher", "--kubeconfig", config]).trim().to_owned();
        let server = kubectl.run(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
        let registry = server.trim_start_matches("https://").to_owned();
        let authority = folder.path().join("cluster/control-1/pki/serving-ca.crt");
        std::fs::create_dir(folder.path().join("certs")).unwrap();
        std::fs::copy(authority, folder.path().join("certs/ca.crt")).unwrap();
        Some(Self { folder, _daemon: daemon, kubectl, registry, token })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a client, which must succeed: its stdout. `REG` in an argument is the registry.
    fn run(&self, program: &Path, arguments: &[&str]) -> String {
        let arguments: Vec<String> =
            arguments.iter().map(|argument| argument.replace("REG", &self.registry)).collect();
        let output = Command::new(program)
            .args(&arguments)
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env("REGISTRY_AUTH_FILE", self.path("auth.json"))
            .env("SSL_CERT_FILE", self.path("certs/ca.crt"))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {arguments:?}: {stderr}", program.display());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs an image to its end.
    fn completes(&self, pod: &str, image: &str) {
        self.kubectl.run(&["run", pod, "--image", image, "--restart=Never"]);
        let what = ["get", "pod", pod, "-o", "jsonpath={.status.phase} {..waiting.message}"];
        eventually(&format!("{image} to complete"), || match self.kubectl.run(&what) {
            said if said.starts_with("Succeeded") => Ok(()),
            said => Err(said),
        });
    }
}

/// A client of this machine; `None`, with a message, where it is not installed.
fn client(name: &str, how: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        assert!(
            std::env::var_os("CORACLE_REQUIRE_CLIENTS").is_none(),
            "{name} is required and not installed: {how}"
        );
        eprintln!("skipped: {name} is not installed (for example: {how})");
    }
    found
}

#[test]
fn crane_logs_in_and_copies_and_an_index_of_its_runs() {
    let how = "go install github.com/google/go-containerregistry/cmd/crane@latest";
    let Some(crane) = client("crane", how) else { return };
    let _turn = alone();
    let Some(bench) = Bench::start() else { return };
    bench.run(&crane, &["auth", "login", "REG", "-u", "anyone", "-p", &bench.token]);
    bench.run(&crane, &["copy", "REG/pi:1", "REG/team/pi:1"]);
    assert_eq!(bench.run(&crane, &["digest", "REG/pi:1"]), bench.run(&crane, &["digest", "REG/team/pi:1"]));
    bench.run(&crane, &["index", "append", "-m", "REG/team/pi:1", "-t", "REG/team/pi:all"]);
    assert_eq!(bench.run(&crane, &["ls", "REG/team/pi"]), "1\nall\n");
    bench.completes("copied", "team/pi:1");
    bench.completes("index", "team/pi:all");
    bench.run(&crane, &["delete", "REG/team/pi:all"]);
    assert_eq!(bench.run(&crane, &["ls", "REG/team/pi"]), "1\n");
}

#[test]
fn oras_logs_in_and_pushes_attaches_copies_and_pulls() {
    let Some(oras) = client("oras", "go install oras.land/oras/cmd/oras@latest") else { return };
    let _turn = alone();
    let Some(bench) = Bench::start() else { return };
    bench.run(&oras, &["login", "REG", "-u", "anyone", "-p", &bench.token]);
    std::fs::copy(sample("pi-job"), bench.path("pi.wasm")).unwrap();
    std::fs::write(bench.path("bill.json"), "{}").unwrap();
    bench.run(&oras, &["push", "REG/team/pi:1", "pi.wasm:application/wasm"]);
    bench.run(&oras, &["attach", "--artifact-type", "example/bill", "REG/team/pi:1", "bill.json"]);
    bench.run(&oras, &["cp", "-r", "REG/team/pi:1", "REG/other/pi:1"]);
    assert!(bench.run(&oras, &["discover", "REG/other/pi:1"]).contains("example/bill"));
    bench.run(&oras, &["pull", "REG/other/pi:1", "-o", "pulled"]);
    let (pushed, pulled) =
        (std::fs::read(sample("pi-job")).unwrap(), std::fs::read(bench.path("pulled/pi.wasm")));
    assert!(pushed == pulled.unwrap(), "what was pushed is pulled");
    bench.completes("pushed", "team/pi:1");
}

#[test]
fn skopeo_logs_in_copies_and_deletes() {
    let Some(skopeo) = client("skopeo", "apt-get install skopeo") else { return };
    let _turn = alone();
    let Some(bench) = Bench::start() else { return };
    let token = bench.token.as_str();
    bench.run(&skopeo, &["login", "REG", "--cert-dir", "certs", "-u", "anyone", "-p", token]);
    bench.run(&skopeo, &["copy", "--src-cert-dir", "certs", "docker://REG/pi:1", "oci:local:1"]);
    bench.run(&skopeo, &["copy", "--dest-cert-dir", "certs", "oci:local:1", "docker://REG/team/pi:1"]);
    let tags = bench.run(&skopeo, &["list-tags", "--cert-dir", "certs", "docker://REG/team/pi"]);
    assert!(tags.contains("\"1\""), "{tags}");
    bench.completes("copied", "team/pi:1");
    bench.run(&skopeo, &["delete", "--cert-dir", "certs", "docker://REG/team/pi:1"]);
    let artifacts = bench.kubectl.run(&["get", "artifacts", "--no-headers"]);
    assert!(artifacts.contains("pi.1") && !artifacts.contains("team"), "{artifacts}");
}
