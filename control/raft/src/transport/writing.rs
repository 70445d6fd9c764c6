//! A snapshot that arrives is written by threads that may wait for the disk: on those of the network everybody else's
//! messages would wait with it.

use std::io;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::SnapshotSink;

/// See the module.
pub struct Writing {
    /// None where it was lost with a thread that panicked: it has told so itself.
    sink: Option<Box<dyn SnapshotSink>>,
}

impl Writing {
    pub fn new(sink: Box<dyn SnapshotSink>) -> Self {
        Self { sink: Some(sink) }
    }

    pub fn offset(&self) -> u64 {
        self.sink.as_ref().map_or(0, |sink| sink.offset())
    }

    pub fn is_wanted(&self) -> bool {
        self.sink.as_ref().is_some_and(|sink| sink.is_wanted())
    }

    /// Returns once the bytes are written. Dropped before, it loses the sink.
    pub async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut sink = self.sink.take().ok_or_else(|| io::Error::other("its file is lost"))?;
        let written = spawn_blocking(move || {
            let written = sink.write(&bytes);
            (sink, written)
        });
        let (sink, written) = written.await.map_err(io::Error::other)?;
        self.sink = Some(sink);
        written
    }

    /// Does not wait for what the sink does then.
    pub fn end(self, arrived: Result<(), String>) {
        if let Some(sink) = self.sink {
            spawn_blocking(move || sink.end(arrived));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A disk that takes bytes when it is told to.
    struct Slow {
        go_on: Receiver<()>,
        ended: Sender<(u64, bool)>,
        bytes: u64,
    }

    impl SnapshotSink for Slow {
        fn offset(&self) -> u64 {
            self.bytes
        }

        fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.go_on.recv().map_err(io::Error::other)?;
            self.bytes += bytes.len() as u64;
            Ok(())
        }

        fn end(self: Box<Self>, arrived: Result<(), String>) {
            self.ended.send((self.bytes, arrived.is_ok())).expect("the test waits");
        }
    }

    #[tokio::test]
    async fn a_slow_disk_holds_up_no_messages() {
        let ((disk, go_on), (ended, end)) = (channel(), channel());
        let mut writing = Writing::new(Box::new(Slow { go_on, ended, bytes: 0 }));
        for part in 1..=3 {
            // On the thread of this runtime the disk would be waited for for ever.
            let (written, told) =
                tokio::join!(writing.write(Bytes::from_static(&[7; 10])), async { disk.send(()) });
            written.expect("it is written");
            told.expect("the disk is there");
            assert_eq!(writing.offset(), part * 10);
        }
        drop(disk);
        writing.write(Bytes::from_static(&[7])).await.expect_err("the disk is gone");
        assert!(writing.is_wanted());
        writing.end(Ok(()));
        let ended = spawn_blocking(move || end.recv()).await.expect("it runs");
        assert_eq!(ended, Ok((30, true)));
    }
}
