//! Programs under measurement: found, started, ended by their process id.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Ticks of a second in `/proc` (proc(5)), the same on all machines of today.
const USER_HZ: u64 = 100;

/// What a process holds: resident memory in MiB, threads, open files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub mib: usize,
    pub threads: usize,
    pub descriptors: usize,
}

impl Usage {
    /// What the process of this id uses at this moment.
    pub fn of(process: u32) -> Result<Self> {
        let folder = format!("/proc/{process}");
        let text = std::fs::read_to_string(format!("{folder}/status"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
            number.with_context(|| format!("no {name} in {folder}/status"))
        };
        let descriptors = std::fs::read_dir(format!("{folder}/fd"))?.count();
        Ok(Self { mib: field("VmRSS:")? / 1024, threads: field("Threads:")?, descriptors })
    }

    /// The higher of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            mib: self.mib.max(other.mib),
            threads: self.threads.max(other.threads),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

/// A child that ends with its handle.
pub struct Running {
    child: Child,
}

impl Running {
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("starting {:?}", command.get_program()))?;
        Ok(Self { child })
    }

    /// Starts a program and reads its stdout until a line contains `wanted`.
    pub fn start_until(command: &mut Command, wanted: &str) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {:?}", command.get_program()))?;
        let stdout = child.stdout.take().context("the child has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        loop {
            match lines.next() {
                Some(line) if line.as_ref().is_ok_and(|line| line.contains(wanted)) => break,
                Some(Ok(_)) => {}
                _ => {
                    let _ = child.kill();
                    bail!("{:?} ended before it said {wanted:?}", command.get_program());
                }
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident and proportional memory in MiB.
    pub fn memory_mib(&self) -> Result<(f64, f64)> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let number =
                line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse::<f64>().ok());
            number.map(|kib| kib / 1024.0).with_context(|| format!("no {name} in smaps_rollup"))
        };
        Ok((field("Rss:")?, field("Pss:")?))
    }

    /// What it uses at this moment.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.id())
    }

    /// CPU time that it has used, all threads together.
    pub fn cpu_time(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Behind the name, which may hold anything: utime and stime are the 14th and 15th field of all (proc(5)).
        let fields = text.rsplit_once(')').context("a name in /proc")?.1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 1000 / USER_HZ))
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        // A process that has ended needs none.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal);
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, then SIGKILL after five seconds.
    pub fn stop(&mut self) {
        if !self.lives() {
            return;
        }
        self.signal(rustix::process::Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The binary beside this one: of the same profile.
pub fn coracle() -> Result<PathBuf> {
    let mut folder = env::current_exe()?;
    folder.pop();
    let path = folder.join("coracle");
    if !path.exists() {
        bail!("{} is missing: run `cargo build --release` (or `cargo build`) first", path.display());
    }
    Ok(path)
}

/// A peer's program: `$VARIABLE`, or the name on the PATH; `None`, with a message, where there is none.
pub fn peer(variable: &str, name: &str, install: &str) -> Option<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Some(path.into());
    }
    let found = env::var_os("PATH").and_then(|paths| {
        env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.exists())
    });
    if found.is_none() {
        println!("peer {name} is not here: {install}, or name it with ${variable}");
    }
    found
}

/// A TCP port of the loopback that is free now.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits until a TCP port of the loopback accepts.
pub fn wait_port(port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            bail!("nothing listens on port {port}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
