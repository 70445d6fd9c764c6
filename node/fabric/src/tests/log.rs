//! What the node's log says while a test runs.

use std::sync::Arc;

use tempfile::NamedTempFile;
use tracing::subscriber::DefaultGuard;

/// What is logged on this thread, as long as it is kept.
pub(super) struct Log {
    file: NamedTempFile,
    _kept: DefaultGuard,
}

impl Log {
    pub(super) fn keep() -> Self {
        let file = NamedTempFile::new().unwrap();
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
        let log = log.with_writer(Arc::new(file.reopen().unwrap())).finish();
        Self { file, _kept: tracing::subscriber::set_default(log) }
    }

    /// Its lines with this word.
    pub(super) fn lines(&self, word: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.file.path()).unwrap();
        text.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}
