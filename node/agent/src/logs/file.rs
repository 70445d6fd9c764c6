//! The files of a log: records appended whole, rotated without losing any, tried again where the disk takes nothing.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use coracle_wasi_host::{Grown, Written};
use jiff::Timestamp;
use parking_lot::RwLock;

use super::{FILES_MAX, next_file, rotated};
use crate::{disk, private};

/// The wait after a write that failed.
const RETRY: Duration = Duration::from_millis(250);
/// After so long without a write that succeeds, lines are given up: the guests go on.
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);
/// Bytes of records that a log has whatever its pod and namespace hold, about; and whatever others do.
const CERTAIN: u64 = 64 * 1024;
const CERTAIN_OF_OTHERS: u64 = 1024 * 1024;
/// A file that cannot be rotated grows on to so many times its size.
const OVERGROWN: u64 = 2;
/// Bytes that are read at once in the search for the end of the last whole record.
const SEARCH_BYTES: u64 = 64 * 1024;

/// The files of one attempt's log, open for appending.
pub(super) struct LogFile {
    path: PathBuf,
    bytes_max: u64,
    file: File,
    /// Of whole records in `file`.
    size: u64,
    /// Behind the whole records there may be a part of one.
    torn: bool,
    /// Records that the disk has not taken yet.
    left: Vec<u8>,
    failing: Option<Failing>,
    /// What all files of the container's logs take, on the pod's account.
    written: Option<Written>,
    /// What they may take while others have the rest of the disk.
    most: Option<u64>,
    /// Lines that were given up and not told of yet.
    pub lost: u64,
}

#[derive(Clone, Copy)]
struct Failing {
    since: Instant,
    retry_at: Instant,
}

/// What became of the records in hand.
pub(super) struct Done {
    /// Bytes that were written or given up.
    pub bytes: usize,
    pub giving_up: bool,
}

impl LogFile {
    /// Opens the log, behind what is whole in it.
    pub fn open(path: PathBuf, bytes_max: u64) -> io::Result<Self> {
        let mut file = private::open_options().read(true).append(true).open(&path)?;
        let size = end_of_records(&mut file)?;
        file.set_len(size)?;
        let (left, failing, written, most) = Default::default();
        Ok(Self { path, bytes_max, file, size, torn: false, left, failing, written, most, lost: 0 })
    }

    /// Has what is written from now on counted, and what is there of this log and of others of its container.
    pub fn count(&mut self, written: Written) -> io::Result<()> {
        written.set(files_bytes(&self.path)?);
        self.written = Some(written);
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When the records that are left are to be tried again.
    pub fn retry_at(&self) -> Option<Instant> {
        self.failing.filter(|_| !self.left.is_empty()).map(|failing| failing.retry_at)
    }

    /// Appends records behind those that are left. `names` is held while files change their names.
    pub fn write(&mut self, records: Vec<u8>, now: Instant, names: &RwLock<()>) -> Done {
        if self.left.is_empty() {
            self.left = records;
        } else {
            self.left.reserve_exact(records.len());
            self.left.extend(records);
        }
        let before = self.left.len();
        match self.try_write(names) {
            Ok(()) => self.failing = None,
            Err(error) => self.failed(now, &error),
        }
        let giving_up = self.failing.is_some_and(|failing| now >= failing.since + GIVE_UP_AFTER);
        if giving_up {
            self.lost += self.left.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.left.clear();
        }
        if self.left.is_empty() {
            // Its room too: a node has many logs, and most of them are silent.
            self.left = Vec::new();
            return Done { bytes: before, giving_up };
        }
        Done { bytes: before - self.left.len(), giving_up }
    }

    /// Gives up what is left, which nobody will read.
    pub fn forget(&mut self) {
        self.left = Vec::new();
    }

    #[cfg(test)]
    pub fn allocated(&self) -> usize {
        self.left.capacity()
    }

    fn failed(&mut self, now: Instant, error: &io::Error) {
        let since = match self.failing {
            Some(failing) => failing.since,
            None => {
                tracing::warn!(path = %self.path.display(), %error, "a container's log cannot be written");
                now
            }
        };
        self.failing = Some(Failing { since, retry_at: now + RETRY });
    }

    fn try_write(&mut self, names: &RwLock<()>) -> io::Result<()> {
        if self.lost > 0 {
            let note = format!(
                "{:.9} stderr F [coracle: {} lines of this log are lost: the node's disk took nothing]\n",
                Timestamp::now(),
                self.lost
            );
            self.make_room(note.len() as u64, names)?;
            self.append_counted(note.as_bytes())?;
            self.lost = 0;
        }
        while !self.left.is_empty() {
            let full_at = self.full_at();
            if self.size >= full_at {
                self.rotate(names)?;
            }
            // Up to the record that fills the file.
            let room = usize::try_from(full_at.saturating_sub(self.size)).unwrap_or(usize::MAX);
            let end = match self.left.get(room..).and_then(|rest| rest.iter().position(|byte| *byte == b'\n'))
            {
                Some(at) => room + at + 1,
                None => self.left.len(),
            };
            self.make_room(end as u64, names)?;
            let left = std::mem::take(&mut self.left);
            let appended = self.append_counted(&left[..end]);
            self.left = left;
            appended?;
            self.left.drain(..end);
        }
        Ok(())
    }

    /// Counts so many bytes more. Where the pod or its namespace has its share of the disk, older records make room for newer
    /// ones; where it is others who take, a log keeps what it has had, and grows no more. The newest records are every log's:
    /// what makes room goes when as many have come after it.
    fn make_room(&mut self, bytes: u64, names: &RwLock<()>) -> io::Result<()> {
        let Some(written) = self.written.clone() else { return Ok(()) };
        if written.grow(bytes) == Grown::Yes {
            // It may have become smaller since, and others have taken that: it may have it back.
            self.most = self.most.filter(|most| written.bytes() <= *most);
            return Ok(());
        }
        // What was counted and could not be written is none of it.
        written.set(files_bytes(&self.path)?);
        loop {
            let most = match written.grow(bytes) {
                Grown::Yes => return Ok(()),
                Grown::ItsOwn => CERTAIN,
                Grown::Others => *self.most.get_or_insert(written.bytes().max(CERTAIN_OF_OTHERS)),
            };
            let is_enough = written.bytes() + bytes <= most;
            if !is_enough && self.drop_oldest(names)? {
                written.set(files_bytes(&self.path)?);
            } else if is_enough || self.size < CERTAIN {
                written.set(written.bytes() + bytes);
                return Ok(());
            } else {
                self.rotate(names)?;
                if self.size >= CERTAIN {
                    return Err(io::Error::new(io::ErrorKind::StorageFull, "the log cannot make room"));
                }
            }
        }
    }

    /// Removes the oldest of the files that are full. False where there is none, or nothing but it.
    fn drop_oldest(&self, names: &RwLock<()>) -> io::Result<bool> {
        let full: Vec<PathBuf> =
            (1..FILES_MAX).map(|number| rotated(&self.path, number)).filter(|path| path.exists()).collect();
        let Some((oldest, newer)) = full.split_last() else { return Ok(false) };
        if newer.is_empty() && self.size < CERTAIN {
            return Ok(false);
        }
        let _names = names.write();
        fs::remove_file(oldest).map(|()| true)
    }

    /// The size at which a file is full. Where others have the disk the files are small, so that the oldest is a small part;
    /// all of them together may be more than the log has had, so that it grows again where it can.
    fn full_at(&self) -> u64 {
        let part = self.most.map_or(u64::MAX, |most| most / u64::from(FILES_MAX - 1));
        part.max(CERTAIN).min(self.bytes_max)
    }

    /// Appends records that are counted, or takes back that they are.
    fn append_counted(&mut self, records: &[u8]) -> io::Result<()> {
        self.append(records).inspect_err(|_| {
            if let Some(written) = &self.written {
                written.set(written.bytes().saturating_sub(records.len() as u64));
            }
        })
    }

    /// Appends whole records, or nothing of them.
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.mend()?;
        disk::admit(&self.file, records.len() as u64)?;
        if let Err(error) = self.file.write_all(records) {
            self.torn = true;
            // Where this fails too, it is done before the next record.
            let _ = self.mend();
            return Err(error);
        }
        self.size += records.len() as u64;
        Ok(())
    }

    /// Cuts off the part of a record that a short write has left.
    fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.size)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Begins a new file. Where that fails, the present one goes on for a while: nothing is lost by it.
    fn rotate(&mut self, names: &RwLock<()>) -> io::Result<()> {
        match self.mend().and_then(|()| begin_next(&self.path, names)) {
            Ok(file) => {
                (self.file, self.size) = (file, 0);
                // The oldest may have gone.
                if let Some(written) = &self.written {
                    written.set(files_bytes(&self.path)?);
                }
                Ok(())
            }
            Err(error) if self.size >= self.bytes_max * OVERGROWN => Err(error),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "a log cannot be rotated yet");
                Ok(())
            }
        }
    }
}

/// Bytes of all files of the container's logs.
fn files_bytes(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path.parent().unwrap_or(path))? {
        bytes += entry?.metadata().map_or(0, |found| found.len());
    }
    Ok(bytes)
}

/// Puts a new file in the place of the present one, and the older ones one place further. Whatever step fails, no file
/// has been replaced but the oldest, and the next try goes on.
fn begin_next(path: &Path, names: &RwLock<()>) -> io::Result<File> {
    let fresh = next_file(path);
    let file = private::open_options().read(true).append(true).truncate(false).open(&fresh)?;
    file.set_len(0)?;
    let _names = names.write();
    if path.exists() {
        // Only as far as there is one: a gap of an earlier try takes up the last one that moves.
        let filled = (1..FILES_MAX).take_while(|number| rotated(path, *number).exists()).count() as u32;
        for number in (1..=filled.min(FILES_MAX - 2)).rev() {
            fs::rename(rotated(path, number), rotated(path, number + 1))?;
        }
        fs::rename(path, rotated(path, 1))?;
    }
    fs::rename(&fresh, path)?;
    Ok(file)
}

/// The length of a file up to the end of its last whole record.
fn end_of_records(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(SEARCH_BYTES);
        block.resize((end - start) as usize, 0);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use coracle_wasi_host::PodDisk;

    use super::*;
    use crate::logs::{FILE_BYTES_MAX, segments};

    fn record(number: u32) -> Vec<u8> {
        format!("2026-01-01T00:00:00.000000000Z stdout F line {number}\n").into_bytes()
    }

    fn all(path: &Path) -> Vec<String> {
        let text: String = segments(path).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or(line).to_owned()).collect()
    }

    fn lines(numbers: std::ops::Range<u32>) -> Vec<String> {
        numbers.map(|number| format!("line {number}")).collect()
    }

    #[test]
    fn a_rotation_that_fails_loses_nothing_and_is_made_up_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let names = RwLock::new(());
        let size = record(0).len() as u64;
        let mut log = LogFile::open(path.clone(), 4 * size).unwrap();
        let now = Instant::now();
        let write = |log: &mut LogFile, number| {
            assert_eq!(log.write(record(number), now, &names).bytes, record(number).len(), "{number}");
        };
        (0..4).for_each(|number| write(&mut log, number));
        // A directory in the place of the next file: no open can succeed.
        fs::create_dir(next_file(&path)).unwrap();
        (4..7).for_each(|number| write(&mut log, number));
        assert_eq!(all(&path), lines(0..7));
        fs::remove_dir(next_file(&path)).unwrap();
        (7..10).for_each(|number| write(&mut log, number));
        assert_eq!(all(&path), lines(0..10));
        assert_eq!(segments(&path).len(), 2);
    }

    #[test]
    fn a_disk_that_takes_nothing_holds_lines_for_a_while_and_then_says_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let names = RwLock::new(());
        let size = record(0).len() as u64;
        let mut log = LogFile::open(path.clone(), 2 * size).unwrap();
        let start = Instant::now();
        fs::create_dir(next_file(&path)).unwrap();
        // The file grows to twice its size, and no further.
        for number in 0..4 {
            log.write(record(number), start, &names);
        }
        let held = log.write(record(4), start, &names);
        assert_eq!((held.bytes, held.giving_up), (0, false));
        assert_eq!(log.retry_at(), Some(start + RETRY));
        let held = log.write(record(5), start + RETRY, &names);
        assert_eq!((held.bytes, held.giving_up), (0, false));
        let later = start + GIVE_UP_AFTER;
        let lost = log.write(Vec::new(), later, &names);
        assert_eq!((lost.bytes as u64, lost.giving_up, log.retry_at()), (2 * size, true, None));
        fs::remove_dir(next_file(&path)).unwrap();
        let written = log.write(record(6), later, &names);
        assert_eq!((written.bytes as u64, written.giving_up), (size, false));
        let mut expected = lines(0..4);
        expected.push("[coracle: 2 lines of this log are lost: the node's disk took nothing]".into());
        expected.push("line 6".into());
        assert_eq!(all(&path), expected);
    }

    #[test]
    fn what_is_left_of_the_disk_to_the_node_no_log_takes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let (names, start, size) = (RwLock::new(()), Instant::now(), record(0).len());
        let mut log = LogFile::open(path.clone(), 1 << 20).unwrap();
        let account = PodDisk::alone(None);
        log.count(account.written("c")).unwrap();
        disk::tests::IS_FULL.set(true);
        let held = log.write(record(0), start, &names);
        assert_eq!((held.bytes, held.giving_up), (0, false));
        for _ in 0..100 {
            log.write(Vec::new(), start, &names);
        }
        assert_eq!(account.written("c").bytes(), 0, "what is not written is not counted");
        disk::tests::IS_FULL.set(false);
        assert_eq!(log.write(Vec::new(), start + RETRY, &names).bytes, size);
        assert_eq!(account.written("c").bytes(), size as u64);
        assert_eq!(all(&path), lines(0..1));
    }

    #[test]
    fn a_log_of_who_has_his_share_of_the_disk_keeps_its_newest_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let (names, now) = (RwLock::new(()), Instant::now());
        let disk = PodDisk::alone(Some(400 << 10));
        let mut log = LogFile::open(path.clone(), 100 << 10).unwrap();
        log.count(disk.written("c")).unwrap();
        let most = || files_bytes(&path).unwrap() <= 400 << 10;
        for number in 0..20_000 {
            let written = log.write(record(number), now, &names);
            assert!(!written.giving_up && written.bytes == record(number).len());
            assert!(number % 1000 != 0 || most(), "{number}");
        }
        assert!(most() && disk.written("c").bytes() == files_bytes(&path).unwrap());
        let kept = all(&path);
        assert_eq!(kept, lines(20_000 - kept.len() as u32..20_000), "the newest, without a gap");
        // Others of the pod have all of it: some there is for every log.
        disk.written("d").set(400 << 10);
        for number in 20_000..30_000 {
            assert_eq!(log.write(record(number), now, &names).bytes, record(number).len());
        }
        let kept = all(&path);
        assert_eq!(kept, lines(30_000 - kept.len() as u32..30_000));
        assert!((1..200 << 10).contains(&files_bytes(&path).unwrap()), "{}", files_bytes(&path).unwrap());
    }

    #[test]
    fn a_log_keeps_what_it_has_had_where_others_have_the_disk() {
        /// A block of the disk, and what comes before room is made.
        const SLACK: u64 = 512 << 10;
        let (names, now) = (RwLock::new(()), Instant::now());
        // In files that are full, and in one that is not.
        for file_bytes_max in [1 << 20, FILE_BYTES_MAX] {
            // One other that has more than there is, and others that each take all that they may.
            for count in [1, 20] {
                let dir = tempfile::tempdir().unwrap();
                let namespaces: Vec<String> = (0..=count).map(|at| at.to_string()).collect();
                let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
                let disks = PodDisk::sharing(100 << 20, &namespaces);
                let others: Vec<Written> = disks[1..].iter().map(|disk| disk.written("c")).collect();
                let take = || match &*others {
                    [one] => one.set(200 << 20),
                    many => {
                        for other in many {
                            while other.grow(256 << 10) == Grown::Yes {}
                        }
                    }
                };
                let mut log = LogFile::open(dir.path().join("0.log"), file_bytes_max).unwrap();
                log.count(disks[0].written("c")).unwrap();
                let mut last = 0;
                // All is taken, and at each moment there are so many bytes of the newest, without a gap.
                let mut write = |until: u32, between: &dyn Fn(), bytes: RangeInclusive<u64>| {
                    while last < until {
                        between();
                        let records: Vec<u8> = (last..last + 1000).flat_map(record).collect();
                        last += 1000;
                        let length = records.len();
                        let written = log.write(records, now, &names);
                        assert_eq!((written.bytes, written.giving_up), (length, false));
                        let found = files_bytes(log.path()).unwrap();
                        let about = (file_bytes_max, count, last);
                        assert!(bytes.contains(&found), "{found} of {bytes:?}: {about:?}");
                    }
                    let kept = all(log.path());
                    assert_eq!(kept, lines(last - kept.len() as u32..last));
                    files_bytes(log.path()).unwrap()
                };
                let had = write(60_000, &|| (), 0..=5 << 20);
                write(62_000, &take, had / 4..=had + SLACK);
                write(200_000, &take, CERTAIN..=had + SLACK);
                write(400_000, &take, had / 2..=had + SLACK);
                // It grows where it can.
                others.iter().for_each(|other| other.set(0));
                assert!(write(600_000, &|| (), had / 2..=51 << 20) > had + SLACK);
            }
        }
    }

    #[test]
    fn a_part_of_a_record_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let torn = [record(0), record(1)[..30].to_vec()].concat();
        fs::write(&path, torn).unwrap();
        let names = RwLock::new(());
        let mut log = LogFile::open(path.clone(), 1 << 20).unwrap();
        log.write(record(1), Instant::now(), &names);
        assert_eq!(all(&path), lines(0..2));
        // A short write, as a full disk makes it.
        log.file.write_all(&record(2)[..40]).unwrap();
        log.torn = true;
        log.write(record(2), Instant::now(), &names);
        assert_eq!(all(&path), lines(0..3));
    }

    #[test]
    fn a_rotation_that_was_cut_short_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let names = RwLock::new(());
        let contents = |expected: &[&str]| {
            let found: Vec<String> =
                segments(&path).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
            assert_eq!(found, expected);
        };
        for (file, text) in [(1, "c"), (2, "b"), (4, "a")] {
            fs::write(rotated(&path, file), text).unwrap();
        }
        fs::write(&path, "d").unwrap();
        // A gap: what is beyond it has moved already.
        begin_next(&path, &names).unwrap();
        contents(&["a", "b", "c", "d", ""]);
        // The present file has moved, and the new one has not come.
        fs::remove_file(&path).unwrap();
        begin_next(&path, &names).unwrap();
        contents(&["a", "b", "c", "d", ""]);
    }
}
