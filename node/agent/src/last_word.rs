//! What a container leaves as the message of its end.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use coracle_core::message::{MESSAGE_BYTES_MAX, MessagePlan};
use coracle_wasi_host::shares::Holder;
use rustix::fs::{Mode, OFlags};

use crate::volumes::beneath;

/// Where the message of one attempt will be.
#[derive(Debug)]
pub struct LastWord {
    /// The volume's directory and the path in it.
    file: Option<(PathBuf, String)>,
    /// The file as an earlier attempt left it: that one's word.
    earlier: Option<Stamp>,
    falls_back_to_logs: bool,
    /// On whose account it is read.
    pub holder: Holder,
}

/// What changes whenever a file is written.
type Stamp = (u64, u64, i64, i64);

impl LastWord {
    /// Of an attempt that is about to start, in a pod whose volumes lie in `dir`. Blocks.
    pub fn before(dir: &Path, plan: MessagePlan, holder: Holder) -> Self {
        let file = plan.file.map(|(volume, path)| (dir.join(volume), path));
        let opened = file.as_ref().and_then(|(volume, path)| open(volume, path).ok());
        let earlier = opened.map(|(_, stamp)| stamp);
        Self { file, earlier, falls_back_to_logs: plan.falls_back_to_logs, holder }
    }

    /// The message, or an empty one. `log` is the end of the attempt's log. Blocks.
    pub fn read(&self, has_failed: bool, log: impl FnOnce() -> io::Result<String>) -> String {
        let message = self.file.as_ref().and_then(|(volume, path)| match open(volume, path) {
            Ok((_, stamp)) if self.earlier == Some(stamp) => None,
            Ok((file, _)) => end_of(file).ok(),
            Err(_) => None,
        });
        let message = message.unwrap_or_default();
        if message.is_empty() && has_failed && self.falls_back_to_logs {
            return log().unwrap_or_default();
        }
        message
    }
}

/// Guests may have put anything there, and links: a regular file within the volume is what is read, and nothing is waited for.
fn open(volume: &Path, path: &str) -> io::Result<(File, Stamp)> {
    let root = File::open(volume)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat2(&root, path, flags, Mode::empty(), beneath())?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((file, (found.ino(), found.len(), found.ctime(), found.ctime_nsec())))
}

/// The last bytes of a file.
fn end_of(mut file: File) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MESSAGE_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn of(dir: &Path, falls_back_to_logs: bool) -> LastWord {
        let file = Some(("v".to_owned(), "why".to_owned()));
        let holder = Holder { namespace: "d".into(), pod: None };
        LastWord::before(dir, MessagePlan { file, falls_back_to_logs }, holder)
    }

    fn log() -> io::Result<String> {
        Ok("the log".to_owned())
    }

    #[test]
    fn the_word_is_this_attempts_and_the_log_speaks_where_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("v")).unwrap();
        let (first, path) = (of(dir.path(), true), dir.path().join("v/why"));
        assert_eq!(first.read(true, log), "the log");
        assert_eq!(first.read(false, log), "", "it has not failed");
        fs::write(&path, "out of luck").unwrap();
        assert_eq!(first.read(true, log), "out of luck");
        assert_eq!(of(dir.path(), false).read(true, log), "", "that was the attempt before");
        let third = of(dir.path(), true);
        fs::write(&path, format!("{}end", "x".repeat(10_000))).unwrap();
        let said = third.read(true, log);
        assert!(said.len() == 4096 && said.ends_with("xend"));
        fs::write(&path, "").unwrap();
        assert_eq!(third.read(true, log), "the log");
    }

    #[test]
    fn nothing_but_a_file_of_the_volume_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("v")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let (word, path) = (of(dir.path(), false), dir.path().join("v/why"));
        symlink("../secret", &path).unwrap();
        assert_eq!(word.read(true, log), "");
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(word.read(true, log), "", "and nobody is waited for");
    }
}
