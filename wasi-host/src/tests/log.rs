//! What the node's log says while a test runs.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;

/// What is logged on this thread, as long as it is kept.
pub struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _kept: DefaultGuard,
}

impl Log {
    pub fn keep() -> Log {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let sink = Arc::clone(&text);
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || Sink(Arc::clone(&sink)));
        Log { text, _kept: tracing::subscriber::set_default(log.finish()) }
    }

    /// Its lines with this word.
    pub fn lines(&self, word: &str) -> Vec<String> {
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
