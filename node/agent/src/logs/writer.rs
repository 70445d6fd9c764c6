//! The thread that writes all logs of a node down: the namespaces in turn, and of each its logs.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use coracle_wasi_host::{refusals::What, shares::Shares};
use parking_lot::{Condvar, Mutex};

use super::write::{BLOCK_BYTES, ContainerLog, Next};

/// Bytes of all logs of a node that wait for the disk, beside the few that each may have in any case. A namespace has at
/// most as many as are free, a pod half of that.
const QUEUES_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Logs that have something to write. Each is in it once, so that their number bounds it.
pub(super) struct WriterQueue {
    ready: Mutex<Ready>,
    changed: Condvar,
    /// Of the bytes that wait in all logs.
    pub blocks: Arc<Shares>,
}

impl Default for WriterQueue {
    fn default() -> Self {
        let blocks = Shares::new(What::LogBlocks, QUEUES_BYTES_MAX / BLOCK_BYTES);
        Self { ready: Mutex::default(), changed: Condvar::default(), blocks }
    }
}

#[derive(Default)]
struct Ready {
    turns: Turns,
    /// What is left is written, and then the thread ends.
    closed: bool,
}

/// Logs by their namespaces, which take turns: however many logs one has to write, another waits for one of them.
#[derive(Default)]
struct Turns {
    /// Of those that have something to write.
    logs: HashMap<Arc<str>, VecDeque<Arc<ContainerLog>>>,
    namespaces: VecDeque<Arc<str>>,
}

impl Turns {
    fn push(&mut self, log: Arc<ContainerLog>) {
        let namespace = log.holder().namespace.clone();
        let logs = self.logs.entry(namespace.clone()).or_default();
        if logs.is_empty() {
            self.namespaces.push_back(namespace);
        }
        logs.push_back(log);
    }

    fn pop(&mut self) -> Option<Arc<ContainerLog>> {
        let namespace = self.namespaces.pop_front()?;
        let logs = self.logs.get_mut(&namespace)?;
        let log = logs.pop_front();
        if logs.is_empty() {
            self.logs.remove(&namespace);
        } else {
            self.namespaces.push_back(namespace);
        }
        log
    }
}

impl WriterQueue {
    pub fn push(&self, log: Arc<ContainerLog>) {
        self.ready.lock().turns.push(log);
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
        // Those whose time has come wait for their turn like all others.
        while let Some(due) = later.first_entry().filter(|first| first.key().0 <= Instant::now()) {
            ready.turns.push(due.remove());
        }
        if let Some(log) = ready.turns.pop() {
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

#[cfg(test)]
mod tests {
    use coracle_wasi_host::{LogSink, shares::Holder};

    use super::*;
    use crate::logs::{
        FILE_BYTES_MAX,
        file::LogFile,
        write::{Stream, StreamSink},
    };

    /// Logs that are written down only where the test does it.
    struct Node {
        dir: tempfile::TempDir,
        queue: Arc<WriterQueue>,
        begun: std::cell::Cell<u32>,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, queue: Arc::default(), begun: std::cell::Cell::new(0) }
        }

        fn log(&self, namespace: &str, pod: u8) -> Arc<ContainerLog> {
            let number = self.begun.replace(self.begun.get() + 1);
            let file = LogFile::open(self.dir.path().join(format!("{number}.log")), FILE_BYTES_MAX).unwrap();
            let holder = Holder { namespace: namespace.into(), pod: Some([10, 128, 0, pod].into()) };
            Arc::new(ContainerLog::new(file, self.queue.clone(), holder))
        }

        /// The log whose turn it is.
        fn next(&self) -> Arc<ContainerLog> {
            next(&self.queue, &mut BTreeMap::new()).unwrap()
        }
    }

    /// Writes until the guest would have to wait.
    fn fill(log: &Arc<ContainerLog>) -> usize {
        let sink = StreamSink::new(log.clone(), Stream::Stdout);
        let line = [[b'x'; 4095].as_slice(), b"\n"].concat();
        while sink.write(&line) > 0 {}
        log.waiting().0
    }

    #[test]
    fn what_waits_in_the_logs_of_a_namespace_leaves_as_much_to_others() {
        const LINE_BYTES: usize = 4096 + 64;
        let node = Node::new();
        let logs: Vec<_> = (0..200).map(|number| node.log("greedy", number / 100)).collect();
        let waiting: Vec<usize> = logs.iter().map(fill).collect();
        let (one_pod, all) = (waiting[..100].iter().sum::<usize>(), waiting.iter().sum::<usize>());
        assert!(all <= QUEUES_BYTES_MAX / 2 + logs.len() * (4096 + LINE_BYTES), "{all}");
        assert!(one_pod <= QUEUES_BYTES_MAX / 3 + 100 * (4096 + LINE_BYTES), "{one_pod}");
        let allocated: usize = logs.iter().map(|log| log.waiting().1).sum();
        assert!(allocated <= all + logs.len() * BLOCK_BYTES, "{allocated} for {all}");
        // Each has a little for certain, and one of another namespace what is usual.
        assert!(waiting.iter().all(|waiting| *waiting >= 4096));
        assert!(fill(&node.log("modest", 100)) >= 256 * 1024);
        for log in &logs {
            log.write_down(Instant::now());
            assert_eq!(log.waiting(), (0, 0), "its room is given back");
            assert!(fill(log) >= 4096);
            log.remove();
        }
        while let Some(log) = node.queue.ready.lock().turns.pop() {
            log.write_down(Instant::now());
        }
        assert_eq!(node.queue.blocks.held(), 0);
    }

    #[test]
    fn a_guest_that_waits_for_a_share_goes_on_when_its_lines_are_written() {
        let node = Node::new();
        let logs: Vec<_> = (0..200).map(|number| node.log("greedy", number)).collect();
        logs.iter().for_each(|log| assert!(fill(log) > 0));
        let last = &logs[199];
        assert!(last.waiting().0 < 16 * 1024);
        let sink = StreamSink::new(last.clone(), Stream::Stderr);
        let woken = Arc::new(Woken::default());
        let waker = std::task::Waker::from(woken.clone());
        let mut context = std::task::Context::from_waker(&waker);
        assert!(sink.poll_ready(&mut context).is_pending());
        last.write_down(Instant::now());
        assert!(woken.0.load(std::sync::atomic::Ordering::SeqCst));
        assert!(sink.poll_ready(&mut context).is_ready());
        assert!(sink.write(b"goes on\n") > 0);
    }

    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicBool);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    #[test]
    fn namespaces_take_turns_and_the_logs_of_each() {
        let node = Node::new();
        let sink = |log: &Arc<ContainerLog>| StreamSink::new(log.clone(), Stream::Stdout);
        let many: Vec<_> = (0..100).map(|number| node.log("greedy", number)).collect();
        many.iter().for_each(|log| assert!(sink(log).write(b"line\n") > 0));
        let few = [node.log("modest", 200), node.log("modest", 201)];
        few.iter().for_each(|log| assert!(sink(log).write(b"line\n") > 0));
        let turns: Vec<_> = (0..102).map(|_| node.next()).collect();
        for (at, expected) in [&many[0], &few[0], &many[1], &few[1], &many[2], &many[3]].iter().enumerate() {
            assert!(Arc::ptr_eq(&turns[at], expected), "turn {at}");
        }
        assert!(node.queue.ready.lock().turns.logs.is_empty());
        // So do those that a failed write made wait.
        let due = Instant::now();
        let mut later: BTreeMap<_, _> =
            many.iter().zip(0..).map(|(log, n)| ((due, n), log.clone())).collect();
        node.queue.push(few[0].clone());
        next(&node.queue, &mut later).unwrap();
        assert!(later.is_empty());
        assert!(Arc::ptr_eq(&many[0], &node.next()));
    }
}
