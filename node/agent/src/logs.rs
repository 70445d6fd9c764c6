//! Containers' logs on disk: one file an attempt, lines stamped as by a container runtime, rotated and bounded.
//!
//! `<time> <stream> <F|P> <text>`: `F` ends a line, `P` is a piece of one. Source: CRI's logging format.

mod read;
mod write;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use coracle_core::PodUid;
use coracle_objects::log_options::LogOptions;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::private;

pub use write::{ContainerLog, Stream, StreamSink};

/// Bytes after which a file is rotated. Source: kubelet `containerLogMaxSize`.
pub const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// Files of one attempt, the present one included. Source: kubelet `containerLogMaxFiles`.
pub const FILES_MAX: u32 = 5;
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
#[derive(Debug)]
pub struct Logs {
    root: PathBuf,
    live: Mutex<BTreeMap<(PodUid, String), Arc<ContainerLog>>>,
}

impl Logs {
    pub fn new(root: PathBuf) -> Self {
        Self { root, live: Mutex::default() }
    }

    /// The log of a new attempt. An older attempt's readers come to their end.
    pub fn begin(&self, uid: &PodUid, container: &str, attempt: u32) -> io::Result<Arc<ContainerLog>> {
        let dir = self.dir(uid, container);
        for dir in [&*self.root, &*self.root.join(uid.as_str()), &*dir] {
            private::create_dir(dir)?;
        }
        let log = Arc::new(ContainerLog::open(dir.join(format!("{attempt}.log")))?);
        let old = self.live.lock().insert((uid.clone(), container.to_owned()), log.clone());
        if let Some(old) = old {
            old.end();
        }
        forget_old_attempts(&dir)?;
        Ok(log)
    }

    /// Nothing more will be written by the container's present attempt.
    pub fn end(&self, uid: &PodUid, container: &str) {
        if let Some(log) = self.live.lock().remove(&(uid.clone(), container.to_owned())) {
            log.end();
        }
    }

    /// Removes all logs of a pod.
    pub fn remove(&self, uid: &PodUid) -> io::Result<()> {
        self.live.lock().retain(|(of, _), log| {
            let keep = of != uid;
            if !keep {
                log.end();
            }
            keep
        });
        crate::volumes::remove_dir(&self.root.join(uid.as_str()))
    }

    /// Where the logs lie: a directory a pod, named by its uid.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Sends a container's log as `options` ask for it, until its end, or with `follow` until the container's end or
    /// until nobody listens any more.
    pub async fn serve(
        &self,
        uid: &PodUid,
        container: &str,
        options: &LogOptions,
        missing: Missing,
        out: mpsc::Sender<Bytes>,
    ) -> Result<(), String> {
        let dir = self.dir(uid, container);
        let attempts = attempts(&dir).unwrap_or_default();
        let wanted = if options.previous { attempts.iter().rev().nth(1) } else { attempts.last() };
        let Some(attempt) = wanted else {
            return Err(if options.previous { missing.previous } else { missing.waiting });
        };
        let live = self.live.lock().get(&(uid.clone(), container.to_owned())).cloned();
        let live = live.filter(|_| !options.previous).map(|log| log.watch());
        read::serve(&dir.join(format!("{attempt}.log")), options, live, out).await
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
        for segment in segments(&path) {
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

#[cfg(test)]
mod tests {
    use coracle_wasi_host::LogSink;

    use super::*;

    async fn read(logs: &Logs, options: LogOptions) -> Result<String, String> {
        let (out, mut chunks) = mpsc::channel(4);
        let uid = PodUid::from("u");
        let serve = logs.serve(&uid, "c", &options, missing(), out);
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

    fn write(log: &Arc<ContainerLog>, stream: Stream, lines: &[&str]) {
        let sink = StreamSink::new(log.clone(), stream);
        for line in lines {
            assert_eq!(sink.write(line.as_bytes()), line.len());
        }
    }

    #[tokio::test]
    async fn logs_are_served_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().to_owned());
        assert_eq!(read(&logs, options()).await.unwrap_err(), "waiting");
        let uid = PodUid::from("u");
        let log = logs.begin(&uid, "c", 0).unwrap();
        write(&log, Stream::Stdout, &["one\n", "two\n"]);
        write(&log, Stream::Stderr, &["three, a ", "long one\n"]);
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
        let logs = Logs::new(dir.path().to_owned());
        let uid = PodUid::from("u");
        for attempt in 0..3 {
            let log = logs.begin(&uid, "c", attempt).unwrap();
            write(&log, Stream::Stdout, &[&format!("attempt {attempt}\n")]);
            let previous = read(&logs, LogOptions { previous: true, ..options() }).await;
            match attempt {
                0 => assert!(previous.unwrap_err() == "no previous"),
                _ => assert_eq!(previous.unwrap(), format!("attempt {}\n", attempt - 1)),
            }
        }
        assert_eq!(attempts(&dir.path().join("u/c")).unwrap(), [1, 2]);
        logs.remove(&uid).unwrap();
        assert!(read(&logs, options()).await.is_err());
    }

    #[tokio::test]
    async fn following_sees_what_comes_across_rotations_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Arc::new(Logs::new(dir.path().to_owned()));
        let uid = PodUid::from("u");
        let log = logs.begin(&uid, "c", 0).unwrap();
        write(&log, Stream::Stdout, &["first\n"]);
        let (out, mut chunks) = mpsc::channel(1);
        let follower = tokio::spawn({
            let (logs, uid) = (logs.clone(), uid.clone());
            async move {
                let options = LogOptions { follow: true, ..LogOptions::default() };
                logs.serve(&uid, "c", &options, Missing::default(), out).await
            }
        });
        assert_eq!(chunks.recv().await.unwrap(), "first\n");
        let line = format!("{}\n", "x".repeat(16 * 1024 - 1));
        let enough = FILE_BYTES_MAX as usize / line.len() + 10;
        for _ in 0..enough {
            write(&log, Stream::Stdout, &[&line]);
        }
        write(&log, Stream::Stdout, &["last\n"]);
        assert_eq!(segments(&dir.path().join("u/c/0.log")).len(), 2);
        logs.end(&uid, "c");
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

    #[test]
    fn rotation_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let log = Arc::new(ContainerLog::open_with(path.clone(), 100).unwrap());
        for number in 0..1000 {
            write(&log, Stream::Stdout, &[&format!("line {number}\n")]);
        }
        let segments = segments(&path);
        assert_eq!(segments.len(), FILES_MAX as usize);
        let newest = fs::read_to_string(&path).unwrap() + &fs::read_to_string(rotated(&path, 1)).unwrap();
        assert!(newest.contains("line 999"));
    }
}
