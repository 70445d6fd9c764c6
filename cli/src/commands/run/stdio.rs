//! A component's standard streams are this process's own.

use std::{
    io::{self, ErrorKind, IsTerminal, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use anyhow::{Context, Error, Result, anyhow};
use coracle_wasi_host::{LogSink, Stdin, net::Conn};
use tokio::{io::AsyncWriteExt, runtime::Handle};
use tokio_util::sync::CancellationToken;

use crate::output::NobodyReads;

/// Bytes of input that are read ahead, and at once.
const INPUT_BYTES: usize = 64 * 1024;
/// How often a process in the background looks whether the terminal is its own again.
const BACKGROUND_POLL: Duration = Duration::from_millis(200);

/// Standard output or error. What is written is seen at once, whole line or not.
pub struct Console {
    is_error: bool,
    broken: CancellationToken,
    /// Why it is.
    error: OnceLock<io::Error>,
}

impl Console {
    pub fn stdout() -> Arc<Self> {
        Arc::new(Self { is_error: false, broken: CancellationToken::new(), error: OnceLock::new() })
    }

    pub fn stderr() -> Arc<Self> {
        Arc::new(Self { is_error: true, broken: CancellationToken::new(), error: OnceLock::new() })
    }

    /// Resolves once it takes nothing more, with the reason.
    pub async fn failed(&self) -> Error {
        self.broken.cancelled().await;
        match self.error.get() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => anyhow!("writing to stdout: {error}"),
            _ => NobodyReads.into(),
        }
    }
}

fn put(mut stream: impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// Waits for whoever reads: there is no other guest in this process that it could hold up.
impl LogSink for Console {
    fn write(&self, line: &[u8]) -> usize {
        let written = match self.is_error {
            true => put(io::stderr().lock(), line),
            false => put(io::stdout().lock(), line),
        };
        if let Err(error) = written {
            // Only the first one counts.
            let _ = self.error.set(error);
            self.broken.cancel();
        }
        line.len()
    }

    fn takes_pieces(&self) -> bool {
        true
    }
}

/// This process's standard input, from now on. Needs a tokio runtime in context.
pub fn stdin() -> Result<Stdin> {
    let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let (near, far) = Conn::pair(nowhere, nowhere, INPUT_BYTES);
    let runtime = Handle::current();
    // It blocks where nothing comes, and ends with the process.
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || carry(far, &runtime))
        .context("starting a thread for standard input")?;
    Ok(Stdin::Sent(Arc::new(near)))
}

fn carry(mut to: Conn, runtime: &Handle) {
    let mut buffer = vec![0; INPUT_BYTES];
    loop {
        while is_in_the_background() {
            thread::sleep(BACKGROUND_POLL);
        }
        let read = match io::stdin().read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.unwrap_or(0),
        };
        // Its end is told by the end of the connection.
        if read == 0 || runtime.block_on(to.write_all(&buffer[..read])).is_err() {
            return;
        }
    }
}

/// Whether a read would stop this process, as a shell's job control has it.
fn is_in_the_background() -> bool {
    let stdin = io::stdin();
    stdin.is_terminal()
        && rustix::termios::tcgetpgrp(&stdin).is_ok_and(|foreground| foreground != rustix::process::getpgrp())
}
