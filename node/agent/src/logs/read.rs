//! The reading end of a log.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use coracle_objects::log_options::LogOptions;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};

use super::{segments, write::Progress};

/// Bytes of one chunk that goes to the reader, about.
const CHUNK_BYTES: usize = 32 * 1024;
/// Bytes that are read at once in the search for the last lines.
const SEARCH_BYTES: u64 = 64 * 1024;

/// Sends what `options` ask for. `live`: the container may still write.
pub(super) async fn serve(
    path: &Path,
    options: &LogOptions,
    live: Option<watch::Receiver<Progress>>,
    out: mpsc::Sender<Bytes>,
) -> Result<(), String> {
    let mut filter = Filter::new(options)?;
    let failed = |error: io::Error| format!("failed to read the log: {error}");
    let (path, tail) = (path.to_owned(), options.tail_lines);
    let mut live = live.filter(|_| options.follow);
    let mut cursor = blocking(move || Cursor::open(path, tail)).await.map_err(failed)?;
    loop {
        // Seen before reading: what is written meanwhile wakes us again.
        let progress = live.as_mut().map(|live| *live.borrow_and_update());
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
        match (&mut live, progress) {
            (Some(live), Some(progress)) if !progress.ended => {
                tokio::select! {
                    changed = live.changed() => if changed.is_err() { live_ended(live) },
                    () = out.closed() => return Ok(()),
                }
            }
            _ => return Ok(()),
        }
    }
}

/// The writer went away without saying so: its last value counts as the end.
fn live_ended(live: &mut watch::Receiver<Progress>) {
    let (_, receiver) = watch::channel(Progress { writes: u64::MAX, ended: true });
    *live = receiver;
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A place in the files of one attempt.
struct Cursor {
    path: PathBuf,
    file: BufReader<File>,
    inode: u64,
    /// A record that is not whole yet.
    pending: Vec<u8>,
}

impl Cursor {
    fn open(path: PathBuf, tail: Option<i64>) -> io::Result<Self> {
        let files = segments(&path);
        let (index, offset) = match tail {
            Some(lines) => start_of_tail(&files, u64::try_from(lines).unwrap_or(0))?,
            None => (0, 0),
        };
        let first = files.get(index).ok_or(io::ErrorKind::NotFound)?;
        let mut file = File::open(first)?;
        file.seek(SeekFrom::Start(offset))?;
        let inode = file.metadata()?.ino();
        Ok(Self { path, file: BufReader::new(file), inode, pending: Vec::new() })
    }

    /// The next chunk, or `None` at the present end of the log.
    fn read(&mut self, filter: &mut Filter) -> io::Result<Option<Bytes>> {
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK_BYTES && !filter.is_full() {
            if self.file.read_until(b'\n', &mut self.pending)? == 0 {
                if self.next_file()? {
                    continue;
                }
                return Ok(Some(chunk.freeze()).filter(|chunk| !chunk.is_empty()));
            }
            if self.pending.last() == Some(&b'\n') {
                filter.pass(&self.pending, &mut chunk);
                self.pending.clear();
            }
        }
        Ok(Some(chunk.freeze()))
    }

    /// Goes on to the file that was begun after this one; false where this is the newest.
    fn next_file(&mut self) -> io::Result<bool> {
        let files = segments(&self.path);
        let inodes: Vec<u64> =
            files.iter().map(|file| fs::metadata(file).map_or(0, |meta| meta.ino())).collect();
        let next = match inodes.iter().position(|inode| *inode == self.inode) {
            Some(here) if here + 1 == files.len() => return Ok(false),
            Some(here) => here + 1,
            // Rotated away: the oldest that is left.
            None => 0,
        };
        let Some(next) = files.get(next) else { return Ok(false) };
        // The last words of the old file were read: rotation happens between records.
        let file = File::open(next)?;
        self.inode = file.metadata()?.ino();
        self.file = BufReader::new(file);
        Ok(true)
    }
}

/// Where the last `lines` lines begin: the index of a file, and the offset in it.
fn start_of_tail(files: &[PathBuf], lines: u64) -> io::Result<(usize, u64)> {
    // The end of the last line counts as well: it is the one before the first that is wanted.
    let mut wanted = lines + 1;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = File::open(path)?;
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
                if is_piece(&mut file, start, &block, at)? {
                    continue;
                }
                wanted -= 1;
                if wanted == 0 {
                    return Ok((index, next));
                }
            }
            end = start;
        }
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
