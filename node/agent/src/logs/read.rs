//! The reading end of a log.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use coracle_objects::log_options::LogOptions;
use coracle_wasi_host::{pool::Pool, shares::Holder};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::{segments, write::ContainerLog};

/// What a log's end is of it. Source: kubelet `MaxContainerTerminationMessageLogLines` and `...LogLength`.
const LAST_LINES: usize = 80;
const LAST_BYTES: usize = 2048;
/// Bytes of records in which that much is found, however long they are.
const LAST_WINDOW: u64 = 64 * 1024;
/// Bytes of one chunk that goes to the reader, about.
const CHUNK_BYTES: usize = 32 * 1024;
/// Bytes that are read at once in the search for the last lines.
const SEARCH_BYTES: u64 = 64 * 1024;
/// Bytes that are read at a time, whatever of them is wanted. Then it is another reader's turn.
const READ_BYTES: u64 = 256 * 1024;

/// Sends what `options` ask for. `live`: the container may still write. It is read by turns, in those of the holder.
pub(super) async fn serve(
    path: &Path,
    options: &LogOptions,
    live: Option<Arc<ContainerLog>>,
    out: mpsc::Sender<Bytes>,
    readers: (&Pool, &Holder),
) -> Result<(), String> {
    let mut filter = Filter::new(options)?;
    let failed = |error: io::Error| format!("failed to read the log: {error}");
    let (path, tail) = (path.to_owned(), options.tail_lines);
    let mut progress = live.as_ref().filter(|_| options.follow).map(|log| log.watch());
    let mut search = turn(readers, move || Search::open(path, tail, live)).await.map_err(failed)?;
    let mut cursor = loop {
        match turn(readers, move || search.advance()).await.map_err(failed)? {
            ControlFlow::Break(cursor) => break cursor,
            ControlFlow::Continue(_) if out.is_closed() => return Ok(()),
            ControlFlow::Continue(further) => search = further,
        }
    };
    loop {
        // Seen before reading: what is written meanwhile wakes us again.
        let ended = progress.as_mut().is_none_or(|progress| progress.borrow_and_update().ended);
        loop {
            let reading = turn(readers, move || {
                let chunk = cursor.read(&mut filter)?;
                Ok((cursor, chunk, filter))
            });
            let (back, chunk, passed) = reading.await.map_err(failed)?;
            cursor = back;
            let done = passed.is_full();
            filter = passed;
            let Some(chunk) = chunk else { break };
            let gone = if chunk.is_empty() { out.is_closed() } else { out.send(chunk).await.is_err() };
            if gone || done {
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

/// The end of a log, in at most so many lines and bytes. Blocks.
pub(super) fn last(path: &Path) -> io::Result<String> {
    let (mut left, mut records) = (LAST_WINDOW, Vec::new());
    for segment in segments(path).iter().rev() {
        let mut file = File::open(segment)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(left)))?;
        let mut older = Vec::new();
        file.take(left).read_to_end(&mut older)?;
        left -= older.len() as u64;
        records.splice(..0, older);
        if left == 0 {
            // Of the first one the beginning is missing.
            let begin = records.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            records.drain(..begin);
            break;
        }
    }
    let (mut filter, mut text) = (Filter::default(), BytesMut::new());
    records.split_inclusive(|byte| *byte == b'\n').for_each(|record| filter.pass(record, &mut text));
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let said = lines[lines.len().saturating_sub(LAST_LINES)..].concat();
    let begin = said.ceil_char_boundary(said.len().saturating_sub(LAST_BYTES));
    Ok(said[begin..].to_owned())
}

async fn turn<T: Send + 'static>(
    (readers, holder): (&Pool, &Holder),
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    readers.call(holder, work).await.map_err(io::Error::other)?
}

/// The search for the place where what is wanted begins: from the end of the newest file backwards.
struct Search {
    path: PathBuf,
    live: Option<Arc<ContainerLog>>,
    /// Oldest first. Those that were not searched, or to their beginnings, are at their beginnings.
    files: VecDeque<File>,
    /// Ends of lines that are still to be found: one more than lines, for the one before the first. `None` where all is
    /// wanted.
    wanted: Option<u64>,
    /// The file that is searched, and how far: nothing of it is left at 0.
    index: usize,
    end: u64,
}

impl Search {
    fn open(path: PathBuf, tail: Option<i64>, live: Option<Arc<ContainerLog>>) -> io::Result<Self> {
        let files = VecDeque::from(open_all(&path, live.as_deref())?);
        let wanted = tail.map(|lines| u64::try_from(lines).unwrap_or(0) + 1);
        let index = files.len();
        Ok(Self { path, live, files, wanted, index, end: 0 })
    }

    /// Goes on for some blocks, and breaks with the place once it is found.
    fn advance(mut self) -> io::Result<ControlFlow<Cursor, Self>> {
        for _ in 0..READ_BYTES / SEARCH_BYTES {
            if let Some((index, offset)) = self.step()? {
                self.files.drain(..index);
                let mut first = self.files.pop_front().ok_or(io::ErrorKind::NotFound)?;
                first.seek(SeekFrom::Start(offset))?;
                let Self { path, live, files: newer, .. } = self;
                let file = BufReader::new(first);
                return Ok(ControlFlow::Break(Cursor { path, live, file, newer, pending: Vec::new() }));
            }
        }
        Ok(ControlFlow::Continue(self))
    }

    /// Searches one block more. The index of the file and the offset in it, where they are known.
    fn step(&mut self) -> io::Result<Option<(usize, u64)>> {
        let Some(wanted) = &mut self.wanted else { return Ok(Some((0, 0))) };
        if self.end == 0 {
            if let Some(file) = self.files.get_mut(self.index) {
                file.rewind()?;
            }
            if self.index == 0 {
                return Ok(Some((0, 0)));
            }
            self.index -= 1;
            self.end = self.files[self.index].metadata()?.len();
            return Ok(None);
        }
        let file = &mut self.files[self.index];
        let start = self.end.saturating_sub(SEARCH_BYTES);
        let mut block = vec![0; (self.end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        for at in (0..block.len()).rev().filter(|at| block[*at] == b'\n') {
            // A piece of a line ends a record, but no line.
            if is_piece(file, start, &block, at)? {
                continue;
            }
            *wanted -= 1;
            if *wanted == 0 {
                return Ok(Some((self.index, start + at as u64 + 1)));
            }
        }
        self.end = start;
        Ok(None)
    }
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
    /// The next chunk, which is empty where a turn's bytes had nothing in them, or `None` at the present end of the log.
    fn read(&mut self, filter: &mut Filter) -> io::Result<Option<Bytes>> {
        let mut chunk = BytesMut::new();
        // Whether a newer file was known before this one was read to its end.
        let mut complete = !self.newer.is_empty();
        let mut left = READ_BYTES;
        while chunk.len() < CHUNK_BYTES && left > 0 && !filter.is_full() {
            let read = self.file.by_ref().take(left).read_until(b'\n', &mut self.pending)?;
            left -= read as u64;
            if read == 0 {
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

    fn begin(path: PathBuf, tail: Option<i64>, live: Option<Arc<ContainerLog>>) -> Cursor {
        match Search::open(path, tail, live).unwrap().advance().unwrap() {
            ControlFlow::Break(cursor) => cursor,
            ControlFlow::Continue(_) => panic!("it is found at once"),
        }
    }

    #[test]
    fn a_turn_reads_so_many_bytes_whatever_of_them_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let record = format!("2026-01-01T00:00:00Z stdout F {}\n", "x".repeat(1000));
        let records = 10 * READ_BYTES as usize / record.len();
        std::fs::write(&path, record.repeat(records)).unwrap();
        let late = LogOptions { since_time: Some("2999-01-01T00:00:00Z".into()), ..Default::default() };
        let mut filter = Filter::new(&late).unwrap();
        let mut cursor = begin(path.clone(), None, None);
        let mut turns = 0;
        while let Some(chunk) = cursor.read(&mut filter).unwrap() {
            assert!(chunk.is_empty());
            turns += 1;
            let position = cursor.file.stream_position().unwrap();
            assert!(position <= turns * READ_BYTES, "{position} in {turns}");
        }
        assert!(turns >= 9, "{turns}");
        // The search for more lines than there are looks at all of them too.
        let wanted = i64::try_from(records - 1).unwrap();
        let mut search = Search::open(path, Some(wanted), None).unwrap();
        let mut turns = 0;
        let mut cursor = loop {
            match search.advance().unwrap() {
                ControlFlow::Break(cursor) => break cursor,
                ControlFlow::Continue(further) => search = further,
            }
            turns += 1;
        };
        assert!(turns >= 9, "{turns}");
        assert_eq!(cursor.file.stream_position().unwrap(), record.len() as u64);
    }

    #[test]
    fn the_end_of_a_log_is_found_across_its_files_and_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let write = |name: &str, lines: std::ops::Range<usize>, text: &str| {
            let record = |line| format!("2026-01-01T00:00:00.123456789Z stderr F {line}{text}\n");
            std::fs::write(dir.path().join(name), lines.map(record).collect::<String>()).unwrap();
        };
        assert_eq!(last(&path).unwrap(), "");
        write("0.log.1", 0..100, "");
        write("0.log", 100..103, "");
        let said = last(&path).unwrap();
        assert_eq!((said.lines().next(), said.lines().last()), (Some("23"), Some("102")));
        write("0.log", 0..30, &"x".repeat(10_000));
        assert_eq!(last(&path).unwrap(), format!("{}\n", "x".repeat(LAST_BYTES - 1)));
    }

    #[test]
    fn what_came_between_the_end_of_a_file_and_the_look_for_the_next_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let file = LogFile::open(path.clone(), 100).unwrap();
        let log = Arc::new(ContainerLog::new(file, Arc::default(), Holder::default()));
        let write = |lines: std::ops::Range<u32>| {
            let sink = StreamSink::new(log.clone(), Stream::Stdout);
            lines.for_each(|line| assert!(sink.write(format!("line {line}\n").as_bytes()) > 0));
            while log.write_down(std::time::Instant::now()) != Next::Idle {}
        };
        write(0..1);
        let mut filter = Filter::new(&LogOptions::default()).unwrap();
        let mut cursor = begin(path, None, Some(log.clone()));
        assert_eq!(cursor.read(&mut filter).unwrap().unwrap(), "line 0\n");
        assert_eq!(cursor.read(&mut filter).unwrap(), None);
        // One more into the file that was read to its end, and three into the next ones.
        write(1..5);
        assert!(cursor.look_for_newer().unwrap());
        let rest = cursor.read(&mut filter).unwrap().unwrap();
        assert_eq!(rest, "line 1\nline 2\nline 3\nline 4\n");
    }
}
