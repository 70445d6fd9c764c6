//! Control processes on the loopback.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    client::Client,
    process::{Running, coracle, free_port},
};

/// Until control processes are voters, and until a leader is there.
const READY_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Some control processes of one cluster, each with a data directory of its own.
pub struct Cluster {
    binary: PathBuf,
    folder: tempfile::TempDir,
    members: Vec<Member>,
}

struct Member {
    address: String,
    running: Option<Running>,
}

impl Cluster {
    /// Starts so many, and waits until all vote.
    pub async fn start(count: usize) -> Result<Self> {
        Self::start_of(coracle()?, count).await
    }

    /// As [`Cluster::start`], of another build.
    pub async fn start_of(binary: PathBuf, count: usize) -> Result<Self> {
        let mut cluster = Self { binary, folder: tempfile::tempdir()?, members: Vec::new() };
        for _ in 0..count {
            cluster.add()?;
        }
        let deadline = Instant::now() + READY_WITHIN;
        while cluster.client(0)?.status().await?.members.iter().filter(|member| member.voter).count() < count
        {
            if Instant::now() > deadline {
                bail!("{count} control nodes did not become voters");
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(cluster)
    }

    /// Starts one more, which becomes a voter by itself where that makes an odd number: its number.
    pub fn add(&mut self) -> Result<usize> {
        let number = self.members.len();
        let join = match self.alive().next() {
            Some(other) => {
                let token = self.cli(&["token", "create", "--role", "control"])?;
                vec![
                    "--join".to_owned(),
                    self.members[other].address.clone(),
                    "--token".to_owned(),
                    token.trim().to_owned(),
                ]
            }
            None => vec!["--init".to_owned()],
        };
        let address = format!("127.0.0.1:{}", free_port()?);
        self.members.push(Member { address, running: None });
        let running = Running::start_until(self.command(number).args(join), "control node at")?;
        self.members[number].running = Some(running);
        Ok(number)
    }

    fn command(&self, number: usize) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["--log", "error", "control", "--data-dir"]).arg(self.data_dir(number));
        command.args(["--listen", &self.members[number].address]);
        command
    }

    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("control-{number}"))
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn address(&self, number: usize) -> &str {
        &self.members[number].address
    }

    pub fn alive(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.members.len()).filter(|number| self.members[*number].running.is_some())
    }

    pub fn running(&self, number: usize) -> Option<&Running> {
        self.members[number].running.as_ref()
    }

    /// SIGKILL.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut running) = self.members[number].running.take() {
            running.kill();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, number: usize) {
        self.members[number].running = None;
    }

    /// The raft id of a member that runs.
    pub async fn member_id(&self, number: usize) -> Result<u64> {
        Ok(self.client(number)?.status().await?.member_id)
    }

    /// Resumes a member that was killed or stopped; returns once it listens.
    pub fn resume(&mut self, number: usize) -> Result<()> {
        let running = Running::start_until(&mut self.command(number), "control node at")?;
        self.members[number].running = Some(running);
        Ok(())
    }

    pub fn client(&self, number: usize) -> Result<Client> {
        Client::of(&self.data_dir(number).join("kubeconfig"), &self.members[number].address)
    }

    /// Which member leads, as soon as one does.
    pub async fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            for number in self.alive() {
                let status = self.client(number)?.status().await;
                if status.is_ok_and(|status| status.leader_id != 0 && status.leader_id == status.member_id) {
                    return Ok(number);
                }
            }
            if Instant::now() > deadline {
                bail!("no control node leads");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Runs a client command against the first member that runs: its stdout.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let number = self.alive().next().context("no member runs")?;
        let kubeconfig = self.data_dir(number).join("kubeconfig");
        let output = Command::new(&self.binary).args(arguments).arg("--kubeconfig").arg(kubeconfig).output();
        let output = output.context("running coracle")?;
        if !output.status.success() {
            bail!("coracle {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// What starts from now on is of this build.
    pub fn upgrade(&mut self, binary: PathBuf) {
        self.binary = binary;
    }
}
