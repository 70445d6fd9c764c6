//! What the node's log says while a test runs.

use parking_lot::Mutex;
use std::io::{self, Write};
use std::sync::Arc;
use tracing::subscriber::DefaultGuard;

/// What is logged on this thread, as long as it is kept.
pub(super) struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _kept: DefaultGuard,
}

impl Log {
    pub(super) fn keep() -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let sink = text.clone();
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || Sink(sink.clone()));
        Self { text, _kept: tracing::subscriber::set_default(log.finish()) }
    }

    /// Its lines with this word.
    pub(super) fn lines(&self, word: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.text.lock()).into_owned();
        text.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}

struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
