//! The suite's programs: how they are built, what specs they hold, and how one is run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{go, root};

/// Of the release that is built, as xtask/conformance/go.mod names it.
const KUBERNETES: &str = "v1.35.4";
/// The suite needs this Go.
const GO_MINOR_MIN: u32 = 25;

/// Registries of images that the suite knows, all of them turned to the cluster's own under `e2e/`.
const REGISTRIES: &[&str] = &[
    "promoterE2eRegistry",
    "gcRegistry",
    "gcEtcdRegistry",
    "buildImageRegistry",
    "sigStorageRegistry",
    "dockerLibraryRegistry",
];

/// Builds the suite, and kubectl of its release.
///
/// # Errors
/// Without Go, or where a build fails.
pub fn build() -> Result<()> {
    go::check(GO_MINOR_MIN)?;
    let module = root().join("xtask/conformance");
    let target = target();
    fs::create_dir_all(&target)?;
    let version = format!("-X k8s.io/component-base/version.gitVersion={KUBERNETES}");
    let (major, minor) = release();
    let flags = format!(
        "{version} -X k8s.io/component-base/version.gitMajor={major} \
         -X k8s.io/component-base/version.gitMinor={minor} \
         -X k8s.io/component-base/version.gitTreeState=clean \
         -X k8s.io/component-base/version.gitCommit=0000000000000000000000000000000000000000 \
         -X k8s.io/component-base/version.buildDate=1970-01-01T00:00:00Z"
    );
    let programs: [(&str, &str, Vec<&str>); 2] = [
        ("e2e.test", "k8s.io/kubernetes/test/e2e", vec!["test", "-c"]),
        // Specs of `kubectl version` read what it was built as.
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl", vec!["build", "-ldflags", &flags]),
    ];
    for (name, package, words) in programs {
        println!("building {name} (the first time this takes minutes)");
        let mut command = Command::new("go");
        command.current_dir(&module).args(words).arg("-o").arg(target.join(name)).arg(package);
        let status = command.status().context("running go")?;
        if !status.success() {
            bail!("building {name} failed: {status}");
        }
    }
    println!("built in {}", target.display());
    Ok(())
}

/// 1 and 35 of v1.35.4.
fn release() -> (&'static str, &'static str) {
    let mut parts = KUBERNETES.trim_start_matches('v').split('.');
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

fn target() -> PathBuf {
    root().join("target/conformance")
}

/// What [`build`] made.
pub struct Suite {
    target: PathBuf,
}

impl Suite {
    /// # Errors
    /// Where it was not built.
    pub fn built() -> Result<Self> {
        let target = target();
        for name in ["e2e.test", "kubectl"] {
            if !target.join(name).exists() {
                bail!("{} is missing: run `cargo xtask conformance build`", target.join(name).display());
            }
        }
        let output = target.join("output");
        if output.exists() {
            fs::remove_dir_all(&output)?;
        }
        fs::create_dir_all(&output)?;
        let registries: String = REGISTRIES.iter().map(|name| format!("{name}: e2e\n")).collect();
        fs::write(target.join("registries.yaml"), registries)?;
        Ok(Self { target })
    }

    /// Where each failed spec's output is left, and nothing else.
    pub fn output(&self) -> PathBuf {
        self.target.join("output")
    }

    /// Names of all specs of the suite that match an expression of Go's.
    ///
    /// # Errors
    /// Where the suite does not run.
    pub fn list(&self, focus: &str) -> Result<Vec<String>> {
        let report = self.target.join("specs.json");
        let mut command = self.command();
        command.args(["--ginkgo.dry-run", "--ginkgo.silence-skips"]);
        command.arg(format!("--ginkgo.focus={focus}"));
        command.arg(format!("--ginkgo.json-report={}", report.display()));
        let output = command.output().context("running e2e.test")?;
        if !output.status.success() {
            bail!("e2e.test cannot list its specs: {}", String::from_utf8_lossy(&output.stdout));
        }
        let text = fs::read_to_string(&report).context("reading the list of specs")?;
        names(&text)
    }

    /// One spec, in a process of its own.
    pub fn spec(&self, spec: &str, kubeconfig: &Path) -> Command {
        let mut command = self.command();
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        command.arg(format!("--kubectl-path={}", self.target.join("kubectl").display()));
        command.arg(format!("--ginkgo.focus={}", exactly(spec)));
        command.args(["--dump-logs-on-failure=false", "--ginkgo.v", "--ginkgo.silence-skips"]);
        command
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.target.join("e2e.test"));
        command.env("KUBE_TEST_REPO_LIST", self.target.join("registries.yaml"));
        command.args(["--provider=skeleton", "--ginkgo.no-color"]);
        command
    }
}

/// An expression of Go's that matches this spec alone. Before its text stands that of the suite.
fn exactly(text: &str) -> String {
    let mut expression = String::from("(^| )");
    for letter in text.chars() {
        if letter.is_ascii_punctuation() {
            expression.push('\\');
        }
        expression.push(letter);
    }
    expression + "$"
}

/// Specs of a report of ginkgo's that were to run.
fn names(report: &str) -> Result<Vec<String>> {
    let suites: serde_json::Value = serde_json::from_str(report).context("the list of specs is no JSON")?;
    let reports = suites[0]["SpecReports"].as_array().context("the list of specs has no SpecReports")?;
    let chosen = reports.iter().filter(|spec| spec["LeafNodeType"] == "It" && spec["State"] == "passed");
    Ok(chosen.map(full_name).collect())
}

/// As the suite prints it: the containers' texts, then the spec's own.
fn full_name(spec: &serde_json::Value) -> String {
    let containers = spec["ContainerHierarchyTexts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = containers.iter().chain([&spec["LeafNodeText"]]).filter_map(serde_json::Value::as_str);
    texts.collect::<Vec<_>>().join(" ")
}
