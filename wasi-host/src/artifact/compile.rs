//! Compiling, in a limited process of its own where one is configured.
//!
//! Bytes from strangers can make a compiler take for ever and all memory, which is no bug of it; the limits of a
//! process of its own end that.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Semaphore;
use wasmtime::Engine;

use super::{PrepareError, blocking};
use crate::engine::{WasiVersion, compiling};

/// The hidden subcommand of the binary that compiles.
const SUBCOMMAND: &str = "compile-component";

/// CPU time of one compile, over all threads. A 50 MB interpreter takes about 60 s.
const CPU_SECONDS_MAX: u64 = 300;

/// Address space of the compiling process.
const ADDRESS_BYTES_MAX: u64 = 16 << 30;

/// After so long the compile is given up, however little CPU time it got.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(300);

/// Compiles at once; each uses all cores by itself.
const COMPILES_MAX: usize = 2;

/// Bytes of a compiler's complaint that are kept.
const MESSAGE_BYTES_MAX: u64 = 4096;

/// Compiles components, a bounded number at once.
pub(super) struct Compilers {
    /// The binary with the subcommand, or none to compile in this process.
    binary: Option<PathBuf>,
    permits: Semaphore,
}

impl Compilers {
    pub(super) fn new(binary: Option<PathBuf>) -> Compilers {
        Compilers { binary, permits: Semaphore::new(COMPILES_MAX) }
    }

    /// Compiles a component into the file `output`, for an engine like `engine`.
    pub(super) async fn compile(
        &self,
        engine: &Engine,
        version: WasiVersion,
        component: Bytes,
        output: &Path,
    ) -> Result<(), PrepareError> {
        let _permit = self.permits.acquire().await;
        match &self.binary {
            Some(binary) => compile_in_child(binary, version, &component, output).await,
            None => {
                let engine = engine.clone();
                let code =
                    blocking(move || engine.precompile_component(&component)).await.map_err(refused)?;
                tokio::fs::write(output, code).await.map_err(PrepareError::io("cannot write", output))
            }
        }
    }
}

async fn compile_in_child(
    binary: &Path,
    version: WasiVersion,
    component: &[u8],
    output: &Path,
) -> Result<(), PrepareError> {
    let input = output.with_extension("wasm.tmp");
    tokio::fs::write(&input, component).await.map_err(PrepareError::io("cannot write", &input))?;
    let compiled = run_child(binary, version, &input, output).await;
    // Left behind it would only take room until the cache's directory is emptied.
    let _ = tokio::fs::remove_file(&input).await;
    if compiled.is_err() {
        let _ = tokio::fs::remove_file(output).await;
    }
    compiled
}

async fn run_child(
    binary: &Path,
    version: WasiVersion,
    input: &Path,
    output: &Path,
) -> Result<(), PrepareError> {
    let failed = PrepareError::io("cannot start the compiler", binary);
    let mut child = Command::new(binary)
        .arg(SUBCOMMAND)
        .arg(version.name())
        .args([input, output])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stderr = child.stderr.take();
    let finished = async {
        let mut message = Vec::new();
        if let Some(stderr) = stderr {
            // A complaint that cannot be read leaves the exit status to speak.
            let _ = stderr.take(MESSAGE_BYTES_MAX).read_to_end(&mut message).await;
        }
        (child.wait().await, String::from_utf8_lossy(&message).trim().to_owned())
    };
    let Ok((status, message)) = tokio::time::timeout(COMPILE_TIMEOUT, finished).await else {
        let message = format!("compiling took more than {} s", COMPILE_TIMEOUT.as_secs());
        return Err(PrepareError::Compile { message });
    };
    let status = status.map_err(PrepareError::io("cannot wait for the compiler", binary))?;
    if status.success() {
        return Ok(());
    }
    let message = if message.is_empty() {
        format!(
            "the compiler ended with {status}: more than {CPU_SECONDS_MAX} s of CPU time or too much memory"
        )
    } else {
        message
    };
    Err(PrepareError::Compile { message })
}

/// The body of the hidden subcommand `compile-component VERSION INPUT OUTPUT`, given its arguments: limits this
/// process, compiles INPUT and writes OUTPUT. Complaints go to standard error.
pub fn compile_child_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match compile_child(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // The parent made the pipe; where it is gone there is nobody to tell.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn compile_child(arguments: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let [version, input, output] = arguments.as_slice() else {
        return Err(format!("usage: {SUBCOMMAND} p2|p3 INPUT OUTPUT"));
    };
    let version = version.to_str().and_then(WasiVersion::from_name).ok_or("unknown version of WASI")?;
    limit(Resource::Cpu, CPU_SECONDS_MAX)?;
    limit(Resource::As, ADDRESS_BYTES_MAX)?;
    compile_file(version, Path::new(input), Path::new(output))
}

fn compile_file(version: WasiVersion, input: &Path, output: &Path) -> Result<(), String> {
    let component = std::fs::read(input).map_err(|error| format!("cannot read the component: {error}"))?;
    let engine = compiling(version).map_err(|error| format!("{error:#}"))?;
    let code = engine.precompile_component(&component).map_err(|error| format!("{error:#}"))?;
    std::fs::write(output, code).map_err(|error| format!("cannot write the compiled code: {error}"))
}

fn limit(resource: Resource, most: u64) -> Result<(), String> {
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
        .map_err(|error| format!("cannot limit the compiler: {error}"))
}

fn refused(error: wasmtime::Error) -> PrepareError {
    PrepareError::Compile { message: format!("{error:#}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_writes_code_or_says_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a directory");
        let (input, output) = (dir.path().join("in.wasm"), dir.path().join("out.cwasm"));
        std::fs::write(&input, wat::parse_str("(component)").expect("valid")).expect("written");
        compile_file(WasiVersion::P3, &input, &output).expect("compiled");
        assert!(Engine::detect_precompiled_file(&output).expect("readable").is_some());
        std::fs::write(&input, b"garbage").expect("written");
        assert!(compile_file(WasiVersion::P2, &input, &output).is_err());
        assert!(
            compile_child(["p4".into(), input.into(), output.into()])
                .expect_err("refused")
                .contains("unknown")
        );
        assert!(compile_child([]).expect_err("refused").contains("usage"));
    }
}
