//! What a node is told of the messages that wait for it to know.

use std::{mem, sync::Arc};

use coracle_proto::node::Acknowledged;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Sequences that may wait to be told. A node has far fewer messages in flight.
const WAITING_MAX: usize = 16 * 1024;

/// Of one link.
#[derive(Default)]
pub struct Acknowledgements {
    waiting: Mutex<Acknowledged>,
    wake: Notify,
}

/// One message that waits. Dropped without a word it is to be sent again.
pub struct Ticket {
    /// 0 where the node waits for nothing.
    sequence: u64,
    acknowledgements: Arc<Acknowledgements>,
    done: bool,
}

impl Ticket {
    pub fn new(sequence: u64, acknowledgements: &Arc<Acknowledgements>) -> Self {
        Self { sequence, acknowledgements: acknowledgements.clone(), done: false }
    }

    /// Nothing more is to be done about the message.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.sequence == 0 {
            return;
        }
        let mut waiting = self.acknowledgements.waiting.lock();
        if self.done { &mut waiting.done } else { &mut waiting.again }.push(self.sequence);
        drop(waiting);
        self.acknowledgements.wake.notify_one();
    }
}

impl Acknowledgements {
    /// All that waits, once there is something.
    pub async fn next(&self) -> Acknowledged {
        loop {
            let waiting = mem::take(&mut *self.waiting.lock());
            if !waiting.done.is_empty() || !waiting.again.is_empty() {
                return waiting;
            }
            self.wake.notified().await;
        }
    }

    /// Whether the node sends on although it is not told: such a link is ended.
    pub fn is_full(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.done.len() + waiting.again.len() > WAITING_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_forgotten_is_asked_for_again() {
        let acknowledgements = Arc::<Acknowledgements>::default();
        let ticket = |sequence| Ticket::new(sequence, &acknowledgements);
        ticket(1).done();
        drop(ticket(2));
        drop(ticket(0));
        assert_eq!(acknowledgements.next().await, Acknowledged { done: vec![1], again: vec![2] });
        let (told, ()) = tokio::join!(acknowledgements.next(), async { ticket(3).done() });
        assert_eq!(told.done, [3]);
        (0..=WAITING_MAX as u64).for_each(|sequence| ticket(sequence + 1).done());
        assert!(acknowledgements.is_full());
    }
}
