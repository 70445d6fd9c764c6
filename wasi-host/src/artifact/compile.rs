//! Compiling, in a limited process of its own where one is configured.
//!
//! Bytes from strangers can make a compiler take for ever and all memory, which is no bug of it; the limits of a
//! process of its own end that. Dropping the future of a compile ends its process.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use wasmtime::Engine;

use super::cache_dir::CacheDir;
use super::child::{CODE_BYTES_MAX, CPU_SECONDS_MAX, SUBCOMMAND, make};
use super::code_store::CodeKey;
use super::confine::Confinement;
use super::inspect::Kind;
use super::verdict::{self, VERDICT_BYTES_MAX};
use super::{PrepareError, desk::Desk};
use crate::limits;

/// After so long the compile is given up, however little CPU time it got.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(300);

/// Memory of one compile: a part of what guests may have, within these. The allocator's and the threads' own come to some 100
/// MiB; a component needs some 30 times its size.
const MEMORY_PART: u64 = 4;
const MEMORY_BYTES_MIN: u64 = 512 << 20;
const MEMORY_BYTES_MAX: u64 = 8 << 30;

/// Bytes of code that a byte of a component becomes at most, as a rule.
const CODE_PER_BYTE: u64 = 16;

/// Makes native code of components.
pub(super) struct Compiler {
    means: Means,
    /// Where files without a name are made.
    dir: CacheDir,
}

enum Means {
    /// In processes of this program.
    Apart { program: PathBuf, starter: Starter, memory_bytes: u64 },
    /// In this process, with these engines of WASI 0.2 and 0.3.
    Within([Engine; 2]),
}

impl Compiler {
    /// Compiles with `program`, or else within this process.
    pub(super) fn new(program: Option<PathBuf>, engines: [Engine; 2], dir: CacheDir) -> io::Result<Compiler> {
        let Some(program) = program else { return Ok(Compiler { means: Means::Within(engines), dir }) };
        let confinement = Confinement::of_this_kernel();
        if !confinement.is_whole() {
            tracing::warn!("this kernel confines the compiler of components with {confinement}");
        }
        let memory_bytes =
            limits::machine_memory().map(limits::guests_memory).map_or(MEMORY_BYTES_MIN, |bytes| {
                (bytes / MEMORY_PART).clamp(MEMORY_BYTES_MIN, MEMORY_BYTES_MAX)
            });
        let means = Means::Apart { program, starter: Starter::new()?, memory_bytes };
        Ok(Compiler { means, dir })
    }

    /// Compiles a file, and returns the code in a file without a name. Both are written at `desk`.
    pub(super) async fn compile(
        &self,
        wasm: Vec<u8>,
        key: &CodeKey,
        desk: &Desk,
    ) -> Result<(Kind, File), PrepareError> {
        let scratch = self.dir.scratch(&key.to_string(), "wasm");
        match &self.means {
            Means::Apart { program, starter, memory_bytes } => {
                let output = unnamed(desk, scratch.clone(), Vec::new()).await?;
                let input = unnamed(desk, scratch, wasm).await?;
                let arguments =
                    [u64::from(std::process::id()), *memory_bytes].map(|number| number.to_string());
                let mut command = Command::new(program);
                command
                    .arg(SUBCOMMAND)
                    .args(arguments)
                    // Signals to the node's terminal are the node's. No session: the kernel may share the cores by them.
                    .process_group(0)
                    .env_clear()
                    // Memory that is only reserved would count as used.
                    .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
                    .stdin(Stdio::from(input))
                    .stdout(Stdio::from(
                        output.try_clone().map_err(PrepareError::io("cannot open", program))?,
                    ))
                    .stderr(Stdio::piped())
                    .kill_on_drop(true);
                let child = starter.start(command).await;
                let child = child.map_err(PrepareError::io("cannot start the compiler", program))?;
                let kind = outcome(child, program).await?;
                Ok((kind, output))
            }
            Means::Within(engines) => {
                let engines = engines.clone();
                let (kind, code) = desk.run(move || make(wasm, &engines)).await?;
                Ok((kind, unnamed(desk, scratch, code).await?))
            }
        }
    }
}

/// Bytes of code that so many of a component become at most, as a rule.
pub(super) fn reckoned(wasm: usize) -> u64 {
    (wasm as u64).saturating_mul(CODE_PER_BYTE).min(CODE_BYTES_MAX)
}

/// A file with this content that has no name any more: whatever becomes of this process, nothing is left of it.
async fn unnamed(desk: &Desk, path: PathBuf, content: Vec<u8>) -> Result<File, PrepareError> {
    desk.run(move || {
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let failed = |what| PrepareError::io(what, &path);
        let mut file = opened.map_err(failed("cannot write"))?;
        std::fs::remove_file(&path).map_err(failed("cannot remove"))?;
        file.write_all(&content).map_err(failed("cannot write"))?;
        io::Seek::rewind(&mut file).map_err(failed("cannot read"))?;
        Ok(file)
    })
    .await
}

/// Starts processes from a thread that lives as long as this: the kernel ends a process with the thread that started it,
/// where that was asked for.
pub(super) struct Starter {
    commands: mpsc::Sender<(Command, oneshot::Sender<io::Result<Child>>)>,
}

impl Starter {
    fn new() -> io::Result<Starter> {
        let (commands, received) = mpsc::channel::<(Command, oneshot::Sender<io::Result<Child>>)>();
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        std::thread::Builder::new().name("compilers".into()).spawn(move || {
            let _context = runtime.enter();
            while let Ok((mut command, answer)) = received.recv() {
                // Nobody waits for it any more: the child is dropped, which ends it.
                let _ = answer.send(command.spawn());
            }
        })?;
        Ok(Starter { commands })
    }

    async fn start(&self, command: Command) -> io::Result<Child> {
        let (answer, started) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts compilers has ended");
        self.commands.send((command, answer)).map_err(|_| gone())?;
        started.await.map_err(|_| gone())?
    }
}

async fn outcome(mut child: Child, program: &Path) -> Result<Kind, PrepareError> {
    let stderr = child.stderr.take();
    let finished = async {
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            // A verdict that cannot be read leaves the exit status to speak.
            let _ = stderr.take(VERDICT_BYTES_MAX as u64).read_to_end(&mut said).await;
        }
        (child.wait().await, String::from_utf8_lossy(&said).trim().to_owned())
    };
    let Ok((status, said)) = tokio::time::timeout(COMPILE_TIMEOUT, finished).await else {
        let message = format!("it took more than {} s", COMPILE_TIMEOUT.as_secs());
        return Err(PrepareError::GivenUp { message });
    };
    let status = status.map_err(PrepareError::io("cannot wait for the compiler", program))?;
    match verdict::from_text(&said) {
        Some(Err(refused)) => Err(refused),
        Some(Ok(kind)) if status.success() => Ok(kind),
        _ => Err(PrepareError::GivenUp { message: died(status, &said) }),
    }
}

/// What it means that the compiler ended without a verdict.
fn died(status: ExitStatus, said: &str) -> String {
    let signal = status.signal().and_then(Signal::from_named_raw);
    let why = match signal {
        Some(Signal::XCPU) => format!("it took more than {CPU_SECONDS_MAX} s of CPU time"),
        Some(Signal::XFSZ) => format!("the compiled code has more than {CODE_BYTES_MAX} bytes"),
        Some(Signal::KILL) => {
            format!("it was killed: it took more than {CPU_SECONDS_MAX} s of CPU time, or memory is scarce")
        }
        Some(Signal::ABORT) => "it took too much memory, or is nested too deep".to_owned(),
        _ => format!("the compiler ended with {status}"),
    };
    if said.is_empty() { why } else { format!("{why}: {said}") }
}
