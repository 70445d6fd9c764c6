//! Containers' logs on disk: one file an attempt, lines stamped as by a container runtime, rotated and bounded.
//!
//! `<time> <stream> <F|P> <text>`: `F` ends a line, `P` is a piece of one. Source: CRI's logging format.
//!
//! Guests put lines into the queue of their log, and wait where it is full or where their namespace or pod has its share of
//! what may wait; one thread of the node writes them down, in turns by namespace and then by log.
//! A line that was taken is in the log: also before the container is said to be over, and before it is read. Only a
//! disk that takes nothing for some seconds loses lines, and the log says then how many.

mod file;
mod read;
mod write;
mod writer;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use coracle_core::PodUid;
use coracle_objects::log_options::LogOptions;
use coracle_wasi_host::{PodDisk, Written, pool::Pool, shares::Holder};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use self::{file::LogFile, writer::Writer};
use crate::{private, removal::Removals};

pub use write::{ContainerLog, Stream, StreamSink};

/// Bytes after which a file is rotated. Source: kubelet `containerLogMaxSize`.
pub const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Files of one attempt, the present one included. Source: kubelet `containerLogMaxFiles`.
pub const FILES_MAX: u32 = 5;
/// Pieces of logs that are read at once. A namespace has at most half of them.
const READS_MAX: usize = 4;
/// Attempts whose logs are kept: the present one and the one before.
const ATTEMPTS_KEPT: usize = 2;

/// The errors where there is no log.
#[derive(Clone, Debug, Default)]
pub struct Missing {
    /// The container has never written.
    pub waiting: String,
    /// No earlier attempt is known.
    pub previous: String,
}

/// All logs of a node.
pub struct Logs {
    root: PathBuf,
    live: Mutex<BTreeMap<(PodUid, String), Arc<ContainerLog>>>,
    writer: Writer,
    /// Where logs are read.
    readers: Arc<Pool>,
}

impl Logs {
    /// Starts the thread that writes.
    pub fn start(root: PathBuf) -> io::Result<Self> {
        let readers = Pool::new("log-readers", READS_MAX, 0);
        Ok(Self { root, live: Mutex::default(), writer: Writer::start()?, readers })
    }

    /// Returns once all that was taken is written down, as far as the disk takes it. Nothing is written after that. Blocks.
    pub fn close(&self) {
        self.writer.close();
        // Whoever waits for the end of a log that nobody writes down any more has waited long enough.
        let live = std::mem::take(&mut *self.live.lock());
        live.values().for_each(|log| log.remove());
    }

    /// The log of a new attempt, on the account of `holder`; what its files take is `written`. An older attempt's readers come to their end.
    pub fn begin(
        &self,
        uid: &PodUid,
        container: &str,
        attempt: u32,
        (holder, written): (Holder, Option<Written>),
    ) -> io::Result<Arc<ContainerLog>> {
        let dir = self.dir(uid, container);
        for dir in [&*self.root, &*self.root.join(uid.as_str()), &*dir] {
            private::create_dir(dir)?;
        }
        let mut file = LogFile::open(dir.join(format!("{attempt}.log")), FILE_BYTES_MAX)?;
        forget_old_attempts(&dir)?;
        if let Some(written) = written {
            file.count(written)?;
        }
        let log = Arc::new(ContainerLog::new(file, self.writer.queue().clone(), holder));
        let old = self.live.lock().insert((uid.clone(), container.to_owned()), log.clone());
        if let Some(old) = old {
            old.close();
        }
        Ok(log)
    }

    /// Nothing more will be written by the container's present attempt. Returns once all that it wrote is in the log.
    pub async fn end(&self, uid: &PodUid, container: &str) {
        let key = (uid.clone(), container.to_owned());
        let Some(log) = self.live.lock().get(&key).cloned() else { return };
        log.close();
        log.ended().await;
        let mut live = self.live.lock();
        if live.get(&key).is_some_and(|now| Arc::ptr_eq(now, &log)) {
            live.remove(&key);
        }
    }

    /// Removes all logs of a pod: their readers come to the end at once, the files go in the background. May wait for
    /// a write that is under way.
    pub fn remove(&self, uid: &PodUid, removals: &Removals, disk: Option<PodDisk>) {
        let ended: Vec<_> = self.live.lock().extract_if(.., |(of, _), _| of == uid).collect();
        ended.iter().for_each(|(_, log)| log.remove());
        removals.push_of(self.root.join(uid.as_str()), disk);
    }

    /// Logs that are being written.
    pub fn held(&self) -> usize {
        self.live.lock().len()
    }

    /// Where the logs lie: a directory a pod, named by its uid.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Sends a container's log as `options` ask for it, until its end, or with `follow` until the container's end or
    /// until nobody listens any more. It is read on account of the pod's `namespace`.
    pub async fn serve(
        &self,
        namespace: &str,
        uid: &PodUid,
        container: &str,
        options: &LogOptions,
        missing: Missing,
        out: mpsc::Sender<Bytes>,
    ) -> Result<(), String> {
        let dir = self.dir(uid, container);
        let holder = Holder { namespace: namespace.into(), pod: None };
        let listed = dir.clone();
        let attempts = self.readers.call(&holder, move || attempts(&listed).unwrap_or_default()).await;
        let attempts = attempts.map_err(|error| error.to_string())?;
        let wanted = if options.previous { attempts.iter().rev().nth(1) } else { attempts.last() };
        let Some(attempt) = wanted else {
            return Err(if options.previous { missing.previous } else { missing.waiting });
        };
        let path = dir.join(format!("{attempt}.log"));
        let live = self.live.lock().get(&(uid.clone(), container.to_owned())).cloned();
        let live = live.filter(|log| log.path() == path);
        if let Some(live) = &live {
            live.flushed().await;
        }
        read::serve(&path, options, live, out, (&self.readers, &holder)).await
    }

    /// The end of an attempt's log, as much of it as the message of an end has. Blocks.
    pub fn last_of(&self, uid: &PodUid, container: &str, attempt: u32) -> io::Result<String> {
        read::last(&self.dir(uid, container).join(format!("{attempt}.log")))
    }

    fn dir(&self, uid: &PodUid, container: &str) -> PathBuf {
        self.root.join(uid.as_str()).join(container)
    }
}

/// The numbers of the attempts that have logs, growing.
fn attempts(dir: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u32>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

fn forget_old_attempts(dir: &Path) -> io::Result<()> {
    let attempts = attempts(dir)?;
    for old in &attempts[..attempts.len().saturating_sub(ATTEMPTS_KEPT)] {
        let path = dir.join(format!("{old}.log"));
        for segment in segments(&path).into_iter().chain(Some(next_file(&path)).filter(|path| path.exists()))
        {
            fs::remove_file(segment)?;
        }
    }
    Ok(())
}

/// The files of one attempt that exist, oldest first.
fn segments(path: &Path) -> Vec<PathBuf> {
    let rotated = (1..FILES_MAX).rev().map(|number| rotated(path, number));
    rotated.chain([path.to_owned()]).filter(|path| path.exists()).collect()
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Where the file that comes next is made.
fn next_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use coracle_wasi_host::LogSink;

    use super::*;

    async fn read(logs: &Logs, options: LogOptions) -> Result<String, String> {
        let (out, mut chunks) = mpsc::channel(4);
        let uid = PodUid::from("u");
        let serve = logs.serve("d", &uid, "c", &options, missing(), out);
        let collect = async {
            let mut text = Vec::new();
            while let Some(chunk) = chunks.recv().await {
                text.extend_from_slice(&chunk);
            }
            String::from_utf8(text).unwrap()
        };
        let (served, text) = tokio::join!(serve, collect);
        served.map(|()| text)
    }

    fn missing() -> Missing {
        Missing { waiting: "waiting".into(), previous: "no previous".into() }
    }

    fn options() -> LogOptions {
        LogOptions::default()
    }

    /// As a guest writes: it waits where there is no room.
    async fn write(log: &Arc<ContainerLog>, stream: Stream, lines: &[&str]) {
        let sink = StreamSink::new(log.clone(), stream);
        for line in lines {
            while sink.write(line.as_bytes()) == 0 {
                std::future::poll_fn(|context| sink.poll_ready(context)).await;
            }
        }
    }

    #[tokio::test]
    async fn logs_are_served_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path().to_owned()).unwrap();
        assert_eq!(read(&logs, options()).await.unwrap_err(), "waiting");
        let uid = PodUid::from("u");
        let log = logs.begin(&uid, "c", 0, (Holder::default(), None)).unwrap();
        write(&log, Stream::Stdout, &["one\n", "two\n"]).await;
        write(&log, Stream::Stderr, &["three, a ", "long one\n"]).await;
        assert_eq!(read(&logs, options()).await.unwrap(), "one\ntwo\nthree, a long one\n");
        let tail = LogOptions { tail_lines: Some(2), ..options() };
        assert_eq!(read(&logs, tail).await.unwrap(), "two\nthree, a long one\n");
        let none = LogOptions { tail_lines: Some(0), ..options() };
        assert_eq!(read(&logs, none).await.unwrap(), "");
        let cut = LogOptions { limit_bytes: Some(6), ..options() };
        assert_eq!(read(&logs, cut).await.unwrap(), "one\ntw");
        let stamped =
            read(&logs, LogOptions { timestamps: true, tail_lines: Some(2), ..options() }).await.unwrap();
        let (time, rest) = stamped.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && rest.starts_with("two\n"), "{stamped}");
        let future = LogOptions { since_time: Some("2999-01-01T00:00:00Z".into()), ..options() };
        assert_eq!(read(&logs, future).await.unwrap(), "");
        let recent = LogOptions { since_seconds: Some(3600), ..options() };
        assert_eq!(read(&logs, recent).await.unwrap(), "one\ntwo\nthree, a long one\n");
    }

    #[tokio::test]
    async fn the_attempt_before_is_kept_and_older_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path().to_owned()).unwrap();
        let uid = PodUid::from("u");
        for attempt in 0..3 {
            let log = logs.begin(&uid, "c", attempt, (Holder::default(), None)).unwrap();
            write(&log, Stream::Stdout, &[&format!("attempt {attempt}\n")]).await;
            let previous = read(&logs, LogOptions { previous: true, ..options() }).await;
            match attempt {
                0 => assert!(previous.unwrap_err() == "no previous"),
                _ => assert_eq!(previous.unwrap(), format!("attempt {}\n", attempt - 1)),
            }
        }
        assert_eq!(attempts(&dir.path().join("u/c")).unwrap(), [1, 2]);
        let removals = Removals::start().unwrap();
        logs.remove(&uid, &removals, None);
        while dir.path().join("u").exists() {
            tokio::task::yield_now().await;
        }
        assert!(read(&logs, options()).await.is_err());
    }

    #[tokio::test]
    async fn following_sees_what_comes_across_rotations_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Arc::new(Logs::start(dir.path().to_owned()).unwrap());
        let uid = PodUid::from("u");
        let log = logs.begin(&uid, "c", 0, (Holder::default(), None)).unwrap();
        write(&log, Stream::Stdout, &["first\n"]).await;
        let (out, mut chunks) = mpsc::channel(1);
        let follower = tokio::spawn({
            let (logs, uid) = (logs.clone(), uid.clone());
            async move {
                let options = LogOptions { follow: true, ..LogOptions::default() };
                logs.serve("d", &uid, "c", &options, Missing::default(), out).await
            }
        });
        assert_eq!(chunks.recv().await.unwrap(), "first\n");
        let line = format!("{}\n", "x".repeat(16 * 1024 - 1));
        let enough = FILE_BYTES_MAX as usize / line.len() + 10;
        for _ in 0..enough {
            write(&log, Stream::Stdout, &[&line]).await;
        }
        write(&log, Stream::Stdout, &["last\n"]).await;
        // All is written down then.
        logs.end(&uid, "c").await;
        assert_eq!(segments(&dir.path().join("u/c/0.log")).len(), 2);
        let mut bytes = 0;
        let mut last = Bytes::new();
        while let Some(chunk) = chunks.recv().await {
            bytes += chunk.len();
            last = chunk;
        }
        follower.await.unwrap().unwrap();
        assert_eq!(bytes, enough * line.len() + "last\n".len());
        assert!(last.ends_with(b"last\n"));
    }

    /// A log that nobody writes down but the test.
    fn unattended(path: &Path, bytes_max: u64) -> Arc<ContainerLog> {
        let file = LogFile::open(path.to_owned(), bytes_max).unwrap();
        Arc::new(ContainerLog::new(file, Arc::default(), Holder::default()))
    }

    fn write_down(log: &ContainerLog) {
        while log.write_down(std::time::Instant::now()) != write::Next::Idle {}
    }

    #[tokio::test]
    async fn rotation_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = unattended(&path, 100);
        for number in 0..1000 {
            write(&log, Stream::Stdout, &[&format!("line {number}\n")]).await;
        }
        write_down(&log);
        let segments = segments(&path);
        assert_eq!(segments.len(), FILES_MAX as usize);
        let newest = fs::read_to_string(&path).unwrap() + &fs::read_to_string(rotated(&path, 1)).unwrap();
        assert!(newest.contains("line 999"));
    }

    #[tokio::test]
    async fn a_full_queue_holds_up_its_own_guest_and_takes_no_room_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let log = unattended(&dir.path().join("0.log"), FILE_BYTES_MAX);
        let other = unattended(&dir.path().join("1.log"), FILE_BYTES_MAX);
        let sink = StreamSink::new(log.clone(), Stream::Stdout);
        let line = format!("{}\n", "x".repeat(16 * 1024 - 1));
        let taken =
            std::iter::repeat_with(|| sink.write(line.as_bytes())).take_while(|taken| *taken > 0).count();
        assert!((15..=17).contains(&taken), "{taken}");
        let mut room = std::pin::pin!(std::future::poll_fn(|context| sink.poll_ready(context)));
        assert!(futures_poll(room.as_mut()).is_pending());
        write(&other, Stream::Stdout, &["other\n"]).await;
        // What a guest that is over leaves is taken, room or not.
        sink.finish(b"last words");
        write_down(&log);
        room.await;
        assert_eq!(sink.write(line.as_bytes()), line.len());
        write_down(&log);
        let text = fs::read_to_string(dir.path().join("0.log")).unwrap();
        assert_eq!(text.lines().count(), taken + 2);
        assert!(text.lines().nth(taken).unwrap().ends_with("P last words"));
    }

    fn futures_poll(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> std::task::Poll<()> {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }

    #[tokio::test]
    async fn a_reader_at_the_end_of_a_file_sees_what_comes_before_the_next_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = unattended(&path, 100);
        let (out, mut chunks) = mpsc::channel(64);
        let follow = LogOptions { follow: true, ..options() };
        let follower = tokio::spawn({
            let (path, log) = (path.clone(), log.clone());
            async move {
                let readers = Pool::new("log-readers", READS_MAX, 0);
                read::serve(&path, &follow, Some(log), out, (&readers, &Holder::default())).await
            }
        });
        let mut expected = String::new();
        let mut seen = String::new();
        for round in 0..50 {
            // Several files are begun at once: the reader is at the end of one that goes on before it is rotated.
            let lines: Vec<String> = (0..4).map(|line| format!("round {round} line {line}\n")).collect();
            for line in &lines {
                write(&log, Stream::Stdout, &[line]).await;
            }
            expected.extend(lines);
            write_down(&log);
            while seen.len() < expected.len() {
                seen.push_str(std::str::from_utf8(&chunks.recv().await.unwrap()).unwrap());
            }
        }
        assert_eq!(seen, expected);
        log.close();
        assert_eq!(chunks.recv().await, None);
        follower.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_was_taken_is_in_the_file_when_the_logs_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::start(dir.path().to_owned()).unwrap();
        let uid = PodUid::from("u");
        let log = logs.begin(&uid, "c", 0, (Holder::default(), None)).unwrap();
        write(&log, Stream::Stdout, &["last words\n"]).await;
        logs.close();
        assert!(fs::read_to_string(dir.path().join("u/c/0.log")).unwrap().ends_with("last words\n"));
        // Nobody waits for ever for a log that is over with the node.
        log.ended().await;
        logs.end(&uid, "c").await;
    }

    #[tokio::test]
    async fn nothing_is_written_to_a_log_that_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = unattended(&path, 100);
        write(&log, Stream::Stdout, &["before\n"]).await;
        log.remove();
        fs::remove_file(&path).unwrap();
        write(&log, Stream::Stdout, &["after\n"]).await;
        write_down(&log);
        assert!(segments(&path).is_empty());
    }
}
