//! The reading end of a log.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use coracle_objects::log_options::LogOptions;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::{segments, write::ContainerLog};

/// Bytes of one chunk that goes to the reader, about.
const CHUNK_BYTES: usize = 32 * 1024;
/// Bytes that are read at once in the search for the last lines.
const SEARCH_BYTES: u64 = 64 * 1024;

/// Sends what `options` ask for. `live`: the container may still write.
pub(super) async fn serve(
    path: &Path,
    options: &LogOptions,
    live: Option<Arc<ContainerLog>>,
    out: mpsc::Sender<Bytes>,
) -> Result<(), String> {
    let mut filter = Filter::new(options)?;
    let failed = |error: io::Error| format!("failed to read the log: {error}");
    let (path, tail) = (path.to_owned(), options.tail_lines);
    let mut progress = live.as_ref().filter(|_| options.follow).map(|log| log.watch());
    let mut cursor = blocking(move || Cursor::open(path, tail, live)).await.map_err(failed)?;
    loop {
        // Seen before reading: what is written meanwhile wakes us again.
        let ended = progress.as_mut().is_none_or(|progress| progress.borrow_and_update().ended);
        loop {
            let (back, chunk, passed) = blocking(move || {
                let chunk = cursor.read(&mut filter)?;
                Ok((cursor, chunk, filter))
            })
            .await
            .map_err(failed)?;
            cursor = back;
            let done = passed.is_full();
            filter = passed;
            let Some(chunk) = chunk else { break };
            if !chunk.is_empty() && out.send(chunk).await.is_err() || done {
                return Ok(());
            }
        }
        let Some(progress) = progress.as_mut().filter(|_| !ended) else { return Ok(()) };
        tokio::select! {
            // The cursor has the log, and with it the sender.
            changed = progress.changed() => if changed.is_err() { return Ok(()) },
            () = out.closed() => return Ok(()),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A place in the files of one attempt.
struct Cursor {
    path: PathBuf,
    /// Who writes them, if anybody still may.
    live: Option<Arc<ContainerLog>>,
    file: BufReader<File>,
    /// Files that were begun after this one: nothing more comes into this one.
    newer: VecDeque<File>,
    /// A record that is not whole yet.
    pending: Vec<u8>,
}

impl Cursor {
    fn open(path: PathBuf, tail: Option<i64>, live: Option<Arc<ContainerLog>>) -> io::Result<Self> {
        let mut newer = VecDeque::from(open_all(&path, live.as_deref())?);
        if let Some(lines) = tail {
            let (index, offset) = start_of_tail(&mut newer, u64::try_from(lines).unwrap_or(0))?;
            newer.drain(..index);
            if let Some(first) = newer.front_mut() {
                first.seek(SeekFrom::Start(offset))?;
            }
        }
        let first = newer.pop_front().ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { path, live, file: BufReader::new(first), newer, pending: Vec::new() })
    }

    /// The next chunk, or `None` at the present end of the log.
    fn read(&mut self, filter: &mut Filter) -> io::Result<Option<Bytes>> {
        let mut chunk = BytesMut::new();
        // Whether a newer file was known before this one was read to its end.
        let mut complete = !self.newer.is_empty();
        while chunk.len() < CHUNK_BYTES && !filter.is_full() {
            if self.file.read_until(b'\n', &mut self.pending)? == 0 {
                if complete && let Some(next) = self.newer.pop_front() {
                    self.file = BufReader::new(next);
                    // Records are never divided between files: this is a part that was cut off.
                    self.pending.clear();
                    complete = !self.newer.is_empty();
                } else if self.look_for_newer()? {
                    // What was written since it was read to its end, and before the newer one was begun.
                    complete = true;
                } else {
                    return Ok(Some(chunk.freeze()).filter(|chunk| !chunk.is_empty()));
                }
                continue;
            }
            if self.pending.last() == Some(&b'\n') {
                filter.pass(&self.pending, &mut chunk);
                self.pending.clear();
            }
        }
        Ok(Some(chunk.freeze()))
    }

    /// Opens the files that were begun after this one; false where this is the newest.
    fn look_for_newer(&mut self) -> io::Result<bool> {
        let Some(live) = &self.live else { return Ok(false) };
        let here = self.file.get_ref().metadata()?.ino();
        let mut newer = VecDeque::from(open_all(&self.path, Some(live))?);
        for index in 0..newer.len() {
            if newer[index].metadata()?.ino() == here {
                newer.drain(..=index);
                break;
            }
        }
        // Where this one is not among them it was rotated away: all are newer.
        self.newer = newer;
        Ok(!self.newer.is_empty())
    }
}

/// Opens all files of an attempt, oldest first, none of them twice.
fn open_all(path: &Path, live: Option<&ContainerLog>) -> io::Result<Vec<File>> {
    let _names = live.map(ContainerLog::names);
    segments(path).iter().map(File::open).collect()
}

/// Where the last `lines` lines begin: the index of a file, and the offset in it. The files are at their beginnings
/// then, but for the one at the index.
fn start_of_tail(files: &mut VecDeque<File>, lines: u64) -> io::Result<(usize, u64)> {
    // The end of the last line counts as well: it is the one before the first that is wanted.
    let mut wanted = lines + 1;
    for (index, file) in files.iter_mut().enumerate().rev() {
        let mut end = file.metadata()?.len();
        let mut block = Vec::new();
        while end > 0 {
            let start = end.saturating_sub(SEARCH_BYTES);
            block.resize((end - start) as usize, 0);
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut block)?;
            for at in (0..block.len()).rev().filter(|at| block[*at] == b'\n') {
                // A piece of a line ends a record, but no line.
                let next = start + at as u64 + 1;
                if is_piece(file, start, &block, at)? {
                    continue;
                }
                wanted -= 1;
                if wanted == 0 {
                    return Ok((index, next));
                }
            }
            end = start;
        }
        file.rewind()?;
    }
    Ok((0, 0))
}

/// Whether the record that ends at `block[at]` has the tag `P`.
fn is_piece(file: &mut File, start: u64, block: &[u8], at: usize) -> io::Result<bool> {
    if let Some(begin) = block[..at].iter().rposition(|byte| *byte == b'\n') {
        return Ok(tag(&block[begin + 1..at]) == Some(b'P'));
    }
    // The record begins before this block: look for its beginning up to one record's length further back.
    let back = start.saturating_sub(SEARCH_BYTES);
    let mut before = vec![0; (start - back) as usize];
    file.seek(SeekFrom::Start(back))?;
    file.read_exact(&mut before)?;
    let begin = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |begin| begin + 1);
    let mut record = before.split_off(begin);
    record.extend_from_slice(&block[..at]);
    Ok(tag(&record) == Some(b'P'))
}

fn tag(record: &[u8]) -> Option<u8> {
    record.splitn(4, |byte| *byte == b' ').nth(2)?.first().copied()
}

/// What of the log is wanted, and how it is shown.
#[derive(Default)]
struct Filter {
    since: Option<Timestamp>,
    timestamps: bool,
    bytes_left: Option<u64>,
    /// The last record was a piece: the next one goes on with its line.
    within_line: bool,
}

impl Filter {
    fn new(options: &LogOptions) -> Result<Self, String> {
        let since_time = match &options.since_time {
            Some(text) => {
                Some(text.parse::<Timestamp>().map_err(|error| format!("invalid sinceTime: {error}"))?)
            }
            None => None,
        };
        let ago = |seconds| Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok();
        Ok(Self {
            since: since_time.or(options.since_seconds.and_then(ago)),
            timestamps: options.timestamps,
            bytes_left: options.limit_bytes.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
            within_line: false,
        })
    }

    fn is_full(&self) -> bool {
        self.bytes_left == Some(0)
    }

    /// Appends what of a record is wanted.
    fn pass(&mut self, record: &[u8], out: &mut BytesMut) {
        let mut parts = record.strip_suffix(b"\n").unwrap_or(record).splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(_stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        if let Some(since) = self.since {
            let at = std::str::from_utf8(time).ok().and_then(|time| time.parse::<Timestamp>().ok());
            if at.is_none_or(|at| at < since) {
                return;
            }
        }
        if self.timestamps && !self.within_line {
            self.put(time, out);
            self.put(b" ", out);
        }
        self.put(text, out);
        self.within_line = tag == b"P";
        if !self.within_line {
            self.put(b"\n", out);
        }
    }

    fn put(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let room = self.bytes_left.map_or(bytes.len(), |left| bytes.len().min(left as usize));
        out.extend_from_slice(&bytes[..room]);
        if let Some(left) = &mut self.bytes_left {
            *left -= room as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_wasi_host::LogSink;

    use super::*;
    use crate::logs::{
        file::LogFile,
        write::{Next, Stream, StreamSink},
    };

    #[test]
    fn what_came_between_the_end_of_a_file_and_the_look_for_the_next_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let file = LogFile::open(path.clone(), 100).unwrap();
        let log = Arc::new(ContainerLog::new(file, Arc::default()));
        let write = |lines: std::ops::Range<u32>| {
            let sink = StreamSink::new(log.clone(), Stream::Stdout);
            lines.for_each(|line| assert!(sink.write(format!("line {line}\n").as_bytes()) > 0));
            while log.write_down(std::time::Instant::now()) != Next::Idle {}
        };
        write(0..1);
        let mut filter = Filter::new(&LogOptions::default()).unwrap();
        let mut cursor = Cursor::open(path, None, Some(log.clone())).unwrap();
        assert_eq!(cursor.read(&mut filter).unwrap().unwrap(), "line 0\n");
        assert_eq!(cursor.read(&mut filter).unwrap(), None);
        // One more into the file that was read to its end, and three into the next ones.
        write(1..5);
        assert!(cursor.look_for_newer().unwrap());
        let rest = cursor.read(&mut filter).unwrap().unwrap();
        assert_eq!(rest, "line 1\nline 2\nline 3\nline 4\n");
    }
}
