//! The index from which on a read is linearizable.

use std::{future::Future, sync::Weak};

use coracle_api::Unavailable;
use coracle_member::{
    reads::READ_TIMEOUT,
    retry::{Ask, Place},
};
use coracle_proto::cluster::ReadIndexRequest;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Shared,
    leadership::{moved, wait_for_news},
};
use crate::forwarding::{FORWARD_TIMEOUT, leader_client};

/// Where a waiting reader is told its index.
pub type ReadReply = oneshot::Sender<Result<u64, Unavailable>>;

/// Somebody who asks for a read index, until it has one or goes away: then those that came meanwhile have their turn.
pub struct Asking<'a>(pub &'a Shared);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let due = self.0.readers.lock().ended();
        self.0.ring_if(due);
    }
}

impl Shared {
    /// Wakes [`serve_reads`].
    pub fn ring_if(&self, due: bool) {
        if due {
            // One that has been rung already is enough.
            let _ = self.readers_bell.try_send(());
        }
    }
}

/// Gives waiting readers their index.
pub async fn serve_reads(shared: Weak<Shared>, mut rung: mpsc::Receiver<()>) {
    while rung.recv().await.is_some() {
        let Some(shared) = shared.upgrade() else { return };
        loop {
            let Some(readers) = shared.readers.lock().next_round() else { break };
            let _asking = Asking(&shared);
            let index = read_index(&shared).await;
            for reader in readers {
                let _ = reader.send(index.clone());
            }
        }
    }
}

pub async fn read_index(shared: &Shared) -> Result<u64, Unavailable> {
    let begun = Instant::now();
    let deadline = begun + READ_TIMEOUT;
    let mut ask = Ask::new(shared.member, READ_TIMEOUT);
    let mut leading = shared.raft.leading();
    loop {
        let seen = *leading.borrow_and_update();
        let Some(place) = ask.begin(begun.elapsed(), seen.leader).map_err(Unavailable)? else {
            wait_for_news(&leading, seen, deadline).await;
            continue;
        };
        let tried = async {
            match place {
                Place::Here => shared.raft.read_index().await.map_err(|error| error.to_string()),
                Place::There(leader) => read_index_there(shared, leader).await,
            }
        };
        tokio::select! {
            biased;
            tried = tried => match tried {
                Ok(index) => return Ok(index),
                Err(why) => ask.failed(why),
            },
            () = moved(leading.clone(), seen) => ask.moved(),
        }
        wait_for_news(&leading, seen, deadline).await;
    }
}

fn read_index_there(shared: &Shared, leader: u64) -> impl Future<Output = Result<u64, String>> + Send {
    let channel = shared.peers.channel(leader);
    async move {
        let channel =
            channel.ok_or_else(|| format!("the address of the leader, member {leader}, is not known"))?;
        let mut client = leader_client(channel);
        match timeout(FORWARD_TIMEOUT, client.read_index(ReadIndexRequest {})).await {
            Ok(Ok(response)) => Ok(response.into_inner().index),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err(format!("the leader, member {leader}, did not answer in time")),
        }
    }
}
