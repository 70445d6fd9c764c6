//! The thread that writes all logs of a node down, each in its turn.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use parking_lot::{Condvar, Mutex};

use super::write::{ContainerLog, Next};

/// Logs that have something to write. Each is in it once, so that their number bounds it.
#[derive(Default)]
pub(super) struct WriterQueue {
    ready: Mutex<Ready>,
    changed: Condvar,
}

#[derive(Default)]
struct Ready {
    logs: VecDeque<Arc<ContainerLog>>,
    /// What is left is written, and then the thread ends.
    closed: bool,
}

impl WriterQueue {
    pub fn push(&self, log: Arc<ContainerLog>) {
        self.ready.lock().logs.push_back(log);
        self.changed.notify_one();
    }
}

pub(super) struct Writer {
    queue: Arc<WriterQueue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub fn start() -> io::Result<Self> {
        let queue = Arc::new(WriterQueue::default());
        let own = queue.clone();
        let thread = thread::Builder::new().name("container-logs".to_owned()).spawn(move || run(&own))?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    pub fn queue(&self) -> &Arc<WriterQueue> {
        &self.queue
    }

    /// Returns once everything that waits is written down, as far as the disk takes it.
    pub fn close(&self) {
        self.stop();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes logs has failed");
        }
    }

    fn stop(&self) {
        self.queue.ready.lock().closed = true;
        self.queue.changed.notify_one();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(queue: &WriterQueue) {
    // Logs whose disk takes nothing, by the time of their next try.
    let mut later: BTreeMap<(Instant, u64), Arc<ContainerLog>> = BTreeMap::new();
    let mut number = 0;
    while let Some(log) = next(queue, &mut later) {
        match log.write_down(Instant::now()) {
            Next::Idle => {}
            Next::Now => queue.push(log),
            Next::At(at) => {
                number += 1;
                later.insert((at, number), log);
            }
        }
    }
}

/// The log whose turn it is; `None` once the node stops and nothing is left that could be written.
fn next(
    queue: &WriterQueue,
    later: &mut BTreeMap<(Instant, u64), Arc<ContainerLog>>,
) -> Option<Arc<ContainerLog>> {
    let mut ready = queue.ready.lock();
    loop {
        if let Some(due) = later.first_entry().filter(|first| first.key().0 <= Instant::now()) {
            return Some(due.remove());
        }
        if let Some(log) = ready.logs.pop_front() {
            return Some(log);
        }
        if ready.closed {
            return None;
        }
        match later.first_key_value() {
            Some(((at, _), _)) => {
                queue.changed.wait_until(&mut ready, *at);
            }
            None => queue.changed.wait(&mut ready),
        }
    }
}
