//! A control node and maybe nodes on the loopback, for as long as a suite runs.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::root;

/// Until a process says where it is.
const START_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Cluster {
    folder: PathBuf,
    /// Of the control node, as `host:port`.
    pub address: String,
    /// Of the nodes, in their order, as `host:port`.
    pub gateways: Vec<String>,
    processes: Vec<Child>,
}

impl Cluster {
    /// Starts them, with empty data dirs in a folder under `target`, and waits until the nodes are Ready.
    ///
    /// # Errors
    /// Where one ends before it is there.
    pub fn start(binary: &Path, folder: &str, nodes: &[&str]) -> Result<Self> {
        let folder = root().join("target").join(folder);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let (address, gateways, processes) = Default::default();
        let mut cluster = Self { folder, address, gateways, processes };
        let mut control = cluster.command(binary, "control");
        control.args(["--init", "--listen", "127.0.0.1:0"]);
        let said = cluster.add(control, "control", "control node at ")?;
        cluster.address = said.trim_end_matches(',').to_owned();
        for name in nodes {
            let token = cluster.ask(binary, &["token", "create", "--role", "node"])?;
            let mut node = cluster.command(binary, "node");
            node.args(["--name", name, "--join", &cluster.address, "--token", token.trim()]);
            node.args(["--fabric", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--allow-egress"]);
            let gateway = cluster.add(node, name, "gateway http://")?;
            cluster.gateways.push(gateway);
        }
        Ok(cluster)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("control/kubeconfig")
    }

    /// The certificate by which clients know the control node.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("control/pki/serving-ca.crt")
    }

    fn command(&self, binary: &Path, role: &str) -> Command {
        let mut command = Command::new(binary);
        command.args(["--log", "warn", role, "--data-dir"]);
        let number = self.processes.len();
        command.arg(self.folder.join(if number == 0 { "control".to_owned() } else { format!("n{number}") }));
        command
    }

    /// Starts a process and waits for a word of its stdout: what follows it.
    fn add(&mut self, mut command: Command, name: &str, wanted: &str) -> Result<String> {
        let log = fs::File::create(self.folder.join(format!("{name}.log")))?;
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().context("starting coracle")?;
        let stdout = child.stdout.take().context("the child has no stdout")?;
        self.processes.push(child);
        let (told, words) = mpsc::channel();
        let looked_for = wanted.to_owned();
        // It goes on to write when it has said the word, and is read on.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once(&looked_for) {
                    // Who waited may have gone.
                    let _ = told.send(rest.split_whitespace().next().unwrap_or_default().to_owned());
                }
            }
        });
        words.recv_timeout(START_TIMEOUT).with_context(|| {
            let log = self.folder.join(format!("{name}.log"));
            format!("{name} did not say {wanted:?}: see {}", log.display())
        })
    }

    /// The stdout of a command of the binary against this cluster.
    ///
    /// # Errors
    /// Where it fails.
    pub fn ask(&self, binary: &Path, words: &[&str]) -> Result<String> {
        let output = Command::new(binary).args(words).arg("--kubeconfig").arg(self.kubeconfig()).output()?;
        if !output.status.success() {
            bail!("coracle {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nothing of it is kept, so nothing needs its grace.
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
