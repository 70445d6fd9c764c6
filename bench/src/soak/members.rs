//! Three control processes in their namespaces: started, tended as an init system would, and hurt.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use coracle_proto::cluster::StatusResponse;
use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use super::network::{Network, run};
use crate::{
    client::Client,
    process::{Running, coracle},
};

pub const MEMBERS: usize = 3;
/// The member whose data directory is a small tmpfs.
pub const SMALL: usize = MEMBERS - 1;

/// Until three processes are three voters.
const VOTERS_WITHIN: Duration = Duration::from_secs(90);
/// Before a process that has ended is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// After its disk was full a member may end by itself for so long.
const FULL_AFTERMATH: Duration = Duration::from_secs(30);
/// Until a member must have said how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// One write to the file that fills a disk.
const BALLAST_BYTES: usize = 64 * 1024;

pub struct Members {
    network: Network,
    binary: PathBuf,
    folder: tempfile::TempDir,
    members: Vec<Member>,
    mounted: bool,
    /// Processes that ended by themselves although nothing was wrong with their disk, in words.
    pub ended: Vec<String>,
}

#[derive(Default)]
struct Member {
    running: Option<Running>,
    /// Not to be started again before this.
    down_until: Option<Instant>,
    full_until: Option<Instant>,
}

impl Members {
    /// Starts three voters. `small_mb` is the size of the third's data directory; on the real disk where there is none.
    pub async fn start(small_mb: Option<u64>) -> Result<Self> {
        let members = (0..MEMBERS).map(|_| Member::default()).collect();
        let (network, binary, folder) = (Network::new(MEMBERS)?, coracle()?, tempfile::tempdir()?);
        let mut cluster = Self { network, binary, folder, members, mounted: false, ended: Vec::new() };
        for member in 0..MEMBERS {
            fs::create_dir(cluster.data_dir(member))?;
        }
        if let Some(small_mb) = small_mb {
            let dir = cluster.data_dir(SMALL);
            run(&format!("mount -t tmpfs -o size={small_mb}m coracle-soak {}", dir.display()))?;
            cluster.mounted = true;
        }
        for member in 0..MEMBERS {
            if member == 0 {
                cluster.spawn(member, &["--init".to_owned()])?;
            } else {
                let token = cluster.token()?;
                let join = ["--join".to_owned(), cluster.address(0), "--token".to_owned(), token];
                cluster.spawn(member, &join)?;
            }
            cluster.wait_voters(1).await?;
        }
        cluster.wait_voters(MEMBERS).await?;
        Ok(cluster)
    }

    async fn wait_voters(&mut self, count: usize) -> Result<()> {
        let deadline = Instant::now() + VOTERS_WITHIN;
        loop {
            let status = self.status(0).await;
            let voters = status.as_ref().map(|status| status.members.iter().filter(|one| one.voter).count());
            if voters.is_ok_and(|voters| voters >= count) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let logs: Vec<String> = (0..MEMBERS).map(|member| self.log_tail(member)).collect();
                bail!("{count} voters did not come about: {status:?}\n{}", logs.join("\n"));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn token(&self) -> Result<String> {
        let output = Command::new(&self.binary)
            .args(["token", "create", "--role", "control", "--kubeconfig"])
            .arg(self.data_dir(0).join("kubeconfig"))
            .output()?;
        if !output.status.success() {
            bail!("coracle token create: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn spawn(&mut self, member: usize, how: &[String]) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(member))?;
        let mut command = self.network.command(member, &self.binary);
        command.args(["--log", "info", "control", "--data-dir"]).arg(self.data_dir(member));
        command.args(["--listen", &self.address(member)]).args(how);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.members[member].running = Some(Running::start(&mut command)?);
        Ok(())
    }

    pub fn address(&self, member: usize) -> String {
        self.network.address(member)
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    fn data_dir(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("control-{}", member + 1))
    }

    fn log(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("control-{}.log", member + 1))
    }

    /// The last lines that a member said.
    pub fn log_tail(&self, member: usize) -> String {
        let text = fs::read_to_string(self.log(member)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n  ");
        format!("member {} said last:\n  {tail}", member + 1)
    }

    pub fn client(&self, member: usize) -> Result<Client> {
        // The first member's certificates are an administrator's anywhere.
        Client::of(&self.data_dir(0).join("kubeconfig"), &self.address(member))
    }

    pub async fn status(&self, member: usize) -> Result<StatusResponse> {
        timeout(STATUS_TIMEOUT, self.client(member)?.status()).await.context("no answer in time")?
    }

    /// SIGKILL; it stays down for so long.
    pub fn kill(&mut self, member: usize, down: Duration) {
        if let Some(mut running) = self.members[member].running.take() {
            running.kill();
        }
        self.members[member].down_until = Some(Instant::now() + down);
    }

    pub fn pause(&mut self, member: usize) {
        self.signal(member, Signal::STOP);
    }

    pub fn go_on(&mut self, member: usize) {
        self.signal(member, Signal::CONT);
    }

    fn signal(&mut self, member: usize, signal: Signal) {
        if let Some(running) = &mut self.members[member].running
            && running.lives()
        {
            running.signal(signal);
        }
    }

    /// Fills the small disk to the last byte.
    pub fn fill(&mut self) -> Result<()> {
        self.members[SMALL].full_until = Some(Instant::now() + Duration::from_secs(3600));
        let mut ballast = File::create(self.ballast())?;
        let bytes = vec![0x55; BALLAST_BYTES];
        for size in [BALLAST_BYTES, 4096, 1] {
            while ballast.write_all(&bytes[..size]).is_ok() {}
        }
        Ok(())
    }

    pub fn empty(&mut self) {
        // It may never have been made.
        let _ = fs::remove_file(self.ballast());
        self.members[SMALL].full_until = Some(Instant::now() + FULL_AFTERMATH);
    }

    fn ballast(&self) -> PathBuf {
        self.data_dir(SMALL).join("ballast")
    }

    /// Starts again what has ended, as an init system would.
    pub fn tend(&mut self) -> Result<()> {
        let now = Instant::now();
        for number in 0..MEMBERS {
            let member = &mut self.members[number];
            let (started, lives) = match &mut member.running {
                Some(running) => (true, running.lives()),
                None => (false, false),
            };
            if started && !lives {
                member.running = None;
                member.down_until = Some(now + RESTART_PAUSE);
                if member.full_until.is_none_or(|until| until < now) {
                    let said = self.log_tail(number);
                    self.ended.push(format!("member {} ended by itself; {said}", number + 1));
                }
            } else if !started && member.down_until.is_none_or(|until| until < now) {
                self.spawn(number, &[])?;
            }
        }
        Ok(())
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for member in 0..MEMBERS {
            self.go_on(member);
            if let Some(mut running) = self.members[member].running.take() {
                running.kill();
            }
        }
        if self.mounted {
            let dir = self.data_dir(SMALL);
            let _ = run(&format!("umount {0}", dir.display()))
                .or_else(|_| run(&format!("umount -l {}", dir.display())));
        }
    }
}
