//! The apply thread: owns the state machine, applies what is committed, and tells the proposers.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use tokio::sync::watch;

use super::StateMachine;
use super::raft_thread::Reply;
use super::shared::Waker;
use crate::error::{Error, ProposeError};

/// One committed entry, and who proposed it.
pub struct ApplyItem<O> {
    pub index: u64,
    pub term: u64,
    /// Empty where the entry is raft's own.
    pub data: Bytes,
    pub reply: Option<Reply<O, ProposeError>>,
}

/// How many rounds' entries share one publication of the state.
const ROUNDS_TOGETHER_MAX: usize = 64;

pub struct ApplyThread<M: StateMachine> {
    machine: M,
    queue: Receiver<Vec<ApplyItem<M::Output>>>,
    applied: watch::Sender<u64>,
    waker: Waker<M::Output>,
}

impl<M: StateMachine> ApplyThread<M> {
    pub fn new(
        machine: M,
        queue: Receiver<Vec<ApplyItem<M::Output>>>,
        applied: watch::Sender<u64>,
        waker: Waker<M::Output>,
    ) -> ApplyThread<M> {
        ApplyThread { machine, queue, applied, waker }
    }

    pub fn run(mut self) -> Result<(), Error> {
        let mut replies = Vec::new();
        while let Ok(first) = self.queue.recv() {
            let mut last = 0;
            let more = self.queue.try_iter().take(ROUNDS_TOGETHER_MAX - 1);
            for item in std::iter::once(first).chain(more).flatten() {
                last = item.index;
                if item.data.is_empty() {
                    continue;
                }
                let output = self.machine.apply(item.index, item.term, &item.data);
                if let Some(reply) = item.reply {
                    replies.push((reply, output));
                }
            }
            self.machine.applied_batch(last);
            // The new state is public before anybody is told of it: a proposer reads its own write.
            self.applied.send_replace(last);
            for (reply, output) in replies.drain(..) {
                // A proposer that has gone away does not want to know.
                let _ = reply.send(Ok(output));
            }
            self.waker.shared.applied.store(last, Ordering::SeqCst);
            self.waker.wake();
        }
        Ok(())
    }
}
