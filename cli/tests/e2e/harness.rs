//! Daemons in child processes, client commands, kubectl, and requests through the gateway.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);

/// A core module that imports something which no WASI has: `(import "env" "mystery" (func))`.
pub const FOREIGN_MODULE: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0f\x01\x03env\x07mystery\0\0";

static CLUSTERS: Mutex<()> = Mutex::new(());

/// Waits until no other test has a cluster. To be kept until the test's own is gone: a cluster has time limits, which are
/// not meant for several on one small machine.
pub fn alone() -> MutexGuard<'static, ()> {
    CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A daemon of the binary; killed with its handle.
pub struct Daemon {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts `coracle ARGUMENTS` and waits until its output contains `wanted`.
    pub fn start(arguments: &[&str], wanted: &str) -> Self {
        Self::run(coracle(arguments), wanted)
    }

    /// The same of a command that has more than arguments.
    pub fn run(mut command: Command, wanted: &str) -> Self {
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the binary starts");
        let output = Arc::new(Mutex::new(String::new()));
        let pipes: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for pipe in pipes {
            let output = output.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let mut text = output.lock().unwrap();
                    text.push_str(&line);
                    text.push('\n');
                }
            });
        }
        let mut daemon = Self { child, output };
        eventually(&format!("{command:?} to say {wanted:?}"), || {
            if daemon.output().contains(wanted) {
                return Ok(());
            }
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("{command:?} ended with {status}:\n{}", daemon.output());
            }
            Err(daemon.output())
        });
        daemon
    }

    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// The first word behind `label` in the output.
    pub fn said(&self, label: &str) -> String {
        let output = self.output();
        let at = output.find(label).unwrap_or_else(|| panic!("no {label:?} in:\n{output}")) + label.len();
        output[at..].split_whitespace().next().unwrap_or_default().to_string()
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The arguments that everybody on the machine can read.
    pub fn command_line(&self) -> String {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.child.id())).unwrap();
        String::from_utf8_lossy(&line).replace('\0', " ")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP: its sockets stay open, and it answers nothing.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, and waits for a clean end.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        eventually("the daemon to stop", || match self.child.try_wait().unwrap() {
            Some(status) if status.success() => Ok(()),
            Some(status) => panic!("the daemon ended with {status}:\n{}", self.output()),
            None => Err(self.output()),
        });
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- a daemon said:\n{}", self.output());
        }
    }
}

/// The binary under test with these arguments, knowing nothing of the machine's own clusters.
pub fn coracle(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle"));
    command.args(arguments).stdin(Stdio::null()).env("XDG_DATA_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    for variable in ["KUBECONFIG", "CORACLE_TOKEN", "CORACLE_DATA_DIR"] {
        command.env_remove(variable);
    }
    command
}

/// A control node that begins a cluster, on a free port: with its address.
pub fn control(data_dir: &str) -> (Daemon, String) {
    let arguments = ["control", "--data-dir", data_dir, "--listen", "127.0.0.1:0", "--init"];
    let control = Daemon::start(&arguments, "control node at");
    let address = control.said("control node at ").trim_end_matches(',').to_string();
    (control, address)
}

/// Runs a client command that must succeed: its stdout.
pub fn run(arguments: &[&str]) -> String {
    let output = coracle(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "coracle {arguments:?} failed: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail: its stderr.
pub fn fails(arguments: &[&str]) -> String {
    let output = coracle(arguments).output().unwrap();
    assert!(!output.status.success(), "coracle {arguments:?} should have failed");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `coracle up` on a data dir, with free ports.
pub fn up(data_dir: &Path) -> Daemon {
    let data_dir = data_dir.to_str().unwrap();
    Daemon::start(
        &["up", "--data-dir", data_dir, "--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0"],
        "The cluster is up",
    )
}

/// Waits until `check` answers `Ok`; panics with its last complaint when patience ends.
pub fn eventually<T>(what: &str, check: impl FnMut() -> Result<T, String>) -> T {
    within(PATIENCE, what, check)
}

/// As [`eventually`], with a patience of its own.
pub fn within<T>(patience: Duration, what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match check() {
            Ok(value) => return value,
            Err(complaint) if begun.elapsed() > patience => {
                panic!("waited {} s for {what}; last: {complaint}", patience.as_secs())
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// A kubectl of one version, with a kubeconfig.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// The newest kubectl of this machine up to 1.33; `None`, with a message, where there is none.
    ///
    /// # Panics
    /// Where `CORACLE_REQUIRE_CLIENTS` is set and there is none.
    pub fn find(kubeconfig: &Path) -> Option<Self> {
        Self::among(kubeconfig, |mut all| all.pop())
    }

    /// The oldest kubectl of this machine from 1.27, as [`Kubectl::find`] finds the newest.
    pub fn find_oldest(kubeconfig: &Path) -> Option<Self> {
        Self::among(kubeconfig, |all| all.into_iter().next())
    }

    fn among(kubeconfig: &Path, choose: impl FnOnce(Vec<PathBuf>) -> Option<PathBuf>) -> Option<Self> {
        let program = choose(kubectls());
        if program.is_none() {
            assert!(
                std::env::var_os("CORACLE_REQUIRE_CLIENTS").is_none(),
                "kubectl is required and not installed"
            );
            eprintln!("skipped: kubectl is not installed (for example: apt-get install kubernetes-client)");
        }
        program.map(|program| Self { program, kubeconfig: kubeconfig.into() })
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command
    }

    /// Runs kubectl, which must succeed: its stdout.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.try_run(arguments).unwrap_or_else(|stderr| panic!("kubectl {arguments:?} failed: {stderr}"))
    }

    pub fn try_run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// `kubectl ARGUMENTS -f -` with this manifest.
    pub fn feed(&self, arguments: &[&str], manifest: &str) -> Result<String, String> {
        let mut child = self
            .command(arguments)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// Every kubectl of this machine, oldest first: versions beside the one on the PATH, else that one.
fn kubectls() -> Vec<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let Some(plain) =
        std::env::split_paths(&paths).map(|folder| folder.join("kubectl")).find(|path| path.exists())
    else {
        return Vec::new();
    };
    let folder = plain.canonicalize().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    let mut versions: Vec<PathBuf> = folder
        .and_then(|folder| std::fs::read_dir(folder).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("kubectl.1.")))
        .collect();
    versions.sort();
    if versions.is_empty() { vec![plain] } else { versions }
}

/// One GET through a gateway: (status, body). An address that does not answer is status 0.
pub fn get(gateway: &str, host: &str) -> (u16, String) {
    request(gateway, host).unwrap_or_else(|error| (0, error.to_string()))
}

fn request(gateway: &str, host: &str) -> std::io::Result<(u16, String)> {
    let address = gateway.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_string();
    Ok((status, body))
}

/// The path of a sample workload.
pub fn sample(name: &str) -> String {
    coracle_sample_artifacts::wasm(name).to_str().unwrap().to_string()
}
