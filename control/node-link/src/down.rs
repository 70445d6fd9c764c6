//! What waits for one node to take it: so many messages, and so many bytes. A node that takes nothing costs no more, and
//! only its own session waits for it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use coracle_proto::node::{NodeDown, node_down::Body};
use futures::Stream;
use prost::Message;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tonic::Status;

/// Messages to one node that may wait; the session waits when there are so many.
const MESSAGES_MAX: usize = 256;

/// Their bytes. More than the largest message: what a user sizes is an object, of at most 1.5 MiB.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a message costs beside its own bytes, about.
const MESSAGE_BYTES: usize = 256;

/// A message with its share of the bytes that may wait.
struct Waiting {
    message: Result<NodeDown, Status>,
    _room: OwnedSemaphorePermit,
}

/// To one node.
#[derive(Clone)]
pub struct Down {
    waiting: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// As [`Down`], without keeping the link open.
pub struct WeakDown {
    waiting: mpsc::WeakSender<Waiting>,
    room: Arc<Semaphore>,
}

/// What the node is sent, in order.
pub struct Messages {
    waiting: mpsc::Receiver<Waiting>,
    room: Arc<Semaphore>,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// The node has gone away.
    Gone,
    /// It has not taken enough of what waits.
    Full,
}

/// For one link.
pub fn channel() -> (Down, Messages) {
    channel_of(MESSAGES_MAX)
}

/// One in which so many messages may wait.
pub fn channel_of(messages_max: usize) -> (Down, Messages) {
    let (sender, receiver) = mpsc::channel(messages_max);
    let room = Arc::new(Semaphore::new(BYTES_MAX));
    (Down { waiting: sender, room: room.clone() }, Messages { waiting: receiver, room })
}

impl Down {
    /// Waits until there is room.
    pub async fn send(&self, body: Body) -> Result<(), Unsent> {
        self.give(message(body)).await
    }

    /// As [`Self::send`], for no longer than this.
    pub async fn send_within(&self, body: Body, patience: Duration) -> Result<(), Unsent> {
        timeout(patience, self.send(body)).await.unwrap_or(Err(Unsent::Full))
    }

    /// Ends the link with a reason, which may wait so long for a node that does not read.
    pub async fn end(&self, reason: Status, patience: Duration) -> Result<(), Unsent> {
        timeout(patience, self.give(Err(reason))).await.unwrap_or(Err(Unsent::Full))
    }

    /// Does not wait.
    pub fn try_send(&self, body: Body) -> Result<(), Unsent> {
        let message = message(body);
        let room = self.room.clone().try_acquire_many_owned(bytes(&message)).map_err(|_| Unsent::Full)?;
        self.waiting.try_send(Waiting { message, _room: room }).map_err(|_| Unsent::Full)
    }

    pub fn downgrade(&self) -> WeakDown {
        WeakDown { waiting: self.waiting.downgrade(), room: self.room.clone() }
    }

    async fn give(&self, message: Result<NodeDown, Status>) -> Result<(), Unsent> {
        let room = self.room.clone().acquire_many_owned(bytes(&message)).await;
        let room = room.map_err(|_| Unsent::Gone)?;
        self.waiting.send(Waiting { message, _room: room }).await.map_err(|_| Unsent::Gone)
    }
}

impl WeakDown {
    /// None once the link has ended.
    pub fn upgrade(&self) -> Option<Down> {
        Some(Down { waiting: self.waiting.upgrade()?, room: self.room.clone() })
    }
}

impl Stream for Messages {
    type Item = Result<NodeDown, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.waiting.poll_recv(context).map(|waiting| waiting.map(|waiting| waiting.message))
    }
}

impl Drop for Messages {
    /// Whoever waits for room waits in vain.
    fn drop(&mut self) {
        self.room.close();
    }
}

fn message(body: Body) -> Result<NodeDown, Status> {
    Ok(NodeDown { body: Some(body) })
}

/// One that is larger than all that may wait travels alone.
fn bytes(message: &Result<NodeDown, Status>) -> u32 {
    let own = match message {
        Ok(message) => message.encoded_len(),
        Err(status) => status.message().len(),
    };
    (MESSAGE_BYTES + own).min(BYTES_MAX) as u32
}

#[cfg(test)]
mod tests {
    use coracle_proto::node::{ObjectEvent, Synced};
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn large(bytes: usize) -> Body {
        Body::Object(ObjectEvent { object_json: vec![b'x'; bytes].into(), ..ObjectEvent::default() })
    }

    /// How many of these are taken while the node takes nothing.
    fn taken(down: &Down, body: impl Fn() -> Body) -> usize {
        let send = || tokio::task::unconstrained(down.send(body())).now_or_never();
        (0..10_000).take_while(|_| send() == Some(Ok(()))).count()
    }

    #[tokio::test]
    async fn what_waits_for_a_node_has_a_bound_in_bytes() {
        let (down, mut messages) = channel();
        assert_eq!(taken(&down, || large(1_500_000)), 2);
        assert_eq!(down.try_send(large(1_500_000)), Err(Unsent::Full));
        // There is room again once the node has taken something, and one that is too large comes alone.
        let mut third = Box::pin(down.send(large(2 * BYTES_MAX)));
        assert!(third.as_mut().now_or_never().is_none());
        messages.next().await.unwrap().unwrap();
        assert!(third.as_mut().now_or_never().is_none());
        messages.next().await.unwrap().unwrap();
        assert_eq!(third.await, Ok(()));
        messages.next().await.unwrap().unwrap();
        // Small ones are bounded by their number.
        assert_eq!(taken(&down, || Body::Synced(Synced { revision: 1 })), MESSAGES_MAX);
    }

    #[tokio::test]
    async fn who_waits_for_a_node_that_goes_away_is_told() {
        let (down, messages) = channel();
        let weak = down.downgrade();
        taken(&down, || large(1_500_000));
        let (unsent, ()) = tokio::join!(down.send(large(1_500_000)), async { drop(messages) });
        assert_eq!(unsent, Err(Unsent::Gone));
        assert!(weak.upgrade().is_some());
        drop(down);
        assert!(weak.upgrade().is_none(), "a weak one keeps nothing");
    }
}
