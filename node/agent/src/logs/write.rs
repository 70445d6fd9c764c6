//! The writing end of a log.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use coracle_wasi_host::LogSink;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{FILE_BYTES_MAX, FILES_MAX, rotated};
use crate::private;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What readers that follow a log wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Grows with every write.
    pub writes: u64,
    pub ended: bool,
}

/// The log of one attempt of one container, open for writing.
#[derive(Debug)]
pub struct ContainerLog {
    path: PathBuf,
    bytes_max: u64,
    current: Mutex<Current>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
struct Current {
    /// `None` after an error: the next line tries to open it again.
    file: Option<File>,
    size: u64,
    /// Reused from line to line.
    record: Vec<u8>,
}

impl ContainerLog {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        Self::open_with(path, FILE_BYTES_MAX)
    }

    pub(super) fn open_with(path: PathBuf, bytes_max: u64) -> io::Result<Self> {
        let file = private::open_options().append(true).open(&path)?;
        let size = file.metadata()?.len();
        let current = Mutex::new(Current { file: Some(file), size, record: Vec::new() });
        Ok(Self { path, bytes_max, current, progress: watch::Sender::new(Progress::default()) })
    }

    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn end(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// Writes one line or a piece of one. A disk that takes nothing loses the line, not the guest.
    fn append(&self, stream: Stream, line: &[u8]) {
        let mut current = self.current.lock();
        let (text, tag) = line.strip_suffix(b"\n").map_or((line, 'P'), |text| (text, 'F'));
        let stream = if stream == Stream::Stdout { "stdout" } else { "stderr" };
        let mut record = std::mem::take(&mut current.record);
        record.clear();
        let written = write!(record, "{:.9} {stream} {tag} ", Timestamp::now()).and_then(|()| {
            record.extend_from_slice(text);
            record.push(b'\n');
            self.append_record(&mut current, &record)
        });
        current.record = record;
        if let Err(error) = written
            && current.file.take().is_some()
        {
            tracing::warn!(path = %self.path.display(), %error, "container log lost lines");
        }
        drop(current);
        self.progress.send_modify(|progress| progress.writes += 1);
    }

    fn append_record(&self, current: &mut Current, record: &[u8]) -> io::Result<()> {
        if current.file.is_none() || current.size >= self.bytes_max {
            if current.size >= self.bytes_max {
                self.rotate()?;
            }
            let file = private::open_options().append(true).open(&self.path)?;
            current.size = file.metadata()?.len();
            current.file = Some(file);
        }
        if let Some(file) = &mut current.file {
            file.write_all(record)?;
            current.size += record.len() as u64;
        }
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        for number in (1..FILES_MAX - 1).rev() {
            let from = rotated(&self.path, number);
            if from.exists() {
                fs::rename(from, rotated(&self.path, number + 1))?;
            }
        }
        fs::rename(&self.path, rotated(&self.path, 1))
    }
}

/// One of the two streams of a container, as the sandbox writes to it.
pub struct StreamSink {
    log: Arc<ContainerLog>,
    stream: Stream,
}

impl StreamSink {
    pub fn new(log: Arc<ContainerLog>, stream: Stream) -> Self {
        Self { log, stream }
    }
}

impl LogSink for StreamSink {
    fn write(&self, line: &[u8]) -> usize {
        self.log.append(self.stream, line);
        line.len()
    }
}
